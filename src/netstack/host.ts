/**
 * What the engine needs from outside: sockets, time, randomness, routes. The only way out of the netstack.
 *
 * The data plane implements it over libc (src/dataplane/host.ts); tests implement it in memory (test/sim). Everything is
 * synchronous and non-blocking; results are numbers, ≥ 0 or −errno (linux/errno); further results of a call are left in
 * the public fields below it, valid until the next call. Addresses are 16 bytes in the arena (IPv4 as ::ffff:a.b.c.d; a link-local one has the
 * index of the host's link in bytes 4 to 7), ports are numbers. No call allocates.
 *
 * Readiness is edge-triggered: after `watch(sock, ref)` the reactor calls `network.ready(ref, events)`, on every new
 * arrival and, once a send came up short or `armWrite` was called, when there is space again; what is there when `watch` is
 * called, also once more, is told like an arrival. After `close` no event of that socket is delivered any more, not even one already collected.
 */
import type { Arena } from './arena.ts'

/** A host socket: ≥ 0. (In the data plane it is the descriptor.) */
export type Sock = number
/** What the engine wants to be told with an event: chosen by network.ts (kind and index), 31 bits. */
export type Ref = number

export const READABLE = 1
export const WRITABLE = 2
export const HANGUP = 4
export const FAILED = 8
/** TCP: the peer has marked a byte as urgent (RFC 9293 §3.8.5). A peek ends before it, though more is there. */
export const URGENT = 16

/** The errno values the engine itself decides on (asm-generic/errno.h). */
export const EIO = 5
export const EAGAIN = 11
export const EACCES = 13
export const EPIPE = 32
export const EMSGSIZE = 90
export const ENETDOWN = 100
export const ENETUNREACH = 101
export const ECONNABORTED = 103
export const ECONNRESET = 104
export const ENOBUFS = 105
export const ENOTCONN = 107
export const ETIMEDOUT = 110
export const ECONNREFUSED = 111
export const EHOSTUNREACH = 113
export const EINPROGRESS = 115

/** Where the host's routing sends a destination: the fact that policy decides on. */
export const ROUTE = {
  /** Leaves through an ordinary link: the outside. */
  outside: 0,
  /** One of the host's own non-loopback addresses. */
  host: 1,
  /** The host's loopback. */
  loopback: 2,
  /** Leaves through, or belongs to, a noid link: another noid network. */
  noid: 3,
  /** No route. */
  unreachable: 4,
} as const
export type RouteKind = (typeof ROUTE)[keyof typeof ROUTE]

/** What an error queue said (linux/errqueue.h): an ICMP error about a datagram of ours, or a local one. */
export interface IcmpError {
  /** ICMP (or ICMPv6) type and code as received; 0/0 for a local error. */
  type: number
  code: number
  errno: number
  /** Next-hop MTU when errno is EMSGSIZE. */
  mtu: number
  /** Ping sockets: the sequence number of the echo request it is about (it lies in what the queue quotes); −1 otherwise. */
  sequence: number
}

export interface Host {
  readonly arena: Arena
  /** Monotonic milliseconds, an integer that starts small. The reactor refreshes it once per wake-up. */
  now(): number
  /** What `now` adds to for milliseconds since the machine's boot: a clock that does not begin anew with this process. */
  readonly began: number
  /** 32 random bits, as a signed integer; fit for sequence numbers, ports and query ids. */
  random32(): number

  /** Deliver the socket's events under `ref`. */
  watch(sock: Sock, ref: Ref): number
  /** Ask for WRITABLE when there is space (again), though no send came up short. */
  armWrite(sock: Sock): void
  close(sock: Sock): void
  /** SO_ERROR, fetched and cleared. */
  error(sock: Sock): number
  /** Where would a packet to the 16 bytes at `dst` go? */
  route(dst: number): RouteKind

  // -- TCP ---------------------------------------------------------------------------------------------------------
  /** Begin to connect; WRITABLE or FAILED follows. `dst`: arena offset of 16 bytes. */
  tcpConnect(dst: number, l4port: number): Sock
  /** After tcpConnect: it has succeeded already (the far end is on this machine), nothing need be waited for. */
  connected: boolean
  /**
   * Accept from a listener; the client's address goes to the 16 bytes at `peer`, its port to `peerPort`. −EAGAIN: nobody waits. −ECONNABORTED:
   * this client is gone, others may wait. Anything else: nobody can be accepted now, and whoever waits goes on waiting.
   */
  tcpAccept(listener: Sock, peer: number): Sock
  peerPort: number
  /** Bytes taken, or −errno; −EAGAIN when no space. */
  tcpSend(sock: Sock, off: number, len: number): number
  /**
   * Copy up to `len` unconsumed bytes to `off`, from `skip` bytes behind the first unconsumed one. 0: the peer's FIN is
   * right there; −EAGAIN: nothing there yet. Nothing is consumed (SO_PEEK_OFF, socket(7)). Urgent bytes are bytes of the stream
   * (RFC 6093 §6). Fewer than `len`: there are no more, unless HANGUP or URGENT was told.
   */
  tcpPeek(sock: Sock, off: number, len: number, skip: number): number
  /** Forget the first `len` unconsumed bytes: the guest has acknowledged them. */
  tcpConsume(sock: Sock, len: number): number
  /** Free bytes of send space now (send buffer less SIOCOUTQ, with the kernel's overhead taken into account). */
  tcpFree(sock: Sock): number
  /** Half-close: FIN to the peer after what was sent, soon. */
  tcpShutdown(sock: Sock): void
  /** Close with RST. */
  tcpReset(sock: Sock): void

  // -- UDP ---------------------------------------------------------------------------------------------------------
  /** A socket connected to the destination; ICMP errors about it reach `recvError`. */
  udpConnect(dst: number, l4port: number): Sock
  udpSend(sock: Sock, off: number, len: number, segment: number): number
  /** One datagram, or several of `segment` bytes each (the last may be shorter) joined by UDP_GRO. */
  udpRecv(sock: Sock, off: number, max: number): number
  /** After udpRecv/udpRecvFrom: bytes per datagram, 0 when it is a single one. */
  segment: number
  /** On a published port's socket: to and from any client. `peer`: 16 bytes; port in `peerPort`. */
  udpSendTo(sock: Sock, peer: number, l4port: number, off: number, len: number, segment: number): number
  udpRecvFrom(sock: Sock, off: number, max: number, peer: number): number
  /** TTL of what is sent from now on. */
  setTtl(sock: Sock, ttl: number): number
  /**
   * What is sent from now on is not fragmented, neither here nor on its way (1), or may be (0, as it begins). Something too long
   * is −EMSGSIZE then, and the error queue has the path's MTU.
   */
  setDontFragment(sock: Sock, on: number): number
  /** Next entry of the error queue: 1 and `icmp` filled (the reporting router's address at the 16 bytes of `offender`), or 0. */
  recvError(sock: Sock, offender: number): number
  readonly icmp: IcmpError

  // -- ping --------------------------------------------------------------------------------------------------------
  /** An ICMP echo socket to one destination (a ping socket, or a share of a raw one); −EACCES when neither is allowed. */
  pingOpen(dst: number): Sock
  /** An ICMP echo request message (type, code, checksum, id, sequence, data); the host may put in an id of its own. */
  pingSend(sock: Sock, off: number, len: number): number
  /** An echo reply message; its id is the host's own and to be put back by the caller. */
  pingRecv(sock: Sock, off: number, max: number): number

  /** Rare and for people or the store: a lease changed, a duplicate MAC was seen. May allocate. */
  notify(event: NetstackEvent): void
}

export type NetstackEvent =
  | {
      readonly type: 'lease'
      readonly port: number
      readonly address: string
      readonly state: string
      readonly expiresInMs: number | null
    }
  | { readonly type: 'warning'; readonly message: string }
