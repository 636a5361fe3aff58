/**
 * A byte stream that needs no memory: the byte at a position follows from the position and a seed, so that either end can
 * make or check any part of it, and a transfer of any length is compared whole.
 */
export class Stream {
  readonly length: number
  readonly #seed: number

  constructor(seed: number, length: number) {
    this.#seed = seed | 0
    this.length = length
  }

  byte(at: number): number {
    let h = Math.imul(at ^ this.#seed, 0x9e3779b1)
    h ^= h >>> 15
    return (h ^ (h >>> 8)) & 0xff
  }

  fill(to: Uint8Array, off: number, len: number, from: number): void {
    for (let k = 0; k < len; k++) to[off + k] = this.byte(from + k)
  }

  /** Throws where `bytes` differ from the stream at `from`. */
  check(bytes: Uint8Array, off: number, len: number, from: number): void {
    if (from + len > this.length) throw new Error(`stream of ${this.length} bytes went on to ${from + len}`)
    for (let k = 0; k < len; k++)
      if (bytes[off + k] !== this.byte(from + k)) throw new Error(`byte ${from + k} of the stream is wrong`)
  }
}
