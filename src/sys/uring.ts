/**
 * io_uring (io_uring_setup(2), io_uring_enter(2), linux/io_uring.h): many reads and writes of small frames in one call.
 *
 * Owns: one ring, its mapped memory and the descriptor. Never does: waiting for readiness (epoll does), keeping a buffer
 * alive (addresses are the caller's), deciding what to do with a result.
 *
 * The rings are mapped with mmap and seen through typed arrays; head and tail are exchanged with the kernel by Atomics, which
 * are real barriers on memory that is not shared too. Every request carries a number of the caller's, given back with its result.
 * What is submitted has completed when `submit` returns, as long as each request can complete inline: all carry RWF_NOWAIT, because
 * an unfilled READ of a non-blocking TAP would otherwise be armed for poll and complete later, into a buffer already reused.
 */
import koffi from 'koffi'
import { close } from './fd.ts'
import { declare, result, Scratch } from './libc.ts'

const SYS_IO_URING_SETUP = 425
const SYS_IO_URING_ENTER = 426
const OP_WRITEV = 2
const OP_READ = 22
const OP_WRITE = 23
const RWF_NOWAIT = 8
const ENTER_GETEVENTS = 1
const SETUP_COOP_TASKRUN = 1 << 8
const SETUP_SINGLE_ISSUER = 1 << 12
const FEAT_SINGLE_MMAP = 1
const OFF_SQES = 0x10000000
const PROT_READ_WRITE = 3
const MAP_SHARED_POPULATE = 0x8001
const EINVAL = 22
const ENOSYS = 38

// struct io_uring_params: 40 bytes, then io_sqring_offsets and io_cqring_offsets of 40 bytes each.
const PARAMS = 120
const P_SQ_ENTRIES = 0
const P_CQ_ENTRIES = 4
const P_FLAGS = 8
const P_FEATURES = 20
const P_SQ = 40
const P_CQ = 80

const SQE_WORDS = 16
const CQE_WORDS = 4
const TWO32 = 0x100000000

const setup = declare<(n: number, entries: number, params: number) => number>(
  'long syscall(long n, uint32_t entries, uintptr_t params)',
)
const enter = declare<
  (n: number, fd: number, submit: number, min: number, flags: number, sig: number, size: number) => number
>('long syscall(long n, int fd, uint32_t submit, uint32_t min, uint32_t flags, uintptr_t sig, size_t size)')
const mmap = declare<(at: number, length: number, prot: number, flags: number, fd: number, offset: number) => number>(
  'intptr_t mmap(uintptr_t at, size_t length, int prot, int flags, int fd, long offset)',
)
const munmap = declare<(at: number, length: number) => number>('int munmap(uintptr_t at, size_t length)')

export class Uring {
  readonly fd: number
  /** Requests that fit between two calls of `submit`. */
  readonly entries: number
  /** Of the completion that `next` found: the caller's number, and bytes or −errno. */
  tag = 0
  res = 0
  /** Added to every address that is given: an offset is a small integer, an address would be boxed for each call. */
  base = 0

  readonly #ring: Int32Array
  readonly #sqes: Int32Array
  readonly #sqTail: number
  readonly #cqHead: number
  readonly #cqTail: number
  readonly #cqes: number
  readonly #cqMask: number
  readonly #mapped: readonly { at: number; length: number }[]
  #tail = 0
  #head = 0
  #queued = 0

  /** A ring for `entries` (a power of two) requests at a time, or −errno (ENOSYS, EPERM: forbidden by sysctl or seccomp). */
  static open(entries: number): Uring | number {
    const params = new Scratch(PARAMS)
    // The newest arrangement first; an older kernel refuses flags it does not know.
    for (const flags of [SETUP_SINGLE_ISSUER | SETUP_COOP_TASKRUN, 0]) {
      params.bytes.fill(0)
      params.view.setUint32(P_FLAGS, flags, true)
      const fd = result(setup(SYS_IO_URING_SETUP, entries, params.address))
      if (fd === -EINVAL && flags !== 0) continue
      if (fd < 0) return fd
      if ((params.u32(P_FEATURES) & FEAT_SINGLE_MMAP) === 0) {
        close(fd)
        return -ENOSYS
      }
      const ringLength = Math.max(
        params.u32(P_SQ + 24) + params.u32(P_SQ_ENTRIES) * 4,
        params.u32(P_CQ + 20) + params.u32(P_CQ_ENTRIES) * 16,
      )
      const sqesLength = params.u32(P_SQ_ENTRIES) * 64
      const ring = result(mmap(0, ringLength, PROT_READ_WRITE, MAP_SHARED_POPULATE, fd, 0))
      if (ring < 0) {
        close(fd)
        return ring
      }
      const sqes = result(mmap(0, sqesLength, PROT_READ_WRITE, MAP_SHARED_POPULATE, fd, OFF_SQES))
      if (sqes < 0) {
        munmap(ring, ringLength)
        close(fd)
        return sqes
      }
      return new Uring(fd, params, { at: ring, length: ringLength }, { at: sqes, length: sqesLength })
    }
    return -EINVAL
  }

  private constructor(
    fd: number,
    params: Scratch,
    ring: { at: number; length: number },
    sqes: { at: number; length: number },
  ) {
    this.fd = fd
    this.entries = params.u32(P_SQ_ENTRIES)
    this.#mapped = [ring, sqes]
    this.#ring = new Int32Array(koffi.view(ring.at, ring.length & ~3))
    this.#sqes = new Int32Array(koffi.view(sqes.at, sqes.length))
    this.#sqTail = params.u32(P_SQ + 4) >> 2
    this.#cqHead = params.u32(P_CQ) >> 2
    this.#cqTail = params.u32(P_CQ + 4) >> 2
    this.#cqes = params.u32(P_CQ + 20) >> 2
    this.#cqMask = params.u32(P_CQ_ENTRIES) - 1
    // The submission array names the entries in their own order, for ever.
    const array = params.u32(P_SQ + 24) >> 2
    for (let i = 0; i < this.entries; i++) this.#ring[array + i] = i
  }

  /** Queue a read of up to `len` bytes to `address`, completing at once or with −EAGAIN. There must be room: see `full`. */
  read(fd: number, address: number, len: number, tag: number): void {
    this.#push(OP_READ, fd, address, len, RWF_NOWAIT, tag)
  }

  /** Queue a write, completing at once or with −EAGAIN. The bytes must stay until `submit` has returned. */
  write(fd: number, address: number, len: number, tag: number): void {
    this.#push(OP_WRITE, fd, address, len, RWF_NOWAIT, tag)
  }

  /** As `write`, gathered from `count` pieces: struct iovec (readv(2)) at `vector`, an address as those of the others. */
  writev(fd: number, vector: number, count: number, tag: number): void {
    this.#push(OP_WRITEV, fd, vector, count, RWF_NOWAIT, tag)
  }

  get queued(): number {
    return this.#queued
  }

  get full(): boolean {
    return this.#queued === this.entries
  }

  #push(op: number, fd: number, off: number, len: number, flags: number, tag: number): void {
    const s = this.#sqes
    const address = this.base + off
    const at = (this.#tail & (this.entries - 1)) * SQE_WORDS
    s[at] = op
    s[at + 1] = fd
    s[at + 2] = -1
    s[at + 3] = -1
    s[at + 4] = address | 0
    s[at + 5] = Math.floor(address / TWO32)
    s[at + 6] = len
    s[at + 7] = flags
    s[at + 8] = tag
    s[at + 9] = 0
    s[at + 10] = 0
    s[at + 11] = 0
    this.#tail = (this.#tail + 1) | 0
    this.#queued++
  }

  /** Hand over what is queued and wait for all of it. How many were submitted, or −errno. */
  submit(): number {
    const n = this.#queued
    if (n === 0) return 0
    Atomics.store(this.#ring, this.#sqTail, this.#tail)
    this.#queued = 0
    return result(enter(SYS_IO_URING_ENTER, this.fd, n, n, ENTER_GETEVENTS, 0, 0))
  }

  /** Take the next completion into `tag` and `res`; false when there is none. */
  next(): boolean {
    const head = this.#head
    if (head === Atomics.load(this.#ring, this.#cqTail)) return false
    const at = this.#cqes + (head & this.#cqMask) * CQE_WORDS
    this.tag = this.#ring[at]!
    this.res = this.#ring[at + 2]!
    this.#head = (head + 1) | 0
    Atomics.store(this.#ring, this.#cqHead, this.#head)
    return true
  }

  /** Unmap and close. The views must not be touched again: the object is finished. */
  close(): void {
    for (const m of this.#mapped) munmap(m.at, m.length)
    close(this.fd)
  }
}
