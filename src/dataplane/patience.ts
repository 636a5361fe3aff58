/**
 * Waiting for what comes next: looking again for a moment before sleeping, where that has been worth it.
 *
 * Theory. To be put to sleep and woken up costs 10 to 30 µs in a virtual machine, and an answer from the other side of a relay often comes
 * sooner than that. So a data plane that was woken within WINDOW of finding nothing looks again for that long the next time, as the kernel
 * does for its guests (Documentation/virt/kvm/halt-polling.rst). It stops at the first time in vain: an idle data plane looks once and sleeps, and one that
 * hears something every millisecond sleeps in between.
 * A processor that others want is not ours to wait on: who uses up his share comes late when it matters. So nothing is looked for while more tasks want to run
 * than there are processors (asked before, at most once in ASK), nor after a gap of PREEMPTED between two looks, in which somebody else ran.
 *
 * While it looks there is time for what can wait (`spare`).
 *
 * Owns: when to sleep. Never does: what is done with events. Invariant: what is owed goes out (`rest`) before every sleep.
 */
import { availableParallelism } from 'node:os'
import { RunQueue } from '../sys/load.ts'
import type { Reactor } from './reactor.ts'

/** In ms, as performance.now(). */
const WINDOW = 0.05
const PREEMPTED = 0.1
const ASK = 1
/** How long nothing is looked for after that. */
const HOLD = 20

export class Patience {
  readonly #reactor: Reactor
  readonly #queue = new RunQueue()
  readonly #processors = availableParallelism()
  #worthIt = false
  #notBefore = 0
  #asked = 0

  constructor(reactor: Reactor) {
    this.#reactor = reactor
  }

  /**
   * How many events there are, at the latest after `timeout` ms.
   * @param rest what is done before a sleep
   * @param spare what there is time for while nothing is ready; whether there was something
   */
  wait(timeout: number, rest: () => void, spare: (now: number) => boolean): number {
    const reactor = this.#reactor
    const there = reactor.wait(0)
    if (there > 0 || timeout === 0) return there
    const from = performance.now()
    if (this.#worthIt && this.#mayLook(from)) {
      let last = from
      do {
        const came = reactor.wait(0)
        if (came > 0) return came
        const now = performance.now()
        if (now - last > PREEMPTED) {
          this.#notBefore = now + HOLD
          break
        }
        last = spare(now) ? performance.now() : now
      } while (last - from < WINDOW)
    }
    rest()
    const came = reactor.wait(timeout)
    const now = performance.now()
    this.#worthIt = came > 0 && now - from < WINDOW && now >= this.#notBefore
    return came
  }

  /** Is there a processor that nobody else wants? */
  #mayLook(now: number): boolean {
    if (now >= this.#asked + ASK) {
      this.#asked = now
      if (this.#queue.running() > this.#processors) this.#notBefore = now + HOLD
    }
    return now >= this.#notBefore
  }
}
