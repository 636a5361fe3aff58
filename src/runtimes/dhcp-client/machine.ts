/**
 * A DHCP client as a state machine: packets and the time go in, packets and a lease come out.
 *
 * Owns: RFC 2131 §4.4 from INIT or INIT-REBOOT to BOUND, and from RENEWING or REBINDING to BOUND; retransmission with
 * doubling, randomised delays; DHCPNAK.
 * Never does: I/O, clocks, configuring anything. Randomness and time are inputs.
 * Beside the RFC: the first delay is 250 ms where it says 4 s (§4.1 thinks of 10 Mbit/s and a server across relays; here
 * the server is the switch one is plugged into), and no ARP probe precedes BOUND, because the server binds an address
 * to the port of the switch and nobody else can use it.
 * Invariant: a message that is not the answer to the running exchange (xid, chaddr, type, server) changes nothing.
 */
import { optionCodes, type Packet, type PacketInit } from '#dhcp-packet'
import type { Lease, LeaseRoute } from './lease.ts'

export type ClientState = 'selecting' | 'requesting' | 'rebooting' | 'renewing' | 'rebinding' | 'bound'

export interface ClientOptions {
  readonly mac: string
  readonly hostname: string
  /** A lease of this nic from before. */
  readonly lease?: Lease
  /** What to do with it: ask for it again from nothing (INIT-REBOOT), or prolong it. */
  readonly begin: 'reboot' | 'renew' | 'rebind' | 'init'
  /** [0, 1) */
  readonly random: () => number
}

/** A message to send: to everybody, or to the server that gave the lease. */
export interface Outgoing {
  readonly packet: PacketInit
  readonly to: 'broadcast' | { readonly address: string; readonly mac: string; readonly from: string }
}

const FIRST_DELAY_MS = 250
const LONGEST_DELAY_MS = 16_000
/** Unanswered messages of a kind before the client begins anew. */
const TRIES = { requesting: 5, rebooting: 4 } as const
const NAK_PAUSE_MS = 500
const DEFAULT_LEASE_S = 3600
const INFINITE = 0xffffffff

export class DhcpClient {
  readonly #o: ClientOptions
  #state: ClientState
  #xid = 0
  #tries = 0
  #began = 0
  #next = 0
  #offer: { readonly address: string; readonly server: string } | undefined
  #lease: Lease | undefined

  /** @param now milliseconds of any clock that does not go back; `wall` is Date.now() at the same moment. */
  constructor(o: ClientOptions, now: number) {
    this.#o = o
    this.#state = 'selecting'
    const begin = o.lease === undefined ? 'init' : o.begin
    this.#enter(
      begin === 'reboot'
        ? 'rebooting'
        : begin === 'renew'
          ? 'renewing'
          : begin === 'rebind'
            ? 'rebinding'
            : 'selecting',
      now,
    )
  }

  get state(): ClientState {
    return this.#state
  }

  /** Present in BOUND. */
  get lease(): Lease | undefined {
    return this.#lease
  }

  /** When `due` has something to say. */
  get deadline(): number {
    return this.#state === 'bound' ? Number.POSITIVE_INFINITY : this.#next
  }

  #enter(state: ClientState, now: number): void {
    this.#state = state
    this.#tries = 0
    this.#next = now
    if (state === 'requesting') return
    // A request goes on with its offer's transaction; everything else is a new one.
    this.#xid = Math.floor(this.#o.random() * 2 ** 32)
    this.#began = now
  }

  /** The message to send now, if any; call it at `deadline`. */
  due(now: number): Outgoing | undefined {
    if (now < this.deadline) return undefined
    const limit = TRIES[this.#state as keyof typeof TRIES]
    if (limit !== undefined && this.#tries >= limit) this.#enter('selecting', now)
    const delay = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#tries)
    this.#tries++
    // RFC 2131 §4.1: randomised, so that VMs which started together do not keep asking together.
    this.#next = now + delay * (0.8 + 0.4 * this.#o.random())
    return this.#message(now)
  }

  #message(now: number): Outgoing {
    const known = this.#o.lease as Lease
    const renewing = this.#state === 'renewing' || this.#state === 'rebinding'
    const common = {
      clientId: Uint8Array.from([1, ...this.#o.mac.split(':').map((x) => Number.parseInt(x, 16))]),
      hostname: this.#o.hostname,
      maxMessageSize: 1400,
      parameterRequestList: WANTED,
    }
    const special =
      this.#state === 'selecting'
        ? { messageType: 'DISCOVER' as const, ...(this.#o.lease ? { requestedAddress: known.address } : {}) }
        : this.#state === 'requesting'
          ? { messageType: 'REQUEST' as const, requestedAddress: this.#offer?.address, serverId: this.#offer?.server }
          : this.#state === 'rebooting'
            ? { messageType: 'REQUEST' as const, requestedAddress: known.address }
            : { messageType: 'REQUEST' as const }
    const packet: PacketInit = {
      op: 'request',
      xid: this.#xid,
      secs: Math.min(0xffff, Math.floor((now - this.#began) / 1000)),
      chaddr: this.#o.mac,
      ciaddr: renewing ? known.address : '0.0.0.0',
      options: { ...special, ...common },
    }
    if (this.#state !== 'renewing') return { packet, to: 'broadcast' }
    return { packet, to: { address: known.server, mac: known.serverMac, from: known.address } }
  }

  /** A packet that arrived from `mac`; `wall` is the clock that the lease is counted by. */
  receive(p: Packet, mac: string, now: number, wall: number): void {
    if (p.op !== 'reply' || p.xid !== this.#xid || p.chaddr.toLowerCase() !== this.#o.mac.toLowerCase()) return
    const type = p.options.messageType
    const server = p.options.serverId
    if (this.#state === 'selecting') {
      if (type !== 'OFFER' || server === undefined || p.yiaddr === '0.0.0.0') return
      this.#offer = { address: p.yiaddr, server }
      this.#enter('requesting', now)
      return
    }
    if (this.#state === 'bound') return
    if (this.#state === 'requesting' && server !== undefined && server !== this.#offer?.server) return
    if (type === 'NAK') {
      this.#enter('selecting', now)
      // A server that says no to everything is not asked in a tight loop.
      this.#next = now + NAK_PAUSE_MS
    } else if (type === 'ACK' && p.yiaddr !== '0.0.0.0') {
      this.#lease = leaseOf(p, mac, wall, this.#o.lease?.server)
      this.#state = 'bound'
    }
  }
}

const WANTED: number[] = (
  [
    'subnetMask',
    'classlessRoutes',
    'routers',
    'dnsServers',
    'domainName',
    'searchDomains',
    'mtu',
    'broadcastAddress',
    'leaseTime',
    'renewalTime',
    'rebindingTime',
  ] as const
).map((n) => optionCodes[n])

/** What an ACK grants. `server` is who gave it, where the ACK itself does not say. */
export function leaseOf(p: Packet, serverMac: string, wall: number, server = '0.0.0.0'): Lease {
  const o = p.options
  const seconds = o.leaseTime ?? DEFAULT_LEASE_S
  const t1 = o.renewalTime ?? Math.floor(seconds / 2)
  const t2 = o.rebindingTime ?? Math.floor(seconds * 0.875)
  const sane = t1 <= t2 && t2 <= seconds
  const prefix = prefixOf(o.subnetMask)
  return {
    address: p.yiaddr,
    prefix,
    server: o.serverId ?? server,
    serverMac,
    routes: routesOf(o.classlessRoutes, o.routers),
    dns: o.dnsServers ?? [],
    search: o.searchDomains ?? (o.domainName ? o.domainName.split(' ') : []),
    mtu: o.mtu,
    leaseMs: seconds === INFINITE ? null : seconds * 1000,
    t1Ms: (sane ? t1 : Math.floor(seconds / 2)) * 1000,
    t2Ms: (sane ? t2 : Math.floor(seconds * 0.875)) * 1000,
    boundAt: wall,
  }
}

/** RFC 3442: with classless routes the router option means nothing. */
function routesOf(
  classless: readonly { readonly to: string; readonly via: string }[] | undefined,
  routers: readonly string[] | undefined,
): LeaseRoute[] {
  if (classless !== undefined)
    return classless.map((r) => {
      const [destination, prefix] = r.to.split('/') as [string, string]
      return { destination, prefix: Number(prefix), gateway: r.via === '0.0.0.0' ? undefined : r.via }
    })
  const first = routers?.[0]
  return first === undefined ? [] : [{ destination: '0.0.0.0', prefix: 0, gateway: first }]
}

/** Bits of a netmask; 24 when there is none or it has holes. */
export function prefixOf(mask: string | undefined): number {
  if (mask === undefined) return 24
  const bits = mask
    .split('.')
    .map((n) => Number(n).toString(2).padStart(8, '0'))
    .join('')
  return /^1+0*$/.test(bits) ? bits.lastIndexOf('1') + 1 : 24
}
