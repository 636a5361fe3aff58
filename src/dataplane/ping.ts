/**
 * ICMP echo to the outside: ping sockets where the system allows them (net.ipv4.ping_group_range, icmp(7)), otherwise shares of
 * one raw ICMP socket that the daemon handed over.
 *
 * Theory. A ping socket is an ordinary descriptor: the kernel gives it an id and brings it only its own replies. The raw
 * socket brings every ICMP message of the host to us, with its IP header; each share has an id of its own, written into
 * what it sends, and is a number at or above SHARE that the engine uses like a descriptor. A message for a share lies in
 * `#message` while the engine is told of it; it takes it with pingRecv or recvError at once, or it is gone, as a
 * full socket buffer would have done.
 *
 * Only IPv4 has shares: a raw ICMPv6 socket is not handed over.
 */

import { EHOSTUNREACH, FAILED, type IcmpError, READABLE, type Ref, type Sock } from '../netstack/host.ts'
import { close, setNonblock } from '../sys/fd.ts'
import {
  AF_INET,
  connectTo,
  getOption,
  ICMP_FILTER,
  IP_MTU,
  IP_MTU_DISCOVER,
  IP_TTL,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  IPPROTO_IP,
  isMapped,
  PMTUDISC_DO,
  PMTUDISC_WANT,
  recv,
  SOCK_DGRAM,
  SOL_RAW,
  send,
  sendTo,
  setOption,
  socket,
} from '../sys/socket.ts'
import { KIND, type Sockets } from './sockets.ts'

/** Shares are numbered from here; no descriptor is. */
export const SHARE = 1 << 24
const SHARES = 1024
const EACCES = 13
const EAGAIN = 11
const EMFILE = 24
const EMSGSIZE = 90
const ECONNREFUSED = 111
// RFC 792
const ECHO_REPLY = 0
const UNREACHABLE = 3
const FRAGMENTATION_NEEDED = 4
const PORT_UNREACHABLE = 3
const ECHO = 8
const TIME_EXCEEDED = 11
const PARAMETER_PROBLEM = 12
const MESSAGE_MAX = 65535
/** Messages of the raw socket taken in one turn. */
const TURN = 64
const DEFAULT_TTL = 64

export class PingSockets {
  readonly #sockets: Sockets
  readonly #bytes: Uint8Array
  readonly #base: number
  readonly #reportErrors: (fd: Sock) => void
  #raw = -1
  #rawTtl = DEFAULT_TTL
  #rawDontFragment = 0
  /** Columns of shares. */
  readonly #used = new Uint8Array(SHARES)
  readonly #ref = new Int32Array(SHARES)
  readonly #address = new Uint8Array(SHARES * 16)
  readonly #ttl = new Uint8Array(SHARES)
  readonly #dontFragment = new Uint8Array(SHARES)
  #nextShare = 0
  /** Ids of shares are idBase + index. */
  readonly #idBase: number
  /** The raw message at hand: its IP header's offset, where its ICMP message begins, and whom it is for. */
  readonly #message: number
  #icmpAt = 0
  #icmpLength = 0
  #replyFor = -1
  #errorFor = -1
  #errorSequence = -1
  /** The error at hand is a local one: what was to be sent is longer than the path takes. 0: it is not. */
  #localMtu = 0

  /** @param random 16 bits or more: ids of different data planes should differ */
  constructor(sockets: Sockets, reportErrors: (fd: Sock) => void, random: number) {
    this.#sockets = sockets
    this.#bytes = sockets.arena.bytes
    this.#base = sockets.base
    this.#reportErrors = reportErrors
    this.#idBase = random & 0xfc00
    this.#message = sockets.arena.alloc(MESSAGE_MAX + 1)
  }

  /** Use this raw ICMP socket (its descriptor is ours from now on) where ping sockets are not allowed. */
  useRaw(fd: number): void {
    if (this.#raw >= 0) {
      this.#sockets.reactor.unwatch(this.#raw)
      close(this.#raw)
    }
    setNonblock(fd, true)
    const wanted = (1 << ECHO_REPLY) | (1 << UNREACHABLE) | (1 << TIME_EXCEEDED) | (1 << PARAMETER_PROBLEM)
    setOption(fd, SOL_RAW, ICMP_FILTER, ~wanted)
    this.#raw = fd
    this.#rawTtl = DEFAULT_TTL
    this.#rawDontFragment = 0
    this.#sockets.reactor.watch(fd, () => this.#receive())
  }

  open(dst: number): Sock {
    const s = this.#sockets
    const four = isMapped(this.#bytes, dst)
    const fd = s.make(dst, SOCK_DGRAM, four ? IPPROTO_ICMP : IPPROTO_ICMPV6, KIND.ping)
    if (fd < 0) return fd === -EACCES && four && this.#raw >= 0 ? this.#share(dst) : fd
    this.#reportErrors(fd)
    const r = connectTo(fd, this.#bytes, dst, 0)
    if (r >= 0) return fd
    s.close(fd)
    return r
  }

  #share(dst: number): Sock {
    for (let n = 0; n < SHARES; n++) {
      const i = (this.#nextShare + n) % SHARES
      if (this.#used[i] !== 0) continue
      this.#nextShare = i + 1
      this.#used[i] = 1
      this.#ref[i] = -1
      this.#ttl[i] = DEFAULT_TTL
      this.#dontFragment[i] = 0
      this.#address.set(this.#bytes.subarray(dst, dst + 16), i * 16)
      return SHARE + i
    }
    return -EMFILE
  }

  send(sock: Sock, off: number, len: number): number {
    if (sock < SHARE) return send(sock, this.#base + off, len)
    const i = sock - SHARE
    const b = this.#bytes
    const id = this.#idBase + i
    b[off + 4] = id >> 8
    b[off + 5] = id & 255
    b[off + 2] = b[off + 3] = 0
    let sum = 0
    for (let p = off; p + 1 < off + len; p += 2) sum += (b[p]! << 8) | b[p + 1]!
    if (len & 1) sum += b[off + len - 1]! << 8
    sum = (sum & 0xffff) + Math.floor(sum / 65536)
    sum = ~((sum & 0xffff) + (sum >> 16)) & 0xffff
    b[off + 2] = sum >> 8
    b[off + 3] = sum & 255
    if (this.#rawTtl !== this.#ttl[i]) {
      this.#rawTtl = this.#ttl[i]!
      setOption(this.#raw, IPPROTO_IP, IP_TTL, this.#rawTtl)
    }
    if (this.#rawDontFragment !== this.#dontFragment[i]) {
      this.#rawDontFragment = this.#dontFragment[i]!
      setOption(this.#raw, IPPROTO_IP, IP_MTU_DISCOVER, this.#rawDontFragment === 0 ? PMTUDISC_WANT : PMTUDISC_DO)
    }
    const r = sendTo(this.#raw, this.#base + off, len, 0, this.#address, i * 16, 0)
    if (r === -EMSGSIZE) {
      this.#errorFor = sock
      this.#localMtu = this.#pathMtu(i)
    }
    return r
  }

  /** What the route to a share's destination takes: only a connected socket can say it (ip(7), IP_MTU). */
  #pathMtu(i: number): number {
    const fd = socket(AF_INET, SOCK_DGRAM)
    if (fd < 0) return 0
    const r = connectTo(fd, this.#address, i * 16, 9)
    const mtu = r < 0 ? r : getOption(fd, IPPROTO_IP, IP_MTU)
    close(fd)
    return Math.max(0, mtu)
  }

  recv(sock: Sock, off: number, max: number): number {
    if (sock < SHARE) return recv(sock, this.#base + off, max)
    if (this.#replyFor !== sock) return -EAGAIN
    this.#replyFor = -1
    const n = Math.min(max, this.#icmpLength)
    this.#bytes.copyWithin(off, this.#icmpAt, this.#icmpAt + n)
    return n
  }

  /** The error at hand for a share, into `icmp` and `offender`: 1, or 0. */
  recvError(sock: Sock, offender: number, icmp: IcmpError): number {
    if (this.#errorFor !== sock) return 0
    this.#errorFor = -1
    const b = this.#bytes
    const at = this.#icmpAt
    if (this.#localMtu > 0) {
      icmp.type = icmp.code = 0
      icmp.errno = EMSGSIZE
      icmp.mtu = this.#localMtu
      icmp.sequence = -1
      this.#localMtu = 0
      b.fill(0, offender, offender + 16)
      return 1
    }
    icmp.type = b[at]!
    icmp.code = b[at + 1]!
    icmp.sequence = this.#errorSequence
    const tooBig = icmp.type === UNREACHABLE && icmp.code === FRAGMENTATION_NEEDED
    icmp.mtu = tooBig ? (b[at + 6]! << 8) | b[at + 7]! : 0
    icmp.errno = tooBig
      ? EMSGSIZE
      : icmp.type === UNREACHABLE && icmp.code === PORT_UNREACHABLE
        ? ECONNREFUSED
        : EHOSTUNREACH
    b.fill(0, offender, offender + 10)
    b[offender + 10] = b[offender + 11] = 0xff
    b.copyWithin(offender + 12, this.#message + 12, this.#message + 16)
    return 1
  }

  watch(sock: Sock, ref: Ref): number {
    this.#ref[sock - SHARE] = ref
    return 0
  }

  setTtl(sock: Sock, ttl: number): number {
    this.#ttl[sock - SHARE] = ttl
    return 0
  }

  setDontFragment(sock: Sock, on: number): number {
    this.#dontFragment[sock - SHARE] = on
    return 0
  }

  close(sock: Sock): void {
    this.#used[sock - SHARE] = 0
  }

  #receive(): void {
    const b = this.#bytes
    const m = this.#message
    for (let turn = 0; turn < TURN; turn++) {
      const n = recv(this.#raw, this.#base + m, MESSAGE_MAX)
      if (n < 0) return
      const header = (b[m]! & 15) * 4
      const at = m + header
      if (n < header + 8) continue
      this.#icmpAt = at
      this.#icmpLength = n - header
      if (b[at] === ECHO_REPLY) this.#deliver((b[at + 4]! << 8) | b[at + 5]!, m + 12, READABLE)
      else {
        // An error: the packet it is about follows, at least its header and 8 bytes (RFC 792).
        const quoted = at + 8
        const quotedHeader = (b[quoted]! & 15) * 4
        const inner = quoted + quotedHeader
        if (n < header + 8 + quotedHeader + 8 || b[quoted + 9] !== IPPROTO_ICMP || b[inner] !== ECHO) continue
        this.#errorSequence = (b[inner + 6]! << 8) | b[inner + 7]!
        this.#deliver((b[inner + 4]! << 8) | b[inner + 5]!, quoted + 16, FAILED)
      }
    }
  }

  /** Tell the share with that id, if the far address (4 bytes at `far`) is its own. */
  #deliver(id: number, far: number, events: number): void {
    const i = id - this.#idBase
    if (i < 0 || i >= SHARES || this.#used[i] === 0 || (this.#ref[i] as number) < 0) return
    for (let k = 0; k < 4; k++) if (this.#bytes[far + k] !== this.#address[i * 16 + 12 + k]) return
    this.#replyFor = events === READABLE ? SHARE + i : -1
    this.#errorFor = events === FAILED ? SHARE + i : -1
    this.#localMtu = 0
    this.#sockets.reactor.onSocket(this.#ref[i] as number, events, SHARE + i)
  }
}
