/**
 * UDP (RFC 768).
 */
import { be16, put16 } from './bytes.ts'

const SRC = 0
const DST = 2
const LENGTH = 4
/** Offset of the checksum field, for egress. */
export const CHECKSUM = 6
export const UDP = 8

export const srcPort = (b: Uint8Array, o: number): number => be16(b, o + SRC)
export const dstPort = (b: Uint8Array, o: number): number => be16(b, o + DST)
/** Header and payload. */
export const length = (b: Uint8Array, o: number): number => be16(b, o + LENGTH)
export const checksum = (b: Uint8Array, o: number): number => be16(b, o + CHECKSUM)

export const setSrcPort = (b: Uint8Array, o: number, v: number): void => put16(b, o + SRC, v)
export const setDstPort = (b: Uint8Array, o: number, v: number): void => put16(b, o + DST, v)
export const setLength = (b: Uint8Array, o: number, v: number): void => put16(b, o + LENGTH, v)
export const setChecksum = (b: Uint8Array, o: number, v: number): void => put16(b, o + CHECKSUM, v)

/** Write a header with an empty checksum. `len`: header and payload. */
export function write(b: Uint8Array, o: number, from: number, to: number, len: number): void {
  put16(b, o + SRC, from)
  put16(b, o + DST, to)
  put16(b, o + LENGTH, len)
  put16(b, o + CHECKSUM, 0)
}
