/**
 * The contract of a network backend: what noid asks of whoever gives networks. Published as `noid/backend`.
 *
 * A backend is found through the oclif hook `noid:backends`, which returns descriptors; nothing is loaded before it is
 * chosen. Verbs follow CNI's: idempotent, safe to repeat, in any order after a crash. `state` is opaque JSON that
 * survives a restart of the daemon and is handed back. Text addresses and plain JSON only, so that a backend which is
 * not built in can run in a process of its own.
 *
 * Never here: behaviour. Types, and nothing else.
 */

import type { Readable } from 'node:stream'

export type NetworkId = string
export type AttachmentId = string
/** "192.168.100.10/24" */
export type Cidr = string

/** What a runtime plugs into its VM. */
export type Nic =
  /** A TAP whose descriptor somebody (a data plane, a bridge) holds; in `netns`, or the host's own. */
  | {
      readonly kind: 'tap'
      readonly ifname: string
      readonly netns?: string
      readonly queues: number
      readonly vnetHdr: boolean
    }
  /** A veth, macvlan or CNI device that is already inside a namespace. */
  | { readonly kind: 'netdev'; readonly ifname: string; readonly netns: string }
  /** macvtap: its character device, by number, because /dev/tapN collides between namespaces. */
  | {
      readonly kind: 'tap-device'
      readonly major: number
      readonly minor: number
      readonly ifname: string
      readonly netns?: string
    }
  /** Datagrams of one Ethernet frame each, over unix sockets: the backend's is bound at `path`, the VM's must be bound at `peer`. */
  | { readonly kind: 'dgram'; readonly path: string; readonly peer: string }
  /** The backend listens at `path` (vhost-user: as the back-end of virtio's split rings); the VM connects, and again when it must. */
  | { readonly kind: 'stream' | 'vhost-user'; readonly path: string }

export type NicKind = Nic['kind']

export interface Route {
  readonly to: Cidr
  readonly via?: string
}

export interface Resolver {
  readonly servers: readonly string[]
  readonly search: readonly string[]
}

/** Can it attach now? Problems carry hints that a person can act on. */
export interface Status {
  readonly ok: boolean
  readonly problems: readonly { readonly what: string; readonly hint?: string }[]
}

/** The IPv6 side of a network: a ULA /64 (RFC 4193), or what was chosen. */
export interface Ipv6Spec {
  /** "fd12:3456:789a:1::/64"; ::1 gateway, ::2 services, ::254 the host. */
  readonly subnet: Cidr
  readonly gateway: string
  readonly services: string
  readonly hostAddress: string
}

export interface NetworkSpec {
  readonly id: NetworkId
  readonly name: string
  /** "192.168.100.0/24"; .1 gateway, .2 services, .254 the host. A network without IPv4 (`ipv4` false) has them too, and does not use them. */
  readonly subnet: Cidr
  readonly gateway: string
  readonly services: string
  readonly hostAddress: string
  /** What a backend that gives IPv4 addresses itself hands out. Absent: what lies between services and hostAddress. */
  readonly pool?: readonly [first: string, last: string]
  /** False: an IPv6-only network. Absent: IPv4 is there. */
  readonly ipv4?: boolean
  /** Absent: an IPv4-only network. */
  readonly ipv6?: Ipv6Spec
  readonly domain: string
  readonly mtu: number
  /** Each VM reaches the outside and nobody else (the reserved name `isolated`). */
  readonly isolated: boolean
  /** TCP and UDP ports of the host's loopback that VMs may reach at hostAddress. */
  readonly allowHostPorts: readonly number[]
  /** What parseConfig returned. */
  readonly config: unknown
}

export interface AttachRequest {
  readonly id: AttachmentId
  readonly network: NetworkId
  /** The VM's name: its DNS name on the network. */
  readonly name: string
  readonly mac: string
  /** At most one of each family: "192.168.100.10/24", "fd12:3456:789a:1::10/64". */
  readonly addresses: readonly Cidr[]
  readonly accepts: readonly NicKind[]
  /** /proc/PID/ns/net of the VM, when the runtime made one; its owning user namespace is /proc/PID/ns/user. */
  readonly netns?: string
  /**
   * A second namespace of the same VM that its guest cannot see: the far end of a veth lives there when no TAP can be
   * opened (rootless without /dev/net/tun).
   */
  readonly wireNetns?: string
  /** The nic's name in that namespace; eth0 when absent. A backend that cannot give it that name refuses. */
  readonly ifname?: string
}

export interface Attachment {
  readonly id: AttachmentId
  readonly network: NetworkId
  readonly nic: Nic
  readonly mac: string
  readonly mtu: number
  readonly addresses: readonly Cidr[]
  readonly routes: readonly Route[]
  readonly dns?: Resolver
  /** `dhcp`: the VM asks for what is above. `backend`: the device is configured already. */
  readonly configuredBy: 'dhcp' | 'backend'
  /** Opaque JSON of the backend; survives a restart. */
  readonly state: unknown
}

export interface GcReport {
  readonly removed: readonly AttachmentId[]
}

export interface PublishSpec {
  readonly id: string
  readonly attachment: AttachmentId
  readonly proto: 'tcp' | 'udp'
  /** 0.0.0.0 for all of IPv4, :: for all of IPv6, * for all of both. A backend without IPv6 is never given the latter two. */
  readonly hostAddress: string
  /** 0 picks a free one; the answer says which. */
  readonly hostPort: number
  /** Empty when the VM has no IPv4 address. */
  readonly guestAddress: string
  /** The VM's IPv6 address, when it has one: clients of a family reach the VM's address of that family, or else the other one. */
  readonly guestAddress6?: string
  readonly guestPort: number
}

/** Host ports forwarded to VMs. A busy port is PORT_BUSY, naming who holds it, and changes nothing. */
export interface PortPublisher {
  publish(p: PublishSpec, signal: AbortSignal): Promise<{ readonly hostPort: number }>
  unpublish(id: string, signal: AbortSignal): Promise<void>
}

/** Counters and tables a backend may show; each row is plain JSON for `noid network flows|leases|drops`. */
export interface NetworkStats {
  readonly flows: readonly FlowRow[]
  readonly leases: readonly LeaseRow[]
  readonly drops: readonly DropRow[]
  readonly ports: readonly PortRow[]
  /** Things a person should know, such as a duplicate MAC. */
  readonly warnings: readonly string[]
}

export interface FlowRow {
  readonly proto: 'tcp' | 'udp' | 'icmp'
  readonly vm: string
  /** "192.168.100.10:40122", as the VM sees its own side. */
  readonly guest: string
  /** The other side, as the VM sees it. */
  readonly peer: string
  readonly direction: 'out' | 'in'
  readonly state: string
  readonly ageMs: number
  readonly idleMs: number
  readonly bytesOut: number
  readonly bytesIn: number
}

export interface LeaseRow {
  readonly vm: string
  readonly address: string
  readonly mac: string
  readonly hostname: string
  readonly state: 'reserved' | 'offered' | 'bound' | 'expired' | 'declined'
  readonly expiresInMs: number | null
}

export interface DropRow {
  /** The VM whose port counted it; '-' for the gateway itself. */
  readonly vm: string
  readonly reason: string
  readonly count: number
  /** What it means and what to do, for a person. */
  readonly meaning: string
}

export interface PortRow {
  readonly vm: string
  readonly mac: string
  readonly framesIn: number
  readonly framesOut: number
  readonly bytesIn: number
  readonly bytesOut: number
}

/** What of a network is captured. */
export interface CaptureOptions {
  /** The frames of this attachment alone; of all when left out. */
  readonly attachment?: AttachmentId
  /** Bytes kept of each frame; all when left out. */
  readonly snapLength?: number
}

/** What a backend is given of its surroundings. */
export interface BackendContext {
  /**
   * A private directory of this backend for files that live as long as the host is up (sockets, pid files). A `*.log` in a directory in it is kept small by
   * the daemon (copied, then cut to nothing): whoever writes it has it open for appending.
   */
  readonly runDir: string
  /** A private directory for what survives a reboot. */
  readonly stateDir: string
  /** True when the daemon runs as root with CAP_NET_ADMIN. */
  readonly privileged: boolean
  readonly log: (level: 'debug' | 'info' | 'warn' | 'error', message: string) => void
  /** Something the store should know or a person should see. */
  readonly notify: (event: BackendEvent) => void
}

export type BackendEvent =
  | {
      readonly type: 'lease'
      readonly network: NetworkId
      readonly attachment: AttachmentId
      readonly address: string
      readonly state: LeaseRow['state']
      readonly expiresAt: number | null
    }
  | { readonly type: 'warning'; readonly network: NetworkId; readonly message: string }
  /** The backend lost what carried a network (its data plane died) and has made it again. */
  | { readonly type: 'restored'; readonly network: NetworkId; readonly attachments: readonly Attachment[] }

export interface NetworkBackend {
  /** Unknown keys are errors, by name. A promise when it must be asked of another process. */
  parseConfig(raw: unknown): unknown | Promise<unknown>
  status(signal: AbortSignal): Promise<Status>
  createNetwork(n: NetworkSpec, signal: AbortSignal): Promise<void>
  deleteNetwork(id: NetworkId, signal: AbortSignal): Promise<void>
  attach(r: AttachRequest, signal: AbortSignal): Promise<Attachment>
  detach(id: AttachmentId, last: Attachment | undefined, signal: AbortSignal): Promise<void>
  /** Throws when the attachment is not as it should be. */
  check(a: Attachment, signal: AbortSignal): Promise<void>
  /** Remove every attachment of the network that is not in `valid`. */
  gc(n: NetworkId, valid: readonly AttachmentId[], signal: AbortSignal): Promise<GcReport>
  /** Let go of descriptors and connections; networks go on. */
  close(): Promise<void>
  readonly ports?: PortPublisher
  stats?(n: NetworkId): Promise<NetworkStats>
  /**
   * Live pcapng of a network's frames: each refused frame has its reason as a comment, and frames that the reader was too slow for are counted in
   * interface statistics blocks. It ends when the reader destroys the stream, or when what is captured is gone. A stream cannot cross to a backend
   * in a process of its own, so that only built-in ones may have it.
   */
  capture?(n: NetworkId, o: CaptureOptions, signal: AbortSignal): Promise<Readable>
}

export interface BackendDescriptor {
  readonly name: string
  readonly apiVersion: 1
  readonly summary: string
  /** Intersected with what the runtime accepts. */
  readonly provides: readonly NicKind[]
  readonly capabilities: {
    readonly addressing: 'noid' | 'external'
    readonly privileges: readonly ('net-admin' | 'tun')[]
    readonly publish: boolean
    readonly dns: boolean
    readonly isolation: boolean
    readonly ipv6: boolean
  }
  load(): Promise<(ctx: BackendContext) => NetworkBackend>
}
