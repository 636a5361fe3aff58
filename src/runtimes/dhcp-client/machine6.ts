/**
 * A DHCPv6 client as a state machine: packets and the time go in, packets and a lease come out. One address (IA_NA), one link.
 *
 * Owns: RFC 8415 §18.2 from Solicit with Rapid Commit (or Advertise and Request) to bound, and Renew and Rebind of a lease;
 * retransmission with doubling, randomised delays (§15); a server's refusal.
 * Never does: I/O, clocks, configuring anything, release (the address belongs to the VM's nic and ends with it), duplicate address
 * detection (the switch binds an address to its port).
 * The first delay is 250 ms where the RFC says 1 s, for the reason of machine.ts.
 * Invariant: a message that is not the answer to the running exchange (transaction, client's DUID, type, server) changes nothing.
 */
import { duidLinkLayer, type MessageType6, type Options6, optionCodes6, type Packet6 } from '#dhcp-packet/v6'
import type { Lease6 } from './lease.ts'

export type ClientState6 = 'soliciting' | 'requesting' | 'renewing' | 'rebinding' | 'bound'

export interface ClientOptions6 {
  readonly mac: string
  readonly hostname: string
  /** Of this nic, from before: prolonged, or named as a wish. */
  readonly lease?: Lease6
  readonly begin: 'solicit' | 'renew' | 'rebind'
  /** [0, 1) */
  readonly random: () => number
}

const FIRST_DELAY_MS = 250
const LONGEST_DELAY_MS = 16_000
const REQUEST_TRIES = 5
const REFUSED_PAUSE_MS = 500
const INFINITE = 0xffffffff
/** A VM has one nic. */
const IAID = 1
const WANTED = [optionCodes6.dnsServers, optionCodes6.searchDomains, optionCodes6.solicitMaxRt]
const MESSAGES: Readonly<Record<Exclude<ClientState6, 'bound'>, MessageType6>> = {
  soliciting: 'SOLICIT',
  requesting: 'REQUEST',
  renewing: 'RENEW',
  rebinding: 'REBIND',
}

const bytesOf = (hex: string): Uint8Array => Uint8Array.from(Buffer.from(hex, 'hex'))
const hexOf = (b: Uint8Array): string => Buffer.from(b).toString('hex')

export class DhcpClient6 {
  readonly #o: ClientOptions6
  readonly #duid: Uint8Array
  #state: ClientState6 = 'soliciting'
  #transaction = 0
  #tries = 0
  #began = 0
  #next = 0
  /** In `requesting`: who offered, and what. */
  #offer: { readonly server: Uint8Array; readonly address: string } | undefined
  #lease: Lease6 | undefined

  /** @param now milliseconds of any clock that does not go back. */
  constructor(o: ClientOptions6, now: number) {
    this.#o = o
    this.#duid = duidLinkLayer(o.mac)
    const begin = o.lease === undefined ? 'solicit' : o.begin
    this.#enter(begin === 'renew' ? 'renewing' : begin === 'rebind' ? 'rebinding' : 'soliciting', now)
  }

  get state(): ClientState6 {
    return this.#state
  }

  /** Present when bound. */
  get lease(): Lease6 | undefined {
    return this.#lease
  }

  /** When `due` has something to say. */
  get deadline(): number {
    return this.#state === 'bound' ? Number.POSITIVE_INFINITY : this.#next
  }

  #enter(state: ClientState6, now: number): void {
    this.#state = state
    this.#tries = 0
    this.#next = now
    this.#began = now
    // §16.1: each exchange has a transaction of its own, its retransmissions have the same.
    this.#transaction = Math.floor(this.#o.random() * 2 ** 24)
  }

  /** The message to send now, if any; call it at `deadline`. */
  due(now: number): Packet6 | undefined {
    if (now < this.deadline) return undefined
    if (this.#state === 'requesting' && this.#tries >= REQUEST_TRIES) this.#enter('soliciting', now)
    const delay = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#tries)
    this.#tries++
    this.#next = now + delay * (0.9 + 0.2 * this.#o.random())
    return this.#message(now)
  }

  #message(now: number): Packet6 {
    const state = this.#state as Exclude<ClientState6, 'bound'>
    const address = state === 'requesting' ? this.#offer?.address : this.#o.lease?.address
    const server =
      state === 'requesting'
        ? this.#offer?.server
        : state === 'renewing' && this.#o.lease !== undefined
          ? bytesOf(this.#o.lease.server)
          : undefined
    const options: Options6 = {
      clientId: this.#duid,
      ...(server === undefined ? {} : { serverId: server }),
      ...(state === 'soliciting' ? { rapidCommit: true } : {}),
      ia: [
        {
          iaid: IAID,
          t1: 0,
          t2: 0,
          addresses: address === undefined ? [] : [{ address, preferred: 0, valid: 0 }],
        },
      ],
      optionRequest: WANTED,
      elapsedTime: Math.min(0xffff, Math.floor((now - this.#began) / 10)),
      clientFqdn: { serverUpdates: false, override: false, noServerUpdates: false, name: this.#o.hostname },
    }
    return { type: MESSAGES[state], transactionId: this.#transaction, options }
  }

  /** A packet that arrived; `wall` is the clock that the lease is counted by. */
  receive(p: Packet6, now: number, wall: number): void {
    const { clientId, serverId } = p.options
    if (this.#state === 'bound' || p.transactionId !== this.#transaction || serverId === undefined) return
    if (clientId === undefined || hexOf(clientId) !== hexOf(this.#duid)) return
    const granted = grantOf(p)
    if (this.#state === 'soliciting' && p.type === 'ADVERTISE') {
      if (granted === undefined) return
      this.#offer = { server: serverId, address: granted.address }
      this.#enter('requesting', now)
      return
    }
    if (p.type !== 'REPLY') return
    if (this.#state === 'soliciting' && p.options.rapidCommit !== true) return
    if (this.#state === 'requesting' && hexOf(serverId) !== hexOf(this.#offer?.server ?? new Uint8Array())) return
    if (granted !== undefined) {
      this.#lease = leaseOf6(p, granted, hexOf(serverId), wall)
      this.#state = 'bound'
      return
    }
    this.#enter('soliciting', now)
    // A server that says no to everything is not asked in a tight loop.
    this.#next = now + REFUSED_PAUSE_MS
  }
}

interface Grant {
  readonly address: string
  readonly preferred: number
  readonly valid: number
  readonly t1: number
  readonly t2: number
}

/** The address that a message grants to our association, if it does. */
function grantOf(p: Packet6): Grant | undefined {
  if ((p.options.status?.code ?? 0) !== 0) return undefined
  const ia = p.options.ia?.find((a) => a.iaid === IAID && (a.status?.code ?? 0) === 0)
  const a = ia?.addresses.find((x) => x.valid > 0 && x.preferred <= x.valid && (x.status?.code ?? 0) === 0)
  return ia === undefined || a === undefined ? undefined : { ...a, t1: ia.t1, t2: ia.t2 }
}

function leaseOf6(p: Packet6, g: Grant, server: string, wall: number): Lease6 {
  const endless = g.valid === INFINITE
  // §21.4: times of zero, or without order, leave it to the client; half and four fifths of the preferred lifetime.
  const preferred = g.preferred === INFINITE ? g.valid : g.preferred
  const said = g.t1 > 0 && g.t1 <= g.t2 && g.t2 <= g.valid
  return {
    address: g.address,
    server,
    dns: p.options.dnsServers ?? [],
    search: (p.options.searchDomains ?? []).map((d) => d.replace(/\.$/, '')),
    leaseMs: endless ? null : g.valid * 1000,
    t1Ms: (said ? g.t1 : Math.floor(preferred * 0.5)) * 1000,
    t2Ms: (said ? g.t2 : Math.floor(preferred * 0.8)) * 1000,
    boundAt: wall,
  }
}
