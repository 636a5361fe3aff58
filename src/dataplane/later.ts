/**
 * What nobody waits for: ends of TCP sockets, which cost a few microseconds each because the other side is woken up by them.
 *
 * Theory. A client that opens one connection after another sends the FIN of the last and the SYN of the next within some ten microseconds. Passing on
 * the FIN at once would let the SYN wait, and with it the client; after the SYN has been answered there is time, because the client has to be
 * woken up. So an end waits until it is AGE old and nothing else is ready, at most until the process sleeps or OVERDUE has gone by.
 *
 * Owns: the order of ends: they are carried out as they came, so that a descriptor is never ended after its number has been given again.
 * Never does: deciding that a socket ends. Invariant: nothing is here while the process sleeps.
 */
import { close } from '../sys/fd.ts'
import { setLingerReset, shutdown } from '../sys/socket.ts'

export const END = { shutdown: 0, close: 1, reset: 2 } as const
export type End = (typeof END)[keyof typeof END]

/** In ms, as performance.now(). */
const AGE = 0.02
const OVERDUE = 1
/** A full ring makes room: so many descriptors are open longer than their flows, at most. */
const RING = 64

export class Later {
  readonly #fd = new Int32Array(RING)
  readonly #end = new Uint8Array(RING)
  readonly #at = new Float64Array(RING)
  #first = 0
  #count = 0

  put(fd: number, end: End): void {
    if (this.#count === RING) this.#next()
    const at = (this.#first + this.#count++) % RING
    this.#fd[at] = fd
    this.#end[at] = end
    this.#at[at] = performance.now()
  }

  /** Nothing else is ready: carry one out if it is old enough. @returns whether there was one */
  one(now: number): boolean {
    if (this.#count === 0 || now - (this.#at[this.#first] as number) < AGE) return false
    this.#next()
    return true
  }

  /** After a turn, however busy: nothing waits longer than OVERDUE. */
  overdue(): void {
    if (this.#count > 0 && performance.now() - (this.#at[this.#first] as number) >= OVERDUE) this.all()
  }

  /** Before a sleep. */
  all(): void {
    while (this.#count > 0) this.#next()
  }

  #next(): void {
    const fd = this.#fd[this.#first] as number
    const end = this.#end[this.#first] as End
    this.#first = (this.#first + 1) % RING
    this.#count--
    if (end === END.shutdown) shutdown(fd)
    else {
      if (end === END.reset) setLingerReset(fd)
      close(fd)
    }
  }
}
