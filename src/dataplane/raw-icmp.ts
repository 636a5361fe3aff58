/**
 * One raw ICMP or ICMPv6 socket that the daemon handed over, shared by many pings: where ping sockets are not allowed (ping.ts).
 *
 * Theory. A raw socket brings every ICMP message of the host to us: IPv4's with its IP header (raw(7)), IPv6's without, its sender by
 * recvfrom (RFC 3542 §3). Each share has an id of its own, written into what it sends, by which its replies and the errors about it
 * are known. Shares are numbered from a base at or above SHARE and are used by the engine like descriptors. A message for a share lies in
 * `#message` while the engine is told of it; it takes it with recv or recvError at once, or it is gone, as a full socket
 * buffer would have done. The kernel computes the checksum of what is sent over IPv6, and none over IPv4.
 *
 * Invariants: what is not an echo reply, or an error that quotes an echo request of a share to that share's destination, is never delivered.
 */
import {
  EACCES,
  ECONNREFUSED,
  EHOSTUNREACH,
  EMSGSIZE,
  FAILED,
  type IcmpError,
  READABLE,
  type Ref,
  type Sock,
} from '../netstack/host.ts'
import { close, setNonblock } from '../sys/fd.ts'
import {
  AF_INET,
  AF_INET6,
  connectTo,
  getOption,
  ICMP_FILTER,
  ICMPV6_FILTER,
  IP_MTU,
  IP_MTU_DISCOVER,
  IP_TTL,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  IPPROTO_IP,
  IPPROTO_IPV6,
  IPV6_MTU,
  IPV6_MTU_DISCOVER,
  IPV6_UNICAST_HOPS,
  PMTUDISC_DO,
  PMTUDISC_WANT,
  recvFrom,
  SOCK_DGRAM,
  SOL_RAW,
  sendTo,
  setOption,
  setOptionBytes,
  socket,
} from '../sys/socket.ts'
import type { Sockets } from './sockets.ts'

/** Shares are numbered from here; no descriptor is. */
export const SHARE = 1 << 24
/** How many of a family there may be. */
export const SHARES = 1024
const EAGAIN = 11
const EMFILE = 24
const MESSAGE_MAX = 65535
/** Messages taken in one turn. */
const TURN = 64
const DEFAULT_TTL = 64

/** What a family calls things: RFC 792 and ip(7), RFC 4443 and ipv6(7). */
interface Family {
  readonly af: number
  readonly protocol: number
  readonly echo: number
  readonly echoReply: number
  readonly wanted: readonly number[]
  readonly level: number
  readonly ttl: number
  readonly mtuDiscover: number
  readonly mtu: number
}
const V4: Family = {
  af: AF_INET,
  protocol: IPPROTO_ICMP,
  echo: 8,
  echoReply: 0,
  // echo reply, unreachable, time exceeded, parameter problem
  wanted: [0, 3, 11, 12],
  level: IPPROTO_IP,
  ttl: IP_TTL,
  mtuDiscover: IP_MTU_DISCOVER,
  mtu: IP_MTU,
}
const V6: Family = {
  af: AF_INET6,
  protocol: IPPROTO_ICMPV6,
  echo: 128,
  echoReply: 129,
  // unreachable, packet too big, time exceeded, parameter problem, echo reply
  wanted: [1, 2, 3, 4, 129],
  level: IPPROTO_IPV6,
  ttl: IPV6_UNICAST_HOPS,
  mtuDiscover: IPV6_MTU_DISCOVER,
  mtu: IPV6_MTU,
}
const IPV6_HEADER = 40
const FRAGMENT = 44
const FRAGMENT_HEADER = 8

export class RawIcmp {
  /** The number of the first share. */
  readonly first: number
  readonly #sockets: Sockets
  readonly #six: boolean
  readonly #family: Family
  readonly #bytes: Uint8Array
  #raw = -1
  // What the socket is set to.
  #rawTtl = DEFAULT_TTL
  #rawDontFragment = 0
  // Columns of shares.
  readonly #used = new Uint8Array(SHARES)
  readonly #ref = new Int32Array(SHARES)
  readonly #address = new Uint8Array(SHARES * 16)
  readonly #ttl = new Uint8Array(SHARES)
  readonly #dontFragment = new Uint8Array(SHARES)
  #nextShare = 0
  /** Ids of shares are idBase + index. */
  readonly #idBase: number
  // The message at hand: where it lies, who sent it (16 bytes), where its ICMP begins, whom it is for.
  readonly #message: number
  readonly #sender: number
  /** 16 bytes: the far end of the echo that a message is about. */
  readonly #far: number
  #icmpAt = 0
  #icmpLength = 0
  #replyFor = -1
  #errorFor = -1
  #errorSequence = -1
  /** The error at hand is a local one: what was to be sent is longer than the path takes. 0: it is not. */
  #localMtu = 0

  /** @param random 16 bits or more: ids of different data planes should differ */
  constructor(sockets: Sockets, six: boolean, random: number) {
    this.#sockets = sockets
    this.#six = six
    this.#family = six ? V6 : V4
    this.first = SHARE + (six ? SHARES : 0)
    this.#bytes = sockets.arena.bytes
    this.#idBase = random & 0xfc00
    this.#message = sockets.arena.alloc(MESSAGE_MAX + 1)
    this.#sender = sockets.arena.alloc(16)
    this.#far = sockets.arena.alloc(16)
  }

  get ready(): boolean {
    return this.#raw >= 0
  }

  /** Use this raw socket (its descriptor is ours from now on). */
  use(fd: number): void {
    if (this.#raw >= 0) {
      this.#sockets.reactor.unwatch(this.#raw)
      close(this.#raw)
    }
    setNonblock(fd, true)
    const { wanted, protocol } = this.#family
    if (this.#six) {
      const filter = new Uint8Array(32).fill(0xff)
      // 32-bit words in the machine's order: little-endian here, so that bit n is bit n of the bytes.
      for (const t of wanted) filter[t >> 3]! &= ~(1 << (t & 7))
      setOptionBytes(fd, protocol, ICMPV6_FILTER, filter)
    } else setOption(fd, SOL_RAW, ICMP_FILTER, ~wanted.reduce((bits, t) => bits | (1 << t), 0))
    this.#raw = fd
    this.#rawTtl = DEFAULT_TTL
    this.#rawDontFragment = 0
    this.#sockets.reactor.watch(fd, () => this.#receive())
  }

  open(dst: number): Sock {
    for (let n = 0; n < SHARES; n++) {
      const i = (this.#nextShare + n) % SHARES
      if (this.#used[i] !== 0) continue
      this.#nextShare = i + 1
      this.#used[i] = 1
      this.#ref[i] = -1
      this.#ttl[i] = DEFAULT_TTL
      this.#dontFragment[i] = 0
      this.#address.set(this.#bytes.subarray(dst, dst + 16), i * 16)
      return this.first + i
    }
    return -EMFILE
  }

  send(sock: Sock, off: number, len: number): number {
    const i = sock - this.first
    const b = this.#bytes
    const id = this.#idBase + i
    b[off + 4] = id >> 8
    b[off + 5] = id & 255
    b[off + 2] = b[off + 3] = 0
    if (!this.#six) {
      const sum = checksum(b, off, len)
      b[off + 2] = sum >> 8
      b[off + 3] = sum & 255
    }
    const { level, ttl, mtuDiscover } = this.#family
    if (this.#rawTtl !== this.#ttl[i]) {
      this.#rawTtl = this.#ttl[i]!
      setOption(this.#raw, level, ttl, this.#rawTtl)
    }
    if (this.#rawDontFragment !== this.#dontFragment[i]) {
      this.#rawDontFragment = this.#dontFragment[i]!
      setOption(this.#raw, level, mtuDiscover, this.#rawDontFragment === 0 ? PMTUDISC_WANT : PMTUDISC_DO)
    }
    const r = sendTo(this.#raw, this.#sockets.base + off, len, 0, this.#address, i * 16, 0, this.#six)
    if (r === -EMSGSIZE) {
      this.#errorFor = sock
      this.#localMtu = this.#pathMtu(i)
    }
    return r
  }

  /** What the route to a share's destination takes: only a connected socket can say it (ip(7), IP_MTU). */
  #pathMtu(i: number): number {
    const fd = socket(this.#family.af, SOCK_DGRAM)
    if (fd < 0) return 0
    const r = connectTo(fd, this.#address, i * 16, 9)
    const mtu = r < 0 ? r : getOption(fd, this.#family.level, this.#family.mtu)
    close(fd)
    return Math.max(0, mtu)
  }

  recv(sock: Sock, off: number, max: number): number {
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
    icmp.errno = this.#six ? errno6(icmp.type, icmp.code) : errno4(icmp.type, icmp.code)
    // RFC 1191 §4: 16 bits; RFC 4443 §3.2: 32.
    const high = this.#six ? (b[at + 4]! << 24) | (b[at + 5]! << 16) : 0
    icmp.mtu = icmp.errno === EMSGSIZE ? (high | (b[at + 6]! << 8) | b[at + 7]!) >>> 0 : 0
    b.copyWithin(offender, this.#sender, this.#sender + 16)
    return 1
  }

  watch(sock: Sock, ref: Ref): number {
    this.#ref[sock - this.first] = ref
    return 0
  }

  setTtl(sock: Sock, ttl: number): number {
    this.#ttl[sock - this.first] = ttl
    return 0
  }

  setDontFragment(sock: Sock, on: number): number {
    this.#dontFragment[sock - this.first] = on
    return 0
  }

  close(sock: Sock): void {
    this.#used[sock - this.first] = 0
  }

  #receive(): void {
    const b = this.#bytes
    const m = this.#message
    for (let turn = 0; turn < TURN; turn++) {
      const n = recvFrom(this.#raw, this.#sockets.base + m, MESSAGE_MAX, 0, b, this.#sender)
      if (n < 0) return
      const header = this.#six ? 0 : (b[m]! & 15) * 4
      const at = m + header
      if (n < header + 8) continue
      this.#icmpAt = at
      this.#icmpLength = n - header
      if (b[at] === this.#family.echoReply) this.#deliver((b[at + 4]! << 8) | b[at + 5]!, this.#sender, READABLE)
      else {
        const inner = this.#six ? this.#quoted6(at + 8, m + n) : this.#quoted4(at + 8, m + n)
        if (inner < 0) continue
        this.#errorSequence = (b[inner + 6]! << 8) | b[inner + 7]!
        this.#deliver((b[inner + 4]! << 8) | b[inner + 5]!, this.#far, FAILED)
      }
    }
  }

  /**
   * An error quotes the packet it is about, at least its header and 8 bytes (RFC 792). Where the echo request in it begins, its destination in
   * `#far`; −1 when it quotes something else.
   */
  #quoted4(at: number, end: number): number {
    const b = this.#bytes
    const inner = at + (b[at]! & 15) * 4
    if (inner + 8 > end || b[at + 9] !== IPPROTO_ICMP || b[inner] !== V4.echo) return -1
    b.fill(0, this.#far, this.#far + 10)
    b[this.#far + 10] = b[this.#far + 11] = 0xff
    b.copyWithin(this.#far + 12, at + 16, at + 20)
    return inner
  }

  /** RFC 4443 §3. Of extension headers only the one that our own kernel puts in is known: a first fragment's. */
  #quoted6(at: number, end: number): number {
    const b = this.#bytes
    let inner = at + IPV6_HEADER
    let next = b[at + 6]!
    if (next === FRAGMENT && inner + FRAGMENT_HEADER <= end && (b[inner + 2]! | (b[inner + 3]! & 0xf8)) === 0) {
      next = b[inner]!
      inner += FRAGMENT_HEADER
    }
    if (inner + 8 > end || next !== IPPROTO_ICMPV6 || b[inner] !== V6.echo) return -1
    b.copyWithin(this.#far, at + 24, at + 40)
    return inner
  }

  /** Tell the share with that id, if the far address (16 bytes at `far`) is its own. */
  #deliver(id: number, far: number, events: number): void {
    const i = id - this.#idBase
    if (i < 0 || i >= SHARES || this.#used[i] === 0 || (this.#ref[i] as number) < 0) return
    for (let k = 0; k < 16; k++) if (this.#bytes[far + k] !== this.#address[i * 16 + k]) return
    this.#replyFor = events === READABLE ? this.first + i : -1
    this.#errorFor = events === FAILED ? this.first + i : -1
    this.#localMtu = 0
    this.#sockets.reactor.onSocket(this.#ref[i] as number, events, this.first + i)
  }
}

/** RFC 792: unreachable (3) with code 4 needs fragmentation, with code 3 is a port. */
const errno4 = (type: number, code: number): number =>
  type === 3 && code === 4 ? EMSGSIZE : type === 3 && code === 3 ? ECONNREFUSED : EHOSTUNREACH

/** RFC 4443 §3.1, §3.2: packet too big (2); unreachable (1) with code 4 is a port, with code 1 was forbidden. */
const errno6 = (type: number, code: number): number => {
  if (type === 2) return EMSGSIZE
  if (type !== 1) return EHOSTUNREACH
  return code === 4 ? ECONNREFUSED : code === 1 ? EACCES : EHOSTUNREACH
}

/** RFC 1071, of a message with its checksum zero. */
function checksum(b: Uint8Array, off: number, len: number): number {
  let sum = 0
  for (let p = off; p + 1 < off + len; p += 2) sum += (b[p]! << 8) | b[p + 1]!
  if (len & 1) sum += b[off + len - 1]! << 8
  sum = (sum & 0xffff) + Math.floor(sum / 65536)
  return ~((sum & 0xffff) + (sum >> 16)) & 0xffff
}
