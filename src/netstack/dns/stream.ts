/**
 * DNS over a byte stream (RFC 1035 §4.2.2, RFC 7766): each message behind its length in two bytes.
 *
 * Owns: putting messages together from whatever pieces arrive. A message longer than the limit is a protocol error of the
 * other end; the stream is then of no further use.
 */
export class DnsStream {
  readonly #limit: number
  #buffer: Uint8Array
  #filled = 0
  /** A message was longer than the limit, or shorter than a header. */
  broken = false

  constructor(limit = 65535) {
    this.#limit = limit
    this.#buffer = new Uint8Array(512)
  }

  /** Part of a message has arrived. */
  get pending(): boolean {
    return this.#filled > 0
  }

  /**
   * Take bytes; `message` is called for each that is complete, with bytes valid during the call, and says whether to go on. How many
   * were taken: what is behind the last message that was wanted is not.
   */
  push(bytes: Uint8Array, message: (m: Uint8Array) => boolean): number {
    let o = 0
    while (o < bytes.length && !this.broken) {
      const want = this.#filled < 2 ? 2 : 2 + ((this.#buffer[0] << 8) | this.#buffer[1])
      const n = Math.min(want - this.#filled, bytes.length - o)
      this.#buffer.set(bytes.subarray(o, o + n), this.#filled)
      this.#filled += n
      o += n
      if (this.#filled < want) break
      if (want === 2) this.#begin()
      else {
        this.#filled = 0
        if (!message(this.#buffer.subarray(2, want))) break
      }
    }
    return o
  }

  #begin(): void {
    const length = (this.#buffer[0] << 8) | this.#buffer[1]
    if (length > this.#limit || length < 12) this.broken = true
    else if (this.#buffer.length < length + 2) {
      const grown = new Uint8Array(length + 2)
      grown.set(this.#buffer.subarray(0, 2))
      this.#buffer = grown
    }
  }
}

/** A message with its length in front. */
export function framed(message: Uint8Array, len = message.length): Uint8Array {
  const b = new Uint8Array(2 + len)
  b[0] = len >> 8
  b[1] = len
  b.set(message.subarray(0, len), 2)
  return b
}
