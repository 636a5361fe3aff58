/**
 * Stream sockets inside the engine, for the gateway's own services (DNS over TCP).
 *
 * The relay does not know the difference: LocalStreams stands between it and the Host, answers a connect to an address and port that a
 * service listens on with a socket of its own (LOCAL_SOCK and above), and hands everything else through. A socket here is a handler of
 * the service and a bounded buffer of answers; there is nothing to wait for, so all is done within the engine's turn.
 *
 * Readiness: events are gathered, and given out by `turn`, which the network calls at the end of each of its turns, because a relay must
 * not be entered from within itself.
 * Bounds: STREAMS_MAX connections, ANSWERS_MAX bytes each; a guest that does not read its answers, or asks more than the service takes, finds its
 * window shut. What was not taken is the guest's to send again, as with any host socket. A VM may have as many as are free, STREAMS_PER_VM at most: what
 * is beyond is refused (RST), and somebody else finds room.
 * Ends: what the service has finished with belongs to nobody here. A guest that takes nothing more of it and does not close for LINGER ms is reset, as a
 * kernel does with its orphans (tcp(7): tcp_fin_timeout).
 */

import type { StreamHandler, StreamService } from '../gateway/service.ts'
import {
  EAGAIN,
  ECONNREFUSED,
  EPIPE,
  ETIMEDOUT,
  FAILED,
  HANGUP,
  READABLE,
  type Ref,
  type Sock,
  WRITABLE,
} from '../host.ts'
import { Address } from '../wire/address.ts'
import type { TcpHost } from './context.ts'

export const LOCAL_SOCK = 0x4000_0000
const STREAMS_MAX = 256
/** Somewhat more than a service listens to at once: those that it has just finished with. */
const STREAMS_PER_VM = 40
export const LINGER = 10_000
/** Two of the longest DNS messages. */
const ANSWERS_MAX = 2 * 65537
const WINDOW = 65536
const ENFILE = 23

class LocalStream {
  ref: Ref = -1
  /** The guest's switch port. */
  port = -1
  /** Undefined: refused. */
  handler: StreamHandler | undefined
  answers = new Uint8Array(1024)
  /** Unconsumed answers lie from `from` to `to`. */
  from = 0
  to = 0
  /** The service has no more to say. */
  finished = false
  /** When the service said so, or the guest took some of the rest. */
  usedAt = 0
  /** Nobody waits for the guest any more. */
  overdue = false
  gone = false
  /** The service took less than it was given, and has not asked for more yet. */
  stalled = false
  /** The service was told that the guest has ended. */
  told = false
  events = 0
  readonly service: StreamService

  constructor(service: StreamService) {
    this.service = service
  }

  get held(): number {
    return this.to - this.from
  }

  /** Are bytes of the guest taken now? */
  get open(): boolean {
    return !this.stalled && this.held <= ANSWERS_MAX / 2
  }

  end(): void {
    if (this.told) return
    this.told = true
    this.handler?.end()
  }

  append(bytes: Uint8Array): boolean {
    if (this.gone || this.finished || this.held + bytes.length > ANSWERS_MAX) return false
    if (this.to + bytes.length > this.answers.length) {
      const need = this.held + bytes.length
      const room = need > this.answers.length ? new Uint8Array(Math.min(ANSWERS_MAX, need * 2)) : this.answers
      room.set(this.answers.subarray(this.from, this.to))
      this.answers = room
      this.to -= this.from
      this.from = 0
    }
    this.answers.set(bytes, this.to)
    this.to += bytes.length
    return true
  }
}

export class LocalStreams implements TcpHost {
  readonly arena
  readonly #host: TcpHost
  readonly #portOf: (ref: Ref) => number
  readonly #services: { readonly address: Address; readonly l4port: number; readonly service: StreamService }[] = []
  readonly #to = new Address()
  readonly #streams: (LocalStream | undefined)[] = []
  #waiting: number[] = []
  connected = false

  /** @param portOf the switch port of the guest whose flow is watched under a reference */
  constructor(host: TcpHost, portOf: (ref: Ref) => number) {
    this.#host = host
    this.arena = host.arena
    this.#portOf = portOf
  }

  /** Connections to `address` and `l4port` are `service`'s from now on. */
  listen(address: Address, l4port: number, service: StreamService): void {
    this.#services.push({ address, l4port, service })
  }

  #serviceAt(address: Address, l4port: number): StreamService | undefined {
    for (const s of this.#services) if (s.l4port === l4port && s.address.equals(address)) return s.service
    return undefined
  }

  /** Give out gathered events, those that arise meanwhile too. */
  turn(ready: (ref: Ref, events: number) => void): void {
    while (this.#waiting.length > 0) {
      const round = this.#waiting
      this.#waiting = []
      for (const k of round) {
        const s = this.#streams[k]
        if (s === undefined || s.gone || s.ref < 0) continue
        const events = s.events
        s.events = 0
        if (events !== 0) ready(s.ref, events)
      }
    }
  }

  /** Called every second or so. */
  tick(now: number): void {
    for (let k = 0; k < this.#streams.length; k++) {
      const s = this.#streams[k]
      if (s === undefined || !s.finished || now - s.usedAt < LINGER) continue
      s.overdue = true
      this.#tell(k, FAILED)
    }
  }

  /** Has the VM at this switch port all that it may have? */
  #hasShare(port: number): boolean {
    let free = STREAMS_MAX
    let mine = 0
    for (const s of this.#streams) {
      if (s?.handler === undefined) continue
      free--
      if (s.port === port) mine++
    }
    return mine >= Math.min(STREAMS_PER_VM, free)
  }

  #tell(k: number, events: number): void {
    const s = this.#streams[k]
    if (s === undefined) return
    if (s.events === 0) this.#waiting.push(k)
    s.events |= events
  }

  #of(sock: Sock): LocalStream | undefined {
    return sock >= LOCAL_SOCK ? this.#streams[sock - LOCAL_SOCK] : undefined
  }

  now(): number {
    return this.#host.now()
  }

  get began(): number {
    return this.#host.began
  }

  random32(): number {
    return this.#host.random32()
  }

  tcpConnect(dst: number, l4port: number): Sock {
    const service =
      this.#services.length === 0 ? undefined : this.#serviceAt(this.#to.read(this.arena.bytes, dst), l4port)
    if (service === undefined) {
      const sock = this.#host.tcpConnect(dst, l4port)
      this.connected = this.#host.connected
      return sock
    }
    this.connected = false
    let k = this.#streams.indexOf(undefined)
    if (k < 0) {
      if (this.#streams.length >= STREAMS_MAX) return -ENFILE
      k = this.#streams.length
    }
    this.#streams[k] = new LocalStream(service)
    return LOCAL_SOCK + k
  }

  watch(sock: Sock, ref: Ref): number {
    const s = this.#of(sock)
    if (s === undefined) return this.#host.watch(sock, ref)
    const k = sock - LOCAL_SOCK
    s.ref = ref
    s.port = this.#portOf(ref)
    if (this.#hasShare(s.port)) {
      s.service.refused?.(s.port)
      this.#tell(k, FAILED)
      return 0
    }
    s.handler = s.service.accept(
      s.port,
      (bytes) => {
        const sent = s.append(bytes)
        if (sent) this.#tell(k, READABLE)
        return sent
      },
      () => {
        // The place may be another stream's by now.
        if (s.gone) return
        s.finished = true
        s.usedAt = this.now()
        this.#tell(k, READABLE | HANGUP)
      },
      () => {
        s.stalled = false
        if (s.open && !s.gone) this.#tell(k, WRITABLE)
      },
    )
    this.#tell(k, WRITABLE)
    return 0
  }

  armWrite(sock: Sock): void {
    const s = this.#of(sock)
    if (s === undefined) this.#host.armWrite(sock)
    else if (s.open) this.#tell(sock - LOCAL_SOCK, WRITABLE)
  }

  close(sock: Sock): void {
    const s = this.#of(sock)
    if (s === undefined) {
      this.#host.close(sock)
      return
    }
    s.gone = true
    this.#streams[sock - LOCAL_SOCK] = undefined
    s.end()
  }

  tcpReset(sock: Sock): void {
    if (this.#of(sock) === undefined) this.#host.tcpReset(sock)
    else this.close(sock)
  }

  error(sock: Sock): number {
    const s = this.#of(sock)
    if (s === undefined) return this.#host.error(sock)
    return s.handler === undefined ? ECONNREFUSED : s.overdue ? ETIMEDOUT : 0
  }

  tcpSend(sock: Sock, off: number, len: number): number {
    const s = this.#of(sock)
    if (s === undefined) return this.#host.tcpSend(sock, off, len)
    if (s.handler === undefined || s.finished) return -EPIPE
    if (!s.open) return -EAGAIN
    const n = s.handler.push(this.arena.bytes.subarray(off, off + len))
    s.stalled = n < len
    return n > 0 ? n : -EAGAIN
  }

  tcpPeek(sock: Sock, off: number, len: number, skip: number): number {
    const s = this.#of(sock)
    if (s === undefined) return this.#host.tcpPeek(sock, off, len, skip)
    const n = Math.min(len, s.held - skip)
    if (n <= 0) return s.finished ? 0 : -EAGAIN
    this.arena.bytes.set(s.answers.subarray(s.from + skip, s.from + skip + n), off)
    return n
  }

  tcpConsume(sock: Sock, len: number): number {
    const s = this.#of(sock)
    if (s === undefined) return this.#host.tcpConsume(sock, len)
    const full = s.held > ANSWERS_MAX / 2
    const n = Math.min(len, s.held)
    s.from += n
    s.usedAt = this.now()
    if (full && s.open) this.#tell(sock - LOCAL_SOCK, WRITABLE)
    return n
  }

  tcpFree(sock: Sock): number {
    const s = this.#of(sock)
    if (s === undefined) return this.#host.tcpFree(sock)
    return s.open ? WINDOW : 0
  }

  tcpShutdown(sock: Sock): void {
    const s = this.#of(sock)
    if (s === undefined) this.#host.tcpShutdown(sock)
    else s.end()
  }
}
