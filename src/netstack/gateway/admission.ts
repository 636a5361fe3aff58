/**
 * Admission: is there room for one more flow of a VM, and of which relay? What both families ask before a flow begins.
 *
 * UDP and ping flows give up the VM's own oldest ones; TCP flows never are (context.ts: Limits).
 */
import type { RelayContext } from '../flow/context.ts'
import type { Relay } from '../flow/relay.ts'
import { refusal } from '../flow/share.ts'
import { OUT } from '../flow/table.ts'

/** A relay whose flows are given up, the oldest first, when a VM has too many. */
export interface Evicting extends Relay {
  makeRoom(port: number, direction: number): boolean
}

export interface Relays {
  readonly tcp: Relay
  readonly udp: Evicting
  readonly ping: Evicting
}

/** Counted when not. */
export function room(x: RelayContext, relays: Relays, relay: Relay, port: number): boolean {
  if (relay === relays.udp) return relays.udp.makeRoom(port, OUT)
  if (relay === relays.ping) return relays.ping.makeRoom(port, OUT)
  const why = refusal(x, port)
  if (why !== 0) x.drops.count(port, why)
  return why === 0
}
