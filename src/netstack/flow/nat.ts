/**
 * Address translation: the difference between what a guest sees (`peer`) and where the host side goes (`far`). All of it.
 *
 *  - out, --allow-host: peer .254:PORT is the host's loopback, far 127.0.0.1:PORT;
 *  - out, everything else: peer and far are equal; the host's own socket brings the source address;
 *  - in, by a published port: the client's own address and port, unless the VM could not answer it: clients on loopback, link-local or inside the
 *    VM's subnet, or of a family that the VM lacks, are shown as the host's address (.254, ::254) of the VM's family with a port of 61001–65535 (above Linux's ephemeral range, so that a
 *    VM's connection to the host never has the same tuple).
 */
import type { Address } from '../wire/address.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { type FlowTable, MAPPED } from './table.ts'

export const LOOPBACK = 0x7f000001

export const SHOWN_FIRST = 61001
export const SHOWN_LAST = 65535
const SHOWN = SHOWN_LAST - SHOWN_FIRST + 1

/** How many ports are tried for a client before it is refused. */
export const TRIES = 32

export function toLoopback(flows: FlowTable, i: number): void {
  setFar(flows, i, 0, 0, MAPPED, LOOPBACK)
}

export function setFar(flows: FlowTable, i: number, a0: number, a1: number, a2: number, a3: number): void {
  flows.far0[i] = a0
  flows.far1[i] = a1
  flows.far2[i] = a2
  flows.far3[i] = a3
}

export interface Subnets {
  readonly subnet: number
  readonly mask: number
  readonly ipv6?: { readonly p0: number; readonly p1: number }
}

/** Can a VM of these subnets, which speaks the client's family, answer it under its own address? */
export function showsItself(a: Address, own: Subnets): boolean {
  const { w0, w1, w2, w3 } = a
  if (a.family === 4) return !ipv4.isLoopback(w3) && !ipv4.isThisNetwork(w3) && (w3 & own.mask) !== own.subnet
  if (ipv6.isLoopback(w0, w1, w2, w3) || ipv6.isUnspecified(w0, w1, w2, w3)) return false
  return !ipv6.isLinkLocal(w0) && (w0 !== own.ipv6?.p0 || w1 !== own.ipv6.p1)
}

/** The n-th port to try for a client, the same each time for the same client. */
export function shownPort(b: Uint8Array, client: number, clientPort: number, guestPort: number, n: number): number {
  let h = Math.imul(clientPort, 0x9e3779b1) ^ Math.imul(guestPort, 0x85ebca6b)
  for (let k = 0; k < 16; k++) h = Math.imul(h ^ b[client + k], 0x01000193)
  h ^= h >>> 15
  return SHOWN_FIRST + (((h >>> 0) + n) % SHOWN)
}
