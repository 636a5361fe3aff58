/**
 * The device's side of a split virtqueue (virtio 1.2 §2.7; linux/virtio_ring.h).
 *
 * Owns: how far the driver's offers were taken, what was given back, when either side is told. Never does: copying what a descriptor names.
 * Theory. Everything in a ring is the guest's word and may change at any time: each field is read once, and each is checked. A ring that
 * contradicts itself is `broken` for good; `begin` and `step` say so by stopping. Atomics on these views are real barriers (the views are over
 * memory that is shared with another process, whatever JavaScript thinks), plain accesses are not.
 */
import type { GuestMemory, Region } from './memory.ts'

export const NEXT = 1
export const WRITE = 2
const INDIRECT = 4
const NO_INTERRUPT = 1
const NO_NOTIFY = 1
const DESCRIPTOR = 16
/** Largest queue that QEMU gives. */
export const SIZE_MAX = 1024
const MASK16 = 0xffff

export interface RingAddresses {
  readonly descriptors: number
  readonly available: number
  readonly used: number
  /** Guest-physical address of the used ring, to be logged; or −1. */
  readonly log: number
}

export class Ring {
  readonly #memory: GuestMemory
  readonly size: number
  readonly #mask: number
  readonly #eventIndex: boolean
  readonly #table: Region
  readonly #tableAt: number
  readonly #available: Uint16Array
  readonly #used: Uint16Array
  readonly #usedWords: Uint32Array
  readonly #log: number
  /** Offers taken so far. */
  taken: number
  /** Offers given back so far. */
  #given: number
  /** What of it the driver can see, and was told of. */
  #told: number
  /** Why it cannot be used any more. */
  broken = ''

  // The chain that is walked, in which table, and its current descriptor.
  #walked: Region
  #walkedAt: number
  #limit = 0
  #next = -1
  #steps = 0
  #indirect = false
  /** Where the buffer is: undefined when that is no memory. */
  region: Region | undefined
  at = 0
  length = 0
  flags = 0

  /** @throws when the addresses or the size cannot be */
  constructor(memory: GuestMemory, size: number, a: RingAddresses, taken: number, eventIndex: boolean) {
    if (size < 2 || size > SIZE_MAX || (size & (size - 1)) !== 0) throw new Error(`a ring of ${size} descriptors`)
    if (a.descriptors % 16 !== 0 || a.available % 2 !== 0 || a.used % 4 !== 0)
      throw new Error('a ring out of alignment')
    this.#memory = memory
    this.size = size
    this.#mask = size - 1
    this.#eventIndex = eventIndex
    this.#table = this.#walked = memory.ofUser(a.descriptors, size * DESCRIPTOR)
    this.#tableAt = this.#walkedAt = a.descriptors - this.#table.user
    const available = memory.ofUser(a.available, 6 + 2 * size)
    this.#available = new Uint16Array(available.mapping.buffer, a.available - available.user, 3 + size)
    const used = memory.ofUser(a.used, 6 + 8 * size)
    this.#used = new Uint16Array(used.mapping.buffer, a.used - used.user, 3 + 4 * size)
    this.#usedWords = new Uint32Array(used.mapping.buffer, a.used - used.user, 1 + 2 * size)
    this.#log = a.log
    this.taken = taken & MASK16
    // A back-end before us may have given back more than it was asked for since.
    this.#given = this.#told = Atomics.load(this.#used, 1)
  }

  /** How many offers are there. */
  pending(): number {
    const n = (Atomics.load(this.#available, 1) - this.taken) & MASK16
    if (n <= this.size) return n
    this.broken = `it offers ${n} buffers in a ring of ${this.size}`
    return 0
  }

  /** Take the next offer, which must be there: its head. Then `step` walks it. */
  begin(): number {
    const head = this.#available[2 + (this.taken & this.#mask)] as number
    this.taken = (this.taken + 1) & MASK16
    this.#walked = this.#table
    this.#walkedAt = this.#tableAt
    this.#limit = this.size
    this.#indirect = false
    this.#steps = 0
    this.#next = head
    if (head >= this.size) {
      this.broken = `it offers descriptor ${head} of ${this.size}`
      this.#next = -1
    }
    return head
  }

  /** The chain's next descriptor is in region, at, length and flags; false at its end, or when it is broken. */
  step(): boolean {
    for (;;) {
      const n = this.#next
      if (n < 0) return false
      if (this.#steps++ >= this.#limit) return this.#break('a chain of descriptors without an end')
      const { view } = this.#walked
      const at = this.#walkedAt + n * DESCRIPTOR
      const high = view.getInt32(at + 4, true)
      const region = this.#memory.locate(high, view.getInt32(at, true))
      this.region = region
      this.at = this.#memory.at
      this.length = view.getUint32(at + 8, true)
      const word = view.getUint32(at + 12, true)
      this.flags = word & MASK16
      if ((this.flags & INDIRECT) !== 0) {
        if (!this.#enter()) return false
        continue
      }
      this.#next = (this.flags & NEXT) === 0 ? -1 : word >>> 16
      if (this.#next >= this.#limit) return this.#break(`a chain that leads to descriptor ${this.#next}`)
      return true
    }
  }

  /** The chain goes on in a table of its own. */
  #enter(): boolean {
    const count = this.length / DESCRIPTOR
    const sane = !this.#indirect && (this.flags & NEXT) === 0 && Number.isInteger(count) && count >= 1
    const { region, at } = this
    if (!sane || count > SIZE_MAX || region === undefined || at + this.length > region.size)
      return this.#break('an indirect table that cannot be')
    this.#indirect = true
    this.#walked = region
    this.#walkedAt = at
    this.#limit = count
    this.#steps = 0
    this.#next = 0
    return true
  }

  #break(why: string): boolean {
    this.broken = why
    this.#next = -1
    return false
  }

  /** Undo the last offers that were taken and the buffers that were given, when they have not been shown yet. */
  rewind(taken: number, given: number): void {
    this.taken = taken
    this.#given = given
  }

  get given(): number {
    return this.#given
  }

  /** Give a buffer back with `len` bytes written; seen by the driver after `show`. */
  give(head: number, len: number): void {
    const at = 1 + 2 * (this.#given & this.#mask)
    this.#usedWords[at] = head
    this.#usedWords[at + 1] = len
    this.#given = (this.#given + 1) & MASK16
  }

  show(): void {
    Atomics.store(this.#used, 1, this.#given)
    if (this.#log >= 0) this.#memory.wrote(this.#log, 6 + 8 * this.size)
  }

  /** Must the driver be told of what was shown since this was asked? */
  mustTell(): boolean {
    const from = this.#told
    const to = this.#given
    if (from === to) return false
    this.#told = to
    if (!this.#eventIndex) return (Atomics.load(this.#available, 0) & NO_INTERRUPT) === 0
    const event = Atomics.load(this.#available, 2 + this.size)
    return ((to - event - 1) & MASK16) < ((to - from) & MASK16)
  }

  /** Ask to be told of the next offer, or say that it is not necessary. */
  listen(on: boolean): void {
    if (this.#eventIndex) {
      // Not wanted: where the driver has been already.
      Atomics.store(this.#used, 2 + 4 * this.size, on ? this.taken : (this.taken - 1) & MASK16)
      if (on) Atomics.store(this.#used, 0, 0)
    } else Atomics.store(this.#used, 0, on ? 0 : NO_NOTIFY)
  }
}
