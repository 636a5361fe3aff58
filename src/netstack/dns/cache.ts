/**
 * Answers that can be given again: stored as wire bytes, given out by copying.
 *
 * Owns: which answer is good for which question and how long (RFC 2181 §5.2, RFC 2308). An entry holds the message without
 * its EDNS record (a new one is written for each client) and the offsets of its TTLs, which are counted down on the way
 * out. The least recently used entries go first, by number and by bytes.
 * Never does: reading a clock, keeping failures, keeping truncated answers.
 * Invariants: a hit is for the same name, type, class and RD/AD/CD/DO bits, also when hashes collide; an expired entry is
 * never given out. The hash is seeded, so that a guest cannot aim collisions.
 */
import { LRUCache } from 'lru-cache'
import { be16, be32, put16, put32 } from '../wire/bytes.ts'
import { type Answer, FLAG, HEADER, type Query, sameName, writeOpt } from './message.ts'

/** Nothing is believed for longer than this, in ms: a day, and for negative answers an hour (RFC 2308 §5). */
const MAX_LIFE = 86_400_000
const MAX_NEGATIVE_LIFE = 3_600_000
const ENTRIES = 8192
const BYTES = 8 * 1024 * 1024
/** Book-keeping of an entry beside its bytes, roughly. */
const OVERHEAD = 200

export class Entry {
  /** Without OPT; ARCOUNT does not count it. */
  readonly wire: Uint8Array
  /** Length of head and question. */
  readonly question: number
  readonly variant: number
  readonly ttls: Int32Array
  readonly storedAt: number
  readonly expiresAt: number

  constructor(wire: Uint8Array, question: number, variant: number, ttls: Int32Array, storedAt: number, life: number) {
    this.wire = wire
    this.question = question
    this.variant = variant
    this.ttls = ttls
    this.storedAt = storedAt
    this.expiresAt = storedAt + life
  }

  answers(q: Query): boolean {
    const n = q.end - q.off
    return (
      n === this.question &&
      this.variant === q.variant &&
      sameName(this.wire, HEADER, q.bytes, q.off + HEADER, n - HEADER)
    )
  }

  /** The answer to `q` at out[0]: its id, its spelling of the name, TTLs of `now`. Returns the length. */
  write(out: Uint8Array, q: Query, now: number): number {
    const { wire, ttls } = this
    out.set(wire)
    put16(out, 0, q.id)
    for (let i = HEADER; i < this.question; i++) out[i] = q.bytes[q.off + i]
    const age = Math.floor((now - this.storedAt) / 1000)
    if (age > 0)
      for (let i = 0; i < ttls.length; i++) {
        const at = ttls[i]
        put32(out, at, Math.max(0, Math.max(0, be32(wire, at)) - age))
      }
    return q.edns ? writeOpt(out, wire.length, q) : wire.length
  }
}

/**
 * An entry of the answer `b[0, len)` to `q`, as `a` found it. An answer that came with AA is not authoritative any more when
 * it is given out again (RFC 2181 §5.4.1 speaks of trust; RFC 1034 §4.3.1 of who is an authority).
 */
export function entryOf(b: Uint8Array, q: Query, a: Answer, now: number, life: number): Entry {
  const wire = b.slice(0, a.bare)
  if (a.hasOpt) put16(wire, 10, be16(wire, 10) - 1)
  put16(wire, 2, be16(wire, 2) & ~FLAG.AA)
  return new Entry(wire, q.end - q.off, q.variant, Int32Array.from(a.ttls), now, life)
}

/** Where none are given, `get` makes its options anew each time: 56 bytes for every answer. */
const AS_IT_IS = {}

export class Cache {
  readonly #entries = new LRUCache<number, Entry>({
    max: ENTRIES,
    maxSize: BYTES,
    sizeCalculation: (e) => e.wire.length + e.ttls.length * 4 + OVERHEAD,
  })
  hits = 0
  misses = 0

  get size(): number {
    return this.#entries.size
  }

  get bytes(): number {
    return this.#entries.calculatedSize
  }

  get(q: Query, now: number): Entry | undefined {
    const e = this.#entries.get(q.hash, AS_IT_IS)
    if (e !== undefined && now < e.expiresAt && e.answers(q)) {
      this.hits++
      return e
    }
    this.misses++
    return undefined
  }

  /** Keep an answer that scanAnswer accepted, if it may be kept at all. */
  put(b: Uint8Array, q: Query, a: Answer, now: number): void {
    if (a.truncated || a.ttl <= 0) return
    const life = Math.min(a.ttl * 1000, a.negative ? MAX_NEGATIVE_LIFE : MAX_LIFE)
    this.#entries.set(q.hash, entryOf(b, q, a, now, life))
  }

  /** The upstream servers changed: another view of the world begins. */
  clear(): void {
    this.#entries.clear()
  }
}
