/**
 * The contract of the way back: how relays and services send a packet to a guest.
 *
 * A relay writes its L4 header and payload straight to where they will be sent from (`l4at`), then calls `flow`: Ethernet and
 * IP headers of the flow's family are pushed in front, the vnet header is filled, and the switch port takes it. Nothing is copied, nothing
 * allocates. One transmit slot is enough because a port takes the bytes during `transmit`.
 *
 * Checksums: the L4 checksum field is filled by egress with the pseudo header's sum and marked unfinished; a port without
 * offloads finishes it. The caller leaves the field alone.
 */
import type { Frame } from '../frame.ts'
import type { Way } from '../switch/port.ts'
import type { Say } from './say.ts'

export interface Egress {
  /** Arena offset where the L4 header must be written before `flow`, the same for both families. 4-byte aligned. */
  readonly l4at: number
  /** The longest L4 (header + payload) that fits one packet, of either family. */
  readonly l4max: number
  /**
   * Send what lies at `l4at` to flow `i`'s guest, from its peer's address.
   * @param l4len header and payload
   * @param csum offset of the checksum field in the L4 header (TCP 16, UDP 6, ICMP 2)
   * @param gsoType VIRTIO_NET_HDR_GSO_* (0 none, 1 TCPv4, 4 TCPv6, 5 UDP_L4)
   * @param gsoSize payload bytes per segment when gsoType is not 0
   * @param hdr L4 header length, for gso
   * @param way how it may travel (switch/port.ts); `now` or `stream`
   * @returns ≥ 0, or −errno: the packet is lost (and counted)
   */
  flow(i: number, l4len: number, csum: number, gsoType: number, gsoSize: number, hdr: number, way: Way): number
  /**
   * An ICMP error to the guest of port about the packet in `f` (RFC 792, RFC 1812 §4.3.2, RFC 4443 §2.4: never about an error, a fragment other
   * than the first, a group). Rate-limited per port. `info`: the path's MTU for tooBig. `from`: say.ts.
   */
  icmpError(f: Frame, say: Say, info: number, from: number): void
  /**
   * The same about flow `i`, when the packet itself is gone: the quoted header is rebuilt from the flow's tuple. `second`: the
   * quoted L4 header's second word, by which guests match it (TCP's sequence number; an echo's id << 16 | sequence).
   */
  icmpErrorOfFlow(i: number, say: Say, info: number, from: number, second?: number): void
  /** An error as the host's socket had it, passed on: `type` and `code` of the family that the socket has. */
  icmpErrorPassed(i: number, type: number, code: number, info: number, from: number, second?: number): void
  /** A RST to the guest for a segment that no flow takes (RFC 9293 §3.10.7.1); nothing for a RST. */
  reset(f: Frame): void
}
