/**
 * The contract of a switch port: what every way into a network looks like to the switch (a TAP, an AF_PACKET socket, a
 * QEMU socket, a test's list). Ports over descriptors live in src/dataplane; wrappers (capture, counters) in trace/.
 *
 * Ports speak in bursts: the data plane reads a burst of frames into as many slots, gives each to `network.receive`, and then has
 * sent what was put off meanwhile. The bytes of a frame stay valid only during `transmit`, unless `stays` says otherwise.
 */
export interface Port {
  /** Takes the virtio_net_hdr that lies VNET bytes before the frame, with gso and unfinished checksums. */
  readonly offload: boolean
  /**
   * Send the Ethernet frame at (off, len) of the arena. ≥ 0, or −errno: the frame is lost and counted by the switch.
   * @param stays it is the frame that `network.receive` was given, and nobody will change it: it may be sent after the burst from where it
   * lies, if its slot stays. What fails then is told to `network.lost`.
   */
  transmit(off: number, len: number, stays: boolean): number
  /** Send what was put off. */
  flush(): void
}

/** Whom a port leads to. */
export const ROLE = { vm: 0, host: 1 } as const
export type Role = (typeof ROLE)[keyof typeof ROLE]
