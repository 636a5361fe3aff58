/**
 * The frames of an exec connection, after its upgrade to `noid-exec/1`.
 *
 * A frame is type (u8), length (u32, big endian), payload. Backpressure is the socket's own: one connection carries one
 * command. Both ends share this codec; neither trusts a length above MAX_FRAME.
 */
export const EXEC_PROTOCOL = 'noid-exec/1'
export const MAX_FRAME = 1 << 20

export const frameType = {
  /** client → daemon */
  stdin: 0,
  stdinEnd: 1,
  /** payload: the signal's name */
  signal: 2,
  /** payload: rows u16, cols u16 */
  resize: 3,
  /** daemon → client */
  stdout: 16,
  stderr: 17,
  /** payload: exit code i32; the last frame */
  exit: 18,
  /** payload: ErrorBody as JSON; the last frame */
  error: 19,
} as const
export type FrameType = (typeof frameType)[keyof typeof frameType]

export function encodeFrame(type: FrameType, payload: Uint8Array = new Uint8Array(0)): Buffer {
  const b = Buffer.allocUnsafe(5 + payload.length)
  b[0] = type
  b.writeUInt32BE(payload.length, 1)
  b.set(payload, 5)
  return b
}

/** Cuts a byte stream into frames; throws RangeError on a length above MAX_FRAME. */
export class FrameReader {
  #held: Buffer = Buffer.alloc(0);

  *push(chunk: Buffer): Generator<{ type: number; payload: Buffer }> {
    this.#held = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk])
    while (this.#held.length >= 5) {
      const length = this.#held.readUInt32BE(1)
      if (length > MAX_FRAME) throw new RangeError(`exec frame of ${length} bytes`)
      if (this.#held.length < 5 + length) return
      const frame = { type: this.#held[0] as number, payload: this.#held.subarray(5, 5 + length) }
      this.#held = this.#held.subarray(5 + length)
      yield frame
    }
  }
}
