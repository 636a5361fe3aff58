/**
 * Address translation: the difference between what a guest sees (`peer`) and where the host side goes (`far`). All of it.
 *
 *  - out, --allow-host: peer .254:PORT is the host's loopback, far 127.0.0.1:PORT;
 *  - out, everything else: peer and far are equal; the host's own socket brings the source address;
 *  - in, by a published port: the client's own address and port, unless the VM could not answer it: clients on loopback, inside the
 *    VM's subnet, or of another family are shown as .254 with a port of 61001–65535 (above Linux's ephemeral range, so that a
 *    VM's connection to the host never has the same tuple).
 */
import { isLoopback, isThisNetwork } from '../wire/ipv4.ts'
import { type FlowTable, MAPPED } from './table.ts'
import { isMapped, mapped } from './tuple.ts'

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

/** Can a VM of the subnet answer the client at these 16 bytes under its own address? */
export function showsItself(b: Uint8Array, client: number, subnet: number, mask: number): boolean {
  if (!isMapped(b, client)) return false
  const a = mapped(b, client)
  return !isLoopback(a) && !isThisNetwork(a) && (a & mask) !== subnet
}

/** The n-th port to try for a client, the same each time for the same client. */
export function shownPort(b: Uint8Array, client: number, clientPort: number, guestPort: number, n: number): number {
  let h = Math.imul(clientPort, 0x9e3779b1) ^ Math.imul(guestPort, 0x85ebca6b)
  for (let k = 0; k < 16; k++) h = Math.imul(h ^ b[client + k], 0x01000193)
  h ^= h >>> 15
  return SHOWN_FIRST + (((h >>> 0) + n) % SHOWN)
}
