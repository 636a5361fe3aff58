/**
 * Several datagrams in one call on a connected socket: sendmmsg(2), recvmmsg(2).
 *
 * Owns: one array of mmsghdr (64 bytes each) with one iovec for each message, and in a Batch its buffer; made once, reused for ever.
 * Results are ≥ 0 or −errno.
 */
import { declare, result, Scratch } from './libc.ts'

const c = {
  sendmmsg: declare<(fd: number, addr: number, count: number, flags: number) => number>(
    'int sendmmsg(int, uintptr_t, unsigned int, int)',
  ),
  recvmmsg: declare<(fd: number, addr: number, count: number, flags: number, timeout: number) => number>(
    'int recvmmsg(int, uintptr_t, unsigned int, int, uintptr_t)',
  ),
}

const HEADER = 64
const IOVEC = 16
/** Where the kernel writes how many bytes a message had. */
const LENGTH = 56
const TWO32 = 0x1_0000_0000

export class Batch {
  readonly count: number
  readonly size: number
  readonly #headers: Scratch
  readonly #iovecs: Scratch
  readonly #buffers: Scratch

  /** @param count messages, @param size bytes of each */
  constructor(count: number, size: number) {
    this.count = count
    this.size = size
    this.#headers = new Scratch(count * HEADER)
    this.#iovecs = new Scratch(count * IOVEC)
    this.#buffers = new Scratch(count * size)
    for (let i = 0; i < count; i++) {
      this.#iovecs.setWord(i * IOVEC, this.#buffers.address + i * size)
      this.#iovecs.setWord(i * IOVEC + 8, size)
      this.#headers.setWord(i * HEADER + 16, this.#iovecs.address + i * IOVEC)
      this.#headers.setWord(i * HEADER + 24, 1)
    }
  }

  /** Send `n` messages of `size` bytes; how many the kernel took. */
  send(fd: number, flags = 0, n = this.count): number {
    return result(c.sendmmsg(fd, this.#headers.address, n, flags))
  }

  /** How many messages came. */
  receive(fd: number, flags: number): number {
    return result(c.recvmmsg(fd, this.#headers.address, this.count, flags, 0))
  }

  /** Bytes of the received message `i`. */
  lengthOf(i: number): number {
    return this.#headers.i32(i * HEADER + LENGTH)
  }
}

/** Datagrams that lie anywhere in one piece of memory, sent in one call. */
export class Lot {
  readonly count: number
  readonly #headers: Scratch
  readonly #iovecs: Scratch
  // The memory's address as two words: an address in one would be boxed for each message.
  readonly #low: number
  readonly #high: number

  /** @param base address of the memory, which the caller keeps alive */
  constructor(count: number, base: number) {
    this.count = count
    this.#low = base % TWO32
    this.#high = Math.floor(base / TWO32)
    this.#headers = new Scratch(count * HEADER)
    this.#iovecs = new Scratch(count * IOVEC)
    for (let i = 0; i < count; i++) {
      this.#headers.setWord(i * HEADER + 16, this.#iovecs.address + i * IOVEC)
      this.#headers.setWord(i * HEADER + 24, 1)
    }
  }

  /** Message `i` is the `len` bytes at `off` of the memory. */
  set(i: number, off: number, len: number): void {
    const { view } = this.#iovecs
    const low = this.#low + off
    view.setUint32(i * IOVEC, low, true)
    view.setUint32(i * IOVEC + 4, this.#high + (low >= TWO32 ? 1 : 0), true)
    view.setUint32(i * IOVEC + 8, len, true)
  }

  /** Send messages 0 … n−1: how many the kernel took, or −errno of the first. */
  send(fd: number, n: number, flags: number): number {
    const r = c.sendmmsg(fd, this.#headers.address, n, flags)
    return r < 0 ? result(r) : r
  }
}
