/**
 * Where would the host send a packet: the fact that policy decides on (netstack/host.ts ROUTE).
 *
 * Theory. The kernel's own routing answers (rtnetlink, 3 µs), never a copy of its tables, so that a network which another daemon
 * made a second ago counts. An answer is kept for at most KEEP ms: a burst of flows to one server asks once.
 * A noid link is known by its name (/^noid[0-9]+$/): a destination that leaves through one, or that is the address of
 * one, is another noid network.
 * Over IPv6 a way out needs an address to go by: a host that has heard a router but was given no prefix has a default route and only a link-local
 * address, from which nothing comes back. That is no route, said at once, instead of a connection that guests wait for.
 */
import type { Arena } from '../netstack/arena.ts'
import { ROUTE, type RouteKind } from '../netstack/host.ts'
import { RouteSocket, RTN } from '../sys/netlink.ts'
import { isLinkLocal, isMapped, sourceOf } from '../sys/socket.ts'

const KEEP = 1000
const ENTRIES = 1024
const NOID_LINK = /^noid[0-9]+$/

export class Routes {
  readonly #socket = new RouteSocket()
  readonly #bytes: Uint8Array
  readonly #view: DataView
  /** Direct-mapped: 4 words of address for each entry. */
  readonly #words = new Int32Array(ENTRIES * 4)
  readonly #kind = new Uint8Array(ENTRIES)
  readonly #until = new Float64Array(ENTRIES)
  /** 16 bytes. */
  readonly #source: number

  constructor(arena: Arena) {
    this.#bytes = arena.bytes
    this.#view = arena.view
    this.#source = arena.alloc(16)
  }

  lookup(dst: number, now: number): RouteKind {
    const view = this.#view
    const w0 = view.getInt32(dst)
    const w1 = view.getInt32(dst + 4)
    const w2 = view.getInt32(dst + 8)
    const w3 = view.getInt32(dst + 12)
    const hash = Math.imul(w0 ^ Math.imul(w1, 31) ^ Math.imul(w2, 17) ^ w3, 0x9e3779b1)
    const i = hash >>> 22
    const at = i * 4
    const words = this.#words
    if (
      (this.#until[i] as number) > now &&
      words[at] === w0 &&
      words[at + 1] === w1 &&
      words[at + 2] === w2 &&
      words[at + 3] === w3
    )
      return this.#kind[i] as RouteKind
    const kind = this.#ask(dst, w0, w1, w2, w3)
    words[at] = w0
    words[at + 1] = w1
    words[at + 2] = w2
    words[at + 3] = w3
    this.#kind[i] = kind
    this.#until[i] = now + KEEP
    return kind
  }

  #ask(dst: number, w0: number, w1: number, w2: number, w3: number): RouteKind {
    // 127/8 and ::1; the kernel also takes 0.0.0.0/8's first address and :: to mean itself.
    if (isMapped(this.#bytes, dst)) {
      if (w3 >>> 24 === 127 || w3 === 0) return ROUTE.loopback
    } else if (w0 === 0 && w1 === 0 && w2 === 0 && (w3 === 0 || w3 === 1)) return ROUTE.loopback
    const s = this.#socket
    if (s.route(this.#bytes, dst) < 0) return ROUTE.unreachable
    for (const link of s.links) if (s.linkInfo(link) >= 0 && NOID_LINK.test(s.name)) return ROUTE.noid
    if (s.routeType === RTN.local) return ROUTE.host
    if (s.routeType !== RTN.unicast && s.routeType !== RTN.anycast) return ROUTE.unreachable
    return this.#hasSource(dst) ? ROUTE.outside : ROUTE.unreachable
  }

  #hasSource(dst: number): boolean {
    const b = this.#bytes
    if (isMapped(b, dst) || isLinkLocal(b, dst)) return true
    return sourceOf(b, dst, this.#source) >= 0 && !isLinkLocal(b, this.#source)
  }
}
