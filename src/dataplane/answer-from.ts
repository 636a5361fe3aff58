/**
 * From which of the host's addresses a published UDP port answers each client: the one the client has spoken to.
 *
 * Theory. A socket bound to the wildcard answers from whatever address the route to the client suggests; on a host with several
 * addresses a client then gets its answer from a stranger and drops it. IP_PKTINFO tells with each arriving datagram where it
 * was sent to, and takes the same for what is sent (ip(7), ipv6(7)).
 * The memory is a direct-mapped table: two clients that collide push each other out, and the one pushed out is answered from the
 * route's address until it speaks again.
 */
import { CMSG, CONTROL, type Message } from '../sys/message.ts'
import {
  addressText,
  getsockname,
  IP_PKTINFO,
  IPPROTO_IP,
  IPPROTO_IPV6,
  IPV6_PKTINFO,
  IPV6_RECVPKTINFO,
  setOption,
} from '../sys/socket.ts'

const ENTRIES = 2048
/** Words of an entry: descriptor and port, client (4), local address as pktinfo has it (4). */
const WORDS = 10
// struct in_pktinfo: ifindex, spec_dst, addr. struct in6_pktinfo: addr[16], ifindex.
const PKTINFO4 = 12
const PKTINFO6 = 20
const SPEC_DST = 4

export class AnswerFrom {
  readonly #table = new Int32Array(ENTRIES * WORDS)
  readonly #view: DataView

  /** @param bytes the arena */
  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  /** Ask the kernel where datagrams were sent to, if the socket is bound to all addresses. True: it is. */
  begin(fd: number, six: boolean): boolean {
    const at = getsockname(fd)
    if (typeof at === 'number' || at.family === 'unix') return false
    if (at.address !== addressText(new Uint8Array(16)) && at.address !== '0.0.0.0') return false
    // An IPv6 socket tells an IPv4 client's destination in its mapped form.
    const r = six ? setOption(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1) : setOption(fd, IPPROTO_IP, IP_PKTINFO, 1)
    return r >= 0
  }

  #slot(fd: number, peer: number, port: number): number {
    const v = this.#view
    let h = Math.imul(v.getInt32(peer + 12), 0x9e3779b1) ^ Math.imul(port ^ (fd << 16), 0x85ebca6b)
    h ^= v.getInt32(peer) ^ v.getInt32(peer + 4) ^ Math.imul(v.getInt32(peer + 8), 31)
    return ((Math.imul(h ^ (h >>> 15), 0x2c1b3c6d) >>> 0) % ENTRIES) * WORDS
  }

  /** A datagram from the client at `peer` (16 bytes of the arena) and `port` lies in `m`: remember where it was sent to. */
  learn(m: Message, fd: number, peer: number, port: number): void {
    const v4 = m.find(IPPROTO_IP, IP_PKTINFO)
    const v6 = v4 === 0 ? m.find(IPPROTO_IPV6, IPV6_PKTINFO) : 0
    if (v4 === 0 && v6 === 0) return
    const t = this.#table
    const at = this.#slot(fd, peer, port)
    t[at] = (fd << 16) | port
    t[at + 1] = v4 !== 0 ? 4 : 6
    for (let i = 0; i < 4; i++) {
      t[at + 2 + i] = this.#view.getInt32(peer + 4 * i)
      t[at + 6 + i] = v4 !== 0 ? (i === 0 ? m.scratch.i32(v4 + SPEC_DST) : 0) : m.scratch.i32(v6 + 4 * i)
    }
  }

  /** Put what the client is to be answered from into `m`'s control data. False: nothing is known of it. */
  put(m: Message, fd: number, peer: number, port: number): boolean {
    const t = this.#table
    const at = this.#slot(fd, peer, port)
    if (t[at] !== ((fd << 16) | port)) return false
    for (let i = 0; i < 4; i++) if (t[at + 2 + i] !== this.#view.getInt32(peer + 4 * i)) return false
    const four = t[at + 1] === 4
    const size = four ? PKTINFO4 : PKTINFO6
    const data = CONTROL + CMSG
    m.scratch.bytes.fill(0, data, data + size)
    const end = four
      ? m.header(CONTROL, IPPROTO_IP, IP_PKTINFO, size)
      : m.header(CONTROL, IPPROTO_IPV6, IPV6_PKTINFO, size)
    if (four) m.scratch.setI32(data + SPEC_DST, t[at + 6] as number)
    else for (let i = 0; i < 4; i++) m.scratch.setI32(data + 4 * i, t[at + 6 + i] as number)
    m.control(end - CONTROL)
    return true
  }

  /** The descriptor is closed: what is remembered for its number is another's. */
  forget(fd: number): void {
    for (let at = 0; at < this.#table.length; at += WORDS)
      if ((this.#table[at] as number) >>> 16 === fd) this.#table[at] = 0
  }
}
