/**
 * The contract of a switch port: what every way into a network looks like to the switch (a TAP, an AF_PACKET socket, a
 * QEMU socket, a test's list). Ports over descriptors live in src/dataplane; wrappers (capture, counters) in trace/.
 *
 * Ports speak in bursts: the reactor reads a burst of frames, gives each to `network.receive`, then calls `flush` on the
 * ports that were written to. A port may send at once or gather until `flush`; the bytes of a frame stay valid only during
 * `transmit`, so a port that gathers copies, or is given slots that stay.
 */
export interface Port {
  /** Takes the virtio_net_hdr that lies VNET bytes before the frame, with gso and unfinished checksums. */
  readonly offload: boolean
  /** Send the Ethernet frame at (off, len) of the arena. ≥ 0, or −errno: the frame is lost and counted by the switch. */
  transmit(off: number, len: number): number
  flush(): void
}

/** Whom a port leads to. */
export const ROLE = { vm: 0, host: 1 } as const
export type Role = (typeof ROLE)[keyof typeof ROLE]
