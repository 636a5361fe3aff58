/**
 * Reassembly of what guests send in fragments (RFC 791 §3.2; overlaps: RFC 5722's rule, for IPv4 too).
 *
 * Owns: a fixed number of slots, each one packet of one guest, keyed by port, source, destination, protocol and identification.
 * A map of 8-byte blocks says what has arrived (RFC 815's holes, as bits). Never does: fragments between VMs; those pass the
 * switch as they are. From outside the host's kernel reassembles.
 * Invariants: memory is bounded, also for each port (one guest cannot take all slots); a fragment that repeats what is there is
 * ignored, one that overlaps in part gives the whole packet up; a packet waits TIMEOUT ms from its first fragment on, no longer.
 */
import { type Arena, VNET } from '../arena.ts'
import { Frame } from '../frame.ts'
import { DROP, type Drops } from '../trace/drops.ts'
import { ETHERNET } from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import { IPV4 } from '../wire/ipv4.ts'
import * as vnet from '../wire/vnet.ts'

/** RFC 791's 15 s. */
export const TIMEOUT = 15_000

const BLOCKS = 8192 / 32
const L4_MAX = 65535 - IPV4

interface Pending {
  readonly slot: number
  readonly have: Int32Array
  /** −1: free. */
  port: number
  src: number
  dst: number
  proto: number
  id: number
  startedAt: number
  /** Bytes that arrived; −1 for the whole until its last fragment was seen. */
  got: number
  whole: number
  first: boolean
  ttl: number
}

export class Fragments {
  readonly #b: Uint8Array
  readonly #drops: Drops
  readonly #pending: Pending[]
  readonly #perPort: number
  /** What `add` found complete, or what has timed out. */
  readonly frame = new Frame()

  constructor(arena: Arena, drops: Drops, packets: number) {
    this.#b = arena.bytes
    this.#drops = drops
    this.#perPort = Math.max(1, packets >> 2)
    this.#pending = Array.from({ length: packets }, () => ({
      slot: arena.slot(),
      have: new Int32Array(BLOCKS),
      port: -1,
      src: 0,
      dst: 0,
      proto: 0,
      id: 0,
      startedAt: 0,
      got: 0,
      whole: -1,
      first: false,
      ttl: 0,
    }))
  }

  /** Take a fragment. True: `frame` is the whole packet now, valid until the next call. */
  add(f: Frame, now: number): boolean {
    const b = this.#b
    const { l3, l4, l4len } = f
    const offset = ipv4.fragmentOffset(b, l3)
    const last = !ipv4.moreFragments(b, l3)
    if (l4len === 0 || offset + l4len > L4_MAX || (!last && (l4len & 7) !== 0)) {
      this.#drops.count(f.port, DROP['fragment-malformed'])
      return false
    }
    const p = this.#find(f) ?? this.#begin(f, now)
    const end = offset + l4len
    if ((p.whole >= 0 && end > p.whole) || (last && (p.whole >= 0 ? p.whole !== end : this.#beyond(p, end))))
      return this.#giveUp(p, 'fragment-overlap')
    // An end that is no multiple of eight is the packet's end: its last block counts as a whole one.
    const to = (end + 7) >>> 3
    let there = 0
    for (let k = offset >>> 3; k < to; k++) if ((p.have[k >>> 5] & (1 << (k & 31))) !== 0) there++
    const blocks = to - (offset >>> 3)
    if (there === blocks) return false
    if (there > 0) return this.#giveUp(p, 'fragment-overlap')
    for (let k = offset >>> 3; k < to; k++) p.have[k >>> 5] |= 1 << (k & 31)
    b.copyWithin(p.slot + ETHERNET + IPV4 + offset, l4, l4 + l4len)
    p.got += l4len
    if (last) p.whole = end
    if (offset === 0) {
      p.first = true
      p.ttl = ipv4.ttl(b, l3)
      b.copyWithin(p.slot, f.off, f.off + ETHERNET)
    }
    if (p.got !== p.whole) return false
    this.#fill(p, p.whole)
    p.port = -1
    return true
  }

  /** Something arrived already behind `end`? */
  #beyond(p: Pending, end: number): boolean {
    for (let k = (end + 7) >>> 3; k < 8192; k++) if ((p.have[k >>> 5] & (1 << (k & 31))) !== 0) return true
    return false
  }

  /** Describe the packet in `frame`, with a header of its own without options. */
  #fill(p: Pending, l4len: number): void {
    const f = this.frame
    f.off = p.slot
    f.len = ETHERNET + IPV4 + l4len
    f.port = p.port
    f.gsoType = f.gsoSize = f.partialChecksum = f.fragment = 0
    f.etherType = 0x0800
    f.family = 4
    f.l3 = p.slot + ETHERNET
    f.l4 = f.l3 + IPV4
    f.l4len = l4len
    f.proto = p.proto
    f.srcPort = f.dstPort = 0
    vnet.clear(this.#b, p.slot - VNET)
    ipv4.write(this.#b, f.l3, IPV4 + l4len, p.id, 0, p.ttl, p.proto, p.src, p.dst)
  }

  #find(f: Frame): Pending | undefined {
    const b = this.#b
    const src = ipv4.src(b, f.l3)
    const dst = ipv4.dst(b, f.l3)
    const id = ipv4.id(b, f.l3)
    for (const p of this.#pending)
      if (p.port === f.port && p.id === id && p.src === src && p.dst === dst && p.proto === f.proto) return p
    return undefined
  }

  /** A free slot, or the oldest one: of the same port when it has its share, of all otherwise. */
  #begin(f: Frame, now: number): Pending {
    const b = this.#b
    let free: Pending | undefined
    let oldest: Pending | undefined
    let own: Pending | undefined
    let owns = 0
    for (const p of this.#pending) {
      if (p.port < 0) {
        free ??= p
        continue
      }
      if (oldest === undefined || p.startedAt < oldest.startedAt) oldest = p
      if (p.port === f.port) {
        owns++
        if (own === undefined || p.startedAt < own.startedAt) own = p
      }
    }
    const p = (owns >= this.#perPort ? own : (free ?? oldest)) as Pending
    if (p.port >= 0) this.#drops.count(p.port, DROP['fragment-limit'])
    p.have.fill(0)
    p.port = f.port
    p.src = ipv4.src(b, f.l3)
    p.dst = ipv4.dst(b, f.l3)
    p.proto = f.proto
    p.id = ipv4.id(b, f.l3)
    p.startedAt = now
    p.got = 0
    p.whole = -1
    p.first = false
    p.ttl = ipv4.ttl(b, f.l3)
    return p
  }

  #giveUp(p: Pending, reason: 'fragment-overlap' | 'fragment-malformed'): false {
    this.#drops.count(p.port, DROP[reason])
    p.port = -1
    return false
  }

  /** Give up what waited too long. `late` is called with `frame` filled when its first fragment is there (RFC 792: code 1). */
  tick(now: number, late: (f: Frame) => void): void {
    for (const p of this.#pending) {
      if (p.port < 0 || now - p.startedAt < TIMEOUT) continue
      this.#drops.count(p.port, DROP['fragment-timeout'])
      if (p.first) {
        this.#fill(p, 8)
        late(this.frame)
      }
      p.port = -1
    }
  }

  /** Forget what a port began. */
  clear(port: number): void {
    for (const p of this.#pending) if (p.port === port) p.port = -1
  }
}
