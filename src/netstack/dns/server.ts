/**
 * The name service of a network: its own names answered here, everything else carried to the host's resolvers and back.
 *
 * Owns: the order of things for a query: refuse what is no query, ask the policy, give what the cache has, answer what is the
 * network's own, ask upstream. What came from upstream passes byte for byte but for its id (and the spelling of the
 * question, which is the client's); only what does not fit the client's UDP size is cut, with TC.
 *  - rows of the fast path: parse by offset, one lookup, one copy, id and TTLs patched. Nothing is built.
 *  - what nobody answers within bounded time is SERVFAIL, with the reason for clients that speak EDNS (RFC 8914). Failures
 *    are not kept: the next question asks again, so that recovery is immediate.
 * Never does: zone transfers (REFUSED), updates (NOTIMP), letting a guest hold more than its share of what is in flight.
 * Invariants: nothing that arrives throws; names and reverse names of this network never leave.
 */
import type { Datagram, DatagramService, Reply, StreamHandler, StreamService } from '../gateway/service.ts'
import type { Host, Ref } from '../host.ts'
import { Address, parseIp } from '../wire/address.ts'
import { be16, put16 } from '../wire/bytes.ts'
import { Cache, type Entry, entryOf } from './cache.ts'
import { GuestStream } from './guest-stream.ts'
import * as dns from './message.ts'
import { parseServer, type Server, Servers } from './servers.ts'
import { type Pending, Upstream } from './upstream.ts'
import { type DnsNetwork, type Speaks, Zone } from './zone.ts'

export const dnsDrops = {
  'dns-malformed': 'a datagram to the name service was no query',
  'dns-too-many': 'a VM had more questions in flight than one VM may',
  'dns-denied': 'a name was refused by policy',
  'dns-forged': 'an answer from upstream did not fit what was asked; it was ignored',
  'dns-streams': 'a VM had more connections to the name service than one VM may',
} as const
export type DnsDrop = keyof typeof dnsDrops

/** The rule that forbids `port` to resolve `name` (lower case, no final dot), or undefined. */
export type DnsPolicy = (port: number, name: string) => string | undefined

export interface DnsSurroundings {
  readonly host: Host
  readonly reply: Reply
  /** Port −1: nobody's in particular. */
  readonly drop: (port: number, reason: DnsDrop) => void
  /** What `watch` is called with for socket number `index` of the service: its events come back to `ready(index, events)`. */
  readonly ref: (index: number) => Ref
  readonly policy?: DnsPolicy
  /** Absent: nothing is known of it. */
  readonly speaks?: Speaks
}

/** Questions of one port in flight, and of all; beyond that, only ports with few of them are let in, so that no VM is crowded out. */
const MAX_PER_PORT = 200
const MAX_IN_FLIGHT = 400
const FEW_PER_PORT = 16
const MAX_CROWDED = 600
const MAX_STREAMS_PER_PORT = 32
/** UDP and IP headers of a datagram that is not to be fragmented. */
const HEADERS = 28
const HEADERS6 = 48
const MAX_MESSAGE = 65535

/** Who waits for an answer: a datagram's sender, or a stream. */
interface Waiter {
  readonly q: dns.Query
  readonly port: number
  readonly stream: GuestStream | undefined
  readonly src: Address
  readonly srcPort: number
  readonly dst: Address
  readonly dstPort: number
}

/** Of a stream's question, whose answer goes by the stream. */
const NOBODY = new Address()

export class DnsServer implements DatagramService, StreamService {
  readonly #s: DnsSurroundings
  readonly #seed: number
  readonly #servers = new Servers()
  readonly #upstream: Upstream<Waiter>
  readonly #cache = new Cache()
  readonly #zone: Zone
  readonly #own: readonly Address[]
  /** The longest datagram of an answer, without and with IPv6's header. */
  readonly #udpLimit: number
  readonly #udpLimit6: number
  readonly #inFlight = new Map<number, number>()
  readonly #streams = new Set<GuestStream>()
  readonly #q = new dns.Query()
  readonly #a = new dns.Answer()
  /** Room for a whole message and an EDNS record behind it. */
  readonly #out = new Uint8Array(MAX_MESSAGE + 1024)

  constructor(s: DnsSurroundings, network: DnsNetwork & { readonly mtu: number }) {
    this.#s = s
    this.#seed = s.host.random32()
    this.#zone = new Zone(network, s.speaks)
    this.#own = [network, network.ipv6].flatMap((n) =>
      n === undefined ? [] : [parseIp(n.services), parseIp(n.gateway)],
    )
    this.#udpLimit = Math.max(dns.CLASSIC_SIZE, network.mtu - HEADERS)
    this.#udpLimit6 = Math.max(dns.CLASSIC_SIZE, network.mtu - HEADERS6)
    this.#upstream = new Upstream<Waiter>(s.host, this.#servers, s.ref, {
      answered: (p, b, len) => this.#answered(p, b, len),
      failed: (p, reached) => this.#failed(p, reached),
      forged: () => s.drop(-1, 'dns-forged'),
    })
  }

  /**
   * The host's resolvers, "ADDRESS" or "ADDRESS#PORT" (servers.ts), in order; returns those that cannot be used. Another list than before
   * empties the cache and asks again what is in flight.
   */
  setServers(list: readonly string[]): string[] {
    const usable: Server[] = []
    const useless: string[] = []
    for (const text of list) {
      const server = parseServer(text)
      // This very service, through the host's interface on the network, would be asked for ever.
      if (server === undefined || this.#own.some((a) => a.equals(server.address))) useless.push(text)
      else usable.push(server)
    }
    if (this.#servers.set(usable)) {
      this.#cache.clear()
      this.#upstream.restart()
    }
    return useless
  }

  /** A VM's name and addresses (zone.ts); idempotent. */
  bind(port: number, name: string, addresses: readonly string[]): void {
    this.#zone.bind(port, name, addresses)
    // Its bare name may have been asked before, and been unknown.
    this.#cache.clear()
  }

  /** The port is gone: its names, its questions and its streams with it. */
  unbind(port: number): void {
    this.#zone.unbind(port)
    for (const p of [...this.#upstream.pendings()]) {
      const left = p.waiters.filter((w) => w.port !== port)
      if (left.length === p.waiters.length) continue
      p.waiters.splice(0, p.waiters.length, ...left)
      if (left.length === 0) this.#upstream.abandon(p)
    }
    this.#inFlight.delete(port)
    for (const s of this.#streams) if (s.port === port) s.shut()
  }

  /** For people and tests. */
  stats(): {
    cached: number
    cachedBytes: number
    hits: number
    misses: number
    inFlight: number
    sockets: number
    servers: readonly Server[]
  } {
    const c = this.#cache
    const { outstanding, sockets } = this.#upstream
    return {
      cached: c.size,
      cachedBytes: c.bytes,
      hits: c.hits,
      misses: c.misses,
      inFlight: outstanding,
      sockets,
      servers: this.#servers.list,
    }
  }

  receive(d: Datagram): void {
    const q = this.#q
    const rcode = dns.parseQuery(q, this.#s.host.arena.bytes, d.off, d.len, this.#seed)
    if (rcode === dns.IGNORE) {
      this.#s.drop(d.port, 'dns-malformed')
      return
    }
    const n = this.#now(q, rcode, d.port)
    if (n > 0) {
      const len = this.#cut(q, n, this.#datagramLimit(q, d.src))
      this.#s.reply(d.port, d.dst, d.dstPort, d.src, d.srcPort, this.#out, len)
    } else this.#ask(q, d.port, undefined, d)
  }

  accept(port: number, send: (bytes: Uint8Array) => boolean, close: () => void, more: () => void): StreamHandler {
    let open = 0
    for (const s of this.#streams) if (s.port === port) open++
    const stream = new GuestStream(port, this.#s.host.now(), send, close, more, {
      query: (m) => this.#query(stream, m),
      gone: () => this.#streams.delete(stream),
      now: () => this.#s.host.now(),
    })
    if (open >= MAX_STREAMS_PER_PORT) {
      this.#s.drop(port, 'dns-streams')
      stream.shut()
    } else this.#streams.add(stream)
    return stream
  }

  /** An event of socket number `index`; false: nothing is left to do this turn. */
  ready(index: number, events: number): boolean {
    this.#upstream.ready(index, events)
    return false
  }

  tick(now: number): void {
    this.#upstream.tick(now)
    for (const s of this.#streams) s.tick(now)
  }

  /** When `tick` would have something to do; a caller that can, calls it then (else each second). */
  wake(): number {
    return this.#upstream.wake()
  }

  refused(port: number): void {
    this.#s.drop(port, 'dns-streams')
  }

  /** A message of a stream. */
  #query(stream: GuestStream, m: Uint8Array): void {
    const q = this.#q
    const rcode = dns.parseQuery(q, m, 0, m.length, this.#seed)
    if (rcode === dns.IGNORE) {
      this.#s.drop(stream.port, 'dns-malformed')
      stream.shut()
      return
    }
    const n = this.#now(q, rcode, stream.port)
    if (n > 0) stream.answer(this.#out, this.#cut(q, n, MAX_MESSAGE))
    else this.#ask(q, stream.port, stream, undefined)
  }

  /** The answer that can be given without asking anybody, at out[0]; its length, or 0. */
  #now(q: dns.Query, rcode: number, port: number): number {
    const out = this.#out
    if (rcode !== 0) return dns.writeError(out, q, rcode)
    if (q.type === dns.TYPE.AXFR || q.type === dns.TYPE.IXFR) return dns.writeError(out, q, dns.RCODE.REFUSED)
    const rule = this.#s.policy?.(port, dns.nameText(q))
    if (rule !== undefined) {
      this.#s.drop(port, 'dns-denied')
      return dns.writeError(out, q, dns.RCODE.REFUSED, dns.EDE.BLOCKED, `rule ${rule}`)
    }
    if (q.plain) {
      const now = this.#s.host.now()
      const e = this.#cache.get(q, now)
      if (e !== undefined) return e.write(out, q, now)
    }
    return this.#zone.answer(out, q, port)
  }

  #datagramLimit(q: dns.Query, to: Address): number {
    return Math.min(q.size, to.family === 4 ? this.#udpLimit : this.#udpLimit6)
  }

  /** Length of the answer at out[0] once it fits. */
  #cut(q: dns.Query, n: number, limit: number): number {
    return n <= limit ? n : dns.writeTruncated(this.#out, q, be16(this.#out, 2))
  }

  #ask(q: dns.Query, port: number, stream: GuestStream | undefined, d: Datagram | undefined): void {
    const joined = this.#upstream.find(q, stream !== undefined)
    // A client that repeats itself is waited for already.
    if (
      d !== undefined &&
      joined?.waiters.some((w) => w.q.id === q.id && w.src.equals(d.src) && w.srcPort === d.srcPort && w.port === port)
    )
      return
    const mine = this.#inFlight.get(port) ?? 0
    const most = mine < FEW_PER_PORT ? MAX_CROWDED : MAX_IN_FLIGHT
    if (mine >= MAX_PER_PORT || (joined === undefined && this.#upstream.outstanding >= most)) {
      this.#s.drop(port, 'dns-too-many')
      // A datagram's sender asks again by itself; on a stream nothing is ever lost, and each question is waited for.
      if (stream !== undefined) {
        const text = 'too many questions of this VM'
        stream.answer(this.#out, dns.writeError(this.#out, q, dns.RCODE.SERVFAIL, dns.EDE.OTHER, text))
      }
      return
    }
    this.#inFlight.set(port, mine + 1)
    const waiter: Waiter = {
      q: q.keep(),
      port,
      stream,
      src: d?.src.copy() ?? NOBODY,
      srcPort: d?.srcPort ?? 0,
      dst: d?.dst.copy() ?? NOBODY,
      dstPort: d?.dstPort ?? 0,
    }
    if (stream !== undefined) stream.waiting++
    if (joined !== undefined) joined.waiters.push(waiter)
    else this.#upstream.ask(waiter.q, stream !== undefined, waiter)
  }

  #answered(p: Pending<Waiter>, b: Uint8Array, len: number): void {
    const a = this.#a
    const now = this.#s.host.now()
    let entry: Entry | undefined
    if (p.q.plain && dns.scanAnswer(a, b, len, p.q.end)) {
      this.#cache.put(b, p.q, a, now)
      if (p.waiters.length > 1) entry = entryOf(b, p.q, a, now, 0)
    }
    for (const w of p.waiters) {
      // Who joined gets an EDNS record of its own, as from the cache: cookies and such are the first one's.
      if (entry !== undefined && w.q !== p.q) this.#deliver(w, entry.write(this.#out, w.q, now))
      else {
        this.#out.set(b.subarray(0, len))
        put16(this.#out, 0, w.q.id)
        this.#out.set(w.q.bytes.subarray(dns.HEADER, w.q.end), dns.HEADER)
        this.#deliver(w, len)
      }
    }
  }

  #failed(p: Pending<Waiter>, reached: boolean): void {
    const none = this.#servers.list.length === 0
    const text = none
      ? 'the host has no name server'
      : reached
        ? 'no name server answered'
        : 'no name server can be reached'
    const ede = reached ? dns.EDE.NO_REACHABLE_AUTHORITY : dns.EDE.NETWORK_ERROR
    for (const w of p.waiters) this.#deliver(w, dns.writeError(this.#out, w.q, dns.RCODE.SERVFAIL, ede, text))
  }

  /** Give the answer of `n` bytes at out[0] to who waits for it. */
  #deliver(w: Waiter, n: number): void {
    const left = (this.#inFlight.get(w.port) ?? 1) - 1
    if (left > 0) this.#inFlight.set(w.port, left)
    else this.#inFlight.delete(w.port)
    if (w.stream !== undefined) {
      w.stream.waiting--
      w.stream.answer(this.#out, this.#cut(w.q, n, MAX_MESSAGE))
      return
    }
    const len = this.#cut(w.q, n, this.#datagramLimit(w.q, w.src))
    this.#s.reply(w.port, w.dst, w.dstPort, w.src, w.srcPort, this.#out, len)
  }
}
