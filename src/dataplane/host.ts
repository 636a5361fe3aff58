/**
 * The engine's way out, over libc: implements netstack/host.ts for the process.
 *
 * Owns: the clock, randomness, and which of the socket families a call goes to. The families are in tcp.ts, udp.ts, ping.ts;
 * their common columns in sockets.ts; routing in routes.ts. Never does: deciding anything about a flow.
 */
import { getRandomValues } from 'node:crypto'
import type { Arena } from '../netstack/arena.ts'
import {
  type Host,
  type IcmpError,
  type NetstackEvent,
  type Ref,
  type RouteKind,
  type Sock,
  WRITABLE,
} from '../netstack/host.ts'
import { setNonblock } from '../sys/fd.ts'
import { AF_INET6, familyOf, getOption, SO_ERROR, SOL_SOCKET } from '../sys/socket.ts'
import { Gather } from './gather.ts'
import { PingSockets, SHARE } from './ping.ts'
import type { Reactor } from './reactor.ts'
import { Routes } from './routes.ts'
import { KIND, Sockets } from './sockets.ts'
import { TcpSockets } from './tcp.ts'
import { UdpSockets } from './udp.ts'

const RANDOM_WORDS = 1024

export class DataPlaneHost implements Host {
  readonly arena: Arena
  readonly sockets: Sockets
  readonly tcp: TcpSockets
  readonly #udp: UdpSockets
  readonly gather: Gather
  readonly #ping: PingSockets
  readonly #routes: Routes
  readonly #notify: (event: NetstackEvent) => void
  readonly #random = new Int32Array(RANDOM_WORDS)
  #randomLeft = 0
  #now = 0
  readonly began = Math.floor(Number(process.hrtime.bigint() / 1_000_000n) - performance.now())
  readonly icmp: IcmpError
  peerPort = 0
  connected = false
  segment = 0

  constructor(
    reactor: Reactor,
    arena: Arena,
    notify: (event: NetstackEvent) => void,
    sockets?: { peekOffset: readonly [boolean, boolean] },
  ) {
    this.arena = arena
    this.#notify = notify
    this.sockets = new Sockets(reactor, arena)
    this.tcp = new TcpSockets(this.sockets, sockets?.peekOffset)
    this.#udp = new UdpSockets(this.sockets)
    this.gather = new Gather(this.#udp, arena, reactor.capacity)
    this.#ping = new PingSockets(this.sockets, (fd) => this.#udp.reportErrors(fd), this.random32())
    this.#routes = new Routes(arena)
    this.icmp = this.#udp.icmp
    this.refreshClock()
  }

  /** Once per wake-up. performance.now counts from the start of the process, monotonic. */
  refreshClock(): number {
    this.#now = Math.floor(performance.now())
    return this.#now
  }

  now(): number {
    return this.#now
  }

  random32(): number {
    if (this.#randomLeft === 0) {
      getRandomValues(this.#random)
      this.#randomLeft = RANDOM_WORDS
    }
    return this.#random[--this.#randomLeft] as number
  }

  // -- descriptors that the daemon handed over -----------------------------------------------------------------------

  adoptListener(fd: number): Sock {
    setNonblock(fd, true)
    return this.sockets.adopt(fd, KIND.listener)
  }

  adoptUdp(fd: number): Sock {
    setNonblock(fd, true)
    this.#udp.adopt(fd)
    return fd
  }

  /** Of either family. */
  adoptRawIcmp(fd: number): void {
    this.#ping.useRaw(fd, familyOf(fd) === AF_INET6)
  }

  // -- every socket --------------------------------------------------------------------------------------------------

  watch(sock: Sock, ref: Ref): number {
    return sock >= SHARE ? this.#ping.watch(sock, ref) : this.sockets.watch(sock, ref)
  }

  armWrite(sock: Sock): void {
    if (sock < SHARE) this.sockets.armWrite(sock)
  }

  /** An event of a socket is about to be told: a datagram socket's wish for write space is fulfilled by it. */
  delivering(sock: Sock, events: number): void {
    if (events & WRITABLE && sock < SHARE && this.sockets.kind[sock] !== KIND.tcp) this.sockets.disarm(sock)
  }

  close(sock: Sock): void {
    if (sock >= SHARE) this.#ping.close(sock)
    else {
      this.gather.settle(sock)
      this.sockets.close(sock)
    }
  }

  error(sock: Sock): number {
    return sock >= SHARE ? 0 : getOption(sock, SOL_SOCKET, SO_ERROR)
  }

  route(dst: number): RouteKind {
    return this.#routes.lookup(dst, this.#now)
  }

  // -- TCP -----------------------------------------------------------------------------------------------------------

  tcpConnect(dst: number, l4port: number): Sock {
    const sock = this.tcp.connect(dst, l4port)
    this.connected = this.tcp.connected
    return sock
  }

  tcpAccept(listener: Sock, peer: number): Sock {
    const sock = this.tcp.accept(listener, peer)
    this.peerPort = this.tcp.peerPort
    return sock
  }

  tcpSend(sock: Sock, off: number, len: number): number {
    return this.tcp.send(sock, off, len)
  }

  tcpPeek(sock: Sock, off: number, len: number, skip: number): number {
    return this.tcp.peek(sock, off, len, skip)
  }

  tcpConsume(sock: Sock, len: number): number {
    return this.tcp.consume(sock, len)
  }

  tcpFree(sock: Sock): number {
    return this.tcp.free(sock)
  }

  tcpShutdown(sock: Sock): void {
    this.tcp.shutdown(sock)
  }

  tcpReset(sock: Sock): void {
    this.sockets.reset(sock)
  }

  // -- UDP -----------------------------------------------------------------------------------------------------------

  udpConnect(dst: number, l4port: number): Sock {
    return this.#udp.connect(dst, l4port)
  }

  udpSend(sock: Sock, off: number, len: number, segment: number): number {
    if (segment === 0) return this.gather.send(sock, off, len)
    this.gather.settle(sock)
    return this.#udp.send(sock, off, len, segment)
  }

  udpRecv(sock: Sock, off: number, max: number): number {
    const n = this.#udp.recv(sock, off, max)
    this.segment = this.#udp.segment
    return n
  }

  udpSendTo(sock: Sock, peer: number, l4port: number, off: number, len: number, segment: number): number {
    return this.#udp.sendTo(sock, peer, l4port, off, len, segment)
  }

  udpRecvFrom(sock: Sock, off: number, max: number, peer: number): number {
    const n = this.#udp.recvFrom(sock, off, max, peer)
    this.segment = this.#udp.segment
    this.peerPort = this.#udp.peerPort
    return n
  }

  setTtl(sock: Sock, ttl: number): number {
    this.gather.settle(sock)
    return sock >= SHARE ? this.#ping.setTtl(sock, ttl) : this.#udp.setTtl(sock, ttl)
  }

  setDontFragment(sock: Sock, on: number): number {
    this.gather.settle(sock)
    return sock >= SHARE ? this.#ping.setDontFragment(sock, on) : this.#udp.setDontFragment(sock, on)
  }

  recvError(sock: Sock, offender: number): number {
    return sock >= SHARE ? this.#ping.recvError(sock, offender, this.icmp) : this.#udp.recvError(sock, offender)
  }

  // -- ping ----------------------------------------------------------------------------------------------------------

  pingOpen(dst: number): Sock {
    return this.#ping.open(dst)
  }

  pingSend(sock: Sock, off: number, len: number): number {
    return this.#ping.send(sock, off, len)
  }

  pingRecv(sock: Sock, off: number, max: number): number {
    return this.#ping.recv(sock, off, max)
  }

  notify(event: NetstackEvent): void {
    this.#notify(event)
  }
}
