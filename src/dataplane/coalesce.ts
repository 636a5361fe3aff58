/**
 * Which frames of a burst may leave as one: datagrams of one flow, one behind the other, as a segmentation-offload frame (UDP_L4).
 *
 * Theory. What the kernel's receive offload does for a driver (udp_gro_receive, net/ipv4/udp_offload.c) is done here for a nic that frames are
 * forwarded to: the guest's kernel takes a frame of many datagrams through its stack once and parts them at the socket. Nothing is copied: the frame
 * is written from where its parts lie (writev), the first with its headers, the others with their payload alone.
 *
 * Only what comes out the same way is joined: no IP options, no fragments, equal headers but for lengths, checksums and the identification (whose value
 * means nothing where fragmenting is forbidden, RFC 6864 §4), payloads of one size and at most the last one shorter. The checksums must be unfinished: one that
 * was computed may be wrong, and would be made right.
 * Never does: reading or writing descriptors. IPv4; a packet of another kind is never the beginning of a run.
 */
import { VNET } from '../netstack/arena.ts'
import { unfinished } from '../netstack/switch/segment.ts'
import { be16, be32, put16 } from '../netstack/wire/bytes.ts'
import { ETHERNET } from '../netstack/wire/ethernet.ts'
import * as ipv4 from '../netstack/wire/ipv4.ts'
import { IPV4 } from '../netstack/wire/ipv4.ts'
import * as udp from '../netstack/wire/udp.ts'
import { UDP } from '../netstack/wire/udp.ts'
import * as vnet from '../netstack/wire/vnet.ts'

const L4 = ETHERNET + IPV4
/** Ethernet, IPv4 and UDP: what the first frame of a run has and the others leave out. */
export const HEADERS = L4 + UDP
/** UDP_MAX_SEGMENTS of kernels before 6.9. */
export const RUN_MAX = 64
const LENGTH_MAX = 65535
/** Version 4, five words. */
const PLAIN = 0x45

/** Payload bytes of a frame that may be the first of a run, or 0. */
export function payloadOf(b: Uint8Array, off: number, len: number): number {
  const hdr = off - VNET
  if (b[hdr] !== vnet.NEEDS_CSUM || b[hdr + 1] !== vnet.GSO_NONE) return 0
  const l3 = off + ETHERNET
  if (len <= HEADERS || be16(b, off + 12) !== 0x0800 || b[l3] !== PLAIN || ipv4.protocol(b, l3) !== ipv4.UDP) return 0
  // Nothing behind the packet, no fragment, and nobody may make fragments of it.
  if (ipv4.totalLength(b, l3) !== len - ETHERNET || be16(b, l3 + 6) !== ipv4.DF) return 0
  if (vnet.csumStart(b, hdr) !== L4 || vnet.csumOffset(b, hdr) !== udp.CHECKSUM) return 0
  return udp.length(b, off + L4) === len - L4 ? len - HEADERS : 0
}

/** Does the frame at `off`, of which `payloadOf` said something, go on with what began with the one at `head`? Addresses, ports, TOS and TTL. */
export function follows(b: Uint8Array, head: number, off: number): boolean {
  const a = head + ETHERNET
  const c = off + ETHERNET
  return (
    be32(b, a + 16) === be32(b, c + 16) &&
    be32(b, a + IPV4) === be32(b, c + IPV4) &&
    be32(b, a + 12) === be32(b, c + 12) &&
    b[a + 1] === b[c + 1] &&
    b[a + 8] === b[c + 8] &&
    be32(b, head) === be32(b, off) &&
    be32(b, head + 4) === be32(b, off + 4) &&
    be32(b, head + 8) === be32(b, off + 8)
  )
}

/** Is there room for another datagram in a run of `total` payload bytes? */
export const fits = (total: number, payload: number): boolean => total + payload + IPV4 + UDP <= LENGTH_MAX

/** Make the headers at `head` those of a run of `total` payload bytes, `each` in a datagram. */
export function join(b: Uint8Array, head: number, each: number, total: number): void {
  const l3 = head + ETHERNET
  const l4 = head + L4
  vnet.write(b, head - VNET, vnet.NEEDS_CSUM, vnet.GSO_UDP_L4, HEADERS, each, L4, udp.CHECKSUM)
  ipv4.setTotalLength(b, l3, IPV4 + UDP + total)
  ipv4.seal(b, l3)
  udp.setLength(b, l4, UDP + total)
  put16(b, l4 + udp.CHECKSUM, unfinished(ipv4.src(b, l3), ipv4.dst(b, l3), ipv4.UDP, UDP + total))
}
