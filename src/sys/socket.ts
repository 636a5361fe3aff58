/**
 * Sockets: creation, addresses, options, send and receive. socket(2), ip(7), tcp(7), udp(7), unix(7).
 *
 * Two ways to name an address: as text at the edges (`SocketAddress`), and as 16 bytes plus a port (IPv4 as
 * ::ffff:a.b.c.d, like the engine keeps them) where nothing may be allocated. A mapped IPv4 address always becomes a
 * sockaddr_in: an IPv4 destination gets an AF_INET socket. A link-local IPv6 address means nothing without its link: the link's index
 * (sin6_scope_id) lies in bytes 4 to 7 of the 16, which are zero on the wire (RFC 4291 §2.5.6), and behind a % in text.
 * Descriptors made here are close-on-exec. Results are ≥ 0 or −errno.
 */
import { isIPv4, isIPv6 } from 'node:net'
import { close } from './fd.ts'
import { declare, result, Scratch } from './libc.ts'

const c = {
  socket: declare<(domain: number, type: number, protocol: number) => number>('int socket(int, int, int)'),
  bind: declare<(fd: number, addr: number, len: number) => number>('int bind(int, uintptr_t, unsigned int)'),
  listen: declare<(fd: number, backlog: number) => number>('int listen(int, int)'),
  connect: declare<(fd: number, addr: number, len: number) => number>('int connect(int, uintptr_t, unsigned int)'),
  accept4: declare<(fd: number, addr: number, len: number, flags: number) => number>(
    'int accept4(int, uintptr_t, uintptr_t, int)',
  ),
  shutdown: declare<(fd: number, how: number) => number>('int shutdown(int, int)'),
  getsockname: declare<(fd: number, addr: number, len: number) => number>('int getsockname(int, uintptr_t, uintptr_t)'),
  getpeername: declare<(fd: number, addr: number, len: number) => number>('int getpeername(int, uintptr_t, uintptr_t)'),
  setsockopt: declare<(fd: number, level: number, name: number, addr: number, len: number) => number>(
    'int setsockopt(int, int, int, uintptr_t, unsigned int)',
  ),
  getsockopt: declare<(fd: number, level: number, name: number, addr: number, len: number) => number>(
    'int getsockopt(int, int, int, uintptr_t, uintptr_t)',
  ),
  send: declare<(fd: number, addr: number, len: number, flags: number) => number>(
    'long send(int, uintptr_t, size_t, int)',
  ),
  recv: declare<(fd: number, addr: number, len: number, flags: number) => number>(
    'long recv(int, uintptr_t, size_t, int)',
  ),
  sendto: declare<(fd: number, addr: number, len: number, flags: number, to: number, toLen: number) => number>(
    'long sendto(int, uintptr_t, size_t, int, uintptr_t, unsigned int)',
  ),
  recvfrom: declare<(fd: number, addr: number, len: number, flags: number, from: number, fromLen: number) => number>(
    'long recvfrom(int, uintptr_t, size_t, int, uintptr_t, uintptr_t)',
  ),
}

// linux/socket.h
export const AF_UNIX = 1
export const AF_INET = 2
export const AF_INET6 = 10
export const AF_NETLINK = 16
export const AF_PACKET = 17
export const SOCK_STREAM = 1
export const SOCK_DGRAM = 2
export const SOCK_RAW = 3
export const SOCK_SEQPACKET = 5
export const SOCK_NONBLOCK = 0o4000
const SOCK_CLOEXEC = 0o2000000
export const MSG_OOB = 0x1
export const MSG_PEEK = 0x2
export const MSG_CTRUNC = 0x8
export const MSG_TRUNC = 0x20
export const MSG_DONTWAIT = 0x40
export const MSG_ERRQUEUE = 0x2000
export const MSG_NOSIGNAL = 0x4000
export const MSG_CMSG_CLOEXEC = 0x40000000
const SHUT_WR = 1
// asm-generic/socket.h
export const SOL_SOCKET = 1
export const SOL_RAW = 255
/** linux/icmp.h: a set bit keeps that type of message out. */
export const ICMP_FILTER = 1
/** linux/icmpv6.h, at level IPPROTO_ICMPV6: 256 bits, a set one keeps that type of message out. */
export const ICMPV6_FILTER = 1
export const SO_REUSEADDR = 2
export const SO_ERROR = 4
export const SO_SNDBUF = 7
export const SO_RCVBUF = 8
export const SO_KEEPALIVE = 9
export const SO_OOBINLINE = 10
const SO_LINGER = 13
export const SO_PEERCRED = 17
export const SO_SNDBUFFORCE = 32
export const SO_RCVBUFFORCE = 33
export const SO_PEEK_OFF = 42
const SO_MEMINFO = 55
// linux/in.h, in6.h, icmp.h, tcp.h, udp.h
export const IPPROTO_IP = 0
export const IPPROTO_ICMP = 1
export const IPPROTO_TCP = 6
export const IPPROTO_UDP = 17
export const IPPROTO_IPV6 = 41
export const IPPROTO_ICMPV6 = 58
export const IP_TTL = 2
export const IP_PKTINFO = 8
export const IP_MTU_DISCOVER = 10
/** Values of IP_MTU_DISCOVER: fragment when it must be; never. */
export const PMTUDISC_WANT = 1
export const PMTUDISC_DO = 2
export const IP_RECVERR = 11
export const IP_MTU = 14
export const IPV6_UNICAST_HOPS = 16
export const IPV6_MTU_DISCOVER = 23
export const IPV6_MTU = 24
export const IPV6_RECVERR = 25
export const IPV6_V6ONLY = 26
export const IPV6_RECVPKTINFO = 49
export const IPV6_PKTINFO = 50
export const TCP_NODELAY = 1
const TCP_INFO = 11
export const UDP_SEGMENT = 103
export const UDP_GRO = 104

const SOCKADDR_MAX = 128
/** sockaddr at 0, socklen_t at 128, an option's value at 136. */
const scratch = new Scratch(256)
const LENGTH = SOCKADDR_MAX
const VALUE = 136

// -- sockaddr ------------------------------------------------------------------------------------------------------

export type SocketAddress =
  | { readonly family: 'inet'; readonly address: string; readonly port: number }
  | { readonly family: 'inet6'; readonly address: string; readonly port: number }
  /** A leading NUL makes it abstract; empty is an unnamed socket. */
  | { readonly family: 'unix'; readonly path: string }

/**
 * The 16 bytes of an address given as text, IPv4 mapped, a link-local one with its link as a number ("fe80::1%3"). Throws RangeError
 * when it is neither. For the edges.
 */
export function addressBytes(text: string): Uint8Array {
  const out = new Uint8Array(16)
  if (isIPv4(text)) {
    out[10] = out[11] = 0xff
    out.set(text.split('.').map(Number), 12)
    return out
  }
  const [bare = '', zone] = text.split('%')
  if (!isIPv6(bare) || (zone !== undefined && !/^\d{1,9}$/.test(zone)))
    throw new RangeError(`"${text}" is not an IP address`)
  // An embedded dotted quad is two groups.
  const dotted = bare.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, a, b, d, e) =>
    [(Number(a) << 8) | Number(b), (Number(d) << 8) | Number(e)].map((n) => n.toString(16)).join(':'),
  )
  const [head = '', tail] = dotted.split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  left.forEach((g, i) => {
    const n = Number.parseInt(g, 16)
    out[2 * i] = n >> 8
    out[2 * i + 1] = n & 255
  })
  right.forEach((g, i) => {
    const n = Number.parseInt(g, 16)
    const at = 16 - 2 * (right.length - i)
    out[at] = n >> 8
    out[at + 1] = n & 255
  })
  if (zone !== undefined && isLinkLocal(out, 0)) new DataView(out.buffer).setUint32(ZONE, Number(zone))
  return out
}

/** Text of the 16 bytes at `at`: dotted quad when mapped, RFC 5952 otherwise. For the edges. */
export function addressText(bytes: Uint8Array, at = 0): string {
  if (isMapped(bytes, at)) return `${bytes[at + 12]}.${bytes[at + 13]}.${bytes[at + 14]}.${bytes[at + 15]}`
  const groups: number[] = []
  for (let i = 0; i < 16; i += 2) groups.push((bytes[at + i]! << 8) | bytes[at + i + 1]!)
  if (isLinkLocal(bytes, at) && (groups[2] !== 0 || groups[3] !== 0)) {
    const zone = groups[2]! * 65536 + groups[3]!
    groups[2] = groups[3] = 0
    return `${groupsText(groups)}%${zone}`
  }
  return groupsText(groups)
}

function groupsText(groups: readonly number[]): string {
  let best = -1
  let bestLength = 1
  for (let i = 0; i < 8; i++) {
    let n = 0
    while (i + n < 8 && groups[i + n] === 0) n++
    if (n > bestLength) {
      best = i
      bestLength = n
    }
  }
  const text = (part: readonly number[]): string => part.map((g) => g.toString(16)).join(':')
  return best < 0 ? text(groups) : `${text(groups.slice(0, best))}::${text(groups.slice(best + bestLength))}`
}

/** Where the link of a link-local address lies in its 16 bytes. */
const ZONE = 4

/** fe80::/10 (RFC 4291 §2.4). */
export const isLinkLocal = (b: Uint8Array, at: number): boolean => b[at] === 0xfe && (b[at + 1]! & 0xc0) === 0x80

/** Are the 16 bytes at `at` an IPv4 address as ::ffff:a.b.c.d? */
export function isMapped(b: Uint8Array, at: number): boolean {
  for (let i = 0; i < 10; i++) if (b[at + i] !== 0) return false
  return b[at + 10] === 0xff && b[at + 11] === 0xff
}

/**
 * Write the sockaddr of 16 bytes and a port into `s` at `to`; returns its length.
 * @param as6 an AF_INET6 socket takes IPv4 only as its mapped form
 */
export function fillAddress(s: Scratch, to: number, bytes: Uint8Array, at: number, port: number, as6 = false): number {
  if (!as6 && isMapped(bytes, at)) {
    s.setU16(to, AF_INET)
    s.view.setUint16(to + 2, port)
    for (let i = 0; i < 4; i++) s.bytes[to + 4 + i] = bytes[at + 12 + i]!
    for (let i = 8; i < 16; i++) s.bytes[to + i] = 0
    return 16
  }
  s.setU16(to, AF_INET6)
  s.view.setUint16(to + 2, port)
  s.setI32(to + 4, 0)
  for (let i = 0; i < 16; i++) s.bytes[to + 8 + i] = bytes[at + i]!
  s.setI32(to + 24, 0)
  if (isLinkLocal(bytes, at)) {
    s.setI32(to + 24, s.view.getInt32(to + 8 + ZONE))
    s.setI32(to + 8 + ZONE, 0)
  }
  return 28
}

/** Read the sockaddr at `from` into 16 bytes at `at`; returns its port, or −1 when it is neither IPv4 nor IPv6. */
export function readAddress(s: Scratch, from: number, bytes: Uint8Array, at: number): number {
  const family = s.u16(from)
  if (family === AF_INET) {
    for (let i = 0; i < 10; i++) bytes[at + i] = 0
    bytes[at + 10] = bytes[at + 11] = 0xff
    for (let i = 0; i < 4; i++) bytes[at + 12 + i] = s.bytes[from + 4 + i]!
  } else if (family === AF_INET6) {
    for (let i = 0; i < 16; i++) bytes[at + i] = s.bytes[from + 8 + i]!
    if (isLinkLocal(bytes, at)) {
      const zone = s.u32(from + 24)
      for (let i = 0; i < 4; i++) bytes[at + ZONE + i] = zone >>> (24 - 8 * i)
    }
  } else return -1
  return s.view.getUint16(from + 2)
}

function put(a: SocketAddress): number {
  if (a.family !== 'unix') return fillAddress(scratch, 0, addressBytes(a.address), 0, a.port, a.family === 'inet6')
  const path = Buffer.from(a.path)
  if (path.length > 107) throw new RangeError(`the socket path ${a.path} is longer than 107 bytes`)
  scratch.setU16(0, AF_UNIX)
  scratch.bytes.fill(0, 2, 110)
  scratch.bytes.set(path, 2)
  if (path.length === 0) return 2
  return 2 + path.length + (path[0] === 0 ? 0 : 1)
}

function take(): SocketAddress {
  const family = scratch.u16(0)
  if (family === AF_UNIX) {
    const raw = Buffer.from(scratch.bytes.subarray(2, scratch.i32(LENGTH)))
    const end = raw[0] === 0 ? raw.length : raw.indexOf(0)
    return { family: 'unix', path: raw.subarray(0, end < 0 ? raw.length : end).toString('utf8') }
  }
  const bytes = new Uint8Array(16)
  const port = readAddress(scratch, 0, bytes, 0)
  return { family: family === AF_INET ? 'inet' : 'inet6', address: addressText(bytes), port }
}

// -- life of a socket ----------------------------------------------------------------------------------------------

/** `type`: SOCK_* with SOCK_NONBLOCK when wanted. */
export function socket(domain: number, type: number, protocol = 0): number {
  const r = c.socket(domain, type | SOCK_CLOEXEC, protocol)
  return r < 0 ? result(r) : r
}

export function bind(fd: number, address: SocketAddress): number {
  const len = put(address)
  return result(c.bind(fd, scratch.address, len))
}

export function listen(fd: number, backlog = 4096): number {
  return result(c.listen(fd, backlog))
}

export function connect(fd: number, address: SocketAddress): number {
  const len = put(address)
  return result(c.connect(fd, scratch.address, len))
}

/** Length of the address that the last connectTo left in `scratch`. */
let lastAddress = 0

/** connect to 16 bytes and a port. */
export function connectTo(fd: number, bytes: Uint8Array, at: number, port: number): number {
  lastAddress = fillAddress(scratch, 0, bytes, at, port)
  const r = c.connect(fd, scratch.address, lastAddress)
  return r < 0 ? result(r) : r
}

/** The last connectTo, once more: 0 when it has succeeded meanwhile, −EALREADY when not yet (connect(2)). Nothing else of this file in between. */
export function connectAgain(fd: number): number {
  const r = c.connect(fd, scratch.address, lastAddress)
  return r < 0 ? result(r) : r
}

/** From which of the host's addresses would a datagram to the 16 bytes at `dst` go? 0 and the 16 bytes at `source`, or −errno. Nothing is sent. */
export function sourceOf(bytes: Uint8Array, dst: number, source: number): number {
  const fd = socket(isMapped(bytes, dst) ? AF_INET : AF_INET6, SOCK_DGRAM)
  if (fd < 0) return fd
  let r = connectTo(fd, bytes, dst, 9)
  if (r >= 0) {
    scratch.setI32(LENGTH, SOCKADDR_MAX)
    r = c.getsockname(fd, scratch.address, scratch.address + LENGTH)
    if (r >= 0) readAddress(scratch, 0, bytes, source)
    else r = result(r)
  }
  close(fd)
  return r
}

/** `flags`: SOCK_NONBLOCK or 0. */
export function accept(fd: number, flags = 0): number {
  return result(c.accept4(fd, 0, 0, flags | SOCK_CLOEXEC))
}

/** Port of the last acceptFrom or recvFrom; −1 when the peer has none. */
export let peerPort = -1

/** accept4 with SOCK_NONBLOCK; the client's address goes to the 16 bytes at `peer`, its port to `peerPort`. */
export function acceptFrom(fd: number, bytes: Uint8Array, peer: number): number {
  scratch.setI32(LENGTH, SOCKADDR_MAX)
  const r = c.accept4(fd, scratch.address, scratch.address + LENGTH, SOCK_NONBLOCK | SOCK_CLOEXEC)
  if (r < 0) return result(r)
  peerPort = readAddress(scratch, 0, bytes, peer)
  return r
}

export function shutdown(fd: number, how = SHUT_WR): number {
  return result(c.shutdown(fd, how))
}

/** Its own address, or −errno. */
export function getsockname(fd: number): SocketAddress | number {
  scratch.setI32(LENGTH, SOCKADDR_MAX)
  const r = result(c.getsockname(fd, scratch.address, scratch.address + LENGTH))
  return r < 0 ? r : take()
}

/** Its peer's address, or −errno. */
export function getpeername(fd: number): SocketAddress | number {
  scratch.setI32(LENGTH, SOCKADDR_MAX)
  const r = result(c.getpeername(fd, scratch.address, scratch.address + LENGTH))
  return r < 0 ? r : take()
}

/** AF_* of a socket (SO_DOMAIN). */
export function familyOf(fd: number): number {
  return getOption(fd, SOL_SOCKET, 39)
}

// -- options -------------------------------------------------------------------------------------------------------

export function setOption(fd: number, level: number, name: number, value: number): number {
  scratch.setI32(VALUE, value)
  const r = c.setsockopt(fd, level, name, scratch.address + VALUE, 4)
  return r < 0 ? result(r) : r
}

/** An int option's value, or −errno. */
export function getOption(fd: number, level: number, name: number): number {
  scratch.setI32(LENGTH, 4)
  const r = c.getsockopt(fd, level, name, scratch.address + VALUE, scratch.address + LENGTH)
  return r < 0 ? result(r) : scratch.i32(VALUE)
}

/** An option that is a struct. */
export function setOptionBytes(fd: number, level: number, name: number, value: Uint8Array): number {
  const s = new Scratch(value.length)
  s.bytes.set(value)
  return result(c.setsockopt(fd, level, name, s.address, value.length))
}

/** Make close(2) send RST: SO_LINGER on with 0 seconds (socket(7)). */
export function setLingerReset(fd: number): number {
  scratch.setI32(VALUE, 1)
  scratch.setI32(VALUE + 4, 0)
  const r = c.setsockopt(fd, SOL_SOCKET, SO_LINGER, scratch.address + VALUE, 8)
  return r < 0 ? result(r) : r
}

/** pid, uid, gid of a unix socket's peer (SO_PEERCRED), or −errno. */
export function peerCredentials(fd: number): { pid: number; uid: number; gid: number } | number {
  scratch.setI32(LENGTH, 12)
  const r = result(c.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, scratch.address + VALUE, scratch.address + LENGTH))
  return r < 0
    ? r
    : {
        pid: scratch.i32(VALUE),
        uid: scratch.view.getUint32(VALUE + 4, true),
        gid: scratch.view.getUint32(VALUE + 8, true),
      }
}

/** What SO_MEMINFO said last (linux/sock_diag.h), in bytes with the kernel's overhead. */
export const memory = { receiveQueued: 0, receiveBuffer: 0, sendBuffer: 0, writeQueued: 0 }
const MEMINFO = 9 * 4

/** Fill `memory` for a socket: 0, or −errno. */
export function readMemory(fd: number): number {
  scratch.setI32(LENGTH, MEMINFO)
  const r = c.getsockopt(fd, SOL_SOCKET, SO_MEMINFO, scratch.address + VALUE, scratch.address + LENGTH)
  if (r < 0) return result(r)
  memory.receiveQueued = scratch.u32(VALUE)
  memory.receiveBuffer = scratch.u32(VALUE + 4)
  memory.sendBuffer = scratch.u32(VALUE + 12)
  memory.writeQueued = scratch.u32(VALUE + 20)
  return 0
}

/** States of a TCP socket (netinet/tcp.h). */
export const TCP = { established: 1, synSent: 2, timeWait: 6, close: 7, closeWait: 8, lastAck: 9, closing: 11 } as const

/** TCP_INFO's state, or −errno. */
export function tcpState(fd: number): number {
  scratch.setI32(LENGTH, 1)
  const r = c.getsockopt(fd, IPPROTO_TCP, TCP_INFO, scratch.address + VALUE, scratch.address + LENGTH)
  return r < 0 ? result(r) : (scratch.bytes[VALUE] as number)
}

// -- data ----------------------------------------------------------------------------------------------------------

/** MSG_NOSIGNAL is always set: a closed peer is −EPIPE. */
export function send(fd: number, addr: number, len: number, flags = 0): number {
  const r = c.send(fd, addr, len, flags | MSG_NOSIGNAL)
  return r < 0 ? result(r) : r
}

export function recv(fd: number, addr: number, len: number, flags = 0): number {
  const r = c.recv(fd, addr, len, flags)
  return r < 0 ? result(r) : r
}

/** sendto 16 bytes and a port. `as6`: the socket is AF_INET6. */
export function sendTo(
  fd: number,
  addr: number,
  len: number,
  flags: number,
  bytes: Uint8Array,
  at: number,
  port: number,
  as6 = false,
): number {
  const n = fillAddress(scratch, 0, bytes, at, port, as6)
  const r = c.sendto(fd, addr, len, flags | MSG_NOSIGNAL, scratch.address, n)
  return r < 0 ? result(r) : r
}

/** recvfrom; the sender's address goes to the 16 bytes at `at`, its port to `peerPort`. */
export function recvFrom(fd: number, addr: number, len: number, flags: number, bytes: Uint8Array, at: number): number {
  scratch.setI32(LENGTH, SOCKADDR_MAX)
  const r = c.recvfrom(fd, addr, len, flags, scratch.address, scratch.address + LENGTH)
  if (r < 0) return result(r)
  peerPort = readAddress(scratch, 0, bytes, at)
  return r
}
