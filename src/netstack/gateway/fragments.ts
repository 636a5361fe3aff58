/**
 * Reassembly of what guests send in fragments (RFC 791 §3.2, RFC 8200 §4.5; overlaps: RFC 5722's rule, for IPv4 too).
 *
 * Owns: a fixed number of slots, each one packet of one guest, keyed by port, source, destination, identification and, in IPv4, protocol.
 * The packet that comes of it has a plain header: options and extension headers before the fragment header are gone.
 * A map of 8-byte blocks says what has arrived (RFC 815's holes, as bits). Never does: fragments between VMs; those pass the
 * switch as they are. From outside the host's kernel reassembles.
 * Invariants: memory is bounded, also for each port (one guest cannot take all slots); a fragment that repeats what is there is
 * ignored, one that overlaps in part gives the whole packet up; a packet waits TIMEOUT ms from its first fragment on, no longer.
 */
import { type Arena, VNET } from '../arena.ts'
import { Frame } from '../frame.ts'
import { DROP, type Drops } from '../trace/drops.ts'
import { be32 } from '../wire/bytes.ts'
import { ETHERNET, TYPE_IPV4, TYPE_IPV6 } from '../wire/ethernet.ts'
import { arrivedTtl } from '../wire/hops.ts'
import * as ipv4 from '../wire/ipv4.ts'
import { IPV4 } from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { IPV6 } from '../wire/ipv6.ts'
import * as vnet from '../wire/vnet.ts'

/** RFC 791's 15 s. */
export const TIMEOUT = 15_000

const BLOCKS = 8192 / 32
const L4_MAX = 65535 - IPV4
/** Its length field does not count the header. */
const L4_MAX_6 = 65535

interface Pending {
  readonly slot: number
  readonly have: Int32Array
  /** −1: free. */
  port: number
  family: number
  /** Source and destination as they lie in the header: two words, or eight. */
  readonly addresses: Int32Array
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
      family: 4,
      addresses: new Int32Array(8),
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
    const four = f.family === 4
    // All that lies behind the fragment header: what parsing took for further headers, too.
    const l4 = four ? f.l4 : f.fragmentAt + ipv6.FRAGMENT_HEADER
    const l4len = f.l4 + f.l4len - l4
    const offset = four ? ipv4.fragmentOffset(b, f.l3) : ipv6.fragmentOffset(b, f.fragmentAt)
    const last = four ? !ipv4.moreFragments(b, f.l3) : !ipv6.moreFragments(b, f.fragmentAt)
    if (l4len === 0 || offset + l4len > (four ? L4_MAX : L4_MAX_6) || (!last && (l4len & 7) !== 0)) {
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
    b.copyWithin(p.slot + ETHERNET + (four ? IPV4 : IPV6) + offset, l4, l4 + l4len)
    p.got += l4len
    if (last) p.whole = end
    if (offset === 0) {
      p.first = true
      p.ttl = arrivedTtl(b, f)
      p.proto = four ? f.proto : ipv6.fragmentNext(b, f.fragmentAt)
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
    const header = p.family === 4 ? IPV4 : IPV6
    f.off = p.slot
    f.len = ETHERNET + header + l4len
    f.port = p.port
    f.gsoType = f.gsoSize = f.partialChecksum = f.fragment = f.fragmentAt = 0
    f.joined = 1
    f.etherType = p.family === 4 ? TYPE_IPV4 : TYPE_IPV6
    f.family = p.family
    f.l3 = p.slot + ETHERNET
    f.l4 = f.l3 + header
    f.l4len = l4len
    f.proto = p.proto
    f.srcPort = f.dstPort = 0
    const b = this.#b
    const a = p.addresses
    vnet.clear(b, p.slot - VNET)
    if (p.family === 4) return ipv4.write(b, f.l3, IPV4 + l4len, p.id, 0, p.ttl, p.proto, a[0], a[1])
    ipv6.write(b, f.l3, l4len, p.proto, p.ttl)
    ipv6.setSrc(b, f.l3, a[0], a[1], a[2], a[3])
    ipv6.setDst(b, f.l3, a[4], a[5], a[6], a[7])
  }

  #find(f: Frame): Pending | undefined {
    const b = this.#b
    const { family } = f
    const id = family === 4 ? ipv4.id(b, f.l3) : ipv6.fragmentId(b, f.fragmentAt)
    for (const p of this.#pending)
      if (p.port === f.port && p.id === id && p.family === family && (family === 6 || p.proto === f.proto))
        if (sameAddresses(b, f, p.addresses)) return p
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
    p.family = f.family
    const at = addressesAt(f)
    for (let n = 0; n < wordsOf(f); n++) p.addresses[n] = be32(b, at + (n << 2))
    p.proto = f.proto
    p.id = f.family === 4 ? ipv4.id(b, f.l3) : ipv6.fragmentId(b, f.fragmentAt)
    p.startedAt = now
    p.got = 0
    p.whole = -1
    p.first = false
    p.ttl = arrivedTtl(b, f)
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

const addressesAt = (f: Frame): number => f.l3 + (f.family === 4 ? 12 : ipv6.SRC)
const wordsOf = (f: Frame): number => (f.family === 4 ? 2 : 8)

function sameAddresses(b: Uint8Array, f: Frame, words: Int32Array): boolean {
  const at = addressesAt(f)
  for (let n = wordsOf(f) - 1; n >= 0; n--) if (be32(b, at + (n << 2)) !== words[n]) return false
  return true
}
