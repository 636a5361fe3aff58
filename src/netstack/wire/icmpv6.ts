/**
 * ICMPv6 (RFC 4443). Its checksum covers the pseudo header (§2.3), whose addresses are read from the IPv6 header at `l3`.
 *
 * Type, code, checksum, identifier and sequence lie where ICMP's do: read those with wire/icmp.
 */
import { put16 } from './bytes.ts'
import { finish, pseudo6, sum } from './checksum.ts'
import { CHECKSUM } from './icmp.ts'
import { ICMPV6 } from './ipv6.ts'

export const UNREACHABLE = 1
export const TOO_BIG = 2
export const TIME_EXCEEDED = 3
export const PARAMETER_PROBLEM = 4
export const ECHO = 128
export const ECHO_REPLY = 129
/** Multicast listener discovery (RFC 2710, RFC 3810). */
export const MLD_QUERY = 130
export const MLD_REPORT = 131
export const MLD_DONE = 132
export const MLD2_REPORT = 143
/** RFC 2894, RFC 4286: what only routers say. */
export const ROUTER_RENUMBERING = 138
export const MULTICAST_ROUTER_ADVERTISEMENT = 151

/** Codes of UNREACHABLE (§3.1). */
export const NO_ROUTE = 0
export const PROHIBITED = 1
export const BEYOND_SCOPE = 2
export const ADDRESS = 3
export const PORT = 4

/** Code of PARAMETER_PROBLEM: a next header that is not known here. */
export const NEXT_HEADER = 1

/** About which no error may be sent (§2.4 e); informational messages begin at 128. */
export const isError = (t: number): boolean => t < 128

/** Compute and write the checksum of a message of `len` bytes at `o`, in a packet whose IPv6 header lies at `l3`. */
export function seal(b: Uint8Array, l3: number, o: number, len: number): void {
  put16(b, o + CHECKSUM, 0)
  put16(b, o + CHECKSUM, finish(sum(b, o, len, pseudo6(b, l3, ICMPV6, len))))
}

export const sound = (b: Uint8Array, l3: number, o: number, len: number): boolean =>
  finish(sum(b, o, len, pseudo6(b, l3, ICMPV6, len))) === 0
