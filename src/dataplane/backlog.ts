/**
 * Frames that wait for a nic which takes no more: a socket's queue is short, and nobody's kernel keeps a longer one for us.
 *
 * Owns: slots of the arena, shared by all nics of the data plane that need them, and for each such nic the order of its own.
 * Never does: sending.
 *
 * Theory. How many frames one nic may keep follows from how many slots are left (Choudhury and Hahne, "Dynamic queue length thresholds for
 * shared-memory packet switches", 1998, with α = 1): alone it gets half of the memory, and a VM that does not read leaves enough for the others,
 * however many of them do the same. A frame is copied once, by memmove within the arena. A slot holds a frame of the network's MTU; what is
 * longer is not for such a nic.
 */
import type { Arena } from '../netstack/arena.ts'
import { ETHERNET } from '../netstack/wire/ethernet.ts'

/** Of the arena, for all nics; a page of it costs memory once it was used. */
const BYTES = 8 << 20
/** Frames that one nic keeps at most. */
export const QUEUE_MAX = 2048

export class Backlog {
  readonly #bytes: Uint8Array
  readonly #at: number
  /** Bytes of a slot. */
  readonly size: number
  /** The slots that are free: a stack, so that the warm ones come first. */
  readonly #free: Int32Array
  #left: number

  constructor(arena: Arena, mtu: number) {
    this.#bytes = arena.bytes
    this.size = (mtu + ETHERNET + 63) & ~63
    this.#at = arena.alloc(BYTES)
    const count = Math.floor(BYTES / this.size)
    this.#free = Int32Array.from({ length: count }, (_, i) => this.#at + (count - 1 - i) * this.size)
    this.#left = count
  }

  get left(): number {
    return this.#left
  }

  /** Keep a copy of the frame: where it lies. There must be a slot left. */
  keep(off: number, len: number): number {
    const at = this.#free[--this.#left] as number
    this.#bytes.copyWithin(at, off, off + len)
    return at
  }

  release(at: number): void {
    this.#free[this.#left++] = at
  }
}

/** The frames of one nic, in their order. */
export class Queue {
  readonly #backlog: Backlog
  readonly #at = new Int32Array(QUEUE_MAX)
  readonly #length = new Int32Array(QUEUE_MAX)
  #head = 0
  count = 0

  constructor(backlog: Backlog) {
    this.#backlog = backlog
  }

  /** Will a frame of this length ever find room? */
  fits(len: number): boolean {
    return len <= this.#backlog.size
  }

  /** False: no room now. */
  push(off: number, len: number): boolean {
    if (this.count >= QUEUE_MAX || this.count >= this.#backlog.left) return false
    const i = (this.#head + this.count++) & (QUEUE_MAX - 1)
    this.#at[i] = this.#backlog.keep(off, len)
    this.#length[i] = len
    return true
  }

  /** Where the n-th lies, counted from the oldest. */
  at(n: number): number {
    return this.#at[(this.#head + n) & (QUEUE_MAX - 1)] as number
  }

  lengthOf(n: number): number {
    return this.#length[(this.#head + n) & (QUEUE_MAX - 1)] as number
  }

  /** Give up the oldest. */
  shift(): void {
    this.#backlog.release(this.#at[this.#head] as number)
    this.#head = (this.#head + 1) & (QUEUE_MAX - 1)
    this.count--
  }
}
