/**
 * epoll(7) with an event array that is made once and lives as long as the object.
 *
 * Each registration carries the descriptor and a serial number, so that an event collected for a descriptor that has been
 * closed and reused since can be recognised. struct epoll_event is packed (12 bytes) on x86-64 and 16 bytes elsewhere.
 */
import { declare, result, Scratch } from './libc.ts'

const c = {
  create: declare<(flags: number) => number>('int epoll_create1(int)'),
  ctl: declare<(ep: number, op: number, fd: number, addr: number) => number>('int epoll_ctl(int, int, int, uintptr_t)'),
  wait: declare<(ep: number, addr: number, max: number, timeout: number) => number>(
    'int epoll_wait(int, uintptr_t, int, int)',
  ),
}

// linux/eventpoll.h
export const EPOLLIN = 0x1
export const EPOLLPRI = 0x2
export const EPOLLOUT = 0x4
export const EPOLLERR = 0x8
export const EPOLLHUP = 0x10
export const EPOLLRDHUP = 0x2000
export const EPOLLET = -0x80000000
const EPOLL_CLOEXEC = 0o2000000
const ADD = 1
const DEL = 2
const MOD = 3
const packed = process.arch === 'x64'
const SIZE = packed ? 12 : 16
const DATA = packed ? 4 : 8

export class Epoll {
  readonly fd: number
  readonly #max: number
  readonly #events: Scratch
  readonly #one = new Scratch(16)
  readonly #words: DataView

  /** @param max events taken in one wait. Throws when the kernel refuses an epoll: nothing works without. */
  constructor(max = 256) {
    this.fd = result(c.create(EPOLL_CLOEXEC))
    if (this.fd < 0) throw new Error(`epoll_create1: ${this.fd}`)
    this.#max = max
    this.#events = new Scratch(max * SIZE)
    this.#words = this.#events.view
  }

  #ctl(op: number, fd: number, events: number, serial: number): number {
    this.#one.setI32(0, events)
    this.#one.setI32(DATA, fd)
    this.#one.setI32(DATA + 4, serial)
    const r = c.ctl(this.fd, op, fd, this.#one.address)
    return r < 0 ? result(r) : r
  }

  add(fd: number, events: number, serial = 0): number {
    return this.#ctl(ADD, fd, events, serial)
  }

  /** With EPOLLET this polls the file again: what is ready now is reported once more, and SOCK_NOSPACE is armed. */
  modify(fd: number, events: number, serial = 0): number {
    return this.#ctl(MOD, fd, events, serial)
  }

  remove(fd: number): number {
    return this.#ctl(DEL, fd, 0, 0)
  }

  /** Events collected (read them with fd/serial/events below), or −errno. `timeout` in ms; −1 for ever. */
  wait(timeout: number): number {
    const r = c.wait(this.fd, this.#events.address, this.#max, timeout)
    return r < 0 ? result(r) : r
  }

  fdOf(i: number): number {
    return this.#words.getInt32(i * SIZE + DATA, true)
  }

  serialOf(i: number): number {
    return this.#words.getInt32(i * SIZE + DATA + 4, true)
  }

  eventsOf(i: number): number {
    return this.#words.getInt32(i * SIZE, true)
  }
}
