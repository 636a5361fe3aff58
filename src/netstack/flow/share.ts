/**
 * A VM's share of one datagram relay's flows: when it is used up, the VM's own oldest flow of that relay makes room for the next one.
 *
 * What the VM began and what clients of its published ports began are two shares (RFC 4787 §4.3: a mapping in use stays): whoever may send to a
 * published port could otherwise end everything that the VM has begun. Among clients, whom the VM never answered goes first.
 *
 * When the network's table is nearly full, its last eighth is for VMs with few flows, so that some busy ones leave the others theirs; who has more
 * makes room for the next flow as if its share were used up.
 *
 * Nobody says that a flow of datagrams has ended, so a VM that begins many must not be refused for those that are over. Flows of TCP are never given
 * up like this: they have ends (gateway/admission.ts).
 *
 * Owns: the counts of each VM. Never does: ending a flow (its relay's `abort`, which must come to `ended`).
 */
import { DROP, type Drop } from '../trace/drops.ts'
import type { RelayContext } from './context.ts'
import type { Relay } from './relay.ts'
import { IN, OUT } from './table.ts'

/** Flows of a VM that the last eighth of the table is for: a page and its names. */
const FEW = 32

/** Why one more flow of this switch port has no room, or 0. */
export function refusal({ flows, limits }: RelayContext, port: number): Drop {
  const { count, capacity } = flows
  const own = flows.ofPort(port)
  if (own >= limits.flowsPerVm) return DROP['flow-limit']
  if (count < capacity - (capacity >> 3)) return 0
  return own < FEW && count < capacity ? 0 : DROP['flow-table-full']
}

export class Share {
  readonly #x: RelayContext
  readonly #proto: number
  readonly #most: number
  readonly #evicted: Drop
  readonly #answered: Uint8Array
  /** By port and direction. */
  readonly #counts: Int32Array

  /**
   * @param proto the flows of the table that are meant
   * @param most of them for each VM in each direction
   * @param evicted the DROP that counts one that was given up
   * @param answered the relay's column: 1 for a flow whose other end has answered
   */
  constructor(x: RelayContext, proto: number, most: number, evicted: Drop, answered: Uint8Array) {
    this.#x = x
    this.#proto = proto
    this.#most = most
    this.#evicted = evicted
    this.#answered = answered
    this.#counts = new Int32Array(x.limits.ports * 2)
  }

  begun(i: number): void {
    const { port, direction } = this.#x.flows
    this.#counts[port[i] * 2 + direction[i]]++
  }

  ended(i: number): void {
    const { port, direction } = this.#x.flows
    this.#counts[port[i] * 2 + direction[i]]--
  }

  /** Is there room for one more of this switch port? False (counted): other flows fill what the VM may have. */
  makeRoom(port: number, direction: number, relay: Pick<Relay, 'abort'>): boolean {
    const { drops } = this.#x
    const usedUp = this.#counts[port * 2 + direction] >= this.#most
    const why = refusal(this.#x, port)
    if (!usedUp && why === 0) return true
    const i = usedUp || direction === IN ? this.#leastOf(port, direction) : this.#leastOfBoth(port)
    if (i < 0) {
      drops.count(port, why)
      return false
    }
    drops.count(port, this.#evicted)
    relay.abort(i)
    return true
  }

  /** The VM's own flow goes before strangers' only when there are none of theirs. */
  #leastOfBoth(port: number): number {
    const i = this.#leastOf(port, IN)
    return i >= 0 ? i : this.#leastOf(port, OUT)
  }

  /** The flow of this relay that is given up first, or −1. */
  #leastOf(port: number, direction: number): number {
    const { flows } = this.#x
    let oldest = -1
    for (let i = flows.oldest(port); i >= 0; i = flows.newer(i)) {
      if (flows.proto[i] !== this.#proto || flows.direction[i] !== direction) continue
      if (direction === OUT || this.#answered[i] === 0) return i
      if (oldest < 0) oldest = i
    }
    return oldest
  }
}
