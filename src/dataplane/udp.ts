/**
 * UDP host sockets: connected ones for flows, bound ones for published ports.
 *
 * Theory. Many datagrams of one size go through one system call: UDP_SEGMENT cuts what is sent, UDP_GRO joins what arrives and
 * tells the size in a control message (udp(7)); one by one costs 7 to 10 times as much. UDP_SEGMENT is set on the socket only
 * when the size changes: a datagram not longer than it goes out as it is. The kernel cuts into at most 64 (128 since 6.9) pieces and refuses a piece
 * that does not fit the path's MTU: then they go one by one and are fragmented like any other.
 *
 * ICMP errors come through the error queue (IP_RECVERR, ip(7)). The kernel also reports each once from the next send, which
 * then sends nothing: that send is repeated, because the datagram at hand did not do wrong.
 */

import type { IcmpError, Sock } from '../netstack/host.ts'
import { Scratch } from '../sys/libc.ts'
import { Message, NAME } from '../sys/message.ts'
import {
  connectTo,
  fillAddress,
  IP_MTU_DISCOVER,
  IP_RECVERR,
  IP_TTL,
  IPPROTO_IP,
  IPPROTO_IPV6,
  IPPROTO_UDP,
  IPV6_MTU_DISCOVER,
  IPV6_RECVERR,
  IPV6_UNICAST_HOPS,
  MSG_ERRQUEUE,
  MSG_NOSIGNAL,
  PMTUDISC_DO,
  PMTUDISC_WANT,
  readAddress,
  SOCK_DGRAM,
  send,
  sendTo,
  setOption,
  UDP_GRO,
  UDP_SEGMENT,
} from '../sys/socket.ts'
import { AnswerFrom } from './answer-from.ts'
import { KIND, type Sockets } from './sockets.ts'

const EPERM = 1
const EAGAIN = 11
const EINVAL = 22
const EMSGSIZE = 90
/** UDP_MAX_SEGMENTS of kernels before 6.9. */
const SEGMENTS_MAX = 64
/** The longest payload of a datagram over IPv4. */
const PAYLOAD_MAX = 65507
// linux/errqueue.h: who reported it
const SO_EE_ORIGIN_LOCAL = 1
/** struct sock_extended_err, before the address of the offender. */
const EXTENDED_ERR = 16

export class UdpSockets {
  readonly #sockets: Sockets
  readonly #base: number
  readonly #arrival = new Message(128)
  readonly #error = new Message(256)
  readonly #departure = new Message(64)
  readonly #answerFrom: AnswerFrom
  /** 1: bound to all addresses of the host, and clients are answered from the one they spoke to. */
  readonly #wildcard: Uint8Array
  /** Of the last receive: bytes for each datagram, 0 when it was one. */
  segment = 0
  peerPort = 0
  readonly icmp: IcmpError = { type: 0, code: 0, errno: 0, mtu: 0, sequence: -1 }
  /** The first bytes of what an error is about: behind the UDP header, or a ping socket's echo request. */
  readonly #quote = new Scratch(8)

  constructor(sockets: Sockets) {
    this.#sockets = sockets
    this.#base = sockets.base
    this.#answerFrom = new AnswerFrom(sockets.arena.bytes)
    this.#wildcard = new Uint8Array(sockets.reactor.capacity)
  }

  connect(dst: number, l4port: number): Sock {
    const s = this.#sockets
    const fd = s.make(dst, SOCK_DGRAM, 0, KIND.udp)
    if (fd < 0) return fd
    this.reportErrors(fd)
    setOption(fd, IPPROTO_UDP, UDP_GRO, 1)
    const r = connectTo(fd, s.arena.bytes, dst, l4port)
    if (r >= 0) return fd
    s.close(fd)
    return r
  }

  /** A bound socket of a published port. */
  adopt(fd: number): void {
    const s = this.#sockets
    s.adopt(fd, KIND.udp)
    setOption(fd, IPPROTO_UDP, UDP_GRO, 1)
    this.#answerFrom.forget(fd)
    this.#wildcard[fd] = this.#answerFrom.begin(fd, s.six[fd] === 1) ? 1 : 0
  }

  /** ICMP errors about what the socket sends go to its error queue. */
  reportErrors(fd: Sock): void {
    if (this.#sockets.six[fd] === 1) setOption(fd, IPPROTO_IPV6, IPV6_RECVERR, 1)
    else setOption(fd, IPPROTO_IP, IP_RECVERR, 1)
  }

  send(fd: Sock, off: number, len: number, segment: number): number {
    return this.#send(fd, off, len, segment, -1, 0)
  }

  sendTo(fd: Sock, peer: number, l4port: number, off: number, len: number, segment: number): number {
    return this.#send(fd, off, len, segment, peer, l4port)
  }

  /** @param peer −1: the socket is connected */
  #send(fd: Sock, off: number, len: number, segment: number, peer: number, l4port: number): number {
    if (segment === 0 || len <= segment) {
      if (this.#sockets.segment[fd] !== 0 && len > (this.#sockets.segment[fd] as number)) this.#cutAt(fd, 0)
      return this.#once(fd, off, len, peer, l4port)
    }
    const most = Math.max(1, Math.min(SEGMENTS_MAX, Math.floor(PAYLOAD_MAX / segment))) * segment
    let each = most
    let sent = 0
    while (sent < len) {
      this.#cutAt(fd, each === segment ? 0 : segment)
      const r = this.#once(fd, off + sent, Math.min(each, len - sent), peer, l4port)
      if (r >= 0) sent += r
      else if ((r === -EINVAL || r === -EMSGSIZE) && each !== segment) each = segment
      else return sent > 0 ? sent : r
    }
    return sent
  }

  #cutAt(fd: Sock, segment: number): void {
    if (this.#sockets.segment[fd] === segment) return
    setOption(fd, IPPROTO_UDP, UDP_SEGMENT, segment)
    this.#sockets.segment[fd] = segment
  }

  #once(fd: Sock, off: number, len: number, peer: number, l4port: number): number {
    let r = this.#raw(fd, off, len, peer, l4port)
    if (r >= 0) return r
    // An earlier datagram's ICMP error: it is in the error queue, and this datagram has not been tried.
    if (r !== -EAGAIN && r !== -EMSGSIZE && r !== -EINVAL && r !== -EPERM) r = this.#raw(fd, off, len, peer, l4port)
    if (r === -EAGAIN) this.#sockets.armWrite(fd)
    return r
  }

  #raw(fd: Sock, off: number, len: number, peer: number, l4port: number): number {
    if (peer < 0) return send(fd, this.#base + off, len)
    const s = this.#sockets
    const m = this.#departure
    if (this.#wildcard[fd] === 1 && this.#answerFrom.put(m, fd, peer, l4port)) {
      m.payload(this.#base + off, len)
      m.name(fillAddress(m.scratch, NAME, s.arena.bytes, peer, l4port, s.six[fd] === 1))
      return m.send(fd, MSG_NOSIGNAL)
    }
    return sendTo(fd, this.#base + off, len, 0, s.arena.bytes, peer, l4port, s.six[fd] === 1)
  }

  recv(fd: Sock, off: number, max: number): number {
    const m = this.#arrival
    m.payload(this.#base + off, max)
    let r = m.recv(fd, 0)
    // As with send: an error of an earlier datagram is told once here and once in the error queue.
    if (r < 0 && r !== -EAGAIN) r = m.recv(fd, 0)
    if (r < 0) return r
    const data = m.find(IPPROTO_UDP, UDP_GRO)
    this.segment = data === 0 ? 0 : m.scratch.i32(data)
    if (this.segment >= r) this.segment = 0
    return r
  }

  recvFrom(fd: Sock, off: number, max: number, peer: number): number {
    const r = this.recv(fd, off, max)
    if (r < 0) return r
    this.peerPort = readAddress(this.#arrival.scratch, NAME, this.#sockets.arena.bytes, peer)
    if (this.#wildcard[fd] === 1) this.#answerFrom.learn(this.#arrival, fd, peer, this.peerPort)
    return r
  }

  setTtl(fd: Sock, ttl: number): number {
    return this.#sockets.six[fd] === 1
      ? setOption(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, ttl)
      : setOption(fd, IPPROTO_IP, IP_TTL, ttl)
  }

  /** Without it the kernel fragments what is longer than the path. */
  setDontFragment(fd: Sock, on: number): number {
    const how = on === 0 ? PMTUDISC_WANT : PMTUDISC_DO
    return this.#sockets.six[fd] === 1
      ? setOption(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, how)
      : setOption(fd, IPPROTO_IP, IP_MTU_DISCOVER, how)
  }

  /** Next entry of the error queue: 1 with `icmp` and the 16 bytes at `offender` filled, or 0. */
  recvError(fd: Sock, offender: number): number {
    const m = this.#error
    m.payload(this.#quote.address, 8)
    const quoted = m.recv(fd, MSG_ERRQUEUE)
    if (quoted < 0) return 0
    const data = m.find(IPPROTO_IP, IP_RECVERR) || m.find(IPPROTO_IPV6, IPV6_RECVERR)
    if (data === 0) return 0
    const s = m.scratch
    const local = s.bytes[data + 4] === SO_EE_ORIGIN_LOCAL
    this.icmp.errno = s.i32(data)
    this.icmp.type = local ? 0 : (s.bytes[data + 5] as number)
    this.icmp.code = local ? 0 : (s.bytes[data + 6] as number)
    this.icmp.mtu = this.icmp.errno === EMSGSIZE ? s.i32(data + 8) : 0
    const echo = this.#sockets.kind[fd] === KIND.ping && !local && quoted === 8
    this.icmp.sequence = echo ? this.#quote.view.getUint16(6) : -1
    const bytes = this.#sockets.arena.bytes
    if (local || readAddress(s, data + EXTENDED_ERR, bytes, offender) < 0) bytes.fill(0, offender, offender + 16)
    return 1
  }
}
