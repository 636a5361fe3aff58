/**
 * A world for the TCP relay alone: simulated clock, memory host, an impaired link each way, guests.
 *
 * What network.ts does for the relay (lookup, policy, egress, timers, end of burst) is done here in the plainest way.
 * On the links are always IPv4 packets; with `family: 6` the relay sees each as its IPv6 counterpart, damage and all.
 */
import { Arena, VNET } from '../../src/netstack/arena.ts'
import { DEFAULT_LIMITS, type Limits } from '../../src/netstack/flow/context.ts'
import { FlowTable, IN, MAPPED, OUT, TCP } from '../../src/netstack/flow/table.ts'
import { Frame } from '../../src/netstack/frame.ts'
import type { Egress } from '../../src/netstack/gateway/egress.ts'
import { codeOf, typeOf } from '../../src/netstack/gateway/say.ts'
import type { StreamService } from '../../src/netstack/gateway/service.ts'
import type { TcpContext } from '../../src/netstack/tcp/context.ts'
import { LocalStreams } from '../../src/netstack/tcp/local.ts'
import { TcpRelay } from '../../src/netstack/tcp/relay.ts'
import { Timers } from '../../src/netstack/timers.ts'
import { Drops } from '../../src/netstack/trace/drops.ts'
import { Address } from '../../src/netstack/wire/address.ts'
import { Clock } from './clock.ts'
import { buildSegment, Guest, type GuestOptions, parseSegment } from './guest.ts'
import { type Impairment, Link, type Packet, tcpChecksum } from './link.ts'
import { MemoryHost, type Remote } from './memory-host.ts'
import { Random } from './random.ts'
import { Stream } from './stream.ts'

export const GUEST = (192 << 24) | (168 << 16) | (100 << 8) | 100
export const PEER = (10 << 24) | 7
const ETHERNET = 14
const IPV4 = 20
const RST = 4
const ACK = 16

export interface IcmpSeen {
  readonly type: number
  readonly code: number
}

export class World {
  readonly clock = new Clock()
  readonly random: Random
  readonly arena = new Arena(new ArrayBuffer(8 << 20))
  readonly host: MemoryHost
  readonly flows: FlowTable
  readonly drops: Drops
  readonly relay: TcpRelay
  readonly streams: LocalStreams
  readonly timers: Timers
  readonly icmp: IcmpSeen[] = []
  /** Segments the relay sent, before the link; tests may look. */
  onSent: (p: Packet) => void = () => {}
  /** Where the guest's end of the link leads. */
  toGuest: (p: Packet) => void = () => {}
  readonly down: Link
  readonly up: Link
  /** The switch port takes no frame for now. */
  portFull = false
  readonly #frame = new Frame()
  readonly #rx: number
  readonly #tx: number
  readonly #far: number
  #wakeAt = Infinity
  readonly #again = new Set<number>()
  readonly #six: boolean
  #arrived: Uint8Array = new Uint8Array(0)

  constructor(
    seed: number,
    is: {
      up?: Impairment
      down?: Impairment
      limits?: Partial<Limits>
      next?: () => Remote
      family?: 4 | 6
      listen?: { readonly address: number; readonly l4port: number; readonly service: StreamService }
    } = {},
  ) {
    this.random = new Random(seed)
    this.#six = is.family === 6
    const limits = { ...DEFAULT_LIMITS, flows: 64, ports: 4, ...is.limits }
    this.host = new MemoryHost(this.arena, this.clock, this.random, is.next ?? (() => remote({})))
    this.flows = new FlowTable(limits.flows, limits.ports, seed)
    this.timers = new Timers(limits.flows)
    this.drops = new Drops(limits.ports)
    this.#rx = this.arena.slot()
    this.#tx = this.arena.slot()
    this.#far = this.arena.alloc(16)
    this.down = new Link(this.clock, this.random, is.down ?? {}, (p) => this.toGuest(p))
    this.up = new Link(this.clock, this.random, is.up ?? {}, (p) => this.#arrive(p))
    this.streams = new LocalStreams(this.host, (ref) => this.flows.port[ref])
    if (is.listen) this.streams.listen(new Address().set4(is.listen.address), is.listen.l4port, is.listen.service)
    const x: TcpContext = {
      host: this.streams,
      arena: this.arena,
      flows: this.flows,
      timers: this.timers,
      egress: this.#egress(),
      drops: this.drops,
      limits,
      mtu: 1500,
      ref: (i) => i,
      far: (i) => {
        const v = new DataView(this.arena.bytes.buffer)
        v.setInt32(this.#far + 8, this.flows.far2[i])
        v.setInt32(this.#far + 12, this.flows.far3[i])
        return this.#far
      },
    }
    this.relay = new TcpRelay(x)
    this.host.onReady = (ref, events) => this.#ready(ref, events)
  }

  #ready(i: number, events: number): void {
    if (this.relay.ready(i, events) && !this.#again.has(i)) {
      this.#again.add(i)
      this.clock.after(0.01, () => {
        this.#again.delete(i)
        if (this.flows.inUse(i)) this.#ready(i, 0)
      })
    }
    this.turn()
  }

  /** There is always something else to do. */
  busy = false
  /** The end of a turn: what the reactor does before it sleeps. */
  turn(): void {
    this.streams.turn((ref, events) => this.relay.ready(ref, events))
    if (!this.busy) this.relay.flush()
    const at = this.timers.nextWake()
    if (at >= this.#wakeAt) return
    this.#wakeAt = at
    this.clock.at(Math.ceil(at), () => {
      if (this.#wakeAt !== at) return
      this.#wakeAt = Infinity
      this.timers.advance(this.host.now(), (i) => this.relay.expire(i))
      this.turn()
    })
  }

  #egress(): Egress {
    const at = this.#tx + ETHERNET + IPV4
    const emit = (i: number, len: number, gsoSize: number): number => {
      if (this.portFull) return -11
      const bytes = new Uint8Array(IPV4 + len)
      const v = new DataView(bytes.buffer)
      bytes[0] = 0x45
      v.setUint16(2, bytes.length)
      bytes[8] = 64
      bytes[9] = TCP
      v.setInt32(12, this.flows.peer3[i])
      v.setInt32(16, this.flows.guest3[i])
      bytes.set(this.arena.bytes.subarray(at, at + len), IPV4)
      v.setUint16(36, 0)
      v.setUint16(36, tcpChecksum(bytes))
      const p = { bytes, gsoSize }
      this.onSent(p)
      this.down.send(p)
      return 0
    }
    return {
      l4at: at,
      l4max: 65535 - IPV4,
      flow: (i, l4len, csum, gsoType, gsoSize, hdr) => {
        if (csum !== 16 || hdr !== this.arena.bytes[at + 12] >> 2) throw new Error('bad header metadata')
        if (gsoType === 0 && l4len - hdr > (this.#six ? 1440 : 1460)) throw new Error('a segment longer than the link')
        if (gsoType !== 0 && gsoType !== (this.#six ? 4 : 1)) throw new Error('segmentation of another family')
        if (l4len + (this.#six ? 40 : 20) > 65535) throw new Error('a packet longer than any')
        return emit(i, l4len, gsoType === 0 ? 0 : gsoSize)
      },
      icmpError: () => {},
      icmpErrorOfFlow: (_i, say) => {
        this.icmp.push({ type: typeOf(say, 4), code: codeOf(say, 4) })
      },
      icmpErrorPassed: () => {},
      reset: (f) => {
        if (f.family !== (this.#six ? 6 : 4)) throw new Error('a frame of another family')
        const p = this.#arrived.slice()
        const s = parseSegment(p)
        if (s === undefined || s.flags & RST) return
        const v = new DataView(p.buffer)
        const acked = (s.flags & ACK) !== 0
        const len = s.payload.length + (s.flags & 3 ? 1 : 0)
        const bytes = buildSegment(
          v.getInt32(16),
          v.getInt32(12),
          v.getUint16(22),
          v.getUint16(20),
          acked ? s.ack : 0,
          acked ? 0 : s.seq + len,
          acked ? RST : RST | ACK,
          0,
          [],
          new Uint8Array(0),
        )
        this.down.send({ bytes, gsoSize: 0 })
      },
    }
  }

  /** A packet of the guest reaches the gateway. */
  #arrive(p: Packet): void {
    const f = this.#frame
    const b = this.arena.bytes
    f.off = this.#rx
    f.len = ETHERNET + p.bytes.length
    b.fill(0, this.#rx - VNET, this.#rx)
    b.set(p.bytes, this.#rx + ETHERNET)
    f.port = 0
    this.#arrived = p.bytes
    f.gsoType = p.gsoSize > 0 ? (this.#six ? 4 : 1) : 0
    f.gsoSize = p.gsoSize
    f.partialChecksum = 0
    f.etherType = 0x0800
    f.l3 = this.#rx + ETHERNET
    f.family = 4
    f.proto = TCP
    f.l4 = f.l3 + IPV4
    f.l4len = p.bytes.length - IPV4
    if (this.#six) this.#become6(f, p.bytes)
    const v = new DataView(p.bytes.buffer, p.bytes.byteOffset)
    f.srcPort = v.getUint16(20)
    f.dstPort = v.getUint16(22)
    const g = v.getInt32(12)
    const d = v.getInt32(16)
    const [w0, w2] = this.#words
    let i = this.flows.lookup(0, TCP, w0, 0, w2, g, f.srcPort, w0, 0, w2, d, f.dstPort)
    if (i >= 0) {
      this.flows.touch(i, this.host.now())
      this.relay.receive(i, f)
    } else {
      i = this.flows.insert(0, TCP, w0, 0, w2, g, f.srcPort, w0, 0, w2, d, f.dstPort, OUT, this.host.now())
      if (i >= 0) this.relay.open(i, f)
    }
    this.turn()
  }

  /** First and third word of an address; the last is the IPv4 one. */
  get #words(): readonly [number, number] {
    return this.#six ? [0xfd000006 | 0, 0x1234] : [0, MAPPED]
  }

  /** The frame as IPv6: its checksum is as right or wrong as it was. */
  #become6(f: Frame, four: Uint8Array): void {
    const b = this.arena.bytes
    const v = new DataView(b.buffer)
    const l3 = f.l3
    const [w0, w2] = this.#words
    b.fill(0, l3, l3 + 40)
    b[l3] = 0x60
    v.setUint16(l3 + 4, f.l4len)
    b[l3 + 6] = TCP
    b[l3 + 7] = 64
    for (const [at, from] of [
      [8, 12],
      [24, 16],
    ] as const) {
      v.setInt32(l3 + at, w0)
      v.setInt32(l3 + at + 8, w2)
      b.set(four.subarray(from, from + 4), l3 + at + 12)
    }
    b.set(four.subarray(IPV4), l3 + 40)
    f.etherType = 0x86dd
    f.family = 6
    f.l4 = l3 + 40
    // The pseudo header has these words more (RFC 1624).
    let s = ~v.getUint16(f.l4 + 16) & 0xffff
    const more = (w0 >>> 16) + (w0 & 0xffff) + (w2 >>> 16) + (w2 & 0xffff)
    s += 2 * more
    while (s > 0xffff) s = (s & 0xffff) + (s >>> 16)
    v.setUint16(f.l4 + 16, ~s & 0xffff)
  }

  /** A packet as the guest would send it, past the link. */
  inject(bytes: Uint8Array): void {
    this.#arrive({ bytes, gsoSize: 0 })
  }

  /** A client of a published port. */
  publish(guestPort: number, peerPort: number, r: Remote): number {
    const [w0, w2] = this.#words
    const i = this.flows.insert(0, TCP, w0, 0, w2, GUEST, guestPort, w0, 0, w2, PEER, peerPort, IN, this.host.now())
    const sock = this.host.accepted(r)
    this.flows.sock[i] = sock
    this.host.watch(sock, i)
    this.relay.accept(i)
    this.turn()
    return i
  }

  /** A guest on the link with the options of `o`. */
  guest(o: Partial<GuestOptions> & Pick<GuestOptions, 'gives' | 'takes'>): Guest {
    const g = new Guest(
      this.clock,
      {
        address: GUEST,
        port: 40000,
        peer: PEER,
        peerPort: 80,
        isn: this.random.word(),
        mss: 1460,
        shift: 7,
        sack: true,
        stamps: true,
        frame: 1460,
        receiveBuffer: 256 * 1024,
        readRate: 1 << 20,
        finFirst: true,
        ...o,
      },
      (p) => this.up.send(p),
    )
    this.toGuest = (p) => g.receive(p)
    return g
  }
}

export const EMPTY = new Stream(0, 0)

export const remote = (r: Partial<Remote>): Remote => ({
  connectAfter: 1,
  connectErrno: 0,
  sendBuffer: 256 * 1024,
  receiveBuffer: 256 * 1024,
  gives: EMPTY,
  takes: EMPTY,
  drainRate: 1 << 20,
  giveRate: 1 << 20,
  pause: 0,
  lie: 0,
  finFirst: true,
  ...r,
})
