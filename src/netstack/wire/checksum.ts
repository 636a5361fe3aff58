/**
 * The Internet checksum (RFC 1071), its pseudo header (RFC 9293 §3.1) and its incremental update (RFC 1624).
 *
 * A sum in progress is a non-negative integer below 2^31 that still has its carries; `fold` makes 16 bits of it, `finish` the value
 * for the field. Sums add: sum(a) + sum(b) is the sum of both when a's length is even.
 * `sum` reads 32-bit words; the sum of 16-bit halves in memory order is byte-swapped on a little-endian machine (RFC 1071 §2.B), so
 * one swap at the end replaces one for each word. A view over the last buffer is kept, because making one costs more than a header.
 */
import type { Frame } from '../frame.ts'
import { be32 } from './bytes.ts'

import { kernel, STEP, vectorBuffer } from './checksum-simd.ts'

let buffer: ArrayBufferLike = new ArrayBuffer(4)
let words: Uint32Array = new Uint32Array(buffer)
const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1

/** Below this many bytes a loop over bytes is faster than finding the view. */
const SHORT = 48
/** From this many on a call of the vectors' kernel is worth it. */
const LONG = 192

/** Add `len` bytes at `off` to `initial`. At most 128 KiB. */
export function sum(b: Uint8Array, off: number, len: number, initial: number): number {
  let s = initial
  const end = off + len
  if (len >= LONG && b.buffer === vectorBuffer && b.byteOffset === 0) {
    const most = len - (len % STEP)
    const t = fold(kernel(off, most))
    s += ((t & 0xff) << 8) | (t >>> 8)
    off += most
    len -= most
  }
  if (len < SHORT || !LITTLE_ENDIAN) {
    const even = end - (len & 1)
    for (; off < even; off += 2) s += (b[off] << 8) | b[off + 1]
    if (off < end) s += b[off] << 8
    return s
  }
  if (b.buffer !== buffer) {
    buffer = b.buffer
    words = new Uint32Array(buffer, 0, buffer.byteLength >>> 2)
  }
  // Bytes before the first word, then words (their sum has the other byte order), then bytes behind the last.
  const base = b.byteOffset
  let at = off
  const odd = (at + base) & 1
  let edge = 0
  if (odd) edge += b[at++]
  // From here `t` sums in memory order: low byte first.
  let t = 0
  if ((at + base) & 2) {
    t += b[at] | (b[at + 1] << 8)
    at += 2
  }
  let w = (at + base) >>> 2
  let n = (end - at) >>> 2
  at += n << 2
  // Sums of 32-bit words are exact as doubles up to 2^53; four of them do not wait for each other.
  let s0 = 0
  let s1 = 0
  let s2 = 0
  let s3 = 0
  for (; n >= 8; n -= 8, w += 8) {
    s0 += words[w] + words[w + 4]
    s1 += words[w + 1] + words[w + 5]
    s2 += words[w + 2] + words[w + 6]
    s3 += words[w + 3] + words[w + 7]
  }
  for (; n > 0; n--, w++) s0 += words[w]
  const total = s0 + s1 + s2 + s3
  const high = Math.floor(total / 0x1_0000_0000)
  t += (total & 0xffff) + ((total >>> 16) & 0xffff) + (high & 0xffff) + (high >>> 16)
  if (end - at >= 2) {
    t += b[at] | (b[at + 1] << 8)
    at += 2
  }
  if (at < end) t += b[at]
  t = fold(t)
  // `t` began at an even position of the data when there was no edge: swap it into network order. Behind an edge
  // byte everything is shifted by one, so memory order is network order already.
  return odd ? s + (edge << 8) + t : s + (((t & 0xff) << 8) | (t >>> 8))
}

/** 16 bits of a sum: carries added back in. */
export function fold(s: number): number {
  s = (s & 0xffff) + (s >>> 16)
  s = (s & 0xffff) + (s >>> 16)
  return (s & 0xffff) + (s >>> 16)
}

/** The field's value for a sum. */
export const finish = (s: number): number => ~fold(s) & 0xffff

/** Sum of the IPv4 pseudo header. */
export const pseudo4 = (src: number, dst: number, proto: number, len: number): number =>
  (src >>> 16) + (src & 0xffff) + (dst >>> 16) + (dst & 0xffff) + proto + len

/** Sum of the IPv6 pseudo header (RFC 8200 §8.1), whose addresses lie in the IPv6 header at `l3`. */
export function pseudo6(b: Uint8Array, l3: number, proto: number, len: number): number {
  return proto + len + sum16(b, l3 + 8) + sum16(b, l3 + 24)
}

/** Of the 16 bytes of an address. */
const sum16 = (b: Uint8Array, o: number): number =>
  ((b[o] + b[o + 2] + b[o + 4] + b[o + 6] + b[o + 8] + b[o + 10] + b[o + 12] + b[o + 14]) << 8) +
  (b[o + 1] + b[o + 3] + b[o + 5] + b[o + 7] + b[o + 9] + b[o + 11] + b[o + 13] + b[o + 15])

/** Sum of the pseudo header of the frame's packet, whichever family it has. */
export const pseudo = (b: Uint8Array, f: Frame): number =>
  f.family === 4
    ? pseudo4(be32(b, f.l3 + 12), be32(b, f.l3 + 16), f.proto, f.l4len)
    : pseudo6(b, f.l3, f.proto, f.l4len)

/** The checksum field after a 16-bit word below it changed from `from` to `to` (RFC 1624, equation 3). */
export const update = (field: number, from: number, to: number): number =>
  ~fold((~field & 0xffff) + (~from & 0xffff) + to) & 0xffff
