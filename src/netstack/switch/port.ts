/**
 * The contract of a switch port: what every way into a network looks like to the switch (a TAP, an AF_PACKET socket, a
 * QEMU socket, a test's list). Ports over descriptors live in src/dataplane; wrappers (capture, counters) in trace/.
 *
 * Ports speak in bursts: the data plane reads a burst of frames into as many slots, gives each to `network.receive`, and then has
 * sent what was put off meanwhile. The bytes of a frame stay valid only during `transmit`, unless its way says otherwise.
 */

/** How a frame may travel. */
export const WAY = {
  /** At once. */
  now: 0,
  /**
   * It is the frame that `network.receive` was given, and nobody will change it: it may be sent after the burst from where it lies, if its slot
   * stays. What fails then is told to `network.lost`.
   */
  stays: 1,
  /** Rather cheaply for us than quickly: an acknowledgment of a long stream. Frames that go this way keep their order among themselves. */
  stream: 2,
} as const
export type Way = (typeof WAY)[keyof typeof WAY]

export interface Port {
  /** Takes the virtio_net_hdr that lies VNET bytes before the frame, with gso and unfinished checksums. */
  readonly offload: boolean
  /**
   * Send the Ethernet frame at (off, len) of the arena. ≥ 0, or −errno: the frame is lost and counted by the switch.
   */
  transmit(off: number, len: number, way: Way): number
  /** Send what was put off. */
  flush(): void
}

/** Whom a port leads to. */
export const ROLE = { vm: 0, host: 1 } as const
export type Role = (typeof ROLE)[keyof typeof ROLE]
