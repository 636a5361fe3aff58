/**
 * IPv6 (RFC 8200): the header (§3), its extension headers (§4), classes of addresses (RFC 4291, RFC 4193, RFC 6052, RFC 3056).
 *
 * An address is four signed 32-bit words in network order, read where it lies; nothing is made of it. Extension headers are walked by
 * wire/parse alone, which leaves in the Frame where the upper layer begins.
 */
import { be16, be32, put16, put32 } from './bytes.ts'

const PAYLOAD = 4
const NEXT = 6
const HOPS = 7
export const SRC = 8
export const DST = 24
/** Without extension headers. */
export const IPV6 = 40

/** RFC 8200 §5: every link carries this much. */
export const MTU_MIN = 1280

// Next headers.
export const HOP_BY_HOP = 0
export const ROUTING = 43
export const FRAGMENT = 44
export const ICMPV6 = 58
export const DESTINATION_OPTIONS = 60
export const MOBILITY = 135
export const HIP = 139
export const SHIM6 = 140

export const version = (b: Uint8Array, o: number): number => b[o] >>> 4
export const payloadLength = (b: Uint8Array, o: number): number => be16(b, o + PAYLOAD)
export const nextHeader = (b: Uint8Array, o: number): number => b[o + NEXT]
export const hopLimit = (b: Uint8Array, o: number): number => b[o + HOPS]
/** A word of the source address, n = 0…3. */
export const src = (b: Uint8Array, o: number, n: number): number => be32(b, o + SRC + (n << 2))
export const dst = (b: Uint8Array, o: number, n: number): number => be32(b, o + DST + (n << 2))

export const setPayloadLength = (b: Uint8Array, o: number, v: number): void => put16(b, o + PAYLOAD, v)

/** Write all but the addresses. */
export function write(b: Uint8Array, o: number, payload: number, next: number, hops: number): void {
  put32(b, o, 0x60000000)
  put16(b, o + PAYLOAD, payload)
  b[o + NEXT] = next
  b[o + HOPS] = hops
}

export function setSrc(b: Uint8Array, o: number, w0: number, w1: number, w2: number, w3: number): void {
  put32(b, o + SRC, w0)
  put32(b, o + SRC + 4, w1)
  put32(b, o + SRC + 8, w2)
  put32(b, o + SRC + 12, w3)
}

export function setDst(b: Uint8Array, o: number, w0: number, w1: number, w2: number, w3: number): void {
  put32(b, o + DST, w0)
  put32(b, o + DST + 4, w1)
  put32(b, o + DST + 8, w2)
  put32(b, o + DST + 12, w3)
}

// -- the fragment header (§4.5), 8 bytes ---------------------------------------------------------------------------------

export const FRAGMENT_HEADER = 8
export const fragmentNext = (b: Uint8Array, o: number): number => b[o]
/** In bytes. */
export const fragmentOffset = (b: Uint8Array, o: number): number => be16(b, o + 2) & 0xfff8
export const moreFragments = (b: Uint8Array, o: number): boolean => (b[o + 3] & 1) !== 0
export const fragmentId = (b: Uint8Array, o: number): number => be32(b, o + 4)

export function writeFragment(b: Uint8Array, o: number, next: number, offset: number, more: boolean, id: number): void {
  b[o] = next
  b[o + 1] = 0
  put16(b, o + 2, offset | (more ? 1 : 0))
  put32(b, o + 4, id)
}

// -- classes of addresses -------------------------------------------------------------------------------------------------

/** ff00::/8, by the first word. */
export const isMulticast = (w0: number): boolean => w0 >>> 24 === 0xff
/** fe80::/10, by the first word. */
export const isLinkLocal = (w0: number): boolean => w0 >>> 22 === 0x3fa
/** ::, nobody yet. */
export const isUnspecified = (w0: number, w1: number, w2: number, w3: number): boolean => (w0 | w1 | w2 | w3) === 0
/** ::1 */
export const isLoopback = (w0: number, w1: number, w2: number, w3: number): boolean => (w0 | w1 | w2) === 0 && w3 === 1
/** The first two words of fe80::/64, where every link-local address is in practice (RFC 4291 §2.5.6). */
export const LINK_LOCAL_W0 = 0xfe800000 | 0

/** The modified EUI-64 interface identifier of a MAC (RFC 4291 appendix A), its upper and lower word. */
export const eui64Upper = (hi: number, lo: number): number => ((hi ^ 0x0200) << 16) | ((lo >>> 24) << 8) | 0xff
export const eui64Lower = (lo: number): number => (0xfe << 24) | (lo & 0xffffff)
