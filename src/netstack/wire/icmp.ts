/**
 * ICMP for IPv4 (RFC 792; code 4's next-hop MTU: RFC 1191 §4; which messages are errors: RFC 1812 §4.3.2.7).
 */
import { be16, be32, put16, put32 } from './bytes.ts'
import { finish, sum } from './checksum.ts'

const TYPE = 0
const CODE = 1
export const CHECKSUM = 2
const ID = 4
const SEQUENCE = 6
const INFO = 4
export const ICMP = 8

export const ECHO_REPLY = 0
export const UNREACHABLE = 3
export const SOURCE_QUENCH = 4
export const REDIRECT = 5
export const ECHO = 8
export const ROUTER_ADVERTISEMENT = 9
export const TIME_EXCEEDED = 11
export const PARAMETER_PROBLEM = 12

/** Codes of UNREACHABLE. */
export const NET = 0
export const HOST = 1
export const PROTOCOL = 2
export const PORT = 3
export const FRAGMENTATION_NEEDED = 4
/** Communication administratively prohibited (RFC 1812 §5.2.7.1). */
export const PROHIBITED = 13

/** Codes of TIME_EXCEEDED, ICMPv6's too (RFC 4443 §3.3). */
export const IN_TRANSIT = 0
export const REASSEMBLY = 1

export const type = (b: Uint8Array, o: number): number => b[o + TYPE]
export const code = (b: Uint8Array, o: number): number => b[o + CODE]
export const checksum = (b: Uint8Array, o: number): number => be16(b, o + CHECKSUM)
/** Of echo and echo reply. */
export const id = (b: Uint8Array, o: number): number => be16(b, o + ID)
export const sequence = (b: Uint8Array, o: number): number => be16(b, o + SEQUENCE)
/** The second word: unused, or the next-hop MTU in its lower half. */
export const info = (b: Uint8Array, o: number): number => be32(b, o + INFO)

export const setType = (b: Uint8Array, o: number, v: number): void => {
  b[o + TYPE] = v
}
export const setCode = (b: Uint8Array, o: number, v: number): void => {
  b[o + CODE] = v
}
export const setChecksum = (b: Uint8Array, o: number, v: number): void => put16(b, o + CHECKSUM, v)
export const setId = (b: Uint8Array, o: number, v: number): void => put16(b, o + ID, v)
export const setSequence = (b: Uint8Array, o: number, v: number): void => put16(b, o + SEQUENCE, v)
export const setInfo = (b: Uint8Array, o: number, v: number): void => put32(b, o + INFO, v)

/** About which no error may be sent: everything that is an error itself, and redirects. */
export const isError = (t: number): boolean =>
  t === UNREACHABLE || t === SOURCE_QUENCH || t === REDIRECT || t === TIME_EXCEEDED || t === PARAMETER_PROBLEM

/** Compute and write the checksum of a message of `len` bytes. */
export function seal(b: Uint8Array, o: number, len: number): void {
  put16(b, o + CHECKSUM, 0)
  put16(b, o + CHECKSUM, finish(sum(b, o, len, 0)))
}

export const sound = (b: Uint8Array, o: number, len: number): boolean => finish(sum(b, o, len, 0)) === 0
