/**
 * Neighbour discovery (RFC 4861 §4), with the options of router advertisements (§4.6, RFC 8106).
 *
 * `valid` looks once at what every such message must be (§6.1, §7.1); the accessors then trust. An option is a type, a length in units of
 * eight bytes that is never zero, and what follows.
 */
import { be16, be32, put16, put32 } from './bytes.ts'
import * as icmp from './icmp.ts'
import * as ipv6 from './ipv6.ts'

export const ROUTER_SOLICITATION = 133
export const ROUTER_ADVERTISEMENT = 134
export const NEIGHBOUR_SOLICITATION = 135
export const NEIGHBOUR_ADVERTISEMENT = 136
export const REDIRECT = 137

export const OPTION_SOURCE = 1
export const OPTION_TARGET = 2
const OPTION_PREFIX = 3
const OPTION_MTU = 5
const OPTION_RDNSS = 25
const OPTION_DNSSL = 31

/** Flags of an advertisement. */
export const ROUTER = 0x80
export const SOLICITED = 0x40
export const OVERRIDE = 0x20

const FLAGS = 4
const TARGET = 8
/** A solicitation or an advertisement of a neighbour without options. */
export const NEIGHBOUR = 24
/** A router's solicitation without options. */
const SOLICITATION = 8
/** Of a message with one link-layer option. */
export const LINK_OPTION = 8

export const isDiscovery = (type: number): boolean => type >= ROUTER_SOLICITATION && type <= REDIRECT

export const target = (b: Uint8Array, o: number, n: number): number => be32(b, o + TARGET + (n << 2))

/** Hop limit 255, code 0, long enough, options sound, a target that is no group. Of solicitations and advertisements but for a router's. */
export function valid(b: Uint8Array, l3: number, o: number, len: number): boolean {
  const type = icmp.type(b, o)
  const fixed = type === ROUTER_SOLICITATION ? SOLICITATION : NEIGHBOUR
  if (ipv6.hopLimit(b, l3) !== 255 || icmp.code(b, o) !== 0 || len < fixed) return false
  if (fixed === NEIGHBOUR && ipv6.isMulticast(target(b, o, 0))) return false
  const end = o + len
  let at = o + fixed
  while (at < end) {
    if (at + 2 > end) return false
    const size = b[at + 1] << 3
    if (size === 0 || at + size > end) return false
    at += size
  }
  return true
}

/** Is every link-layer address that the message (seen by `valid`) tells of this MAC? */
export function tellsOnly(b: Uint8Array, o: number, len: number, hi: number, lo: number): boolean {
  const end = o + len
  let at = o + (icmp.type(b, o) === ROUTER_SOLICITATION ? SOLICITATION : NEIGHBOUR)
  for (; at < end; at += b[at + 1] << 3)
    if (b[at] === OPTION_SOURCE || b[at] === OPTION_TARGET) {
      if (b[at + 1] !== 1 || be16(b, at + 2) !== hi || be32(b, at + 4) !== lo) return false
    }
  return true
}

/** Does it tell a source link-layer address? */
export function hasSource(b: Uint8Array, o: number, len: number): boolean {
  const end = o + len
  let at = o + (icmp.type(b, o) === ROUTER_SOLICITATION ? SOLICITATION : NEIGHBOUR)
  for (; at < end; at += b[at + 1] << 3) if (b[at] === OPTION_SOURCE) return true
  return false
}

/** Write an option with a link-layer address; the offset behind it. */
export function putLink(b: Uint8Array, o: number, kind: number, hi: number, lo: number): number {
  b[o] = kind
  b[o + 1] = 1
  put16(b, o + 2, hi)
  put32(b, o + 4, lo)
  return o + LINK_OPTION
}

/** Write a neighbour's advertisement with its target link-layer address, checksum empty; its length. */
export function writeAdvertisement(
  b: Uint8Array,
  o: number,
  flags: number,
  t0: number,
  t1: number,
  t2: number,
  t3: number,
  hi: number,
  lo: number,
): number {
  putNeighbour(b, o, NEIGHBOUR_ADVERTISEMENT, flags, t0, t1, t2, t3)
  return putLink(b, o + NEIGHBOUR, OPTION_TARGET, hi, lo) - o
}

/** Write a neighbour's solicitation with its source link-layer address, checksum empty; its length. */
export function writeSolicitation(
  b: Uint8Array,
  o: number,
  t0: number,
  t1: number,
  t2: number,
  t3: number,
  hi: number,
  lo: number,
): number {
  putNeighbour(b, o, NEIGHBOUR_SOLICITATION, 0, t0, t1, t2, t3)
  return putLink(b, o + NEIGHBOUR, OPTION_SOURCE, hi, lo) - o
}

/** What both messages begin with (§4.3, §4.4). */
function putNeighbour(
  b: Uint8Array,
  o: number,
  type: number,
  flags: number,
  t0: number,
  t1: number,
  t2: number,
  t3: number,
): void {
  icmp.setType(b, o, type)
  icmp.setCode(b, o, 0)
  put16(b, o + icmp.CHECKSUM, 0)
  put32(b, o + FLAGS, flags << 24)
  put32(b, o + TARGET, t0)
  put32(b, o + TARGET + 4, t1)
  put32(b, o + TARGET + 8, t2)
  put32(b, o + TARGET + 12, t3)
}

// -- a router's advertisement, made at composition ------------------------------------------------------------------------

export const MANAGED = 0x80
export const OTHER = 0x40
const ON_LINK = 0x80
const AUTONOMOUS = 0x40
/** Offset of the router's lifetime, in seconds. */
export const LIFETIME = 6

export interface Advertisement {
  readonly flags: number
  /** Seconds. */
  readonly lifetime: number
  /** The first 64 bits of the prefix. */
  readonly p0: number
  readonly p1: number
  readonly onLink: boolean
  readonly valid: number
  readonly preferred: number
  readonly mtu: number
  /** The router's MAC. */
  readonly mac: { readonly hi: number; readonly lo: number }
  /** The name server's 16 bytes. */
  readonly dns: Uint8Array
  readonly domain: string
}

/** The message, checksum empty (RFC 4861 §4.2, §4.6; RFC 8106 §5). */
export function advertisement(a: Advertisement): Uint8Array {
  const b = new Uint8Array(512)
  b[0] = ROUTER_ADVERTISEMENT
  b[4] = 64
  b[5] = a.flags
  put16(b, LIFETIME, a.lifetime)
  let at = putLink(b, 16, OPTION_SOURCE, a.mac.hi, a.mac.lo)
  b[at] = OPTION_MTU
  b[at + 1] = 1
  put32(b, at + 4, a.mtu)
  at += 8
  b[at] = OPTION_PREFIX
  b[at + 1] = 4
  b[at + 2] = 64
  b[at + 3] = (a.onLink ? ON_LINK : 0) | AUTONOMOUS
  put32(b, at + 4, a.valid)
  put32(b, at + 8, a.preferred)
  put32(b, at + 16, a.p0)
  put32(b, at + 20, a.p1)
  at += 32
  b[at] = OPTION_RDNSS
  b[at + 1] = 3
  put32(b, at + 4, a.lifetime)
  b.set(a.dns, at + 8)
  at += 24
  const labels = a.domain.split('.').filter((l) => l.length > 0)
  const name = labels.flatMap((l) => [l.length, ...new TextEncoder().encode(l)])
  const size = (8 + name.length + 1 + 7) & ~7
  if (labels.length === 0 || at + size > b.length) return b.slice(0, at)
  b[at] = OPTION_DNSSL
  b[at + 1] = size >>> 3
  put32(b, at + 4, a.lifetime)
  b.set(name, at + 8)
  return b.slice(0, at + size)
}
