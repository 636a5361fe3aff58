/**
 * rtnetlink(7), the little of it that is needed synchronously: which route would a destination take, and what is a link.
 *
 * Owns: one request, one answer, over a socket that is kept. Never does: dumps, subscriptions, decisions.
 * Facts relied on: RTM_F_FIB_MATCH (linux/rtnetlink.h) answers with the matched entry of the routing table, so that a local
 * address names the link it belongs to (without the flag it names `lo`). The kernel answers GETROUTE and GETLINK before
 * sendto returns, so the answer is there at once.
 */
import { close } from './fd.ts'
import { addressOf, Scratch } from './libc.ts'
import { isMapped, MSG_DONTWAIT, recv, SOCK_RAW, send, socket } from './socket.ts'

const AF_INET = 2
const AF_INET6 = 10
const AF_NETLINK = 16
const NETLINK_ROUTE = 0
// linux/netlink.h
const NLM_F_REQUEST = 1
const NLMSG_ERROR = 2
const NLMSG_HDR = 16
// linux/rtnetlink.h
const RTM_GETLINK = 18
const RTM_GETROUTE = 26
const RTM_F_FIB_MATCH = 0x2000
const RTA_DST = 1
const RTA_OIF = 4
const RTA_MULTIPATH = 9
// linux/if_link.h
const IFLA_IFNAME = 3
const IFLA_LINKINFO = 18
const IFLA_INFO_KIND = 1
const IFLA_INFO_DATA = 2
const IFLA_TUN_MULTI_QUEUE = 7
const IFLA_TUN_NUM_QUEUES = 8

/** Type of a route (RTN_*, linux/rtnetlink.h). */
export const RTN = {
  unicast: 1,
  local: 2,
  broadcast: 3,
  anycast: 4,
  multicast: 5,
  blackhole: 6,
  unreachable: 7,
  prohibit: 8,
} as const

const EBADMSG = 74
const ANSWER = 16 * 1024
const align = (n: number): number => (n + 3) & ~3

export class RouteSocket {
  readonly #fd: number
  readonly #request = new Scratch(128)
  readonly #answer = new Scratch(ANSWER)
  readonly #bytes: Uint8Array
  readonly #at: number
  #sequence = 1

  /** Of the last `route`: RTN_*, and the indices of the links it leaves by (for a local address: that it belongs to). */
  routeType = 0
  readonly links: number[] = []
  /** Of the last `linkInfo`. */
  name = ''
  kind = ''
  /** Of a TUN or TAP device: it takes several queues, and so many somebody holds (told of such a device alone; Linux 4.17). */
  multiQueue = false
  queues = 0

  /** Throws when the kernel gives no rtnetlink socket. */
  constructor() {
    this.#fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)
    if (this.#fd < 0) throw new Error(`no rtnetlink socket: ${this.#fd}`)
    this.#bytes = this.#request.bytes
    this.#at = addressOf(this.#answer.bytes)
  }

  /**
   * Which entry of the routing tables does the address (16 bytes at `at`, IPv4 mapped) match? 0 and the fields above, or −errno
   * (−ENETUNREACH: none).
   */
  route(bytes: Uint8Array, at: number): number {
    const four = isMapped(bytes, at)
    const length = four ? 4 : 16
    const r = this.#request
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
    r.bytes.fill(0, NLMSG_HDR, NLMSG_HDR + 12)
    r.bytes[NLMSG_HDR] = four ? AF_INET : AF_INET6
    r.bytes[NLMSG_HDR + 1] = length * 8
    r.setI32(NLMSG_HDR + 8, RTM_F_FIB_MATCH)
    r.setU16(28, 4 + length)
    r.setU16(30, RTA_DST)
    for (let i = 0; i < length; i++) this.#bytes[32 + i] = bytes[at + 16 - length + i]!
    const n = this.#ask(RTM_GETROUTE, 32 + length)
    if (n < 0) return n
    const a = this.#answer
    this.routeType = a.bytes[NLMSG_HDR + 7]!
    this.links.length = 0
    for (let p = NLMSG_HDR + 12; p + 4 <= n; p += align(a.u16(p))) {
      const size = a.u16(p)
      if (size < 4) break
      const type = a.u16(p + 2) & 0x3fff
      if (type === RTA_OIF) this.links.push(a.i32(p + 4))
      // struct rtnexthop: len, flags, hops, ifindex; its own attributes follow
      else if (type === RTA_MULTIPATH)
        for (let q = p + 4; q + 8 <= p + size && a.u16(q) >= 8; q += align(a.u16(q))) this.links.push(a.i32(q + 4))
    }
    return 0
  }

  /** The fields above of the link with that index; `kind` is "tun", "veth", "bridge", and empty for hardware and lo. 0, or −errno. */
  linkInfo(index: number): number {
    const r = this.#request
    // struct ifinfomsg: family, pad, type, index, flags, change
    r.bytes.fill(0, NLMSG_HDR, NLMSG_HDR + 16)
    r.setI32(NLMSG_HDR + 4, index)
    const n = this.#ask(RTM_GETLINK, NLMSG_HDR + 16)
    if (n < 0) return n
    const a = this.#answer
    this.name = ''
    this.kind = ''
    this.multiQueue = false
    this.queues = 0
    for (let p = NLMSG_HDR + 16; p + 4 <= n; p += align(a.u16(p))) {
      const size = a.u16(p)
      if (size < 4) break
      const type = a.u16(p + 2) & 0x3fff
      if (type === IFLA_IFNAME) this.name = a.text(p + 4, size - 4)
      else if (type === IFLA_LINKINFO)
        for (let q = p + 4; q + 4 <= p + size; q += align(a.u16(q))) {
          if (a.u16(q) < 4) break
          const inner = a.u16(q + 2) & 0x3fff
          if (inner === IFLA_INFO_KIND) this.kind = a.text(q + 4, a.u16(q) - 4)
          else if (inner === IFLA_INFO_DATA && this.kind === 'tun') this.#tunData(q + 4, q + a.u16(q))
        }
    }
    return 0
  }

  #tunData(from: number, end: number): void {
    const a = this.#answer
    for (let p = from; p + 4 < end && a.u16(p) > 4; p += align(a.u16(p))) {
      const type = a.u16(p + 2) & 0x3fff
      if (type === IFLA_TUN_MULTI_QUEUE) this.multiQueue = a.bytes[p + 4] === 1
      else if (type === IFLA_TUN_NUM_QUEUES) this.queues = a.i32(p + 4)
    }
  }

  /** Send the request, take its answer: bytes of the answer, or −errno. */
  #ask(type: number, length: number): number {
    const r = this.#request
    r.setI32(0, length)
    r.setU16(4, type)
    r.setU16(6, NLM_F_REQUEST)
    r.setI32(8, ++this.#sequence)
    r.setI32(12, 0)
    const sent = send(this.#fd, r.address, length)
    if (sent < 0) return sent
    for (;;) {
      const n = recv(this.#fd, this.#at, ANSWER, MSG_DONTWAIT)
      if (n < 0) return n
      const a = this.#answer
      if (n < NLMSG_HDR + 4 || a.i32(0) > n) return -EBADMSG
      if (a.i32(8) !== this.#sequence) continue
      if (a.u16(4) === NLMSG_ERROR) return a.i32(NLMSG_HDR) < 0 ? a.i32(NLMSG_HDR) : -EBADMSG
      return Math.min(n, a.i32(0))
    }
  }

  close(): void {
    close(this.#fd)
  }
}
