/**
 * The host sockets of a data plane, as columns indexed by descriptor.
 *
 * Owns: which descriptors are host sockets, their family and kind, how many there may be, and their end.
 * Invariants: a descriptor at or above `limit` is closed at once and refused (−EMFILE): the rest is kept for control messages
 * and nics, so that a guest that opens flows without end never keeps the daemon out. A column is cleared when its socket opens.
 */

import type { Arena } from '../netstack/arena.ts'
import { ECONNABORTED, type Ref, type Sock } from '../netstack/host.ts'
import { close } from '../sys/fd.ts'
import { addressOf } from '../sys/libc.ts'
import { AF_INET, AF_INET6, familyOf, isMapped, SOCK_NONBLOCK, socket } from '../sys/socket.ts'
import { END, Later } from './later.ts'
import type { Reactor } from './reactor.ts'

const EMFILE = 24
/** Descriptors kept for nics (1024 at most), published ports, control and the process itself. */
const RESERVE = 1536

/** What a descriptor is. */
export const KIND = { none: 0, tcp: 1, udp: 2, ping: 3, listener: 4 } as const

export const UNSET = -1

export class Sockets {
  readonly reactor: Reactor
  readonly arena: Arena
  /** Address of the arena's first byte. */
  readonly base: number
  readonly limit: number
  readonly kind: Uint8Array
  /** 1: AF_INET6. */
  readonly six: Uint8Array
  /** 1: came from another process, which may hold the same open file. */
  readonly #foreign: Uint8Array
  /** TCP: where the kernel's peek offset (SO_PEEK_OFF) stands; UNSET while the option is off. */
  readonly peekOff: Int32Array
  /** TCP without that option: 1 while there is more than a peek could reach. */
  readonly more: Uint8Array
  /** TCP: how often something was sent, up to 2. */
  readonly sends: Uint8Array
  /** UDP: the UDP_SEGMENT that is set. */
  readonly segment: Uint16Array
  /** Datagram sockets: 1 while EPOLLOUT is asked for. */
  readonly wantsWrite: Uint8Array
  /** Ends of TCP sockets that are still to be carried out. */
  readonly later = new Later()
  #open = 0

  constructor(reactor: Reactor, arena: Arena) {
    this.reactor = reactor
    this.arena = arena
    this.base = addressOf(arena.bytes)
    const n = reactor.capacity
    this.limit = Math.max(64, n - Math.min(RESERVE, n >> 2))
    this.kind = new Uint8Array(n)
    this.six = new Uint8Array(n)
    this.#foreign = new Uint8Array(n)
    this.peekOff = new Int32Array(n)
    this.more = new Uint8Array(n)
    this.sends = new Uint8Array(n)
    this.segment = new Uint16Array(n)
    this.wantsWrite = new Uint8Array(n)
  }

  get open(): number {
    return this.#open
  }

  /** A non-blocking socket of the family of the 16 bytes at `dst`, or −errno. */
  make(dst: number, type: number, protocol: number, kind: number): Sock {
    const six = isMapped(this.arena.bytes, dst) ? 0 : 1
    const fd = socket(six === 1 ? AF_INET6 : AF_INET, type | SOCK_NONBLOCK, protocol)
    return fd < 0 ? fd : this.take(fd, six, kind, 0)
  }

  /** Enter a fresh descriptor into the columns, or close it when there are too many. */
  take(fd: number, six: number, kind: number, foreign: number): Sock {
    if (fd >= this.limit && foreign === 0) {
      close(fd)
      return -EMFILE
    }
    this.kind[fd] = kind
    this.six[fd] = six
    this.#foreign[fd] = foreign
    this.peekOff[fd] = UNSET
    this.more[fd] = 0
    this.sends[fd] = 0
    this.segment[fd] = 0
    this.wantsWrite[fd] = 0
    this.#open++
    return fd
  }

  /** Enter a client that was accepted, or turn it away: the kernel has taken it off its queue already. */
  takeClient(fd: number, six: number): Sock {
    return this.take(fd, six, KIND.tcp, 0) < 0 ? -ECONNABORTED : fd
  }

  /** Enter a descriptor that the daemon handed over. */
  adopt(fd: number, kind: number): Sock {
    return this.take(fd, familyOf(fd) === AF_INET6 ? 1 : 0, kind, 1)
  }

  watch(fd: Sock, ref: Ref): number {
    // A datagram socket gets write space back with every datagram that leaves: it is told only when it asked.
    return this.reactor.watchSocket(fd, ref, this.kind[fd] === KIND.tcp)
  }

  armWrite(fd: Sock): void {
    if (this.kind[fd] !== KIND.tcp) this.wantsWrite[fd] = 1
    this.reactor.armSocket(fd, true)
  }

  /** A datagram socket was told of write space: no more until it asks again. */
  disarm(fd: Sock): void {
    if (this.wantsWrite[fd] === 0) return
    this.wantsWrite[fd] = 0
    this.reactor.armSocket(fd, false)
  }

  close(fd: Sock): void {
    const kind = this.kind[fd]
    if (!this.#forget(fd)) return
    if (kind === KIND.tcp) this.later.put(fd, END.close)
    else close(fd)
  }

  /** Close a TCP socket with RST. */
  reset(fd: Sock): void {
    if (this.#forget(fd)) this.later.put(fd, END.reset)
  }

  #forget(fd: Sock): boolean {
    if (this.kind[fd] === KIND.none) return false
    this.reactor.forget(fd, this.#foreign[fd] === 1)
    this.kind[fd] = KIND.none
    this.#open--
    return true
  }
}
