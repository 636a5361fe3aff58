/**
 * Ethernet II (IEEE 802.3 §3): destination, source, type. No tags: a tagged frame is an EtherType the switch does not carry.
 *
 * A MAC address is two numbers: `hi`, its first 16 bits, and `lo`, the other 32 as a signed integer.
 */
import { be16, be32, put16, put32 } from './bytes.ts'

const DST = 0
const SRC = 6
const TYPE = 12
export const ETHERNET = 14

export const TYPE_IPV4 = 0x0800
export const TYPE_ARP = 0x0806
export const TYPE_IPV6 = 0x86dd

export const BROADCAST_HI = 0xffff
export const BROADCAST_LO = -1
/** Before the last 32 bits of an IPv6 group's address. */
export const GROUP6_HI = 0x3333

export const dstHi = (b: Uint8Array, o: number): number => be16(b, o + DST)
export const dstLo = (b: Uint8Array, o: number): number => be32(b, o + DST + 2)
export const srcHi = (b: Uint8Array, o: number): number => be16(b, o + SRC)
export const srcLo = (b: Uint8Array, o: number): number => be32(b, o + SRC + 2)
export const type = (b: Uint8Array, o: number): number => be16(b, o + TYPE)

export const setDst = (b: Uint8Array, o: number, hi: number, lo: number): void => {
  put16(b, o + DST, hi)
  put32(b, o + DST + 2, lo)
}
export const setSrc = (b: Uint8Array, o: number, hi: number, lo: number): void => {
  put16(b, o + SRC, hi)
  put32(b, o + SRC + 2, lo)
}
export const setType = (b: Uint8Array, o: number, v: number): void => put16(b, o + TYPE, v)

/** A group address (broadcast is one): the I/G bit of a MAC's first 16 bits. */
export const isGroup = (hi: number): boolean => (hi & 0x0100) !== 0

// -- text, at the edges only ----------------------------------------------------------------------------------------

/** "02:00:00:00:00:01" → [hi, lo]; throws RangeError on anything else. */
export function parseMac(text: string): { readonly hi: number; readonly lo: number } {
  if (!/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(text)) throw new RangeError(`not a MAC address: ${text}`)
  const hex = text.replaceAll(':', '')
  return { hi: Number.parseInt(hex.slice(0, 4), 16), lo: Number.parseInt(hex.slice(4), 16) | 0 }
}

export function macText(hi: number, lo: number): string {
  const hex = hi.toString(16).padStart(4, '0') + (lo >>> 0).toString(16).padStart(8, '0')
  return hex.replace(/..(?=.)/g, '$&:')
}
