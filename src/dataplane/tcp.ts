/**
 * TCP host sockets: connect, accept, send from the arena, peek into it.
 *
 * Theory. The relay stores no payload: what the peer sent stays in the socket's receive queue until the guest has acknowledged
 * it. recv(MSG_PEEK) reads from a peek offset (SO_PEEK_OFF, socket(7); TCP since Linux 6.9, TCP over IPv6 since 6.11), which the kernel
 * advances by what was peeked and takes back by what was consumed. The column `peekOff` mirrors it, so that the option is
 * set only for the first peek behind the beginning, and when a retransmission goes back. recv(MSG_TRUNC) consumes without copying (tcp(7)).
 *
 * Where the option does not work (a probe at start tells: it sends bytes to itself), a plain MSG_PEEK of everything up to the
 * wanted bytes goes to a bounded staging area, and what is beyond it waits until the guest acknowledges.
 *
 * Urgent bytes (RFC 9293 §3.8.5) stay in the stream (SO_OOBINLINE, RFC 6093 §6): the kernel would leave one out without moving the peek offset, and
 * sequence numbers and offsets would differ by one from there on. The mark itself is not passed on. A recv ends before it also then, so URGENT is
 * told with what is readable (reactor.ts): whoever peeks goes on behind it.
 *
 * Free send space: SO_MEMINFO tells what the kernel itself compares in sk_stream_memory_free (net/core/sock.h): sk_sndbuf, which
 * autotuning moves, less sk_wmem_queued, which counts payload with its overhead.
 */

import type { Sock } from '../netstack/host.ts'
import { close, unread } from '../sys/fd.ts'
import { Scratch } from '../sys/libc.ts'
import {
  AF_INET,
  AF_INET6,
  accept,
  acceptFrom,
  bind,
  connect,
  connectAgain,
  connectTo,
  getsockname,
  IPPROTO_TCP,
  isMapped,
  listen,
  MSG_DONTWAIT,
  MSG_PEEK,
  MSG_TRUNC,
  memory,
  peerPort,
  readMemory,
  recv,
  SO_KEEPALIVE,
  SO_OOBINLINE,
  SO_PEEK_OFF,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
  send,
  setOption,
  socket,
  TCP,
  TCP_NODELAY,
  tcpState,
} from '../sys/socket.ts'
import { END } from './later.ts'
import { KIND, type Sockets, UNSET } from './sockets.ts'

const EAGAIN = 11
const EALREADY = 114
const EINPROGRESS = 115
/** Where SO_PEEK_OFF does not work: the most that is in flight to a guest. */
const STAGING = 512 * 1024
/** A skb's own size for each 32 KiB of payload, and a page that is not filled: what is left of free memory for payload. */
const PAYLOAD_SHARE = 0.9

export class TcpSockets {
  readonly #sockets: Sockets
  readonly #base: number
  /** SO_PEEK_OFF works for IPv4, for IPv6. */
  readonly peekOffset: readonly [boolean, boolean]
  readonly #staging: number
  /** A socket of each family that is ready to connect (−1: none), and the family of the one that was used last. */
  readonly #spare = Int32Array.of(-1, -1)
  #used = -1

  /** @param force [v4, v6] instead of the probe: tests of the other way */
  constructor(sockets: Sockets, force?: readonly [boolean, boolean]) {
    this.#sockets = sockets
    this.#base = sockets.base
    this.peekOffset = force ?? [probePeekOffset(AF_INET), probePeekOffset(AF_INET6)]
    this.#staging = this.peekOffset[0] && this.peekOffset[1] ? 0 : sockets.arena.alloc(STAGING, 4096)
  }

  #prepare(fd: Sock): Sock {
    // The guest's own keepalives end at the relay: a far end that has vanished is found here.
    setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1)
    setOption(fd, SOL_SOCKET, SO_OOBINLINE, 1)
    return fd
  }

  #fresh(six: number): Sock {
    const fd = socket(six === 1 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK)
    return fd < 0 ? fd : this.#prepare(fd)
  }

  /** Make the socket of the next connection, if the last one was used. @returns whether it was */
  spare(): boolean {
    const six = this.#used
    if (six < 0) return false
    this.#used = -1
    this.#spare[six] = this.#fresh(six)
    return true
  }

  connect(dst: number, l4port: number): Sock {
    const s = this.#sockets
    const six = isMapped(s.arena.bytes, dst) ? 0 : 1
    const spare = this.#spare[six] as number
    this.#spare[six] = -1
    const made = spare >= 0 ? spare : this.#fresh(six)
    if (made < 0) return made
    this.#used = six
    const fd = s.take(made, six, KIND.tcp, 0)
    if (fd < 0) return fd
    let r = connectTo(fd, s.arena.bytes, dst, l4port)
    // On this machine the other side has answered before the call returned: asking once more costs less than an event.
    if (r === -EINPROGRESS) r = connectAgain(fd)
    this.connected = r === 0
    if (r === -EALREADY) r = -EINPROGRESS
    if (r < 0 && r !== -EINPROGRESS) {
      s.close(fd)
      return r
    }
    return fd
  }

  /** The last connect has succeeded already. */
  connected = false
  /** The client's port of the last accept. */
  peerPort = 0

  accept(listener: Sock, peer: number): Sock {
    const s = this.#sockets
    const fd = acceptFrom(listener, s.arena.bytes, peer)
    if (fd < 0) return fd
    this.peerPort = peerPort
    const sock = s.takeClient(fd, s.six[listener] as number)
    return sock < 0 ? sock : this.#prepare(sock)
  }

  send(fd: Sock, off: number, len: number): number {
    // What is sent first waits for nobody (RFC 896): a connection of one request is spared the call.
    const { sends } = this.#sockets
    if ((sends[fd] as number) < 2 && ++(sends[fd] as number) === 2) setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1)
    return send(fd, this.#base + off, len)
  }

  peek(fd: Sock, off: number, len: number, skip: number): number {
    const s = this.#sockets
    if (!this.peekOffset[s.six[fd] as 0 | 1]) return this.#peekStaged(fd, off, len, skip)
    // What lies at the beginning needs no offset: many a connection has but one answer, taken before the next is looked for.
    if (skip === 0 && s.peekOff[fd] === UNSET) return recv(fd, this.#base + off, len, MSG_PEEK)
    if (s.peekOff[fd] !== skip) {
      const r = setOption(fd, SOL_SOCKET, SO_PEEK_OFF, skip)
      if (r < 0) return r
      s.peekOff[fd] = skip
    }
    const n = recv(fd, this.#base + off, len, MSG_PEEK)
    if (n > 0) s.peekOff[fd] = skip + n
    return n
  }

  #peekStaged(fd: Sock, off: number, len: number, skip: number): number {
    const want = Math.min(skip + len, STAGING)
    if (want <= skip) return this.#beyond(fd)
    // Before the peek, so that bytes which come with the FIN between the two are not taken for its absence.
    const finSeen = hasPeerClosed(tcpState(fd))
    const n = recv(fd, this.#base + this.#staging, want, MSG_PEEK)
    if (n < 0) return n
    // An urgent byte ends every peek from before it.
    if (n <= skip) return unread(fd) > n ? this.#beyond(fd) : finSeen ? 0 : -EAGAIN
    if (n === STAGING) this.#beyond(fd)
    this.#sockets.arena.bytes.copyWithin(off, this.#staging + skip, this.#staging + n)
    return n - skip
  }

  /** More is there than can be peeked now: it is told again when something has been consumed. */
  #beyond(fd: Sock): number {
    this.#sockets.more[fd] = 1
    return -EAGAIN
  }

  consume(fd: Sock, len: number): number {
    const s = this.#sockets
    let taken = 0
    while (taken < len) {
      const n = recv(fd, 0, len - taken, MSG_TRUNC)
      if (n <= 0) {
        if (taken === 0) return n
        break
      }
      taken += n
    }
    const at = s.peekOff[fd] as number
    if (at !== UNSET) s.peekOff[fd] = Math.max(0, at - taken)
    if (s.more[fd] === 1) {
      s.more[fd] = 0
      s.reactor.armSocket(fd, true)
    }
    return taken
  }

  free(fd: Sock): number {
    if (readMemory(fd) < 0) return 0
    const free = memory.sendBuffer - memory.writeQueued
    return free > 0 ? (free * PAYLOAD_SHARE) | 0 : 0
  }

  shutdown(fd: Sock): void {
    this.#sockets.later.put(fd, END.shutdown)
  }
}

/** States in which the peer's FIN has come. */
const hasPeerClosed = (state: number): boolean =>
  state === TCP.closeWait ||
  state === TCP.lastAck ||
  state === TCP.closing ||
  state === TCP.timeWait ||
  state === TCP.close

/**
 * Does SO_PEEK_OFF do what the relay needs of it? Peek twice in a row, go back, consume with MSG_TRUNC, peek again: over a connection of
 * this process with itself. False when anything is otherwise, or when there is no loopback to try it on.
 */
function probePeekOffset(family: number): boolean {
  const fds: number[] = []
  const memo = new Scratch(64)
  const make = (): number => {
    const fd = socket(family, SOCK_STREAM)
    if (fd >= 0) fds.push(fd)
    return fd
  }
  const loopback = (port: number) =>
    family === AF_INET
      ? ({ family: 'inet', address: '127.0.0.1', port } as const)
      : ({ family: 'inet6', address: '::1', port } as const)
  try {
    const listener = make()
    if (listener < 0 || bind(listener, loopback(0)) < 0 || listen(listener, 1) < 0) return false
    const at = getsockname(listener)
    const client = make()
    if (typeof at === 'number' || at.family === 'unix' || client < 0 || connect(client, loopback(at.port)) < 0)
      return false
    const server = accept(listener)
    if (server < 0) return false
    fds.push(server)
    memo.setText(0, 'abcdefgh')
    if (send(client, memo.address, 8) !== 8 || setOption(server, SOL_SOCKET, SO_PEEK_OFF, 0) < 0) return false
    const peek = (n: number): string => {
      const r = recv(server, memo.address + 16, n, MSG_PEEK | MSG_DONTWAIT)
      return r < 0 ? '' : Buffer.from(memo.bytes.subarray(16, 16 + r)).toString('latin1')
    }
    if (peek(3) !== 'abc' || peek(3) !== 'def') return false
    if (setOption(server, SOL_SOCKET, SO_PEEK_OFF, 2) < 0 || peek(2) !== 'cd') return false
    if (recv(server, 0, 3, MSG_TRUNC | MSG_DONTWAIT) !== 3) return false
    return peek(9) === 'efgh' && peek(9) === ''
  } finally {
    for (const fd of fds) close(fd)
  }
}
