/**
 * Tuples in the flow table's wide keys, and addresses as the host wants them: 16 bytes, IPv4 as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2).
 */
import type { Address } from '../wire/address.ts'
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

/** The flow of a tuple whose IPv6 addresses lie one behind the other at `o` (guest's, peer's: a packet's header has them so), or −1. */
export const find6 = (
  flows: FlowTable,
  port: number,
  proto: number,
  b: Uint8Array,
  o: number,
  guestPort: number,
  peerPort: number,
): number =>
  flows.lookup(
    port,
    proto,
    be32(b, o),
    be32(b, o + 4),
    be32(b, o + 8),
    be32(b, o + 12),
    guestPort,
    be32(b, o + 16),
    be32(b, o + 20),
    be32(b, o + 24),
    be32(b, o + 28),
    peerPort,
  )

export const insert6 = (
  flows: FlowTable,
  port: number,
  proto: number,
  b: Uint8Array,
  o: number,
  guestPort: number,
  peerPort: number,
  direction: number,
  now: number,
): number =>
  flows.insert(
    port,
    proto,
    be32(b, o),
    be32(b, o + 4),
    be32(b, o + 8),
    be32(b, o + 12),
    guestPort,
    be32(b, o + 16),
    be32(b, o + 20),
    be32(b, o + 24),
    be32(b, o + 28),
    peerPort,
    direction,
    now,
  )

/** The flow of a tuple of either family, or −1. */
export const findAny = (
  flows: FlowTable,
  port: number,
  proto: number,
  g: Address,
  guestPort: number,
  p: Address,
  peerPort: number,
): number => flows.lookup(port, proto, g.w0, g.w1, g.w2, g.w3, guestPort, p.w0, p.w1, p.w2, p.w3, peerPort)

export const insertAny = (
  flows: FlowTable,
  port: number,
  proto: number,
  g: Address,
  guestPort: number,
  p: Address,
  peerPort: number,
  direction: number,
  now: number,
): number =>
  flows.insert(port, proto, g.w0, g.w1, g.w2, g.w3, guestPort, p.w0, p.w1, p.w2, p.w3, peerPort, direction, now)

/** Write an IPv4 address as 16 bytes. */
export function writeMapped(b: Uint8Array, off: number, a: number): void {
  put32(b, off, 0)
  put32(b, off + 4, 0)
  put32(b, off + 8, MAPPED)
  put32(b, off + 12, a)
}

export const isMapped = (b: Uint8Array, off: number): boolean =>
  be32(b, off) === 0 && be32(b, off + 4) === 0 && be32(b, off + 8) === MAPPED
