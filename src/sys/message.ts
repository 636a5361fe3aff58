/**
 * A message for sendmsg(2) and recvmsg(2): one reusable msghdr with one iovec, room for an address and for control data.
 *
 * Layout of the scratch: msghdr (56 bytes) at 0, iovec at 64, the address at 128, control data at 256. The object must
 * outlive the call; it is made once and kept. cmsg lengths are aligned to 8 (CMSG_ALIGN, linux/socket.h).
 */
import { declare, result, Scratch } from './libc.ts'

const c = {
  sendmsg: declare<(fd: number, addr: number, flags: number) => number>('long sendmsg(int, uintptr_t, int)'),
  recvmsg: declare<(fd: number, addr: number, flags: number) => number>('long recvmsg(int, uintptr_t, int)'),
}

const IOVEC = 64
/** Where the address (struct sockaddr_*) lies in the scratch. */
export const NAME = 128
const NAME_MAX = 128
/** Where control data lies in the scratch. */
export const CONTROL = NAME + NAME_MAX
/** Bytes of struct cmsghdr. */
export const CMSG = 16
const align = (n: number): number => (n + 7) & ~7

export class Message {
  readonly scratch: Scratch
  readonly #controlMax: number

  /** @param controlMax bytes of control data, both ways */
  constructor(controlMax = 0) {
    this.#controlMax = align(controlMax)
    this.scratch = new Scratch(CONTROL + this.#controlMax)
    this.scratch.setWord(16, this.scratch.address + IOVEC)
    this.scratch.setWord(24, 1)
  }

  /** Payload memory; the caller keeps it alive. */
  payload(addr: number, len: number): void {
    this.scratch.setWord(IOVEC, addr)
    this.scratch.setWord(IOVEC + 8, len)
  }

  /** The destination lies at NAME with `len` bytes; 0: none. */
  name(len: number): void {
    this.scratch.setWord(0, len === 0 ? 0 : this.scratch.address + NAME)
    this.scratch.setI32(8, len)
  }

  /** `len` bytes of control data lie at CONTROL; 0: none. */
  control(len: number): void {
    this.scratch.setWord(32, len === 0 ? 0 : this.scratch.address + CONTROL)
    this.scratch.setWord(40, len)
  }

  /** Write a cmsghdr at `at` and say where its data goes; the data is written by the caller. Returns the end of the cmsg. */
  header(at: number, level: number, type: number, dataLen: number): number {
    this.scratch.setWord(at, CMSG + dataLen)
    this.scratch.setI32(at + 8, level)
    this.scratch.setI32(at + 12, type)
    return at + CMSG + align(dataLen)
  }

  send(fd: number, flags: number): number {
    const r = c.sendmsg(fd, this.scratch.address, flags)
    return r < 0 ? result(r) : r
  }

  /** Receive with room for an address and control data. */
  recv(fd: number, flags: number): number {
    this.name(NAME_MAX)
    this.control(this.#controlMax)
    const r = c.recvmsg(fd, this.scratch.address, flags)
    return r < 0 ? result(r) : r
  }

  /** MSG_* flags of what was received. */
  get flags(): number {
    return this.scratch.i32(48)
  }

  /** Offset of the data of the first received cmsg of that level and type, or 0. */
  find(level: number, type: number): number {
    const s = this.scratch
    const end = CONTROL + s.word(40)
    let at = CONTROL
    while (at + CMSG <= end) {
      const len = s.word(at)
      if (len < CMSG) return 0
      if (s.i32(at + 8) === level && s.i32(at + 12) === type) return at + CMSG
      at += align(len)
    }
    return 0
  }

  /** Bytes of data of the cmsg whose data begins at `data` (from find). */
  dataLength(data: number): number {
    return this.scratch.word(data - CMSG) - CMSG
  }
}
