/**
 * One deadline per flow out of several needs: what must be sent again, probed or given up (`alarm`), and the keepalive.
 *
 * Moving a timer on every ACK would cost more than the ACK. So the wheel's deadline is only ever moved forward in time when
 * it fires: `alarm` says what is really wanted, and an early firing finds nothing due and goes to sleep again.
 * Invariant: while a flow lives, its wheel deadline ≤ min(alarm, heard + KEEPALIVE_IDLE).
 */
import type { Timers } from '../timers.ts'
import { PERSISTING, type TcpColumns } from './columns.ts'

/** RFC 9293 §3.8.4: no less than two hours. */
export const KEEPALIVE_IDLE = 2 * 3600_000
export const KEEPALIVE_INTERVAL = 75_000
export const KEEPALIVE_PROBES = 9

export class Alarms {
  readonly #timers: Timers
  readonly #c: TcpColumns

  constructor(timers: Timers, c: TcpColumns) {
    this.#timers = timers
    this.#c = c
  }

  set(i: number, at: number): void {
    this.#c.alarm[i] = at
    if (at < this.#timers.deadline(i)) this.#timers.set(i, at)
  }

  /** Nothing to be sent again. */
  rest(i: number): void {
    this.#c.alarm[i] = Infinity
    this.#c.flags[i] &= ~PERSISTING
  }

  /** When the guest must be asked whether it is still there. */
  keepaliveAt(i: number): number {
    return this.#c.heard[i] + KEEPALIVE_IDLE + this.#c.retries[i] * KEEPALIVE_INTERVAL
  }

  /** After a firing, or when a flow begins: sleep until the next need. */
  sleep(i: number): void {
    this.#timers.set(i, Math.min(this.#c.alarm[i], this.keepaliveAt(i)))
  }

  /** The flow is gone. */
  end(i: number): void {
    this.#c.alarm[i] = Infinity
    this.#timers.clear(i)
  }
}
