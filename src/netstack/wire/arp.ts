/**
 * ARP for IPv4 over Ethernet (RFC 826; probes and announcements: RFC 5227).
 */
import { be16, be32, put16, put32 } from './bytes.ts'

const HTYPE = 0
const PTYPE = 2
const HLEN = 4
const PLEN = 5
const OP = 6
const SHA = 8
const SPA = 14
const THA = 18
const TPA = 24
export const ARP = 28

export const REQUEST = 1
export const REPLY = 2

/** Is it Ethernet/IPv4 ARP, a request or a reply? The caller has seen that ARP bytes are there. */
export const valid = (b: Uint8Array, o: number): boolean =>
  be16(b, o + HTYPE) === 1 &&
  be16(b, o + PTYPE) === 0x0800 &&
  b[o + HLEN] === 6 &&
  b[o + PLEN] === 4 &&
  (op(b, o) === REQUEST || op(b, o) === REPLY)

export const op = (b: Uint8Array, o: number): number => be16(b, o + OP)
export const senderHi = (b: Uint8Array, o: number): number => be16(b, o + SHA)
export const senderLo = (b: Uint8Array, o: number): number => be32(b, o + SHA + 2)
export const senderIp = (b: Uint8Array, o: number): number => be32(b, o + SPA)
export const targetHi = (b: Uint8Array, o: number): number => be16(b, o + THA)
export const targetLo = (b: Uint8Array, o: number): number => be32(b, o + THA + 2)
export const targetIp = (b: Uint8Array, o: number): number => be32(b, o + TPA)

/** Write a whole ARP body. */
export function write(
  b: Uint8Array,
  o: number,
  opcode: number,
  shaHi: number,
  shaLo: number,
  spa: number,
  thaHi: number,
  thaLo: number,
  tpa: number,
): void {
  put16(b, o + HTYPE, 1)
  put16(b, o + PTYPE, 0x0800)
  b[o + HLEN] = 6
  b[o + PLEN] = 4
  put16(b, o + OP, opcode)
  put16(b, o + SHA, shaHi)
  put32(b, o + SHA + 2, shaLo)
  put32(b, o + SPA, spa)
  put16(b, o + THA, thaHi)
  put32(b, o + THA + 2, thaLo)
  put32(b, o + TPA, tpa)
}
