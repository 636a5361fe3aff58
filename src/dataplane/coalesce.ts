/**
 * Which frames of a burst may leave as one: datagrams of one flow, one behind the other, as a segmentation-offload frame (UDP_L4).
 *
 * Theory. What the kernel's receive offload does for a driver (udp_gro_receive, net/ipv4/udp_offload.c) is done here for a nic that frames are
 * forwarded to: the guest's kernel takes a frame of many datagrams through its stack once and parts them at the socket. Nothing is copied: the frame
 * is written from where its parts lie (writev), the first with its headers, the others with their payload alone.
 *
 * Only what comes out the same way is joined: no IP options or extension headers, no fragments, equal headers but for lengths, checksums and IPv4's identification
 * (whose value means nothing where fragmenting is forbidden, RFC 6864 §4), payloads of one size and at most the last one shorter. The checksums must be
 * unfinished: one that was computed may be wrong, and would be made right.
 * Never does: reading or writing descriptors.
 */
import { VNET } from '../netstack/arena.ts'
import { be16, be32, put16 } from '../netstack/wire/bytes.ts'
import { fold, pseudo4, pseudo6 } from '../netstack/wire/checksum.ts'
import { ETHERNET, TYPE_IPV4, TYPE_IPV6 } from '../netstack/wire/ethernet.ts'
import * as ipv4 from '../netstack/wire/ipv4.ts'
import { IPV4 } from '../netstack/wire/ipv4.ts'
import * as ipv6 from '../netstack/wire/ipv6.ts'
import { IPV6 } from '../netstack/wire/ipv6.ts'
import * as udp from '../netstack/wire/udp.ts'
import { UDP } from '../netstack/wire/udp.ts'
import * as vnet from '../netstack/wire/vnet.ts'

/** UDP_MAX_SEGMENTS of kernels before 6.9. */
export const RUN_MAX = 64
const LENGTH_MAX = 65535
/** Version 4, five words. */
const PLAIN = 0x45
const L4_4 = ETHERNET + IPV4
const L4_6 = ETHERNET + IPV6

/** Of the frame that `payloadOf` looked at last: bytes of Ethernet, IP and UDP headers, which the first frame of a run has and the others leave out. */
export let headers = 0

/** Payload bytes of a frame that may be the first of a run, or 0. */
export function payloadOf(b: Uint8Array, off: number, len: number): number {
  const hdr = off - VNET
  if (b[hdr] !== vnet.NEEDS_CSUM || b[hdr + 1] !== vnet.GSO_NONE || vnet.csumOffset(b, hdr) !== udp.CHECKSUM) return 0
  const l3 = off + ETHERNET
  const l4 = vnet.csumStart(b, hdr)
  if (len <= l4 + UDP) return 0
  // Nothing behind the packet, no fragment, and nobody may make fragments of it.
  switch (be16(b, off + 12)) {
    case TYPE_IPV4:
      if (l4 !== L4_4 || b[l3] !== PLAIN || ipv4.protocol(b, l3) !== ipv4.UDP) return 0
      if (ipv4.totalLength(b, l3) !== len - ETHERNET || be16(b, l3 + 6) !== ipv4.DF) return 0
      break
    case TYPE_IPV6:
      if (l4 !== L4_6 || ipv6.nextHeader(b, l3) !== ipv4.UDP || ipv6.payloadLength(b, l3) !== len - L4_6) return 0
      break
    default:
      return 0
  }
  headers = l4 + UDP
  return udp.length(b, off + l4) === len - l4 ? len - headers : 0
}

/** Does the frame at `off`, of which `payloadOf` said something, go on with what began with the one at `head`? MACs, addresses, ports, TOS and TTL. */
export function follows(b: Uint8Array, head: number, off: number): boolean {
  const a = head + ETHERNET
  const c = off + ETHERNET
  // The version and what lies beside it: TOS, or traffic class and flow label.
  if (
    be32(b, head) !== be32(b, off) ||
    be32(b, head + 4) !== be32(b, off + 4) ||
    be32(b, head + 8) !== be32(b, off + 8)
  )
    return false
  if (b[a] === PLAIN)
    return b[c] === PLAIN && b[a + 1] === b[c + 1] && b[a + 8] === b[c + 8] && equal(b, a + 12, c + 12, 12)
  return be32(b, a) === be32(b, c) && b[a + 7] === b[c + 7] && equal(b, a + ipv6.SRC, c + ipv6.SRC, 36)
}

/** `n`: a multiple of four. */
function equal(b: Uint8Array, a: number, c: number, n: number): boolean {
  for (let k = 0; k < n; k += 4) if (be32(b, a + k) !== be32(b, c + k)) return false
  return true
}

/** Is there room for another datagram in a run of `total` payload bytes? */
export const fits = (total: number, payload: number): boolean => total + payload + IPV4 + UDP <= LENGTH_MAX

/** Make the headers at `head` those of a run of `total` payload bytes, `each` in a datagram. */
export function join(b: Uint8Array, head: number, each: number, total: number): void {
  const l3 = head + ETHERNET
  const length = UDP + total
  const six = be16(b, head + 12) === TYPE_IPV6
  const l4 = six ? L4_6 : L4_4
  vnet.write(b, head - VNET, vnet.NEEDS_CSUM, vnet.GSO_UDP_L4, l4 + UDP, each, l4, udp.CHECKSUM)
  if (six) ipv6.setPayloadLength(b, l3, length)
  else {
    ipv4.setTotalLength(b, l3, IPV4 + length)
    ipv4.seal(b, l3)
  }
  udp.setLength(b, head + l4, length)
  const addresses = six ? pseudo6(b, l3, ipv4.UDP, length) : pseudo4(ipv4.src(b, l3), ipv4.dst(b, l3), ipv4.UDP, length)
  put16(b, head + l4 + udp.CHECKSUM, fold(addresses))
}
