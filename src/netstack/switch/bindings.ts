/**
 * Bindings: which port an IPv6 address belongs to, and the MAC it is at (RFC 6620 in spirit), as a hash over typed arrays.
 *
 * Assigned addresses (a VM's reserved one, and those that its assigned MAC makes; the gateway's own, with port GATEWAY) are permanent. Others of
 * the network's /64 and of fe80::/64 (privacy extensions, stable-secret: RFC 8981, RFC 7217) are first come, first served: a host's duplicate
 * address detection claims one, and so does its first packet, which is all that is left to see after a data plane was started again.
 *
 * Owns: who has what, how many each port has learned, where each was heard from last. Never does: judging a packet (guard6.ts).
 * Invariants: an address has one entry; an entry is free or in exactly one chain; a port has at most PER_PORT learned ones: for one more it
 * gives up its own, the one that was heard from least recently, and only when that has been silent; what nobody used for AGEING may be anybody's.
 * Nothing allocates after construction.
 */
const NONE = -1

/** The port of the gateway's own addresses. */
export const GATEWAY = -2
/** Learned addresses of one port. Linux keeps a week of temporary ones, one for each day, for each prefix and a link-local one. */
export const PER_PORT = 16
/** An address that was heard from within this time is not given up for another of the same port. */
export const QUIET = 60_000
/** A temporary address is preferred for a day (RFC 8981 §3.8): what was silent for so long is forgotten. */
export const AGEING = 86_400_000

export class Bindings {
  readonly #mask: number
  readonly #bucket: Int32Array
  readonly #chain: Int32Array
  readonly #w0: Int32Array
  readonly #w1: Int32Array
  readonly #w2: Int32Array
  readonly #w3: Int32Array
  readonly #port: Int32Array
  readonly #macHi: Int32Array
  readonly #macLo: Int32Array
  readonly #permanent: Uint8Array
  readonly #seenAt: Float64Array
  /** 1: its port has used it, or said that it will. */
  readonly #spoken: Uint8Array
  readonly #learned: Int32Array
  /** Before this moment a port that is full need not be searched for something silent: whoever invents addresses costs no more than others. */
  readonly #fullUntil: Float64Array
  readonly #seed: number
  #free = 0

  /** @param capacity entries; a power of two */
  constructor(capacity: number, ports: number, seed: number) {
    const words = () => new Int32Array(capacity)
    this.#mask = capacity - 1
    this.#bucket = words().fill(NONE)
    this.#chain = words()
    this.#w0 = words()
    this.#w1 = words()
    this.#w2 = words()
    this.#w3 = words()
    this.#port = words().fill(NONE)
    this.#macHi = words()
    this.#macLo = words()
    this.#permanent = new Uint8Array(capacity)
    this.#seenAt = new Float64Array(capacity)
    this.#spoken = new Uint8Array(capacity)
    this.#learned = new Int32Array(ports)
    this.#fullUntil = new Float64Array(ports)
    this.#seed = seed | 0
    for (let e = 0; e < capacity; e++) this.#chain[e] = e + 1 < capacity ? e + 1 : NONE
  }

  #slot(w0: number, w1: number, w2: number, w3: number): number {
    let h = this.#seed ^ Math.imul(w3, 0x9e3779b1) ^ Math.imul(w2, 0x85ebca6b)
    h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d) ^ Math.imul(w1, 0x27d4eb2f) ^ w0
    h = Math.imul(h ^ (h >>> 13), 0x297a2d39)
    return (h ^ (h >>> 16)) & this.#mask
  }

  /** The entry of an address, or −1. */
  find(w0: number, w1: number, w2: number, w3: number): number {
    let e = this.#bucket[this.#slot(w0, w1, w2, w3)]
    while (e !== NONE && (this.#w3[e] !== w3 || this.#w2[e] !== w2 || this.#w1[e] !== w1 || this.#w0[e] !== w0))
      e = this.#chain[e]
    return e
  }

  portOf(entry: number): number {
    return this.#port[entry]
  }

  macHi(entry: number): number {
    return this.#macHi[entry]
  }

  macLo(entry: number): number {
    return this.#macLo[entry]
  }

  /** It spoke, from this MAC. */
  heard(entry: number, hi: number, lo: number, now: number): void {
    this.#macHi[entry] = hi
    this.#macLo[entry] = lo
    this.#seenAt[entry] = now
    this.#spoken[entry] = 1
  }

  /** Is the address in use? One that is assigned need not be. */
  speaks(w0: number, w1: number, w2: number, w3: number): boolean {
    const e = this.find(w0, w1, w2, w3)
    return e >= 0 && this.#spoken[e] === 1
  }

  /** An assigned address, whoever had learned it; false when it is another port's assigned one, or there is no room. */
  assign(w0: number, w1: number, w2: number, w3: number, port: number, hi: number, lo: number, now: number): boolean {
    const e = this.find(w0, w1, w2, w3)
    if (e !== NONE) {
      if (this.#port[e] !== port && this.#permanent[e] === 1) return false
      this.#remove(e)
    }
    return this.#add(w0, w1, w2, w3, port, hi, lo, true, now)
  }

  /** An address that nobody has becomes the port's. False: it has too many in use. */
  claim(w0: number, w1: number, w2: number, w3: number, port: number, hi: number, lo: number, now: number): boolean {
    if (this.#learned[port] >= PER_PORT && !this.#makeRoom(port, now)) return false
    return this.#add(w0, w1, w2, w3, port, hi, lo, false, now)
  }

  #makeRoom(port: number, now: number): boolean {
    if (now < this.#fullUntil[port]) return false
    let oldest = NONE
    for (let e = 0; e <= this.#mask; e++)
      if (this.#port[e] === port && this.#permanent[e] === 0)
        if (oldest === NONE || this.#seenAt[e] < this.#seenAt[oldest]) oldest = e
    if (oldest === NONE) return false
    this.#fullUntil[port] = this.#seenAt[oldest] + QUIET
    if (now < this.#fullUntil[port]) return false
    this.#remove(oldest)
    return true
  }

  #add(
    w0: number,
    w1: number,
    w2: number,
    w3: number,
    port: number,
    hi: number,
    lo: number,
    permanent: boolean,
    now: number,
  ): boolean {
    const e = this.#free
    if (e === NONE) return false
    this.#free = this.#chain[e]
    const slot = this.#slot(w0, w1, w2, w3)
    this.#chain[e] = this.#bucket[slot]
    this.#bucket[slot] = e
    this.#w0[e] = w0
    this.#w1[e] = w1
    this.#w2[e] = w2
    this.#w3[e] = w3
    this.#port[e] = port
    this.#macHi[e] = hi
    this.#macLo[e] = lo
    this.#permanent[e] = permanent ? 1 : 0
    this.#seenAt[e] = now
    this.#spoken[e] = permanent ? 0 : 1
    if (!permanent) this.#learned[port]++
    return true
  }

  #remove(e: number): void {
    const slot = this.#slot(this.#w0[e], this.#w1[e], this.#w2[e], this.#w3[e])
    let at = this.#bucket[slot]
    if (at === e) this.#bucket[slot] = this.#chain[e]
    else {
      while (this.#chain[at] !== e) at = this.#chain[at]
      this.#chain[at] = this.#chain[e]
    }
    if (this.#permanent[e] === 0) this.#learned[this.#port[e]]--
    this.#port[e] = NONE
    this.#chain[e] = this.#free
    this.#free = e
  }

  /** Forget everything of a port. */
  clear(port: number): void {
    this.#fullUntil[port] = 0
    for (let e = 0; e <= this.#mask; e++) if (this.#port[e] === port) this.#remove(e)
  }

  /** Forget what has aged. */
  age(now: number): void {
    for (let e = 0; e <= this.#mask; e++)
      if (this.#port[e] !== NONE && this.#permanent[e] === 0 && now - this.#seenAt[e] > AGEING) this.#remove(e)
  }
}
