/**
 * A frame on its way: where it lies in the arena, where it came in, and what parsing found.
 *
 * One object per receive slot, filled again and again; nobody keeps a reference beyond the call it was given in, and
 * whoever keeps bytes copies them. Offsets are absolute in the arena.
 */
export class Frame {
  /** Ethernet bytes. */
  off = 0
  len = 0
  /** The switch port it came in by. */
  port = 0

  // -- virtio_net_hdr (linux/virtio_net.h) --------------------------------------------------------------------------
  /** VIRTIO_NET_HDR_GSO_*: 0 none, 1 TCPv4, 3 UDP (UFO), 4 TCPv6, 5 UDP_L4; 0x80 ECN masked off. */
  gsoType = 0
  /** Payload bytes per segment when gsoType is not 0. */
  gsoSize = 0
  /** VIRTIO_NET_HDR_F_NEEDS_CSUM: the L4 checksum is unfinished (its field holds the pseudo header's sum). */
  partialChecksum = 0

  // -- found by wire/parse ------------------------------------------------------------------------------------------
  etherType = 0
  l3 = 0
  /** 4, 6, or 0 when it is not IP. */
  family = 0
  proto = 0
  /** Bytes of L4 header and payload together. */
  l4 = 0
  l4len = 0
  srcPort = 0
  dstPort = 0
  /** 1 when it is an IP fragment (offset ≠ 0 or MF). */
  fragment = 0
  /** IPv6: where its fragment header lies, when it is a fragment. */
  fragmentAt = 0
  /** 1 when it was put together from fragments. */
  joined = 0
}
