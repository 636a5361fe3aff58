/**
 * Timers of flows: one deadline per index, in a hashed timing wheel over typed arrays (Varghese & Lauck, 1987).
 *
 * Owns: which index is due when. Never does: reading a clock; allocating after construction.
 * Invariants: `set` replaces; an index fires at most once per `set`, never before its deadline, and at the latest with the
 * first `advance` after it. Slots are TICK ms wide; a deadline further away than one turn stays in its slot and is passed
 * over until its turn has come.
 */
const TICK = 4
const SLOTS = 4096
const NONE = -1

export class Timers {
  readonly #head = new Int32Array(SLOTS).fill(NONE)
  readonly #next: Int32Array
  readonly #prev: Int32Array
  readonly #deadline: Float64Array
  /** The slot that was visited last. */
  #tick = 0
  /** The slot that the advance under way will visit last. */
  #reached = 0
  #armed = 0

  /** @param capacity indices are 0 … capacity−1 */
  constructor(capacity: number, now = 0) {
    this.#next = new Int32Array(capacity).fill(NONE)
    this.#prev = new Int32Array(capacity).fill(NONE)
    this.#deadline = new Float64Array(capacity).fill(Infinity)
    this.#tick = this.#reached = Math.floor(now / TICK)
  }

  /** Deadline of an index in ms, Infinity when it has none. */
  deadline(i: number): number {
    return this.#deadline[i] as number
  }

  set(i: number, deadline: number): void {
    this.clear(i)
    // What is due already fires with the next advance, never again with the one under way.
    let tick = Math.ceil(deadline / TICK)
    if (tick <= this.#reached) tick = this.#reached + 1
    const slot = tick & (SLOTS - 1)
    const first = this.#head[slot] as number
    this.#next[i] = first
    this.#prev[i] = ~slot
    if (first !== NONE) this.#prev[first] = i
    this.#head[slot] = i
    this.#deadline[i] = deadline
    this.#armed++
  }

  clear(i: number): void {
    if (this.#deadline[i] === Infinity) return
    const next = this.#next[i] as number
    const prev = this.#prev[i] as number
    if (prev < 0) this.#head[~prev] = next
    else this.#next[prev] = next
    if (next !== NONE) this.#prev[next] = prev
    this.#deadline[i] = Infinity
    this.#armed--
  }

  /** Fire everything due at `now`. `fire` may set and clear any index, its own too. */
  advance(now: number, fire: (i: number) => void): void {
    const last = Math.floor(now / TICK)
    if (last <= this.#tick) return
    this.#reached = last
    if (this.#armed === 0) {
      this.#tick = last
      return
    }
    // After a long sleep one turn visits every slot; more would visit them again.
    let steps = Math.min(last - this.#tick, SLOTS)
    let tick = steps === SLOTS ? last - SLOTS : this.#tick
    while (steps-- > 0) {
      tick++
      this.#tick = tick
      const slot = tick & (SLOTS - 1)
      let i = this.#head[slot] as number
      while (i !== NONE) {
        if ((this.#deadline[i] as number) <= now) {
          this.clear(i)
          fire(i)
          i = this.#head[slot] as number
        } else i = this.#next[i] as number
      }
    }
  }

  /**
   * When to call `advance` next: never later than the earliest deadline, but it may be earlier (a wheel knows its slots, not an
   * order). Infinity when nothing is armed. `horizon`: how far to look, in ms.
   */
  nextWake(horizon = 1000): number {
    if (this.#armed === 0) return Infinity
    const slots = Math.min(SLOTS, Math.ceil(horizon / TICK))
    for (let s = 1; s <= slots; s++) {
      const tick = this.#tick + s
      let i = this.#head[tick & (SLOTS - 1)] as number
      while (i !== NONE) {
        if ((this.#deadline[i] as number) <= (tick + 1) * TICK) return tick * TICK
        i = this.#next[i] as number
      }
    }
    return (this.#tick + slots) * TICK
  }
}
