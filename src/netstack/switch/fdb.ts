/**
 * The forwarding database: MAC address → switch port (IEEE 802.1D §7.9), as a hash over typed arrays.
 *
 * Assigned addresses are permanent; learned ones age. Owns: which port a MAC belongs to, how many each port has. Never
 * does: deciding whether a port may use a MAC; that is the switch's guard, which asks `find` first.
 * Invariants: a MAC has one entry; an entry is free or in exactly one chain; nothing allocates after construction.
 */
const NONE = -1

/** Learned entries that were not seen for this long are forgotten (802.1D's recommended 300 s). */
export const AGEING = 300_000

export class Fdb {
  readonly #mask: number
  readonly #bucket: Int32Array
  readonly #chain: Int32Array
  readonly #hi: Int32Array
  readonly #lo: Int32Array
  readonly #port: Int32Array
  readonly #permanent: Uint8Array
  readonly #seenAt: Float64Array
  readonly #perPort: Int32Array
  readonly #seed: number
  #free: number

  /** @param capacity entries; a power of two */
  constructor(capacity: number, ports: number, seed: number) {
    const words = () => new Int32Array(capacity)
    this.#mask = capacity - 1
    this.#bucket = words().fill(NONE)
    this.#chain = words()
    this.#hi = words()
    this.#lo = words()
    this.#port = words().fill(NONE)
    this.#permanent = new Uint8Array(capacity)
    this.#seenAt = new Float64Array(capacity)
    this.#perPort = new Int32Array(ports)
    this.#seed = seed | 0
    for (let e = 0; e < capacity; e++) this.#chain[e] = e + 1 < capacity ? e + 1 : NONE
    this.#free = 0
  }

  #slot(hi: number, lo: number): number {
    let h = this.#seed ^ Math.imul(lo, 0x9e3779b1) ^ Math.imul(hi, 0x85ebca6b)
    h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d)
    return (h ^ (h >>> 13)) & this.#mask
  }

  /** The entry of a MAC, or −1. */
  find(hi: number, lo: number): number {
    let e = this.#bucket[this.#slot(hi, lo)]
    while (e !== NONE && (this.#lo[e] !== lo || this.#hi[e] !== hi)) e = this.#chain[e]
    return e
  }

  /** The port of a MAC, or −1. */
  lookup(hi: number, lo: number): number {
    const e = this.find(hi, lo)
    return e === NONE ? NONE : this.#port[e]
  }

  portOf(entry: number): number {
    return this.#port[entry]
  }

  isPermanent(entry: number): boolean {
    return this.#permanent[entry] === 1
  }

  seen(entry: number, now: number): void {
    this.#seenAt[entry] = now
  }

  isOld(entry: number, now: number): boolean {
    return this.#permanent[entry] === 0 && now - this.#seenAt[entry] > AGEING
  }

  /** How many MACs a port has. */
  ofPort(port: number): number {
    return this.#perPort[port]
  }

  /** Enter a MAC that has no entry. False when there is no room. */
  add(hi: number, lo: number, port: number, permanent: boolean, now: number): boolean {
    const e = this.#free
    if (e === NONE) return false
    this.#free = this.#chain[e]
    const slot = this.#slot(hi, lo)
    this.#chain[e] = this.#bucket[slot]
    this.#bucket[slot] = e
    this.#hi[e] = hi
    this.#lo[e] = lo
    this.#port[e] = port
    this.#permanent[e] = permanent ? 1 : 0
    this.#seenAt[e] = now
    this.#perPort[port]++
    return true
  }

  remove(entry: number): void {
    const slot = this.#slot(this.#hi[entry], this.#lo[entry])
    let at = this.#bucket[slot]
    if (at === entry) this.#bucket[slot] = this.#chain[entry]
    else {
      while (this.#chain[at] !== entry) at = this.#chain[at]
      this.#chain[at] = this.#chain[entry]
    }
    this.#perPort[this.#port[entry]]--
    this.#port[entry] = NONE
    this.#chain[entry] = this.#free
    this.#free = entry
  }

  /** Forget everything of a port. */
  clear(port: number): void {
    for (let e = 0; e <= this.#mask; e++) if (this.#port[e] === port) this.remove(e)
  }

  /** Forget what has aged. */
  age(now: number): void {
    for (let e = 0; e <= this.#mask; e++) if (this.#port[e] !== NONE && this.isOld(e, now)) this.remove(e)
  }
}
