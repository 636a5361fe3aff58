/** Simulated time in ms: what is to happen, in order of when (ties: in order of asking). A binary heap. */
interface Event {
  readonly at: number
  readonly order: number
  readonly run: () => void
}

export class Clock {
  now = 0
  #heap: Event[] = []
  #order = 0

  at(when: number, run: () => void): void {
    const heap = this.#heap
    const event = { at: Math.max(when, this.now), order: this.#order++, run }
    let i = heap.push(event) - 1
    while (i > 0) {
      const up = (i - 1) >> 1
      if (before(heap[up], event)) break
      heap[i] = heap[up]
      i = up
    }
    heap[i] = event
  }

  after(ms: number, run: () => void): void {
    this.at(this.now + ms, run)
  }

  /** Run until `done`, or until nothing is left, or until `limit`. True: done. */
  run(done: () => boolean, limit: number): boolean {
    while (!done()) {
      const next = this.#pop(limit)
      if (next === undefined) return done()
      this.now = next.at
      next.run()
    }
    return true
  }

  #pop(limit: number): Event | undefined {
    const heap = this.#heap
    const first = heap[0]
    if (first === undefined || first.at > limit) return undefined
    const last = heap.pop()!
    if (heap.length > 0) {
      let i = 0
      for (;;) {
        let child = 2 * i + 1
        if (child >= heap.length) break
        if (child + 1 < heap.length && before(heap[child + 1], heap[child])) child++
        if (before(last, heap[child])) break
        heap[i] = heap[child]
        i = child
      }
      heap[i] = last
    }
    return first
  }
}

const before = (a: Event, b: Event): boolean => a.at < b.at || (a.at === b.at && a.order < b.order)
