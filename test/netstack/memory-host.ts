/**
 * A host in memory: what the engine sees of sockets, time and randomness, without a kernel.
 *
 * Tests own the far side: `host.internet` says what a connect to an address does, `far(sock)` reads what the engine sent and
 * writes what it shall receive. Time stands still until `advance`. Readiness is collected and delivered by `deliver`, edge-triggered
 * like the reactor's; after `close` nothing of that socket is delivered.
 */
import { Arena } from '../../src/netstack/arena.ts'
import type { Host, IcmpError, NetstackEvent, Ref, RouteKind, Sock } from '../../src/netstack/host.ts'
import * as errno from '../../src/netstack/host.ts'
import { FAILED, HANGUP, READABLE, ROUTE, WRITABLE } from '../../src/netstack/host.ts'
import { Address, endpointText, parseIp } from '../../src/netstack/wire/address.ts'

export interface Datagram {
  readonly bytes: Uint8Array
  /** Bytes per datagram when several are joined; 0 when it is one. */
  readonly segment: number
  /** "1.2.3.4:53"; of a published port's socket, who sent it or is to get it. */
  readonly peer: string
  readonly ttl: number
}

export interface QueuedError {
  readonly type: number
  readonly code: number
  readonly errno: number
  readonly mtu?: number
  readonly sequence?: number
  /** The router that reported it. */
  readonly from: string
}

export interface MemorySocket {
  readonly id: Sock
  readonly kind: 'tcp' | 'listener' | 'udp' | 'udp-bound' | 'ping'
  /** "1.2.3.4:80" */
  readonly peer: string
  ref: Ref
  closed: false | 'close' | 'reset'
  /** From the far side, not consumed yet. */
  inbox: Uint8Array
  inboxEnd: boolean
  /** TCP: what the engine sent and the far side has not taken. */
  outbox: Uint8Array[]
  outboxBytes: number
  outboxEnd: boolean
  sendBuffer: number
  error: number
  starved: boolean
  ttl: number
  dontFragment: boolean
  sent: Datagram[]
  received: Datagram[]
  errors: QueuedError[]
  /** Listener: clients that wait. */
  backlog: { readonly peer: string; readonly sock: Sock }[]
}

type Answer = 'accept' | 'refuse' | 'unreachable' | 'hang'

export class MemoryHost implements Host {
  readonly arena: Arena
  readonly sockets = new Map<Sock, MemorySocket>()
  readonly events: NetstackEvent[] = []
  /** What a TCP connect to "address:port" does. */
  internet: (peer: string) => Answer = () => 'accept'
  /** Where an address lies. */
  routes: (address: string) => RouteKind = (address) => (address.startsWith('127.') ? ROUTE.loopback : ROUTE.outside)
  pingAllowed = true
  peerPort = 0
  connected = false
  segment = 0
  readonly icmp: IcmpError = { type: 0, code: 0, errno: 0, mtu: 0, sequence: -1 }
  /** A call that fails: sockets made from now on answer with −errno. */
  socketsFail = 0
  /** What is longer than the path to everywhere, headers included, is refused where it must not be fragmented. */
  pathMtu = 65535
  sendsFail = 0
  /** Numbers of all calls that would have been system calls. */
  calls = 0

  #now: number
  #seed: number
  readonly #address = new Address()
  #next = 3
  readonly #pending = new Map<Sock, number>()

  constructor(options: { arenaBytes?: number; now?: number; seed?: number } = {}) {
    this.arena = new Arena(new ArrayBuffer(options.arenaBytes ?? 8 * 1024 * 1024))
    this.#now = options.now ?? 1000
    this.#seed = options.seed ?? 1
  }

  // -- for tests --------------------------------------------------------------------------------------------------
  advance(ms: number): void {
    this.#now += ms
  }

  /** Give collected readiness to the network until nothing is left. */
  deliver(network: { ready(ref: Ref, events: number): boolean }): void {
    for (let turns = 0; this.#pending.size > 0; turns++) {
      if (turns > 10_000) throw new Error('readiness never ends')
      const batch = [...this.#pending]
      this.#pending.clear()
      for (const [id, events] of batch) {
        const s = this.sockets.get(id)
        if (s === undefined || s.closed || s.ref < 0) continue
        if (network.ready(s.ref, events)) this.signal(id, events)
      }
    }
  }

  signal(sock: Sock, events: number): void {
    this.#pending.set(sock, (this.#pending.get(sock) ?? 0) | events)
  }

  /** The open sockets of a kind, oldest first. */
  open(kind?: MemorySocket['kind']): MemorySocket[] {
    return [...this.sockets.values()].filter((s) => !s.closed && (kind === undefined || s.kind === kind))
  }

  make(kind: MemorySocket['kind'], peer: string): MemorySocket {
    const s: MemorySocket = {
      id: this.#next++,
      kind,
      peer,
      ref: -1,
      closed: false,
      inbox: new Uint8Array(0),
      inboxEnd: false,
      outbox: [],
      outboxBytes: 0,
      outboxEnd: false,
      sendBuffer: 256 * 1024,
      error: 0,
      starved: false,
      ttl: 64,
      dontFragment: false,
      sent: [],
      received: [],
      errors: [],
      backlog: [],
    }
    this.sockets.set(s.id, s)
    return s
  }

  /** The far side of a TCP connection writes. */
  tcpWrite(sock: Sock, bytes: Uint8Array): void {
    const s = this.#get(sock)
    const joined = new Uint8Array(s.inbox.length + bytes.length)
    joined.set(s.inbox)
    joined.set(bytes, s.inbox.length)
    s.inbox = joined
    this.signal(sock, READABLE)
  }

  tcpEnd(sock: Sock): void {
    this.#get(sock).inboxEnd = true
    this.signal(sock, READABLE)
  }

  /** The far side takes what was sent. */
  tcpRead(sock: Sock): Uint8Array {
    const s = this.#get(sock)
    const all = new Uint8Array(s.outboxBytes)
    let at = 0
    for (const part of s.outbox) {
      all.set(part, at)
      at += part.length
    }
    s.outbox = []
    s.outboxBytes = 0
    if (s.starved) {
      s.starved = false
      this.signal(sock, WRITABLE)
    }
    return all
  }

  /** A connection that failed or was reset: −errno from now on. */
  fail(sock: Sock, code: number): void {
    this.#get(sock).error = code
    this.signal(sock, FAILED | READABLE | WRITABLE | HANGUP)
  }

  /** A datagram arrives on a UDP or ping socket. */
  arrive(sock: Sock, bytes: Uint8Array, options: { segment?: number; peer?: string } = {}): void {
    const s = this.#get(sock)
    s.received.push({ bytes, segment: options.segment ?? 0, peer: options.peer ?? s.peer, ttl: 64 })
    this.signal(sock, READABLE)
  }

  /** An ICMP error about something the socket sent. */
  report(sock: Sock, error: QueuedError): void {
    this.#get(sock).errors.push(error)
    this.signal(sock, FAILED)
  }

  /** A client connects to a published port; returns its connection. */
  client(listener: Sock, peer: string): MemorySocket {
    const s = this.make('tcp', peer)
    this.#get(listener).backlog.push({ peer, sock: s.id })
    this.signal(listener, READABLE)
    return s
  }

  readAddress(off: number): string {
    return this.#address.read(this.arena.bytes, off).toString()
  }

  /** "1.2.3.4:80", "[fd00::1]:80". */
  #endpoint(off: number, l4port: number): string {
    const { w0, w1, w2, w3 } = this.#address.read(this.arena.bytes, off)
    return endpointText(w0, w1, w2, w3, l4port)
  }

  writeAddress(off: number, text: string): void {
    parseIp(text.replace(/^\[|\]$/g, '')).write(this.arena.bytes, off)
  }

  #get(sock: Sock): MemorySocket {
    const s = this.sockets.get(sock)
    if (s === undefined) throw new Error(`no socket ${sock}`)
    return s
  }

  /** What the engine may touch: an open socket. */
  #live(sock: Sock): MemorySocket {
    const s = this.#get(sock)
    if (s.closed) throw new Error(`socket ${sock} is used after close`)
    this.calls++
    return s
  }

  #copy(off: number, len: number): Uint8Array {
    return this.arena.bytes.slice(off, off + len)
  }

  // -- Host -------------------------------------------------------------------------------------------------------
  readonly began = 1000

  now(): number {
    return this.#now
  }

  random32(): number {
    // xorshift32: seeded, so that a failing test fails again.
    let x = this.#seed | 0 || 1
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.#seed = x
    return x
  }

  watch(sock: Sock, ref: Ref): number {
    const s = this.#live(sock)
    s.ref = ref
    if (s.inbox.length > 0 || s.inboxEnd || s.received.length > 0 || s.backlog.length > 0) this.signal(sock, READABLE)
    return 0
  }

  armWrite(sock: Sock): void {
    const s = this.#live(sock)
    if (s.outboxBytes < s.sendBuffer) this.signal(sock, WRITABLE)
    else s.starved = true
  }

  close(sock: Sock): void {
    this.#live(sock).closed = 'close'
    this.#pending.delete(sock)
  }

  error(sock: Sock): number {
    const s = this.#live(sock)
    const e = s.error
    if (s.kind !== 'tcp') s.error = 0
    return e
  }

  route(dst: number): RouteKind {
    this.calls++
    return this.routes(this.readAddress(dst))
  }

  tcpConnect(dst: number, l4port: number): Sock {
    if (this.socketsFail) return -this.socketsFail
    const s = this.make('tcp', this.#endpoint(dst, l4port))
    const answer = this.internet(s.peer)
    if (answer === 'accept') this.signal(s.id, WRITABLE)
    else if (answer === 'refuse') this.fail(s.id, errno.ECONNREFUSED)
    else if (answer === 'unreachable') this.fail(s.id, errno.EHOSTUNREACH)
    return s.id
  }

  tcpAccept(listener: Sock, peer: number): Sock {
    const waiting = this.#live(listener).backlog.shift()
    if (waiting === undefined) return -errno.EAGAIN
    const at = waiting.peer.lastIndexOf(':')
    this.writeAddress(peer, waiting.peer.slice(0, at))
    this.peerPort = Number(waiting.peer.slice(at + 1))
    return waiting.sock
  }

  tcpSend(sock: Sock, off: number, len: number): number {
    const s = this.#live(sock)
    if (s.error) return -s.error
    const n = Math.min(len, s.sendBuffer - s.outboxBytes)
    if (n < len) s.starved = true
    if (n <= 0) return len === 0 ? 0 : -errno.EAGAIN
    s.outbox.push(this.#copy(off, n))
    s.outboxBytes += n
    return n
  }

  tcpPeek(sock: Sock, off: number, len: number, skip: number): number {
    const s = this.#live(sock)
    if (s.error) return -s.error
    const n = Math.min(len, s.inbox.length - skip)
    if (n <= 0) return s.inboxEnd ? 0 : -errno.EAGAIN
    this.arena.bytes.set(s.inbox.subarray(skip, skip + n), off)
    return n
  }

  tcpConsume(sock: Sock, len: number): number {
    const s = this.#live(sock)
    if (len > s.inbox.length) throw new Error(`consume ${len} of ${s.inbox.length}`)
    s.inbox = s.inbox.slice(len)
    return len
  }

  tcpFree(sock: Sock): number {
    const s = this.#live(sock)
    return s.sendBuffer - s.outboxBytes
  }

  tcpShutdown(sock: Sock): void {
    this.#live(sock).outboxEnd = true
  }

  tcpReset(sock: Sock): void {
    this.#live(sock).closed = 'reset'
    this.#pending.delete(sock)
  }

  udpConnect(dst: number, l4port: number): Sock {
    if (this.socketsFail) return -this.socketsFail
    return this.make('udp', this.#endpoint(dst, l4port)).id
  }

  udpSend(sock: Sock, off: number, len: number, segment: number): number {
    const s = this.#live(sock)
    if (this.sendsFail) return -this.sendsFail
    if (this.#tooBig(s, segment || len)) return -errno.EMSGSIZE
    s.sent.push({ bytes: this.#copy(off, len), segment, peer: s.peer, ttl: s.ttl })
    return len
  }

  #tooBig(s: MemorySocket, len: number): boolean {
    if (!s.dontFragment || len + 28 <= this.pathMtu) return false
    s.errors.push({ type: 0, code: 0, errno: errno.EMSGSIZE, mtu: this.pathMtu, from: '0.0.0.0' })
    return true
  }

  udpRecv(sock: Sock, off: number, max: number): number {
    return this.#receive(sock, off, max, 0)
  }

  udpSendTo(sock: Sock, peer: number, l4port: number, off: number, len: number, segment: number): number {
    const s = this.#live(sock)
    if (this.sendsFail) return -this.sendsFail
    s.sent.push({ bytes: this.#copy(off, len), segment, peer: this.#endpoint(peer, l4port), ttl: s.ttl })
    return len
  }

  udpRecvFrom(sock: Sock, off: number, max: number, peer: number): number {
    return this.#receive(sock, off, max, peer)
  }

  #receive(sock: Sock, off: number, max: number, peer: number): number {
    const s = this.#live(sock)
    this.segment = 0
    const d = s.received.shift()
    if (d === undefined) return -errno.EAGAIN
    const n = Math.min(max, d.bytes.length)
    this.arena.bytes.set(d.bytes.subarray(0, n), off)
    this.segment = d.segment
    if (peer !== 0) {
      const at = d.peer.lastIndexOf(':')
      this.writeAddress(peer, d.peer.slice(0, at))
      this.peerPort = Number(d.peer.slice(at + 1))
    }
    return n
  }

  setTtl(sock: Sock, ttl: number): number {
    this.#live(sock).ttl = ttl
    return 0
  }

  setDontFragment(sock: Sock, on: number): number {
    this.#live(sock).dontFragment = on === 1
    return 0
  }

  recvError(sock: Sock, offender: number): number {
    const e = this.#live(sock).errors.shift()
    if (e === undefined) return 0
    this.icmp.type = e.type
    this.icmp.code = e.code
    this.icmp.errno = e.errno
    this.icmp.mtu = e.mtu ?? 0
    this.icmp.sequence = e.sequence ?? -1
    this.writeAddress(offender, e.from)
    return 1
  }

  pingOpen(dst: number): Sock {
    if (!this.pingAllowed) return -errno.EACCES
    if (this.socketsFail) return -this.socketsFail
    return this.make('ping', this.readAddress(dst)).id
  }

  pingSend(sock: Sock, off: number, len: number): number {
    const s = this.#live(sock)
    if (this.sendsFail) return -this.sendsFail
    if (this.#tooBig(s, len - 8)) return -errno.EMSGSIZE
    const bytes = this.#copy(off, len)
    s.sent.push({ bytes, segment: 0, peer: s.peer, ttl: s.ttl })
    return len
  }

  pingRecv(sock: Sock, off: number, max: number): number {
    return this.#receive(sock, off, max, 0)
  }

  notify(event: NetstackEvent): void {
    this.events.push(event)
  }
}
