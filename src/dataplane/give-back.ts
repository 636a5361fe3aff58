/**
 * Memory that work has needed goes back to the machine when the work is over.
 *
 * Theory. What is freed stays with the process: glibc keeps it for the next time, some 10 MB after a load, most of it the compiler's. A data plane idles for weeks.
 * To give it back takes up to some milliseconds, so it is done once, in the first second with work behind it and nothing to do.
 *
 * Owns: when. Never does: freeing anything.
 */
import { trimHeap } from '../sys/heap.ts'

/** Turns of a second that has work in it; an idle plane has one or two. */
const BUSY = 100

export class GiveBack {
  #turns = 0
  #worked = false

  turn(): void {
    this.#turns++
  }

  /** A second has gone by. @param resting nothing was ready in its last turn */
  second(resting: boolean): void {
    const busy = this.#turns >= BUSY
    this.#turns = 0
    this.#worked ||= busy
    if (!this.#worked || (busy && !resting)) return
    this.#worked = false
    trimHeap()
  }
}
