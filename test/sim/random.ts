/** Seeded randomness (mulberry32), so that a failing run can be repeated by its seed. */
export class Random {
  #state: number
  constructor(seed: number) {
    this.#state = seed | 0
  }
  /** 32 bits, signed. */
  word(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return (t ^ (t >>> 14)) | 0
  }
  /** 0 ≤ x < 1. */
  unit(): number {
    return (this.word() >>> 0) / 4294967296
  }
  /** An integer, low ≤ x ≤ high. */
  between(low: number, high: number): number {
    return low + Math.floor(this.unit() * (high - low + 1))
  }
  chance(p: number): boolean {
    return p > 0 && this.unit() < p
  }
  pick<T>(of: readonly T[]): T {
    return of[this.between(0, of.length - 1)]
  }
}
