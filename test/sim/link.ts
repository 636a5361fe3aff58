/**
 * An impaired link, one direction: loss, reorder, duplication, corruption, delay and rate, all from one seeded source.
 *
 * Packets are IPv4 packets as byte arrays with their GSO size; `split` cuts them into segments first, as a wire would.
 */
import type { Clock } from './clock.ts'
import type { Random } from './random.ts'

export interface Impairment {
  readonly loss?: number
  readonly duplicate?: number
  readonly corrupt?: number
  /** Chance to be held back by up to `hold` ms. */
  readonly reorder?: number
  readonly hold?: number
  /** ms */
  readonly delay?: number
  /** bytes per ms; the queue holds `queue` bytes and drops what comes on top. */
  readonly rate?: number
  readonly queue?: number
  readonly split?: boolean
}

export interface Packet {
  readonly bytes: Uint8Array
  readonly gsoSize: number
}

export class Link {
  sent = 0
  lost = 0
  /** Everything is lost while set. */
  cut = false
  readonly #clock: Clock
  readonly #random: Random
  readonly #is: Impairment
  readonly #deliver: (p: Packet) => void
  #freeAt = 0
  #last = 0

  constructor(clock: Clock, random: Random, is: Impairment, deliver: (p: Packet) => void) {
    this.#clock = clock
    this.#random = random
    this.#is = is
    this.#deliver = deliver
  }

  send(p: Packet): void {
    if (this.#is.split && p.gsoSize > 0) for (const s of segment(p)) this.#one(s)
    else this.#one(p)
  }

  #one(p: Packet): void {
    const {
      loss = 0,
      duplicate = 0,
      corrupt = 0,
      reorder = 0,
      hold = 5,
      delay = 0.05,
      rate = 0,
      queue = 1 << 20,
    } = this.#is
    const random = this.#random
    this.sent++
    if (this.cut || random.chance(loss)) {
      this.lost++
      return
    }
    let at = this.#clock.now + delay
    if (rate > 0) {
      const start = Math.max(this.#clock.now, this.#freeAt)
      if ((start - this.#clock.now) * rate > queue) {
        this.lost++
        return
      }
      this.#freeAt = start + p.bytes.length / rate
      at = this.#freeAt + delay
    }
    let bytes = p.bytes
    if (random.chance(corrupt)) {
      bytes = bytes.slice()
      // Behind the IP header: what a NIC's own checksum missed.
      bytes[random.between(20, bytes.length - 1)] ^= 1 << random.between(0, 7)
    }
    if (random.chance(reorder)) at += random.unit() * hold
    else this.#last = at = Math.max(at, this.#last)
    this.#clock.at(at, () => this.#deliver({ bytes, gsoSize: p.gsoSize }))
    if (random.chance(duplicate))
      this.#clock.at(at + random.unit() * hold, () => this.#deliver({ bytes, gsoSize: p.gsoSize }))
  }
}

const be16 = (b: Uint8Array, o: number): number => (b[o] << 8) | b[o + 1]

/** The Internet checksum of TCP over its pseudo header: written here again, so that the engine's is not its own judge. */
export function tcpChecksum(b: Uint8Array): number {
  let s = 6 + (b.length - 20)
  for (let o = 12; o < 20; o += 2) s += be16(b, o)
  for (let o = 20; o < b.length; o += 2) s += o + 1 < b.length ? be16(b, o) : b[o] << 8
  while (s > 0xffff) s = (s & 0xffff) + (s >>> 16)
  return ~s & 0xffff
}

/** What TSO does: the header repeated, sequence numbers moved on, FIN and PSH on the last only. */
export function* segment(p: Packet): Generator<Packet> {
  const b = p.bytes
  const header = 20 + ((b[32] >> 4) << 2)
  const seq = ((b[24] << 24) | (b[25] << 16) | (b[26] << 8) | b[27]) >>> 0
  for (let o = header; o < b.length; o += p.gsoSize) {
    const part = b.subarray(o, Math.min(b.length, o + p.gsoSize))
    const s = new Uint8Array(header + part.length)
    s.set(b.subarray(0, header))
    s.set(part, header)
    s[2] = s.length >> 8
    s[3] = s.length
    const at = (seq + o - header) >>> 0
    s[24] = at >>> 24
    s[25] = at >>> 16
    s[26] = at >>> 8
    s[27] = at
    if (o + p.gsoSize < b.length) s[33] &= ~0x09
    s[36] = s[37] = 0
    const sum = tcpChecksum(s)
    s[36] = sum >> 8
    s[37] = sum
    yield { bytes: s, gsoSize: 0 }
  }
}
