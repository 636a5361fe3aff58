/**
 * IPv4 in the flow table's wide keys, and addresses as the host wants them: 16 bytes, IPv4 as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2).
 */
import { be32, put32 } from '../wire/bytes.ts'
import { type FlowTable, MAPPED } from './table.ts'

/** The flow of an IPv4 tuple as its guest sees it, or −1. */
export const find4 = (
  flows: FlowTable,
  port: number,
  proto: number,
  guest: number,
  guestPort: number,
  peer: number,
  peerPort: number,
): number => flows.lookup(port, proto, 0, 0, MAPPED, guest, guestPort, 0, 0, MAPPED, peer, peerPort)

export const insert4 = (
  flows: FlowTable,
  port: number,
  proto: number,
  guest: number,
  guestPort: number,
  peer: number,
  peerPort: number,
  direction: number,
  now: number,
): number => flows.insert(port, proto, 0, 0, MAPPED, guest, guestPort, 0, 0, MAPPED, peer, peerPort, direction, now)

/** Write an IPv4 address as 16 bytes. */
export function writeMapped(b: Uint8Array, off: number, a: number): void {
  put32(b, off, 0)
  put32(b, off + 4, 0)
  put32(b, off + 8, MAPPED)
  put32(b, off + 12, a)
}

export const isMapped = (b: Uint8Array, off: number): boolean =>
  be32(b, off) === 0 && be32(b, off + 4) === 0 && be32(b, off + 8) === MAPPED

/** The IPv4 address in 16 bytes that are one. */
export const mapped = (b: Uint8Array, off: number): number => be32(b, off + 12)
