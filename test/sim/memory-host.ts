/**
 * A Host in memory: TCP sockets with finite buffers, and behind each a remote end that drains and fills them at a pace.
 *
 * Edge-triggered like the real one: an event is told once. The remote end checks every byte that the relay passes on against a
 * Stream, and gives the bytes of another.
 */
import type { Arena } from '../../src/netstack/arena.ts'
import {
  EAGAIN,
  ECONNRESET,
  EPIPE,
  FAILED,
  HANGUP,
  type Host,
  type IcmpError,
  type NetstackEvent,
  READABLE,
  type Ref,
  ROUTE,
  type RouteKind,
  type Sock,
  WRITABLE,
} from '../../src/netstack/host.ts'
import type { Clock } from './clock.ts'
import type { Random } from './random.ts'
import type { Stream } from './stream.ts'

export interface Remote {
  /** ms until connect ends, and how (0, or an errno). */
  readonly connectAfter: number
  readonly connectErrno: number
  readonly sendBuffer: number
  readonly receiveBuffer: number
  /** What the remote end sends, and what it must receive. */
  readonly gives: Stream
  readonly takes: Stream
  /** Bytes per ms that it drains and gives; pauses happen with this chance per ms for up to 200 ms. */
  readonly drainRate: number
  readonly giveRate: number
  readonly pause: number
  /** The socket takes this much less than tcpFree said. */
  readonly lie: number
  /** When it ends its stream though the guest has not: at the end of `gives` (true), or after the guest's end only. */
  readonly finFirst: boolean
}

export class MemorySocket {
  readonly remote: Remote
  ref: Ref = -1
  connected = false
  closed = false
  /** The relay reset it. */
  reset = false
  /** The relay half-closed it. */
  shut = false
  /** The remote end saw the guest's end. */
  ended = false
  error = 0
  /** Bytes in the send buffer; and drained by the remote end. */
  queued = 0
  accepted = 0
  drained = 0
  /** First unconsumed byte of `gives`, and bytes that lie there. */
  base = 0
  filled = 0
  eof = false
  wantsSpace = false

  constructor(remote: Remote) {
    this.remote = remote
  }

  get done(): boolean {
    return this.ended && this.drained === this.remote.takes.length
  }
}

export class MemoryHost implements Host {
  readonly arena: Arena
  readonly sockets: MemorySocket[] = []
  readonly #clock: Clock
  readonly #random: Random
  peerPort = 0
  connected = false
  segment = 0
  readonly icmp: IcmpError = { type: 0, code: 0, errno: 0, mtu: 0, sequence: -1 }
  onReady: (ref: Ref, events: number) => void = () => {}
  /** What the next tcpConnect leads to. */
  next: () => Remote

  constructor(arena: Arena, clock: Clock, random: Random, next: () => Remote) {
    this.arena = arena
    this.#clock = clock
    this.#random = random
    this.next = next
  }

  /** So that timestamps come round soon. */
  readonly began = 0x7fffff00

  now(): number {
    return Math.floor(this.#clock.now)
  }
  random32(): number {
    return this.#random.word()
  }

  #tell(s: MemorySocket, events: number): void {
    this.#clock.after(0, () => {
      if (!s.closed && s.ref >= 0) this.onReady(s.ref, events)
    })
  }

  /** A client's connection, as if accepted. */
  accepted(remote: Remote): Sock {
    const s = new MemorySocket(remote)
    this.sockets.push(s)
    s.connected = true
    this.#live(s)
    return this.sockets.length - 1
  }

  tcpConnect(_dst: number, _l4port: number): Sock {
    const remote = this.next()
    const s = new MemorySocket(remote)
    this.sockets.push(s)
    this.connected = remote.connectAfter === 0 && remote.connectErrno === 0
    if (remote.connectAfter < 0) return -remote.connectErrno
    if (this.connected) {
      s.connected = true
      this.#live(s)
      return this.sockets.length - 1
    }
    this.#clock.after(remote.connectAfter, () => {
      if (s.closed) return
      if (remote.connectErrno !== 0) {
        s.error = remote.connectErrno
        this.#tell(s, WRITABLE | FAILED | HANGUP)
        return
      }
      s.connected = true
      this.#tell(s, WRITABLE)
      this.#live(s)
    })
    return this.sockets.length - 1
  }

  /** The remote end's pace. */
  #live(s: MemorySocket): void {
    const { remote } = s
    let idle = 0
    const step = () => {
      if (s.reset || s.error !== 0 || (s.closed && s.queued === 0 && s.ended)) return
      // Hours of silence are simulated in larger steps.
      let wait = idle++ < 1000 ? 1 : 100
      if (this.#random.chance(remote.pause)) wait = this.#random.between(1, 200)
      else {
        const drain = Math.min(s.queued, remote.drainRate)
        if (drain > 0) {
          idle = 0
          s.queued -= drain
          s.drained += drain
          if (s.wantsSpace && s.queued * 3 <= remote.sendBuffer * 2) {
            s.wantsSpace = false
            this.#tell(s, WRITABLE)
          }
        }
        if (s.shut && s.queued === 0) s.ended = true
        const left = remote.gives.length - s.base - s.filled
        const give = Math.min(remote.giveRate, left, remote.receiveBuffer - s.filled)
        if (give > 0 && !s.closed) {
          idle = 0
          s.filled += give
          this.#tell(s, READABLE)
        }
        if (s.base + s.filled === remote.gives.length && !s.eof && (remote.finFirst || s.ended)) {
          s.eof = true
          this.#tell(s, READABLE | HANGUP)
        }
      }
      // A closed socket still drains in the background.
      if (!(s.ended && (s.eof || s.closed))) this.#clock.after(wait, step)
    }
    this.#clock.after(0.1, step)
  }

  /** The remote end resets the connection. */
  breakOff(s: MemorySocket): void {
    s.error = ECONNRESET
    this.#tell(s, READABLE | WRITABLE | HANGUP | FAILED)
  }

  #of(sock: Sock): MemorySocket {
    const s = this.sockets[sock]
    if (s === undefined || s.closed) throw new Error(`socket ${sock} is used after close`)
    return s
  }

  watch(sock: Sock, ref: Ref): number {
    this.#of(sock).ref = ref
    return 0
  }
  armWrite(sock: Sock): void {
    const s = this.#of(sock)
    if (s.queued * 3 <= s.remote.sendBuffer * 2) this.#tell(s, WRITABLE)
    else s.wantsSpace = true
  }
  close(sock: Sock): void {
    const s = this.#of(sock)
    s.closed = true
    if (!s.shut && s.connected) s.reset = true
  }
  tcpReset(sock: Sock): void {
    const s = this.#of(sock)
    s.closed = true
    s.reset = true
  }
  error(sock: Sock): number {
    const s = this.#of(sock)
    return s.error
  }
  route(_dst: number): RouteKind {
    return ROUTE.outside
  }

  tcpSend(sock: Sock, off: number, len: number): number {
    const s = this.#of(sock)
    if (s.error !== 0) return -s.error
    if (s.shut) return -EPIPE
    const n = Math.min(len, s.remote.sendBuffer - s.remote.lie - s.queued)
    if (n < len) s.wantsSpace = true
    if (n <= 0) return -EAGAIN
    s.remote.takes.check(this.arena.bytes, off, n, s.accepted)
    s.accepted += n
    s.queued += n
    return n
  }
  tcpPeek(sock: Sock, off: number, len: number, skip: number): number {
    const s = this.#of(sock)
    const there = s.filled - skip
    if (there <= 0) return s.error !== 0 ? -s.error : s.eof ? 0 : -EAGAIN
    const n = Math.min(len, there)
    s.remote.gives.fill(this.arena.bytes, off, n, s.base + skip)
    return n
  }
  tcpConsume(sock: Sock, len: number): number {
    const s = this.#of(sock)
    if (len > s.filled) throw new Error(`consumed ${len} of ${s.filled} bytes`)
    s.base += len
    s.filled -= len
    return len
  }
  tcpFree(sock: Sock): number {
    const s = this.#of(sock)
    return Math.max(0, s.remote.sendBuffer - s.queued)
  }
  tcpShutdown(sock: Sock): void {
    const s = this.#of(sock)
    if (s.shut) throw new Error('shut down twice')
    s.shut = true
  }

  // -- what TCP does not need
  tcpAccept(): Sock {
    return -EAGAIN
  }
  udpConnect(): Sock {
    return -EAGAIN
  }
  udpSend(): number {
    return -EAGAIN
  }
  udpRecv(): number {
    return -EAGAIN
  }
  udpSendTo(): number {
    return -EAGAIN
  }
  udpRecvFrom(): number {
    return -EAGAIN
  }
  setTtl(): number {
    return 0
  }
  setDontFragment(): number {
    return 0
  }
  recvError(): number {
    return 0
  }
  pingOpen(): Sock {
    return -EAGAIN
  }
  pingSend(): number {
    return -EAGAIN
  }
  pingRecv(): number {
    return -EAGAIN
  }
  notify(_event: NetstackEvent): void {}
}
