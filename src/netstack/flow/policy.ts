/**
 * Who may reach what: one verdict for each new flow of a VM, from facts alone (DESIGN 6a).
 *
 *   VM → VM of its network            the switch, unless isolated; never by way of the gateway
 *   VM → another noid network         never (the host's routing says whose a destination is)
 *   VM → outside                      yes
 *   VM → host's own addresses         yes; not from isolated
 *   VM → host's loopback              only .254:PORT (and [::254]:PORT) with --allow-host PORT; not from isolated
 *   VM → link-local, cloud metadata   no
 *
 * An IPv6 address that carries an IPv4 one for a translator to go to (6to4, NAT64) is judged by both: neither is a way round the rule for the other.
 *
 * A verdict is 0 (allow) or the Drop reason that names the rule, by which refusals are counted. Rules that people write come
 * in here later; nothing else in the engine decides about reachability. Pure: no state, no I/O.
 */
import { ROUTE, type RouteKind } from '../host.ts'
import { DROP, type Drop } from '../trace/drops.ts'
import { parseIp } from '../wire/address.ts'
import { isLinkLocal, isLoopback, isMulticast, isReserved, isThisNetwork, parseAddress } from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'

/** What kind of address a destination is, seen from the network. */
export const DESTINATION = {
  /** Somewhere else: the host's routing decides. */
  elsewhere: 0,
  /** .254 at a port that --allow-host opened. */
  allowedHostPort: 1,
  /** .254 at any other port, where no host interface answers. */
  hostAddress: 2,
  /** Another address of the own subnet. */
  subnet: 3,
  linkLocal: 4,
  loopback: 5,
  /** Multicast, broadcast, 0.0.0.0/8, 240.0.0.0/4. */
  reserved: 6,
} as const
export type Destination = (typeof DESTINATION)[keyof typeof DESTINATION]

/** Metadata services that are not link-local: Azure's wire server, Alibaba's and Oracle's. */
const METADATA = [parseAddress('168.63.129.16'), parseAddress('100.100.100.200'), parseAddress('192.0.0.192')] as const

/** Metadata services' IPv6 addresses: Amazon's, Google's, Oracle's, Scaleway's. */
const METADATA6 = ['fd00:ec2::254', 'fd20:ce::254', 'fd00:c1::a9fe:a9fe', 'fd00:42::42'].map(parseIp)

/** 64:ff9b::/96 and 64:ff9b:1::/48 (RFC 6052, RFC 8215). */
const NAT64_W0 = 0x0064ff9b
/** 2002::/16 (RFC 3056). */
const SIX_TO_FOUR = 0x2002

/** The class of an IPv6 address that is not of the own subnet. */
export function classOf6(w0: number, w1: number, w2: number, w3: number): Destination {
  if (ipv6.isLinkLocal(w0)) return DESTINATION.linkLocal
  for (const m of METADATA6) if (m.w0 === w0 && m.w1 === w1 && m.w2 === w2 && m.w3 === w3) return DESTINATION.linkLocal
  if (ipv6.isLoopback(w0, w1, w2, w3)) return DESTINATION.loopback
  if (ipv6.isMulticast(w0)) return DESTINATION.reserved
  // Unspecified, IPv4-mapped and IPv4-compatible: of no use on a wire.
  if ((w0 | w1) === 0) return DESTINATION.reserved
  if (w0 === NAT64_W0 && ((w1 | w2) === 0 || w1 >>> 16 === 1)) return classOf(w3)
  if (w0 >>> 16 === SIX_TO_FOUR) return classOf((w0 << 16) | (w1 >>> 16))
  return DESTINATION.elsewhere
}

/** The class of an address that is not of the own subnet. */
export function classOf(dst: number): Destination {
  if (isLinkLocal(dst) || dst === METADATA[0] || dst === METADATA[1] || dst === METADATA[2])
    return DESTINATION.linkLocal
  if (isLoopback(dst)) return DESTINATION.loopback
  if (isThisNetwork(dst) || isMulticast(dst) || isReserved(dst)) return DESTINATION.reserved
  return DESTINATION.elsewhere
}

/**
 * @param route where the host's routing sends it; asked for `elsewhere` only
 */
export function verdict(isolated: boolean, destination: Destination, route: RouteKind): Drop {
  switch (destination) {
    case DESTINATION.allowedHostPort:
      return isolated ? DROP['deny-isolated'] : 0
    case DESTINATION.hostAddress:
      return DROP[isolated ? 'deny-isolated' : 'deny-loopback']
    case DESTINATION.subnet:
      return DROP[isolated ? 'deny-isolated' : 'no-route']
    case DESTINATION.linkLocal:
      return DROP['deny-link-local']
    case DESTINATION.loopback:
      return DROP['deny-loopback']
    case DESTINATION.reserved:
      return DROP['deny-reserved']
    case DESTINATION.elsewhere:
      switch (route) {
        case ROUTE.outside:
          return 0
        case ROUTE.host:
          return isolated ? DROP['deny-isolated'] : 0
        case ROUTE.loopback:
          return DROP['deny-loopback']
        case ROUTE.noid:
          return DROP['deny-network']
        default:
          return DROP.unreachable
      }
  }
}
