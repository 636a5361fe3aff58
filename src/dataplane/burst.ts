/**
 * Bursts of small frames through io_uring: many frames read in one system call, and what the switch forwards of them written in one.
 *
 * Owns: the receive slots of a burst, two rings (one for reads, one for writes), who a queued write belongs to.
 * Never does: deciding how many frames to read (ports.ts follows the load), knowing which frames may leave as one (coalesce.ts).
 *
 * Theory. A system call costs more than everything else that is done for a frame of 64 bytes. So a burst is read into as many slots as frames
 * are expected; a frame that goes to another nic stays in its slot, and is written from there when the burst has been dealt with. Frames
 * of the gateway come from its one transmit slot and are written at once (ports.ts), after what is queued for the same nic.
 * Datagrams of one flow for one nic become one frame where the nic takes such (`joins`): the last one queued is kept back until it is known whether the
 * next goes on with it.
 * Everything completes within `submit`: reads and writes carry RWF_NOWAIT. Slots hold any frame; they lie a few cache lines off a multiple
 * of the page, because else their first bytes would share a few sets of the cache.
 * Where io_uring is forbidden (sysctl kernel.io_uring_disabled, seccomp, an old kernel, or NOID_NO_URING=1) there is no Burst.
 *
 * Invariant: no slot is read into while a write from it is queued.
 */
import { type Arena, FRAME_MAX, SLOT, SLOT_FRAME, VNET } from '../netstack/arena.ts'
import { Uring } from '../sys/uring.ts'
import { fits, follows, headers, join, payloadOf, RUN_MAX } from './coalesce.ts'

/** Frames of one burst at most. */
export const BURST = 32
const WRITES = 64
/** Between the starts of two slots: 68 KiB and five cache lines. */
const STRIDE = SLOT + 320
const TWO32 = 0x100000000

/** Whose frame it was that could not be written. */
export interface Loser {
  /** Datagrams may be joined for it. False once it has refused what was. */
  joins: boolean
  lost(error: number, len: number): void
}

const EINVAL = 22
/** struct iovec: an address and a length, 8 bytes each. */
const IOVEC = 16

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
  /** Of each queued write: bytes of its first frame, and how many frames it is. */
  readonly #lengths = new Int32Array(WRITES)
  readonly #frames = new Int32Array(WRITES)
  // The run at the end of the queue, not handed to the ring yet.
  #owner: Loser | undefined
  #fd = -1
  #head = 0
  #header = 0
  #length = 0
  /** Payload of each datagram (0: nothing can go on with it), of all, and how many there are. */
  #each = 0
  #total = 0
  #run = 0
  readonly #b: Uint8Array
  readonly #base: number
  readonly #vectors: number
  readonly #words: Int32Array
  #vector = 0

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
    this.#b = arena.bytes
    this.#base = base
    this.#vectors = arena.alloc(WRITES * IOVEC, IOVEC)
    this.#words = new Int32Array(arena.bytes.buffer, arena.bytes.byteOffset)
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
    const b = this.#b
    const payload = owner.joins && header === VNET ? payloadOf(b, off, len) : 0
    if (
      payload > 0 &&
      payload <= this.#each &&
      owner === this.#owner &&
      this.#run < RUN_MAX &&
      this.#vector < WRITES &&
      fits(this.#total, payload) &&
      follows(b, this.#head, off)
    ) {
      if (this.#run === 1) this.#piece(this.#head - header, header + headers + this.#each)
      this.#piece(off + headers, payload)
      this.#run++
      this.#total += payload
      // A shorter one is the last.
      if (payload < this.#each) this.#hand()
      return
    }
    this.#hand()
    if (this.#writes.full || this.#vector > WRITES - 2) this.flush()
    this.#owner = owner
    this.#fd = fd
    this.#head = off
    this.#header = header
    this.#length = len
    this.#each = this.#total = payload
    this.#run = 1
  }

  /** Another piece of the run. */
  #piece(off: number, len: number): void {
    const at = (this.#vectors >> 2) + (this.#vector++ * IOVEC) / 4
    const words = this.#words
    const address = this.#base + off
    words[at] = address | 0
    words[at + 1] = Math.floor(address / TWO32)
    words[at + 2] = len
    words[at + 3] = 0
  }

  /** What was kept back goes to the ring, as one frame. */
  #hand(): void {
    const owner = this.#owner
    if (owner === undefined) return
    this.#owner = undefined
    const ring = this.#writes
    const i = ring.queued
    this.#owners[i] = owner
    this.#lengths[i] = this.#length
    this.#frames[i] = this.#run
    if (this.#run === 1) ring.write(this.#fd, this.#head - this.#header, this.#length + this.#header, i)
    else {
      join(this.#b, this.#head, this.#each, this.#total)
      ring.writev(this.#fd, this.#vectors + (this.#vector - this.#run) * IOVEC, this.#run, i)
    }
    this.#each = 0
  }

  /** Write what is queued; what fails is told to its owner. */
  flush(): void {
    this.#hand()
    const ring = this.#writes
    if (ring.queued === 0) return
    this.lot = (this.lot + 1) | 0
    this.#vector = 0
    ring.submit()
    while (ring.next()) if (ring.res < 0) this.#lost(ring.tag, ring.res)
  }

  #lost(i: number, error: number): void {
    const owner = this.#owners[i] as Loser
    const frames = this.#frames[i] as number
    // An older kernel: it takes them one by one.
    if (frames > 1 && error === -EINVAL) owner.joins = false
    for (let n = 0; n < frames; n++) owner.lost(error, this.#lengths[i] as number)
  }
}
