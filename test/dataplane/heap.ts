/**
 * Run by heap.test.ts with --expose-gc: bytes of heap for small frames from nic to nic, through the ports of the process and the engine.
 * The nics are sockets that keep frames apart; they are filled and emptied by a ring too, which allocates nothing. Prints JSON.
 */
import { getHeapStatistics } from 'node:v8'
import { BURST, Burst } from '../../src/dataplane/burst.ts'
import { DataPlaneHost } from '../../src/dataplane/host.ts'
import { TapPort } from '../../src/dataplane/ports.ts'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { Arena, VNET } from '../../src/netstack/arena.ts'
import { Network } from '../../src/netstack/network.ts'
import { ROLE } from '../../src/netstack/switch/port.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { SOCK_SEQPACKET } from '../../src/sys/socket.ts'
import { Uring } from '../../src/sys/uring.ts'
import { CONFIG, udp } from '../netstack/net.ts'

const FRAMES = 200_000

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

function nic(n: number): number {
  const [near, far] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
  const port = new TapPort({
    fds: [near],
    vnetHdr: true,
    reactor,
    arena,
    base: host.sockets.base,
    slot,
    burst,
    network,
    endOfBurst: () => network.flush(),
  })
  const id = `vm${n}`
  const mac = `02:00:00:00:00:0${n}`
  const address = `192.168.100.1${n}`
  port.index = network.attach({ id, role: ROLE.vm, name: id, mac, address, bound: true, port })
  port.start()
  return far
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
const out = frame - VNET
const length = bytes.length + VNET

let arrived = 0
let turns = 0
function run(frames: number): void {
  for (let sent = 0; sent < frames; sent += BURST) {
    for (let i = 0; i < BURST; i++) feed.write(from, out, length, i)
    feed.submit()
    while (feed.next()) if (feed.res !== length) throw new Error(`write: ${feed.res}`)
    for (let events = reactor.wait(0); events > 0; events = reactor.wait(0)) {
      reactor.dispatch(events)
      turns++
    }
    for (let i = 0; i < BURST; i++) feed.read(to, room, 2048, i)
    feed.submit()
    while (feed.next()) if (feed.res === length) arrived++
  }
}

const allocated = (): number =>
  (getHeapStatistics() as unknown as { total_allocated_bytes: number }).total_allocated_bytes

// Compiled first: what the compiler allocates is not the frames'.
for (let k = 0; k < 10; k++) run(20_000)
globalThis.gc?.()
arrived = turns = 0
const before = allocated()
run(FRAMES)
console.log(
  JSON.stringify({ perTurn: (allocated() - before) / turns, framesPerTurn: FRAMES / turns, arrived: arrived / FRAMES }),
)
process.exit(0)
