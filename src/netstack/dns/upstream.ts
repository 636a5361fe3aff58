/**
 * Questions in flight: asked of the upstream servers over host sockets, one fresh socket and random id per try.
 *
 * Owns: sockets, tries, retries, the deadline; joining equal questions; telling a true answer from a forged one (connected
 * socket, so the source is checked by the kernel; random port; random id; the same question).
 *  - A try that fails at once (no route, port unreachable, connection refused) leads to the next server at once.
 *  - A try without an answer for TRY ms leads to the next server beside it; a late answer still counts. When all were asked, the
 *    datagrams are sent again.
 *  - SERVFAIL, REFUSED, NOTIMP and FORMERR lead to the next server; when nobody says better, the last of them is the answer.
 *  - What came over a stream is asked over TCP, and by UDP when that fails or is silent.
 *  - After DEADLINE, or when every try has failed, the question has failed. So no client waits for its own time-out.
 * Never does: looking at records, caching, speaking to guests.
 * Invariants: an exchange index is reused only after its socket was closed; the numbers of questions and sockets are bounded.
 */
import { EAGAIN, FAILED, HANGUP, type Host, READABLE, type Ref, type Sock, WRITABLE } from '../host.ts'
import { be16, put16 } from '../wire/bytes.ts'
import { FLAG, HEADER, type Query, RCODE, sameName } from './message.ts'
import type { Server, Servers } from './servers.ts'
import { DnsStream, framed } from './stream.ts'

/** ms after which the next server is asked, and datagrams are sent again. */
const TRY = 700
/** ms after which a question has failed; with a tick each second still within 5 s. */
const DEADLINE = 3900
/** ms that a server's answer is waited for when the client has its answer from another. */
const PROBE_LIFE = 2000
const MAX_EXCHANGES = 2048
const MAX_MESSAGE = 65535
/** Datagrams read from one socket in one turn: ours is one; more is somebody guessing. */
const BUDGET = 16

/** A question in flight. `W` is who waits for it. */
export class Pending<W> {
  readonly q: Query
  readonly waiters: W[] = []
  readonly exchanges: Exchange<W>[] = []
  /** Asked by a stream, which can do nothing with a truncated answer. */
  readonly whole: boolean
  /** Over which transport tries are made now. */
  tcp: boolean
  readonly deadline: number
  nextTry = 0
  untried: Server[]
  /** An answer that says "not me"; given out when nobody says better. */
  lame: Uint8Array | undefined
  done = false

  constructor(q: Query, tcp: boolean, deadline: number, untried: Server[]) {
    this.q = q
    this.whole = tcp
    this.tcp = tcp
    this.deadline = deadline
    this.untried = untried
  }
}

/** One try: a question at a server. */
interface Exchange<W> {
  readonly index: number
  readonly pending: Pending<W>
  readonly server: Server
  readonly sock: Sock
  readonly tcp: boolean
  readonly id: number
  readonly startedAt: number
  /** TCP: the framed question, how much of it was sent, and what has come back. */
  readonly out: Uint8Array | undefined
  sent: number
  readonly stream: DnsStream | undefined
}

export interface UpstreamEvents<W> {
  /** `b[0, len)` answers `p`; all its waiters are to be served now. */
  answered(p: Pending<W>, b: Uint8Array, len: number): void
  /** Nobody answered; `reached` when at least one try was made that could have been. */
  failed(p: Pending<W>, reached: boolean): void
  /** A datagram that is no answer to what was asked. */
  forged(): void
}

export class Upstream<W> {
  readonly #host: Host
  readonly #servers: Servers
  readonly #ref: (index: number) => Ref
  readonly #events: UpstreamEvents<W>
  readonly #address: number
  readonly #scratch: number
  readonly #exchanges: (Exchange<W> | undefined)[] = new Array(MAX_EXCHANGES).fill(undefined)
  readonly #free: number[] = Array.from({ length: MAX_EXCHANGES }, (_, i) => MAX_EXCHANGES - 1 - i)
  readonly #pending = new Set<Pending<W>>()
  /** Questions that others may join, by hash. */
  readonly #joinable = new Map<number, Pending<W>>()
  #wakeAt = Infinity

  constructor(host: Host, servers: Servers, ref: (index: number) => Ref, events: UpstreamEvents<W>) {
    this.#host = host
    this.#servers = servers
    this.#ref = ref
    this.#events = events
    this.#address = host.arena.alloc(16, 16)
    this.#scratch = host.arena.alloc(MAX_MESSAGE + 1, 64)
  }

  get outstanding(): number {
    return this.#pending.size
  }

  get sockets(): number {
    return MAX_EXCHANGES - this.#free.length
  }

  /** The same question in flight already, over the same transport and with the same EDNS. */
  find(q: Query, tcp: boolean): Pending<W> | undefined {
    const p = q.plain ? this.#joinable.get(q.hash) : undefined
    if (p === undefined || p.whole !== tcp || p.q.edns !== q.edns || p.q.size !== q.size) return undefined
    const n = q.end - q.off
    const same = n === p.q.end && p.q.variant === q.variant
    return same && sameName(p.q.bytes, HEADER, q.bytes, q.off + HEADER, n - HEADER) ? p : undefined
  }

  /** Ask. `q` must outlive the call (Query.keep). The answer or the failure may come before this returns. */
  ask(q: Query, tcp: boolean, waiter: W): void {
    const now = this.#host.now()
    const p = new Pending<W>(q, tcp, now + DEADLINE, this.#servers.order())
    p.waiters.push(waiter)
    this.#pending.add(p)
    if (q.plain && !this.#joinable.has(q.hash)) this.#joinable.set(q.hash, p)
    const probe = tcp ? undefined : this.#servers.probe(now)
    this.#next(p, now)
    if (probe !== undefined && !p.done && this.#start(p, probe, now)) p.untried = p.untried.filter((s) => s !== probe)
  }

  /** The list of servers is another one: what is in flight is asked of the new ones at once. */
  restart(): void {
    const now = this.#host.now()
    for (const p of [...this.#pending]) {
      for (const e of [...p.exchanges]) if (!this.#servers.list.includes(e.server)) this.#close(e)
      if (p.done) continue
      p.untried = this.#servers.order().filter((s) => !p.exchanges.some((e) => e.server === s))
      this.#next(p, now)
    }
  }

  /** Nobody waits any more (their port is gone): forget the question. */
  abandon(p: Pending<W>): void {
    this.#finish(p)
    for (const e of [...p.exchanges]) this.#close(e)
    this.#pending.delete(p)
  }

  pendings(): IterableIterator<Pending<W>> {
    return this.#pending.values()
  }

  tick(now: number): void {
    this.#wakeAt = Infinity
    for (const p of this.#pending) {
      if (p.done) this.#expireProbes(p, now)
      else if (now >= p.deadline) this.#fail(p, true)
      else if (now >= p.nextTry) this.#retry(p, now)
      if (!p.done) this.#wakeAt = Math.min(this.#wakeAt, p.nextTry, p.deadline)
    }
  }

  /** When `tick` has something to do next; it may be early. Infinity when nothing is in flight. */
  wake(): number {
    return this.#wakeAt
  }

  /** An event of the socket of exchange `index`. */
  ready(index: number, events: number): void {
    const e = this.#exchanges[index]
    if (e === undefined) return
    if (e.tcp) this.#readyTcp(e, events)
    else this.#readyUdp(e, events)
  }

  // -- tries ---------------------------------------------------------------------------------------------------------

  /** Ask the next server that has not been asked; fail when there is none and nobody is still being waited for. */
  #next(p: Pending<W>, now: number): void {
    for (;;) {
      const s = p.untried.shift()
      if (s !== undefined) {
        if (this.#start(p, s, now)) return
        continue
      }
      if (p.exchanges.length > 0) return
      if (!p.tcp || this.#servers.list.length === 0) {
        this.#fail(p, false)
        return
      }
      this.#overUdp(p, now)
      return
    }
  }

  #retry(p: Pending<W>, now: number): void {
    p.nextTry = now + TRY
    if (p.untried.length > 0) {
      this.#next(p, now)
      return
    }
    if (p.tcp) this.#overUdp(p, now)
    else for (const e of [...p.exchanges]) if (!e.tcp) this.#sendUdp(e)
  }

  /** Name servers behind a NAT or a stub may speak UDP only, or something on the way lets nothing else through. */
  #overUdp(p: Pending<W>, now: number): void {
    p.tcp = false
    p.untried = this.#servers.order()
    this.#next(p, now)
  }

  #start(p: Pending<W>, server: Server, now: number): boolean {
    const index = this.#free.pop()
    if (index === undefined) return false
    const host = this.#host
    server.address.write(host.arena.bytes, this.#address)
    const { l4port } = server
    const sock = p.tcp ? host.tcpConnect(this.#address, l4port) : host.udpConnect(this.#address, l4port)
    if (sock < 0) {
      this.#free.push(index)
      this.#servers.failed(server)
      return false
    }
    const id = host.random32() & 0xffff
    let out: Uint8Array | undefined
    if (p.tcp) {
      out = framed(p.q.bytes)
      put16(out, 2, id)
    }
    const stream = p.tcp ? new DnsStream(MAX_MESSAGE) : undefined
    const e = { index, pending: p, server, sock, tcp: p.tcp, id, startedAt: now, out, sent: 0, stream }
    this.#exchanges[index] = e
    p.exchanges.push(e)
    p.nextTry = now + TRY
    this.#wakeAt = Math.min(this.#wakeAt, p.nextTry)
    host.watch(sock, this.#ref(index))
    if (e.tcp || this.#sendUdp(e)) return true
    return false
  }

  /** False when the try has failed, and is closed. A datagram that does not fit just now is one that was lost. */
  #sendUdp(e: Exchange<W>): boolean {
    const { bytes } = this.#host.arena
    bytes.set(e.pending.q.bytes, this.#scratch)
    put16(bytes, this.#scratch, e.id)
    const r = this.#host.udpSend(e.sock, this.#scratch, e.pending.q.bytes.length, 0)
    if (r >= 0 || r === -EAGAIN) return true
    this.#servers.failed(e.server)
    this.#close(e)
    return false
  }

  #readyUdp(e: Exchange<W>, events: number): void {
    if ((events & FAILED) !== 0) {
      // An ICMP error is on the error queue; taking it off keeps the socket usable.
      let failed = this.#host.error(e.sock) !== 0
      while (this.#host.recvError(e.sock, this.#address) > 0) failed = true
      if (failed) {
        this.#lost(e)
        return
      }
    }
    if ((events & (READABLE | HANGUP | FAILED)) === 0) return
    for (let i = 0; i < BUDGET && this.#exchanges[e.index] === e; i++) {
      const n = this.#host.udpRecv(e.sock, this.#scratch, MAX_MESSAGE)
      if (n === -EAGAIN) return
      if (n < 0) {
        this.#lost(e)
        return
      }
      const size = this.#host.segment > 0 ? this.#host.segment : Math.max(1, n)
      for (let o = 0; o < n && this.#exchanges[e.index] === e; o += size) {
        const at = this.#scratch + o
        this.#arrived(e, this.#host.arena.bytes.subarray(at, at + Math.min(size, n - o)))
      }
    }
  }

  #readyTcp(e: Exchange<W>, events: number): void {
    const host = this.#host
    if ((events & FAILED) !== 0 && host.error(e.sock) !== 0) {
      this.#lost(e)
      return
    }
    if ((events & WRITABLE) !== 0 && !this.#flush(e)) return
    if ((events & (READABLE | HANGUP | FAILED)) === 0) return
    while (this.#exchanges[e.index] === e) {
      const n = host.tcpPeek(e.sock, this.#scratch, MAX_MESSAGE, 0)
      if (n === -EAGAIN) return
      if (n <= 0) {
        this.#lost(e)
        return
      }
      const came = host.arena.bytes.slice(this.#scratch, this.#scratch + n)
      host.tcpConsume(e.sock, n)
      e.stream?.push(came, (m) => {
        this.#arrived(e, m)
        return this.#exchanges[e.index] === e
      })
      if (e.stream?.broken && this.#exchanges[e.index] === e) {
        this.#lost(e)
        return
      }
    }
  }

  /** Send what is left of the question; false when the connection is lost. */
  #flush(e: Exchange<W>): boolean {
    const out = e.out as Uint8Array
    while (e.sent < out.length) {
      const left = out.subarray(e.sent)
      this.#host.arena.bytes.set(left, this.#scratch)
      const r = this.#host.tcpSend(e.sock, this.#scratch, left.length)
      if (r === -EAGAIN) return true
      if (r < 0) {
        this.#lost(e)
        return false
      }
      e.sent += r
    }
    return true
  }

  // -- answers -------------------------------------------------------------------------------------------------------

  #arrived(e: Exchange<W>, b: Uint8Array): void {
    const { q } = e.pending
    const flags = b.length >= HEADER ? be16(b, 2) : 0
    if ((flags & FLAG.QR) === 0 || be16(b, 0) !== e.id) {
      this.#events.forged()
      return
    }
    const rcode = flags & 15
    const cut = (flags & FLAG.TC) !== 0 && !e.tcp && e.pending.whole
    const lame =
      cut || rcode === RCODE.SERVFAIL || rcode === RCODE.REFUSED || rcode === RCODE.NOTIMP || rcode === RCODE.FORMERR
    const asked = be16(b, 4) === 1 && b.length >= q.end && sameName(b, HEADER, q.bytes, HEADER, q.end - HEADER)
    if (!asked && !(lame && be16(b, 4) === 0)) {
      this.#events.forged()
      return
    }
    const p = e.pending
    if (lame) {
      if (asked) p.lame = b.slice()
      this.#close(e)
      if (!p.done) this.#next(p, this.#host.now())
      return
    }
    const now = this.#host.now()
    for (const other of p.exchanges) if (other !== e && now - other.startedAt >= TRY) this.#servers.failed(other.server)
    this.#servers.answered(e.server)
    this.#close(e)
    if (p.done) return
    this.#finish(p)
    // A probe goes on for a while after its question was answered by another.
    for (const other of [...p.exchanges]) if (other.server !== this.#servers.list[0]) this.#close(other)
    this.#events.answered(p, b, b.length)
  }

  /** The try came to nothing. */
  #lost(e: Exchange<W>): void {
    this.#servers.failed(e.server)
    this.#close(e)
    if (!e.pending.done) this.#next(e.pending, this.#host.now())
  }

  #fail(p: Pending<W>, reached: boolean): void {
    for (const e of [...p.exchanges]) {
      this.#servers.failed(e.server)
      this.#close(e)
    }
    this.#finish(p)
    if (p.lame !== undefined) this.#events.answered(p, p.lame, p.lame.length)
    else this.#events.failed(p, reached)
  }

  #finish(p: Pending<W>): void {
    p.done = true
    if (this.#joinable.get(p.q.hash) === p) this.#joinable.delete(p.q.hash)
    if (p.exchanges.length === 0) this.#pending.delete(p)
  }

  #expireProbes(p: Pending<W>, now: number): void {
    for (const e of [...p.exchanges]) {
      if (now - e.startedAt < PROBE_LIFE) continue
      this.#servers.failed(e.server)
      this.#close(e)
    }
  }

  #close(e: Exchange<W>): void {
    if (this.#exchanges[e.index] !== e) return
    this.#host.close(e.sock)
    this.#exchanges[e.index] = undefined
    this.#free.push(e.index)
    const { exchanges } = e.pending
    exchanges.splice(exchanges.indexOf(e), 1)
    if (e.pending.done && exchanges.length === 0) this.#pending.delete(e.pending)
  }
}
