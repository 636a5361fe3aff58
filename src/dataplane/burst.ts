/**
 * Bursts of small frames through io_uring: many frames read in one system call, and what the switch forwards of them written in one.
 *
 * Owns: the receive slots of a burst, two rings (one for reads, one for writes), who a queued write belongs to.
 * Never does: deciding how many frames to read (ports.ts follows the load), looking into a frame.
 *
 * Theory. A system call costs more than everything else that is done for a frame of 64 bytes. So a burst is read into as many slots as frames
 * are expected; a frame that goes to another nic stays in its slot, and is written from there when the burst has been dealt with. Frames
 * of the gateway come from its one transmit slot and are written at once (ports.ts), after what is queued for the same nic.
 * Everything completes within `submit`: reads and writes carry RWF_NOWAIT. Slots hold any frame; they lie a few cache lines off a multiple
 * of the page, because else their first bytes would share a few sets of the cache.
 * Where io_uring is forbidden (sysctl kernel.io_uring_disabled, seccomp, an old kernel, or NOID_NO_URING=1) there is no Burst.
 *
 * Invariant: no slot is read into while a write from it is queued.
 */
import { type Arena, FRAME_MAX, SLOT, SLOT_FRAME } from '../netstack/arena.ts'
import { Uring } from '../sys/uring.ts'

/** Frames of one burst at most. */
export const BURST = 32
const WRITES = 64
/** Between the starts of two slots: 68 KiB and five cache lines. */
const STRIDE = SLOT + 320

/** Whose frame it was that could not be written. */
export interface Loser {
  lost(error: number, len: number): void
}

export class Burst {
  /** Of the last `read`: bytes or −errno, for each slot. */
  readonly results = new Int32Array(BURST)
  /** Queued writes handed over so far: tells one lot from the next. */
  lot = 0
  readonly #reads: Uring
  readonly #writes: Uring
  readonly #slots: number
  readonly #end: number
  readonly #owners: (Loser | undefined)[] = new Array<Loser | undefined>(WRITES).fill(undefined)
  readonly #lengths = new Int32Array(WRITES)

  /** @returns undefined where io_uring is not allowed */
  static open(arena: Arena, base: number): Burst | undefined {
    if (process.env.NOID_NO_URING === '1') return undefined
    const reads = Uring.open(BURST)
    if (typeof reads === 'number') return undefined
    const writes = Uring.open(WRITES)
    if (typeof writes !== 'number') return new Burst(arena, base, reads, writes)
    reads.close()
    return undefined
  }

  private constructor(arena: Arena, base: number, reads: Uring, writes: Uring) {
    this.#reads = reads
    this.#writes = writes
    reads.base = writes.base = base
    this.#slots = arena.alloc(BURST * STRIDE) + SLOT_FRAME
    this.#end = this.#slots + BURST * STRIDE
  }

  /** The frame offset of slot `i`. */
  slot(i: number): number {
    return this.#slots + i * STRIDE
  }

  /** Is this offset in one of the slots, so that it may stay there? */
  holds(off: number): boolean {
    return off >= this.#slots && off < this.#end
  }

  /** Try to read `n` frames, each with `header` bytes in front, to slots 0 … n−1; `results` says what became of each. */
  read(fd: number, n: number, header: number): void {
    this.flush()
    const ring = this.#reads
    const { results } = this
    for (let i = 0; i < n; i++) {
      results[i] = 0
      ring.read(fd, this.#slots + i * STRIDE - header, FRAME_MAX + header, i)
    }
    ring.submit()
    while (ring.next()) results[ring.tag] = ring.res
  }

  /** Queue a write from a slot, until `flush`. `len` without `header`. */
  put(owner: Loser, fd: number, off: number, len: number, header: number): void {
    const ring = this.#writes
    if (ring.full) this.flush()
    const i = ring.queued
    this.#owners[i] = owner
    this.#lengths[i] = len
    ring.write(fd, off - header, len + header, i)
  }

  /** Write what is queued; what fails is told to its owner. */
  flush(): void {
    const ring = this.#writes
    if (ring.queued === 0) return
    this.lot = (this.lot + 1) | 0
    ring.submit()
    while (ring.next())
      if (ring.res < 0) (this.#owners[ring.tag] as Loser).lost(ring.res, this.#lengths[ring.tag] as number)
  }
}
