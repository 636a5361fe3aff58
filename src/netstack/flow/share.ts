/**
 * A VM's share of one datagram relay's flows: when it is used up, the VM's own oldest flow of that relay makes room for the next one.
 *
 * Nobody says that a flow of datagrams has ended, so a VM that begins many must not be refused for those that are over. Flows of TCP are never given
 * up like this: they have ends (gateway/admission.ts).
 *
 * Owns: the count of each VM. Never does: ending a flow (its relay's `abort`, which must come to `ended`).
 */
import { DROP, type Drop } from '../trace/drops.ts'
import type { RelayContext } from './context.ts'
import type { Relay } from './relay.ts'

export class Share {
  readonly #x: RelayContext
  readonly #proto: number
  readonly #most: number
  readonly #evicted: Drop
  readonly #perPort: Int32Array

  /**
   * @param proto the flows of the table that are meant
   * @param most of them for each VM
   * @param evicted the DROP that counts one that was given up
   */
  constructor(x: RelayContext, proto: number, most: number, evicted: Drop) {
    this.#x = x
    this.#proto = proto
    this.#most = most
    this.#evicted = evicted
    this.#perPort = new Int32Array(x.limits.ports)
  }

  begun(i: number): void {
    this.#perPort[this.#x.flows.port[i]]++
  }

  ended(i: number): void {
    this.#perPort[this.#x.flows.port[i]]--
  }

  /** Is there room for one more of this switch port? False (counted): others' flows fill the VM's whole share of the table. */
  makeRoom(port: number, relay: Pick<Relay, 'abort'>): boolean {
    const { flows, limits, drops } = this.#x
    if (this.#perPort[port] < this.#most && flows.ofPort(port) < limits.flowsPerVm) return true
    let i = flows.oldest(port)
    while (i >= 0 && flows.proto[i] !== this.#proto) i = flows.newer(i)
    if (i < 0) {
      drops.count(port, DROP['flow-limit'])
      return false
    }
    drops.count(port, this.#evicted)
    relay.abort(i)
    return true
  }
}
