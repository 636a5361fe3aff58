/**
 * What the IP header of a guest's packet asks of the way, in either family: the gateway is a hop, so what arrives with a small TTL leaves
 * with one less, and traceroute sees the routers behind; "do not fragment" stays, so that the guest learns the path's MTU (RFC 1191).
 *
 * In IPv6 nobody but the sender fragments (RFC 8200 §5): what came whole must leave whole, what came in fragments may leave in others.
 */
import type { Frame } from '../frame.ts'
import * as ipv4 from './ipv4.ts'
import * as ipv6 from './ipv6.ts'

/** What hosts begin with. */
export const DEFAULT_TTL = 64
/** TTLs above this are a guest's ordinary ones (64, 128, 255); below it somebody traces a route. */
const ORDINARY_TTL = 48

/** As it arrived. */
export const arrivedTtl = (b: Uint8Array, f: Frame): number =>
  f.family === 4 ? ipv4.ttl(b, f.l3) : ipv6.hopLimit(b, f.l3)

/** The TTL to leave with. */
export const leavingTtl = (arrived: number): number => (arrived > ORDINARY_TTL ? DEFAULT_TTL : arrived - 1)

/** 1: it must not be fragmented on its way. */
export const keptWhole = (b: Uint8Array, f: Frame): number =>
  f.family === 4 ? (ipv4.dontFragment(b, f.l3) ? 1 : 0) : 1 - f.joined
