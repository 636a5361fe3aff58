/**
 * The control protocol between the daemon's userspace backend and a data plane: newline-delimited JSON over a unix
 * stream socket, in both directions. A request has a `seq`, its answer repeats it; what has no seq is an event. Descriptors
 * travel by SCM_RIGHTS with the first byte of the request that names how many in `fds` (in order).
 *
 * Types, and what both ends must agree on. The data plane's end is control.ts; the daemon's end is src/plugins/dataplane/link.ts.
 * Every request is idempotent: the daemon repeats all of them after a restart of either side.
 */
import type { DropRow, FlowRow, Ipv6Spec, LeaseRow, PortRow } from '../plugins/contract.ts'

/**
 * A data plane of another version is replaced by the daemon that finds it (its flows end, and the log says so).
 * 2: IPv6.
 */
export const PROTOCOL_VERSION = 2

/** The MAC that a data plane answers with for its gateway (on medium `bridge`: for the services address), whose IPv4 address it ends in. */
export const gatewayMac = (address: string): string =>
  ['02', '6e', ...address.split('.').map((n) => Number(n).toString(16).padStart(2, '0'))].join(':')

export interface Ipv6Config extends Ipv6Spec {
  /**
   * Medium `bridge` only: who the router is. The kernel has the gateway's address there; router advertisements are sent on its behalf, from
   * this link-local address and MAC. Absent: none are sent.
   */
  readonly routerLinkLocal?: string
  readonly routerMac?: string
}

export interface NetworkConfig {
  readonly id: string
  readonly name: string
  readonly subnet: string
  readonly gateway: string
  readonly services: string
  readonly hostAddress: string
  /** False: nothing of IPv4 is offered or passed. Absent: IPv4 is there. */
  readonly ipv4?: boolean
  /** Absent: nothing of IPv6 is offered or passed. */
  readonly ipv6?: Ipv6Config
  readonly domain: string
  readonly mtu: number
  readonly isolated: boolean
  /**
   * `switch` (the default): every nic is a port and the gateway routes. `bridge`: a bridge of the kernel carries the network and this
   * data plane only serves DHCP and DNS at the services address, behind one nic on that bridge.
   */
  readonly medium?: 'switch' | 'bridge'
  readonly allowHostPorts: readonly number[]
  readonly leaseSeconds: number
}

export type Request =
  /** First of all; again with other values changes what may change (resolvers, allowHostPorts). */
  | { readonly op: 'configure'; readonly network: NetworkConfig; readonly resolvers: readonly string[] }
  /**
   * fds: the TAP's queues, that for streams last; the packet sockets of one group in their order; `dgram`: a bound unix datagram socket, which whoever gave it connects to the
   * VM's; `vhost-user`: a listening unix socket. A second attach of an id replaces the descriptor and keeps the lease.
   */
  | {
      readonly op: 'attach'
      readonly fds: number
      readonly id: string
      readonly role: 'vm' | 'host'
      readonly kind: 'tap' | 'packet' | 'dgram' | 'vhost-user'
      /** The descriptor speaks virtio_net_hdr with offloads; of the latter two kinds it says nothing. */
      readonly vnetHdr: boolean
      readonly name: string
      readonly mac: string
      /** Its IPv4 address; empty when it has none. */
      readonly address: string
      /** Its IPv6 address, when it has one. */
      readonly address6?: string
      /** The client holds this lease already (a restart of the data plane). */
      readonly bound: boolean
    }
  /** Medium `bridge` only. fds: 1, the TAP that is a port of the bridge. */
  | { readonly op: 'uplink'; readonly fds: 1; readonly vnetHdr: boolean }
  /** Medium `bridge` only: a VM of the bridge, told by its MAC. No descriptor. */
  | {
      readonly op: 'member'
      readonly id: string
      readonly name: string
      readonly mac: string
      /** As with attach. */
      readonly address: string
      readonly address6?: string
      readonly bound: boolean
    }
  | { readonly op: 'detach'; readonly id: string }
  /** fds: 1, a listening TCP socket or a bound UDP socket. */
  | {
      readonly op: 'publish'
      readonly fds: 1
      readonly id: string
      readonly proto: 'tcp' | 'udp'
      /** 0.0.0.0, ::, * for both, or one of the host's. */
      readonly hostAddress: string
      readonly hostPort: number
      /** Empty when the VM has no IPv4 address. */
      readonly guestAddress: string
      /** When it has one: clients of a family reach the VM's address of that family, or else the other one. */
      readonly guestAddress6?: string
      readonly guestPort: number
    }
  /** Medium `bridge`: keep the bound socket of a port that the kernel forwards, so that nobody else takes it. fds: 1. */
  | { readonly op: 'hold'; readonly fds: 1; readonly id: string }
  /** Of a publish or a hold. */
  | { readonly op: 'unpublish'; readonly id: string }
  /** fds: 1, a raw ICMP or ICMPv6 socket, where ping sockets are not allowed and the daemon is root. One of each family is kept. */
  | { readonly op: 'rawIcmp'; readonly fds: 1 }
  /**
   * Write pcapng to a stream until its reader closes it. fds: 1, the data plane's end of a stream socket. `attachment`: of that nic alone, and until it is
   * detached. Not repeated after a restart: the reader sees the end.
   */
  | {
      readonly op: 'capture'
      readonly fds: 1
      readonly id: string
      readonly attachment?: string
      /** Bytes kept of each frame. */
      readonly snapLength?: number
    }
  | { readonly op: 'stats' }
  | { readonly op: 'hello' }
  /** End the process; nics go dark. */
  | { readonly op: 'stop' }

export interface StatsAnswer {
  readonly flows: readonly FlowRow[]
  readonly leases: readonly LeaseRow[]
  readonly drops: readonly DropRow[]
  readonly ports: readonly PortRow[]
  readonly warnings: readonly string[]
}

export interface HelloAnswer {
  readonly version: number
  readonly pid: number
  /** What it carries now, so that a daemon that was restarted knows what to hand over again. */
  readonly attachments: readonly string[]
  readonly publishes: readonly string[]
  readonly configured: boolean
  /** A device towards the segment that somebody else switches was given. */
  readonly uplink: boolean
}

export type RequestMessage = Request & { readonly seq: number }
export type AnswerMessage =
  | { readonly seq: number; readonly ok: true; readonly result?: unknown }
  | { readonly seq: number; readonly ok: false; readonly error: string }
export type EventMessage =
  | {
      readonly event: 'lease'
      readonly id: string
      readonly address: string
      readonly state: LeaseRow['state']
      readonly expiresInMs: number | null
    }
  | { readonly event: 'warning'; readonly message: string }
