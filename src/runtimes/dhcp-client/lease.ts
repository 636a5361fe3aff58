/**
 * What a client was given, and what it is asked: the words between the client's process and who starts it.
 * Times are milliseconds of the host's clock (Date.now()).
 */

export interface LeaseRoute {
  readonly destination: string
  readonly prefix: number
  /** Absent: the destination is on the link. */
  readonly gateway?: string
}

/** How long it lasts. */
export interface Term {
  /** null: for ever. */
  readonly leaseMs: number | null
  readonly t1Ms: number
  readonly t2Ms: number
  readonly boundAt: number
  /** The last attempt at renewal that had no answer. */
  readonly triedAt?: number
}

export interface Lease extends Term {
  readonly address: string
  readonly prefix: number
  readonly server: string
  /** Where the server's last answer came from: renewal is unicast without asking ARP. */
  readonly serverMac: string
  readonly routes: readonly LeaseRoute[]
  readonly dns: readonly string[]
  readonly search: readonly string[]
  readonly mtu?: number
}

/** Of DHCPv6: an address without a prefix, which is the router's to tell. */
export interface Lease6 extends Term {
  readonly address: string
  /** The server's DUID, in hex. */
  readonly server: string
  readonly dns: readonly string[]
  readonly search: readonly string[]
}

export interface ClientRequest {
  /** acquire: INIT, or INIT-REBOOT when a lease is given. renew: RENEWING, REBINDING, or INIT when it has run out. */
  readonly mode: 'acquire' | 'renew'
  readonly ifname: string
  readonly mac: string
  readonly hostname: string
  /** The network's, unless the server says another. */
  readonly mtu?: number
  readonly lease?: Lease
  /** Absent: yes. */
  readonly ipv4?: boolean
  /** Absent: no. */
  readonly ipv6?: {
    /** What the network has reserved; taken when no DHCPv6 server answers beside one of IPv4. */
    readonly address: string
    readonly prefix: number
    readonly lease?: Lease6
  }
  /** Gives up after that. */
  readonly budgetMs: number
}

/** What a link has of IPv6. */
export interface Granted6 {
  readonly address: string
  readonly prefix: number
  /** A router has announced itself. */
  readonly router: boolean
  /** Absent: no DHCPv6 server answered. */
  readonly lease?: Lease6
}

export type ClientAnswer =
  | { readonly ok: true; readonly lease?: Lease; readonly ipv6?: Granted6 }
  | { readonly ok: false; readonly why: string }

const MIN_RETRY_MS = 60_000

/**
 * When to try next: at T1; after an attempt without answer, after half of what is left to T2 (then to expiry), but not
 * within a minute (RFC 2131 §4.4.5); after expiry, every minute. null: never. A lease shorter than minutes is tried more
 * often, or it would run out between two tries.
 */
export function renewAt(l: Term, now: number): number | null {
  if (l.leaseMs === null) return null
  const tried = l.triedAt ?? 0
  if (tried < l.boundAt + l.t1Ms) return l.boundAt + l.t1Ms
  const least = Math.min(MIN_RETRY_MS, Math.max(1000, l.leaseMs / 8))
  const end = tried < l.boundAt + l.t2Ms ? l.boundAt + l.t2Ms : l.boundAt + l.leaseMs
  const wait = end <= now ? least : Math.max(least, (end - tried) / 2)
  return tried + wait
}
