/**
 * Who has something to do before the process sleeps: nics that collect what one turn brings and hand it over at once.
 * Whoever asks is called once, before the next wait. Nothing here allocates for a turn.
 */
export interface Collecting {
  flush(): void
}

export class TurnEnd {
  readonly #waiting: (Collecting | undefined)[] = []
  #count = 0

  /** Call `who.flush()` at the end of this turn; it must not be asked for twice. */
  put(who: Collecting): void {
    this.#waiting[this.#count++] = who
  }

  run(): void {
    // One that is called may ask again, for itself or for another: there is no more to wait for than what this turn brought.
    for (let n = 0; n < this.#count; n++) {
      const who = this.#waiting[n] as Collecting
      this.#waiting[n] = undefined
      who.flush()
    }
    this.#count = 0
  }
}
