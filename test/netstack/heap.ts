/**
 * Run by heap.test.ts with --expose-gc: how many bytes of heap a million frames cost, VM to VM and by UDP through a host socket, both ways, in
 * both families; and a million names from the cache.
 * Prints JSON: bytes allocated per frame, and nanoseconds per frame for whoever is curious.
 */
import { getHeapStatistics } from 'node:v8'
import * as dns from 'dns-packet'
import { VNET } from '../../src/netstack/arena.ts'
import { EAGAIN, READABLE } from '../../src/netstack/host.ts'
import { Network } from '../../src/netstack/network.ts'
import { ROLE } from '../../src/netstack/switch/port.ts'
import { be16 } from '../../src/netstack/wire/bytes.ts'
import { MemoryHost } from './memory-host.ts'
import { CONFIG, IPV6, ipv4, tcp, udp } from './net.ts'

const FRAMES = 1_000_000
/** A compiler that a busy machine made late allocates a megabyte in one of these; what a frame costs is in each. */
const TRIES = 3

/** Takes and gives datagrams without remembering them. */
class FastHost extends MemoryHost {
  waiting = 0
  /** The id of what was sent last. */
  id = 0
  reply: Uint8Array | undefined
  override udpSend(_sock: number, off: number, len: number): number {
    this.id = be16(this.arena.bytes, off)
    return len
  }
  override udpRecv(_sock: number, off: number): number {
    this.segment = 0
    if (this.waiting-- <= 0) return -EAGAIN
    if (this.reply === undefined) return 100
    this.arena.bytes.set(this.reply, off)
    return this.reply.length
  }
}

const host = new FastHost()
const network = new Network(host, { ...CONFIG, ipv6: IPV6 })
let sent = 0
const sink = {
  offload: true,
  transmit: (_off: number, len: number) => {
    sent++
    return len
  },
  flush: () => {},
}
const attach = (n: number) =>
  network.attach({
    id: `vm${n}`,
    role: ROLE.vm,
    name: `vm${n}`,
    mac: `02:00:00:00:00:0${n}`,
    address: `192.168.100.1${n}`,
    address6: `fd00:6::1${n}`,
    bound: true,
    port: sink,
  })
const from = attach(1)
attach(2)
const slot = host.arena.slot()
const self = { mac: '02:00:00:00:00:01', ip: '192.168.100.11', ip6: 'fd00:6::11' }

function load(bytes: Uint8Array): number {
  host.arena.bytes.set(bytes, slot)
  host.arena.bytes.fill(0, slot - VNET, slot)
  return bytes.length
}

const allocated = (): number =>
  (getHeapStatistics() as unknown as { total_allocated_bytes: number }).total_allocated_bytes

function measure(run: (n: number) => void): { bytes: number; ns: number } {
  // Compiled first: what the compiler allocates is not the frames'.
  for (let k = 0; k < 20; k++) run(20_000)
  globalThis.gc?.()
  let bytes = Number.POSITIVE_INFINITY
  let ns = Number.POSITIVE_INFINITY
  for (let n = 0; n < TRIES; n++) {
    const before = allocated()
    const start = process.hrtime.bigint()
    run(FRAMES)
    ns = Math.min(ns, Number(process.hrtime.bigint() - start) / FRAMES)
    bytes = Math.min(bytes, (allocated() - before) / FRAMES)
  }
  return { bytes, ns: Math.round(ns) }
}

const vmToVm = load(
  tcp({ to: '192.168.100.12:80', dstMac: '02:00:00:00:00:02', flags: 16, data: new Uint8Array(100) })(self).bytes,
)
const switched = measure((n) => {
  for (let i = 0; i < n; i++) network.receive(from, slot, vmToVm)
})

const out = load(udp({ to: '8.8.8.8:9000', data: new Uint8Array(100) })(self).bytes)
network.receive(from, slot, out)
const sock = host.open('udp')[0]
const udpOut = measure((n) => {
  for (let i = 0; i < n; i++) network.receive(from, slot, out)
})
const udpIn = measure((n) => {
  for (let i = 0; i < n; i += 50) {
    host.waiting = 50
    network.ready(sock.ref, READABLE)
  }
})

// What is refused must be as cheap.
const spoofed = load(ipv4(self, '10.0.0.1', '8.8.8.8', 17, new Uint8Array(16), {}))
const refused = measure((n) => {
  for (let i = 0; i < n; i++) network.receive(from, slot, spoofed)
})

// The same in IPv6.
const vmToVm6 = load(
  tcp({ to: '[fd00:6::12]:80', dstMac: '02:00:00:00:00:02', flags: 16, data: new Uint8Array(100) })(self).bytes,
)
const switched6 = measure((n) => {
  for (let i = 0; i < n; i++) network.receive(from, slot, vmToVm6)
})
const out6 = load(udp({ to: '[2001:db8::8]:9000', data: new Uint8Array(100) })(self).bytes)
network.receive(from, slot, out6)
const sock6 = host.open('udp')[1]
const udpOut6 = measure((n) => {
  for (let i = 0; i < n; i++) network.receive(from, slot, out6)
})
const udpIn6 = measure((n) => {
  for (let i = 0; i < n; i += 50) {
    host.waiting = 50
    network.ready(sock6.ref, READABLE)
  }
})
const spoofed6 = load(udp({ from: '[fd00:6::12]:1', to: '[2001:db8::8]:9000', data: new Uint8Array(16) })(self).bytes)
const refused6 = measure((n) => {
  for (let i = 0; i < n; i++) network.receive(from, slot, spoofed6)
})

// A name that was asked for once, from the cache.
network.setResolvers(['10.0.0.53'])
const questions = [{ type: 'A', name: 'example.com' }] as const
const asked = dns.encode({ type: 'query', id: 99, flags: dns.RECURSION_DESIRED, questions: [...questions] })
const name = load(udp({ to: '192.168.100.2:53', data: asked })(self).bytes)
network.receive(from, slot, name)
const answers = [{ type: 'A', name: 'example.com', ttl: 86_400, data: '192.0.2.1' }] as const
const flags = dns.RECURSION_DESIRED | dns.RECURSION_AVAILABLE
host.reply = dns.encode({ type: 'response', id: host.id, flags, questions: [...questions], answers: [...answers] })
host.waiting = 1
network.ready(host.open('udp').at(-1)?.ref as number, READABLE)
const before = sent
const named = measure((n) => {
  for (let i = 0; i < n; i++) {
    network.receive(from, slot, name)
    network.flush()
  }
})
if (sent - before < FRAMES) throw new Error(`${sent - before} answers`)

console.log(JSON.stringify({ switched, udpOut, udpIn, refused, switched6, udpOut6, udpIn6, refused6, named }))
