/**
 * IPv4 (RFC 791 §3.1). An address is a signed 32-bit integer in network order.
 */
import { be16, be32, put16, put32 } from './bytes.ts'
import { finish, sum, update } from './checksum.ts'

const VERSION_IHL = 0
const TOS = 1
const TOTAL = 2
const ID = 4
const FRAGMENT = 6
const TTL = 8
const PROTO = 9
const CHECKSUM = 10
const SRC = 12
const DST = 16
/** Without options. */
export const IPV4 = 20

export const DF = 0x4000
export const MF = 0x2000

export const ICMP = 1
export const TCP = 6
export const UDP = 17

export const version = (b: Uint8Array, o: number): number => b[o + VERSION_IHL] >>> 4
export const headerLength = (b: Uint8Array, o: number): number => (b[o + VERSION_IHL] & 15) << 2
export const tos = (b: Uint8Array, o: number): number => b[o + TOS]
export const totalLength = (b: Uint8Array, o: number): number => be16(b, o + TOTAL)
export const id = (b: Uint8Array, o: number): number => be16(b, o + ID)
export const dontFragment = (b: Uint8Array, o: number): boolean => (b[o + FRAGMENT] & 0x40) !== 0
export const moreFragments = (b: Uint8Array, o: number): boolean => (b[o + FRAGMENT] & 0x20) !== 0
/** In bytes. */
export const fragmentOffset = (b: Uint8Array, o: number): number => (be16(b, o + FRAGMENT) & 0x1fff) << 3
export const ttl = (b: Uint8Array, o: number): number => b[o + TTL]
export const protocol = (b: Uint8Array, o: number): number => b[o + PROTO]
export const checksum = (b: Uint8Array, o: number): number => be16(b, o + CHECKSUM)
export const src = (b: Uint8Array, o: number): number => be32(b, o + SRC)
export const dst = (b: Uint8Array, o: number): number => be32(b, o + DST)

export const setTotalLength = (b: Uint8Array, o: number, v: number): void => put16(b, o + TOTAL, v)
export const setId = (b: Uint8Array, o: number, v: number): void => put16(b, o + ID, v)
/** `offset` in bytes, a multiple of 8; `flags` DF | MF. */
export const setFragment = (b: Uint8Array, o: number, offset: number, flags: number): void =>
  put16(b, o + FRAGMENT, (offset >>> 3) | flags)
export const setTtl = (b: Uint8Array, o: number, v: number): void => {
  b[o + TTL] = v
}
export const setSrc = (b: Uint8Array, o: number, v: number): void => put32(b, o + SRC, v)
export const setDst = (b: Uint8Array, o: number, v: number): void => put32(b, o + DST, v)
export const setChecksum = (b: Uint8Array, o: number, v: number): void => put16(b, o + CHECKSUM, v)

/** Compute and write the header checksum. */
export function seal(b: Uint8Array, o: number): void {
  put16(b, o + CHECKSUM, 0)
  put16(b, o + CHECKSUM, finish(sum(b, o, headerLength(b, o), 0)))
}

export const sound = (b: Uint8Array, o: number): boolean => finish(sum(b, o, headerLength(b, o), 0)) === 0

/** One hop: TTL less one, checksum updated (RFC 1812 §5.3.1). The caller has seen that it is above one. */
export function hop(b: Uint8Array, o: number): void {
  const before = be16(b, o + TTL)
  b[o + TTL] = b[o + TTL] - 1
  put16(b, o + CHECKSUM, update(be16(b, o + CHECKSUM), before, before - 0x100))
}

/** Write a header without options and seal it. `flags`: DF or 0. */
export function write(
  b: Uint8Array,
  o: number,
  totalLen: number,
  ident: number,
  flags: number,
  hops: number,
  proto: number,
  from: number,
  to: number,
): void {
  b[o + VERSION_IHL] = 0x45
  b[o + TOS] = 0
  put16(b, o + TOTAL, totalLen)
  put16(b, o + ID, ident)
  put16(b, o + FRAGMENT, flags)
  b[o + TTL] = hops
  b[o + PROTO] = proto
  put16(b, o + CHECKSUM, 0)
  put32(b, o + SRC, from)
  put32(b, o + DST, to)
  put16(b, o + CHECKSUM, finish(sum(b, o, IPV4, 0)))
}

// -- classes of addresses (RFC 6890) --------------------------------------------------------------------------------

export const ANY = 0
export const LIMITED_BROADCAST = -1
/** 224.0.0.0/4 */
export const isMulticast = (a: number): boolean => a >>> 28 === 14
/** 127.0.0.0/8 */
export const isLoopback = (a: number): boolean => a >>> 24 === 127
/** 169.254.0.0/16, where clouds keep their metadata services. */
export const isLinkLocal = (a: number): boolean => a >>> 16 === 0xa9fe
/** 0.0.0.0/8, this network (RFC 1122 §3.2.1.3). */
export const isThisNetwork = (a: number): boolean => a >>> 24 === 0
/** 240.0.0.0/4 and the limited broadcast. */
export const isReserved = (a: number): boolean => a >>> 28 === 15

// -- text, at the edges only ----------------------------------------------------------------------------------------

/** "10.0.0.1" → −…; throws RangeError on anything else. */
export function parseAddress(text: string): number {
  const m = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text)
  if (m === null) throw new RangeError(`not an IPv4 address: ${text}`)
  let v = 0
  for (let i = 1; i <= 4; i++) {
    const n = Number(m[i])
    if (n > 255) throw new RangeError(`not an IPv4 address: ${text}`)
    v = (v << 8) | n
  }
  return v
}

export const addressText = (a: number): string => `${a >>> 24}.${(a >>> 16) & 255}.${(a >>> 8) & 255}.${a & 255}`

/** "192.168.100.0/24" → its first address and its mask; "10.0.0.1/24" has the same subnet as "10.0.0.0/24". */
export function parseSubnet(text: string): { readonly base: number; readonly mask: number; readonly bits: number } {
  const [address, length] = text.split('/')
  const bits = Number(length)
  if (address === undefined || length === undefined || !/^\d+$/.test(length) || bits > 32)
    throw new RangeError(`not an IPv4 subnet: ${text}`)
  const mask = bits === 0 ? 0 : -1 << (32 - bits)
  return { base: parseAddress(address) & mask, mask, bits }
}
