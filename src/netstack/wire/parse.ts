/**
 * Parsing: one look at a frame that settles what every later step relies on.
 *
 * `parse` fills the Frame and answers a Drop reason, 0 when the frame is sound. It never throws and never reads outside
 * (off, len), whatever the bytes are; after it, accessors trust. It decides nothing about who may send what to whom.
 * What holds afterwards: the IP header is complete and, for IPv4, its checksum right; l4 + l4len ends within the frame (padding is cut
 * off); unless it is a fragment other than the first, the L4 header is complete; a UDP length is within the packet. For IPv6 every extension
 * header has been walked (RFC 8200 §4.1: hop-by-hop options first if at all, at most EXTENSIONS of them), a first fragment holds them all
 * (RFC 7112), and what would be routed by its source has been refused. A fragment that is the whole packet (RFC 6946) is no fragment.
 */
import { VNET } from '../arena.ts'
import type { Frame } from '../frame.ts'
import { DROP, type Drop } from '../trace/drops.ts'
import * as arp from './arp.ts'
import * as ethernet from './ethernet.ts'
import { ETHERNET, TYPE_ARP, TYPE_IPV4, TYPE_IPV6 } from './ethernet.ts'
import * as icmp from './icmp.ts'
import * as ipv4 from './ipv4.ts'
import * as ipv6 from './ipv6.ts'
import * as tcp from './tcp.ts'
import * as udp from './udp.ts'
import * as vnet from './vnet.ts'

const SHORT = DROP['frame-short']
const LONG = DROP['frame-long']
const BAD_VNET = DROP['vnet-header']
const BAD_TYPE = DROP.ethertype
const NO_IPV6 = DROP.ipv6
const NO_IPV4 = DROP.ipv4
const BAD_ARP = DROP['arp-malformed']
const BAD_IPV4 = DROP['ipv4-malformed']
const SOURCE_ROUTE = DROP['ipv4-source-route']
const BAD_IPV6 = DROP['ipv6-malformed']
const EXTENSION = DROP['ipv6-extension']
const ROUTED = DROP['ipv6-source-route']
const CHAIN = DROP['ipv6-header-chain']
const NO_CHECKSUM = DROP['udp-unsummed']
const BAD_TCP = DROP['tcp-malformed']
const BAD_UDP = DROP['udp-malformed']
const BAD_ICMP = DROP['icmp-malformed']

/** Ethernet and 64 KiB of packet. */
const LONGEST = ETHERNET + 65535

/** What Linux ever makes: TCP_MIN_MSS less the longest options, and UDP_MAX_SEGMENTS. Smaller ones would only make work. */
const TCP_SEGMENT_MIN = 48
const UDP_SEGMENTS_MAX = 128

const OPTION_LSRR = 131
const OPTION_SSRR = 137

/** How many extension headers one packet may have: more than anybody needs. */
const EXTENSIONS = 6

/** What a network carries: a sum of these. */
export const CARRIES_IPV4 = 1
export const CARRIES_IPV6 = 2

/**
 * @param f its off, len and port are set
 * @param carries which families the network has
 * @param offload a virtio_net_hdr lies VNET bytes before the frame; otherwise an empty one is written there, so that the frame can be passed on
 */
export function parse(b: Uint8Array, f: Frame, offload: boolean, carries = CARRIES_IPV4): Drop {
  const { off, len } = f
  f.etherType = 0
  f.l3 = f.l4 = off + ETHERNET
  f.l4len = 0
  f.family = 0
  f.proto = 0
  f.srcPort = f.dstPort = 0
  f.fragment = 0
  f.fragmentAt = 0
  f.gsoType = 0
  f.gsoSize = 0
  f.partialChecksum = 0
  if (len < ETHERNET) return SHORT
  if (len > LONGEST) return LONG
  const type = ethernet.type(b, off)
  f.etherType = type
  if (type === TYPE_IPV4) {
    if ((carries & CARRIES_IPV4) === 0) return NO_IPV4
    const bad = parseIpv4(b, f)
    if (bad !== 0) return bad
  } else if (type === TYPE_IPV6) {
    if ((carries & CARRIES_IPV6) === 0) return NO_IPV6
    const bad = parseIpv6(b, f)
    if (bad !== 0) return bad
  } else if (type === TYPE_ARP) {
    if ((carries & CARRIES_IPV4) === 0) return NO_IPV4
    if (len < ETHERNET + arp.ARP) return SHORT
    if (!arp.valid(b, f.l3)) return BAD_ARP
  } else return BAD_TYPE
  if (offload) return parseVnet(b, f)
  vnet.clear(b, off - VNET)
  return 0
}

function parseIpv4(b: Uint8Array, f: Frame): Drop {
  const l3 = f.l3
  const available = f.len - ETHERNET
  if (available < ipv4.IPV4) return SHORT
  const header = ipv4.headerLength(b, l3)
  const total = ipv4.totalLength(b, l3)
  if (ipv4.version(b, l3) !== 4 || header < ipv4.IPV4 || total < header || total > available) return BAD_IPV4
  if (!ipv4.sound(b, l3)) return BAD_IPV4
  if (header > ipv4.IPV4 && sourceRouted(b, l3, header)) return SOURCE_ROUTE
  f.family = 4
  f.proto = ipv4.protocol(b, l3)
  f.l4 = l3 + header
  f.l4len = total - header
  const offset = ipv4.fragmentOffset(b, l3)
  if (offset !== 0 || ipv4.moreFragments(b, l3)) {
    f.fragment = 1
    if (offset !== 0) return 0
  }
  return parseL4(b, f)
}

/** An IPv6 packet from f.l3 to the end of the frame; also what was put together from fragments. */
export function parseIpv6(b: Uint8Array, f: Frame): Drop {
  const l3 = f.l3
  const available = f.off + f.len - l3
  if (available < ipv6.IPV6) return SHORT
  const total = ipv6.IPV6 + ipv6.payloadLength(b, l3)
  if (ipv6.version(b, l3) !== 6 || total > available) return BAD_IPV6
  f.family = 6
  let next = ipv6.nextHeader(b, l3)
  let at = l3 + ipv6.IPV6
  const end = l3 + total
  // The ordinary packet has none.
  if (next !== ipv4.TCP && next !== ipv4.UDP && next !== ipv6.ICMPV6) {
    let seen = 0
    while (isExtension(next)) {
      if (++seen > EXTENSIONS || (next === ipv6.HOP_BY_HOP && seen !== 1)) return EXTENSION
      if (at + 8 > end) return f.fragment === 1 ? CHAIN : BAD_IPV6
      if (next === ipv6.FRAGMENT) {
        // One is enough.
        if (f.fragmentAt > l3) return EXTENSION
        f.fragmentAt = at
        const offset = ipv6.fragmentOffset(b, at)
        f.fragment = offset !== 0 || ipv6.moreFragments(b, at) ? 1 : 0
        next = b[at]
        at += ipv6.FRAGMENT_HEADER
        if (offset === 0) continue
        f.proto = next
        f.l4 = at
        f.l4len = end - at
        return 0
      }
      // Routing by the source: type 0 whatever it says (RFC 5095), others while they have somewhere to go.
      if (next === ipv6.ROUTING && (b[at + 2] === 0 || b[at + 3] !== 0)) return ROUTED
      const size = (b[at + 1] + 1) << 3
      if (at + size > end) return f.fragment === 1 ? CHAIN : BAD_IPV6
      next = b[at]
      at += size
    }
    if (next === ipv6.MOBILITY || next === ipv6.HIP || next === ipv6.SHIM6) return EXTENSION
  }
  f.proto = next
  f.l4 = at
  f.l4len = end - at
  const bad = parseL4(b, f)
  if (bad !== 0) return f.fragment === 1 && f.l4len < tcp.TCP ? CHAIN : bad
  // RFC 8200 §8.1: there is no header checksum that would protect the addresses.
  return next === ipv4.UDP && udp.checksum(b, at) === 0 ? NO_CHECKSUM : 0
}

const isExtension = (next: number): boolean =>
  next === ipv6.HOP_BY_HOP || next === ipv6.ROUTING || next === ipv6.FRAGMENT || next === ipv6.DESTINATION_OPTIONS

/** The L4 header of a packet that is whole (or a first fragment); also for what was put together from fragments. */
export function parseL4(b: Uint8Array, f: Frame): Drop {
  const { l4, l4len } = f
  switch (f.proto) {
    case ipv4.TCP: {
      if (l4len < tcp.TCP) return BAD_TCP
      const header = tcp.headerLength(b, l4)
      if (header < tcp.TCP || header > l4len) return BAD_TCP
      f.srcPort = tcp.srcPort(b, l4)
      f.dstPort = tcp.dstPort(b, l4)
      return 0
    }
    case ipv4.UDP: {
      if (l4len < udp.UDP) return BAD_UDP
      const length = udp.length(b, l4)
      if (length < udp.UDP || (f.fragment === 0 && length > l4len)) return BAD_UDP
      if (f.fragment === 0) f.l4len = length
      f.srcPort = udp.srcPort(b, l4)
      f.dstPort = udp.dstPort(b, l4)
      return 0
    }
    case ipv4.ICMP:
    case ipv6.ICMPV6:
      return l4len < icmp.ICMP ? BAD_ICMP : 0
    default:
      return 0
  }
}

function sourceRouted(b: Uint8Array, l3: number, header: number): boolean {
  const end = l3 + header
  let at = l3 + ipv4.IPV4
  while (at < end) {
    const kind = b[at]
    if (kind === 0) return false
    if (kind === 1) {
      at++
      continue
    }
    if (kind === OPTION_LSRR || kind === OPTION_SSRR) return true
    const length = at + 1 < end ? b[at + 1] : 0
    if (length < 2) return false
    at += length
  }
  return false
}

/**
 * The guest's kernel wrote this header, or somebody in its place: whoever finishes the checksum or splits the frame must be able to trust
 * it, so it has to agree with what the frame is.
 */
function parseVnet(b: Uint8Array, f: Frame): Drop {
  const o = f.off - VNET
  const flags = vnet.flags(b, o)
  const gso = vnet.gsoType(b, o) & ~vnet.GSO_ECN
  if (gso === vnet.GSO_NONE && (flags & vnet.NEEDS_CSUM) === 0) return 0
  if (f.family === 0) return BAD_VNET
  if ((flags & vnet.NEEDS_CSUM) !== 0) {
    const start = vnet.csumStart(b, o)
    const field = vnet.csumOffset(b, o)
    if (f.proto === ipv4.TCP ? field !== tcp.CHECKSUM : f.proto !== ipv4.UDP || field !== udp.CHECKSUM) return BAD_VNET
    if (f.off + start !== f.l4 || f.fragment !== 0) return BAD_VNET
    f.partialChecksum = 1
  }
  if (gso === vnet.GSO_NONE) return 0
  const size = vnet.gsoSize(b, o)
  if (f.partialChecksum === 0 || size === 0) return BAD_VNET
  if (gso === vnet.GSO_TCPV4 || gso === vnet.GSO_TCPV6) {
    if ((gso === vnet.GSO_TCPV4) !== (f.family === 4)) return BAD_VNET
    if (f.proto !== ipv4.TCP || size < TCP_SEGMENT_MIN) return BAD_VNET
  } else if (gso !== vnet.GSO_UDP_L4 || f.proto !== ipv4.UDP || f.l4len - udp.UDP > size * UDP_SEGMENTS_MAX)
    return BAD_VNET
  f.gsoType = gso
  f.gsoSize = size
  return 0
}
