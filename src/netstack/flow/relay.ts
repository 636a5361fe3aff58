/**
 * The contract of a relay: what stands between a guest's flow and a host socket, one for each of TCP, UDP and ping.
 *
 * The gateway looks a packet's tuple up; an unknown one goes through policy and NAT (which fill the flow's columns: what
 * the guest sees, and where the host side really goes) before the relay is asked to `open` it. From then on the relay owns the
 * flow's socket, state and timer. A relay never looks at another flow and never decides who may reach whom.
 */
import type { Frame } from '../frame.ts'

export interface Relay {
  /** The first packet of flow `i`, whose columns are filled. The relay opens the host side, or refuses and removes the flow. */
  open(i: number, f: Frame): void
  /**
   * A client of a published port: the columns are filled, `sock` is its connection (TCP) or the shared socket (UDP), and is
   * watched already where it is its own. The relay reaches the guest, or closes the socket and removes the flow.
   */
  accept(i: number): void
  /** A further packet of the guest. Parsed and guarded; its L4 checksum is trusted when partial, verified by the relay otherwise. */
  receive(i: number, f: Frame): void
  /** Its host socket has something (READABLE | WRITABLE | HANGUP | FAILED | URGENT). The relay works within its named budget; true: call again this turn. */
  ready(i: number, events: number): boolean
  /** Its timer fired. */
  expire(i: number): void
  /** Give it up now (evicted, VM detached, network gone): RST or silence as its protocol says, socket closed, flow removed. */
  abort(i: number): void
  /** For people: the state's name. */
  stateName(i: number): string
}
