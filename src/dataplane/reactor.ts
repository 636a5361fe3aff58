/**
 * The reactor: one thread, one epoll, no event loop underneath.
 *
 * Owns: who is told of a descriptor's readiness, and that an event of a descriptor that has been given up is never told.
 * Never does: reading, writing, knowing what a descriptor is.
 *
 * Theory. Three kinds of descriptors share one epoll. Nics are level-triggered, with a budget for each turn: what is left over
 * makes the next wait return at once, so no nic starves another. Host sockets are edge-triggered and named by a
 * reference of the engine; they are the many, so they cost a column entry and no object. Control sockets are level-triggered
 * callbacks. epoll_wait may hand over an event of a descriptor that an earlier event of the same turn closed, and whose
 * number may have been given again: each registration has a serial, and an event with another serial is dropped.
 *
 * Invariant: nothing here allocates for an event.
 */

import { FAILED, HANGUP, READABLE, type Ref, URGENT, WRITABLE } from '../netstack/host.ts'
import { EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, Epoll } from '../sys/epoll.ts'
import type { ControlReactor } from './control.ts'

const EINTR = 4
const ENFILE = 23
/** What a host socket is watched for in any case. */
const SOCKET = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
/** Events taken in one wait. */
const BURST = 256

type Ready = (readable: boolean, writable: boolean) => void

export class Reactor implements ControlReactor {
  readonly #epoll = new Epoll(BURST)
  readonly #serial: Int32Array
  readonly #ref: Int32Array
  readonly #callbacks: (Ready | undefined)[] = []
  /** Descriptors are 0 … capacity−1. */
  readonly capacity: number
  #lastSerial = 0
  /** Told of a host socket's events: READABLE | WRITABLE | HANGUP | FAILED | URGENT. Set once, at composition. */
  onSocket: (ref: Ref, events: number, fd: number) => void = () => {}
  /** A handler threw: what and in which descriptor's turn. The reactor goes on. */
  onFault: (error: unknown, fd: number) => void = (error) => {
    throw error
  }

  constructor(capacity: number) {
    this.capacity = capacity
    this.#serial = new Int32Array(capacity)
    this.#ref = new Int32Array(capacity)
  }

  #register(fd: number): number {
    this.#lastSerial = (this.#lastSerial + 1) | 0 || 1
    this.#serial[fd] = this.#lastSerial
    return this.#lastSerial
  }

  // -- nics and control: level-triggered -----------------------------------------------------------------------------

  watch(fd: number, ready: Ready): void {
    if (fd >= this.capacity) throw new RangeError(`descriptor ${fd} is beyond ${this.capacity}`)
    this.#callbacks[fd] = ready
    const r = this.#epoll.add(fd, EPOLLIN, this.#register(fd))
    if (r < 0) throw new Error(`epoll: cannot watch descriptor ${fd}: ${r}`)
  }

  wantWrite(fd: number, on: boolean): void {
    this.#epoll.modify(fd, on ? EPOLLIN | EPOLLOUT : EPOLLIN, this.#serial[fd] as number)
  }

  /** Also takes it out of the epoll: closing it does not when another process holds the same open file. */
  unwatch(fd: number): void {
    this.#epoll.remove(fd)
    this.#callbacks[fd] = undefined
    this.#serial[fd] = 0
  }

  // -- host sockets: edge-triggered ----------------------------------------------------------------------------------

  /** @param write be told of write space at every edge; without it only after armWrite */
  watchSocket(fd: number, ref: Ref, write: boolean): number {
    if (fd >= this.capacity) return -ENFILE
    this.#ref[fd] = ref
    const events = write ? SOCKET | EPOLLOUT : SOCKET
    if (this.#serial[fd] !== 0) return this.#epoll.modify(fd, events, this.#register(fd))
    return this.#epoll.add(fd, events, this.#register(fd))
  }

  /** Poll it again: WRITABLE comes now if there is space, and with the next space if there is none. */
  armSocket(fd: number, write: boolean): void {
    const events = write ? SOCKET | EPOLLOUT : SOCKET
    this.#epoll.modify(fd, events, this.#serial[fd] as number)
  }

  /** No event of it any more. `foreign`: another process may hold the same open file, so it must be taken out by hand. */
  forget(fd: number, foreign: boolean): void {
    if (this.#serial[fd] === 0) return
    if (foreign) this.#epoll.remove(fd)
    this.#serial[fd] = 0
  }

  /** Tells one registration of a descriptor's number from the next; 0 when there is none. */
  serialOf(fd: number): number {
    return fd < this.capacity ? (this.#serial[fd] as number) : 0
  }

  // -- a turn --------------------------------------------------------------------------------------------------------

  /** Wait at most `timeout` ms and return how many events were collected; `dispatch` hands them out. */
  wait(timeout: number): number {
    const n = this.#epoll.wait(timeout)
    if (n >= 0 || n === -EINTR) return Math.max(n, 0)
    throw new Error(`epoll_wait: ${n}`)
  }

  dispatch(n: number): void {
    const epoll = this.#epoll
    for (let i = 0; i < n; i++) {
      const fd = epoll.fdOf(i)
      if (epoll.serialOf(i) !== this.#serial[fd]) continue
      const events = epoll.eventsOf(i)
      const callback = this.#callbacks[fd]
      // The outer guard: one guest's frame, or one flow's state, must not take everybody's network down.
      try {
        if (callback !== undefined)
          callback((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) !== 0, (events & EPOLLOUT) !== 0)
        else
          this.onSocket(
            this.#ref[fd] as number,
            ((events & (EPOLLIN | EPOLLRDHUP)) !== 0 ? READABLE : 0) |
              ((events & EPOLLOUT) !== 0 ? WRITABLE : 0) |
              ((events & (EPOLLHUP | EPOLLRDHUP)) !== 0 ? HANGUP : 0) |
              ((events & EPOLLERR) !== 0 ? FAILED : 0) |
              ((events & EPOLLPRI) !== 0 ? URGENT : 0),
            fd,
          )
      } catch (error) {
        this.onFault(error, fd)
      }
    }
  }
}
