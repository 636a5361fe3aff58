/**
 * Run by heap.test.ts with --expose-gc: bytes of heap for small frames from nic to nic, through the ports of the process and the engine.
 * The nics are sockets that keep frames apart (`tap`, `dgram`), filled and emptied by a ring too, or guests' memory (`vhost-user`): nothing of it
 * allocates. Prints JSON.
 */

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { getHeapStatistics } from 'node:v8'
import { Backlog } from '../../src/dataplane/backlog.ts'
import { BURST, Burst } from '../../src/dataplane/burst.ts'
import { DgramPort } from '../../src/dataplane/dgram.ts'
import { DataPlaneHost } from '../../src/dataplane/host.ts'
import { type Nic, TapPort } from '../../src/dataplane/ports.ts'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { TurnEnd } from '../../src/dataplane/turn-end.ts'
import { headerScratch, VhostPort } from '../../src/dataplane/vhost/port.ts'
import { Arena, VNET } from '../../src/netstack/arena.ts'
import { Network } from '../../src/netstack/network.ts'
import { ROLE } from '../../src/netstack/switch/port.ts'
import { SoftwareOffload } from '../../src/netstack/switch/segment.ts'
import { signalEvent } from '../../src/sys/memory.ts'
import { socketpair } from '../../src/sys/scm.ts'
import {
  AF_UNIX,
  bind,
  listen,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_SEQPACKET,
  SOCK_STREAM,
  socket,
} from '../../src/sys/socket.ts'
import { Uring } from '../../src/sys/uring.ts'
import { CONFIG, udp } from '../netstack/net.ts'
import { Driver, GUEST, HEADER, WRITE } from './vhost/driver.ts'

const FRAMES = 200_000
/** A compiler that a busy machine made late allocates a megabyte in one of these; what a frame costs is in each. */
const TRIES = 3

const arena = new Arena(new ArrayBuffer(64 << 20))
const reactor = new Reactor(1024)
const host = new DataPlaneHost(reactor, arena, () => {}, { peekOffset: [true, true] })
const network = new Network(host, CONFIG)
const burst = Burst.open(arena, host.sockets.base)
const opened = Uring.open(BURST)
if (burst === undefined || typeof opened === 'number') {
  console.log('null')
  process.exit(0)
}
const feed: Uring = opened
feed.base = host.sockets.base
const slot = arena.slot()
const kind = process.argv[2] as 'tap' | 'dgram' | 'vhost-user'
/** The kernel queues no more datagrams than that, unless it was told to. */
const LOT = kind === 'dgram' ? 10 : BURST
const turnEnd = new TurnEnd()
const backlog = new Backlog(arena, 1500)
const headerAt = headerScratch(arena)
const software = new SoftwareOffload(arena)
const dir = mkdtempSync(join(tmpdir(), 'noid-heap-'))
const endOfBurst = (): void => network.flush()
const drivers: Driver[] = []

function open(n: number, far: number[]): Nic {
  const { base } = host.sockets
  if (kind === 'vhost-user') {
    const path = join(dir, `${n}`)
    const fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
    bind(fd, { family: 'unix', path })
    listen(fd, 1)
    drivers.push(new Driver(path))
    const broken = (_i: number, why: string): never => {
      throw new Error(why)
    }
    return new VhostPort({ fd, reactor, arena, base, slot, network, endOfBurst, turnEnd, software, broken }, headerAt)
  }
  const type = kind === 'dgram' ? SOCK_DGRAM : SOCK_SEQPACKET
  const [near, there] = socketpair(type, true) as readonly [number, number]
  far.push(there)
  const options = {
    fds: [near],
    vnetHdr: kind === 'tap',
    reactor,
    arena,
    base,
    slot,
    burst,
    network,
    endOfBurst,
  }
  return kind === 'tap' ? new TapPort(options) : new DgramPort(options, backlog, turnEnd)
}

function nic(n: number): number {
  const far: number[] = []
  const port = open(n, far)
  const id = `vm${n}`
  const mac = `02:00:00:00:00:0${n}`
  const address = `192.168.100.1${n}`
  port.index = network.attach({ id, role: ROLE.vm, name: id, mac, address, bound: true, port })
  port.start()
  return far[0] ?? -1
}
const from = nic(1)
const to = nic(2)

const { bytes } = udp({ to: '192.168.100.12:9', dstMac: '02:00:00:00:00:02', data: new Uint8Array(18) })({
  mac: '02:00:00:00:00:01',
  ip: '192.168.100.11',
})
const frame = arena.alloc(2048) + VNET
arena.bytes.set(bytes, frame)
const room = arena.alloc(2048)
const header = kind === 'tap' ? VNET : 0
const out = frame - header
const length = bytes.length + header

let arrived = 0
let turns = 0

function turn(): void {
  for (let events = reactor.wait(0); events > 0; events = reactor.wait(0)) {
    reactor.dispatch(events)
    turnEnd.run()
    turns++
  }
}

function overSockets(frames: number): void {
  for (let sent = 0; sent < frames; sent += LOT) {
    for (let i = 0; i < LOT; i++) feed.write(from, out, length, i)
    feed.submit()
    while (feed.next()) if (feed.res !== length) throw new Error(`write: ${feed.res}`)
    turn()
    for (let i = 0; i < LOT; i++) feed.read(to, room, 2048, i)
    feed.submit()
    while (feed.next()) if (feed.res === length) arrived++
  }
}

const [one, other] = drivers as [Driver, Driver]
if (kind === 'vhost-user') {
  for (const d of drivers) d.setUp()
  turn()
  for (let i = 0; i < LOT; i++) {
    one.descriptor(1, i, GUEST + 0x10000, HEADER + bytes.length, 0)
    other.descriptor(0, i, GUEST + 0x10000 + i * 2048, 2048, WRITE)
  }
  one.bytes.set(bytes, 0x10000 + HEADER)
}

function overMemory(frames: number): void {
  for (let sent = 0; sent < frames; sent += LOT) {
    const before = other.used(0)
    for (let i = 0; i < LOT; i++) {
      other.offer(0, i)
      one.offer(1, i)
    }
    signalEvent(one.kick[1] as number)
    turn()
    arrived += (other.used(0) - before) & 0xffff
  }
}
const run = kind === 'vhost-user' ? overMemory : overSockets

const allocated = (): number =>
  (getHeapStatistics() as unknown as { total_allocated_bytes: number }).total_allocated_bytes

// Compiled first: what the compiler allocates is not the frames'.
// Words of a guest's memory are BigInts until then.
for (let k = 0; k < 60; k++) run(20_000)
globalThis.gc?.()
arrived = 0
let perTurn = Number.POSITIVE_INFINITY
let framesPerTurn = Number.POSITIVE_INFINITY
for (let n = 0; n < TRIES; n++) {
  turns = 0
  const before = allocated()
  run(FRAMES)
  perTurn = Math.min(perTurn, (allocated() - before) / turns)
  framesPerTurn = Math.min(framesPerTurn, FRAMES / turns)
}
console.log(JSON.stringify({ perTurn, framesPerTurn, arrived: arrived / (TRIES * FRAMES) }))
rmSync(dir, { recursive: true, force: true })
process.exit(0)
