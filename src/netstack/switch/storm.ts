/**
 * Storm control: how much one port may make the switch multiply.
 *
 * Owns: a token bucket for each port, counted in copies. Never does: judging the frame.
 * Theory. A broadcast, a multicast or a frame for an unknown MAC costs the network as many frames as there are other ports. So the bucket is
 * counted in what it costs, not in what was sent: a few VMs may exchange thousands of multicasts in a second, one of a thousand VMs still
 * has its ARP. What goes beyond is not flooded and counted; frames for one VM, and what the gateway answers, are not touched.
 */

/** The bucket holds this part of a second's copies: what may come at once. */
const DEPTH = 0.25

export class StormControl {
  readonly #perMs: number
  readonly #depth: number
  readonly #left: Float64Array
  readonly #at: Float64Array

  /** @param copiesPerSecond for each port */
  constructor(ports: number, copiesPerSecond: number) {
    this.#perMs = copiesPerSecond / 1000
    this.#depth = copiesPerSecond * DEPTH
    this.#left = new Float64Array(ports).fill(this.#depth)
    this.#at = new Float64Array(ports)
  }

  /** May the port's frame be copied to so many? Takes that from its bucket if so. `now` in ms. */
  allows(port: number, copies: number, now: number): boolean {
    const left = Math.min(this.#depth, this.#left[port] + (now - this.#at[port]) * this.#perMs)
    this.#at[port] = now
    const enough = left >= copies
    this.#left[port] = enough ? left - copies : left
    return enough
  }

  /** The port is somebody else's. */
  clear(port: number): void {
    this.#left[port] = this.#depth
  }
}
