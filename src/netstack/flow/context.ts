/**
 * What every relay is composed with: the shared columns, the way out, the way back, and the limits.
 *
 * Made once by network.ts. Relays of one network share it; nothing in it is replaced later.
 */
import type { Arena } from '../arena.ts'
import type { Egress } from '../gateway/egress.ts'
import type { Host, Ref } from '../host.ts'
import type { Timers } from '../timers.ts'
import type { Drops } from '../trace/drops.ts'
import type { FlowTable } from './table.ts'

/** Limits of a network. Every one has a counter of how often it was reached (trace/drops). */
export interface Limits {
  /** Flows of the whole network; a power of two. The last eighth is for VMs with few (share.ts). */
  readonly flows: number
  /** Switch ports at most. */
  readonly ports: number
  /** Flows of one VM; the least recently used UDP or ping flow is given up for a new one, a TCP flow never. */
  readonly flowsPerVm: number
  /** TCP flows of one VM whose host side is not connected yet. */
  readonly halfOpenPerVm: number
  /** UDP flows that one VM has begun, and as many that clients of its published ports have. */
  readonly udpFlowsPerVm: number
  readonly pingFlowsPerVm: number
  /** MAC addresses that one port may have learned. */
  readonly macsPerPort: number
  /** Copies of broadcasts, multicasts and frames for unknown MACs that one port may cause in a second (switch/storm.ts). */
  readonly floodCopiesPerSecond: number
  /** ICMP messages of the gateway's own per second and VM. */
  readonly icmpPerSecond: number
  /** What one readiness event of one flow may move before the others have their turn. */
  readonly bytesPerTurn: number
  readonly datagramsPerTurn: number
  readonly acceptsPerTurn: number
  /** Packets in reassembly for the whole network. */
  readonly reassemblies: number
}

export const DEFAULT_LIMITS: Limits = {
  flows: 16384,
  ports: 1024,
  flowsPerVm: 4096,
  halfOpenPerVm: 256,
  udpFlowsPerVm: 1024,
  pingFlowsPerVm: 64,
  macsPerPort: 32,
  floodCopiesPerSecond: 32_768,
  icmpPerSecond: 200,
  bytesPerTurn: 512 * 1024,
  datagramsPerTurn: 64,
  acceptsPerTurn: 16,
  reassemblies: 16,
}

export interface RelayContext {
  readonly host: Host
  readonly arena: Arena
  readonly flows: FlowTable
  /** One deadline for each flow index; `expire` of the flow's relay is called. */
  readonly timers: Timers
  readonly egress: Egress
  readonly drops: Drops
  readonly limits: Limits
  /** The guests' MTU: the longest IP packet without gso. */
  readonly mtu: number
  /** The reference under which to watch flow `i`'s socket. */
  ref(i: number): Ref
  /** Write flow `i`'s far address (16 bytes) to scratch memory and return its offset; valid until the next call. */
  far(i: number): number
}
