/**
 * The DHCPv6 server of a network (RFC 8415 §18.3, with RFC 3646 and 4704).
 *
 * Owns: the conversation with clients. As in server.ts each switch port has one address, which the control plane chose: one IA_NA of a client
 * gets it (the one that names it already, or else the first), whatever its DUID and IAID are; every other association is refused with a
 * status code, and so are temporary addresses and prefixes. An address that a client holds and that is not its own gets lifetimes of zero, which
 * takes it away at once.
 * Never does: relaying (a relay's message is dropped), unicast, reconfiguring, trusting the client about anything but what it
 * wants to be sent. Routers are not DHCPv6's business: a default route comes by router advertisement.
 * Invariants: nothing that arrives throws; every message that is not answered is counted with a reason; a port's messages are rationed;
 * no answer is longer than the network's MTU, and no list in one longer than MANY.
 */
import {
  type Address6,
  DhcpError,
  decode,
  duidLinkLayer,
  encode,
  type Ia,
  type MessageType6,
  type Options6,
  optionCodes6,
  type Packet6,
  type Status,
  statusCodes,
} from '#dhcp-packet/v6'
import type { Datagram, DatagramService, Reply } from '../gateway/service.ts'
import type { Host } from '../host.ts'
import { type Address, parseIp } from '../wire/address.ts'
import { type Binding, type Lease, type LeaseInfo, Leases } from './leases.ts'
import { printable, Ration, Reports } from './ration.ts'
import type { DhcpDrop } from './server.ts'

export const SERVER_PORT6 = 547
export const CLIENT_PORT6 = 546

/** What the server says of its network. */
export interface Dhcp6Network {
  /** Name server: the services' address. */
  readonly services: string
  /** The gateway's, of which the server's DUID is made. */
  readonly mac: string
  /** Where answers come from: the gateway's link-local address. */
  readonly linkLocal: string
  readonly domain: string
  readonly mtu: number
  readonly leaseSeconds: number
}

/** Associations of a message that are answered, and addresses in one. */
const MANY = 8
/** Bytes of IP and UDP headers. */
const HEADERS = 48
/** RFC 8415 §21.8: a client need not wait for others. */
const PREFERENCE = 255
const RELAY_FORW = 12
const RELAY_REPL = 13

export class Dhcp6Server implements DatagramService {
  readonly #host: Host
  readonly #reply: Reply
  readonly #drop: (port: number, reason: DhcpDrop) => void
  readonly #leases: Leases
  readonly #ration = new Ration()
  readonly #reports: Reports
  readonly #network: Dhcp6Network
  readonly #linkLocal: Address
  readonly #duid: Uint8Array

  constructor(host: Host, reply: Reply, drop: (port: number, reason: DhcpDrop) => void, network: Dhcp6Network) {
    this.#host = host
    this.#reply = reply
    this.#drop = drop
    this.#network = network
    this.#linkLocal = parseIp(network.linkLocal)
    this.#duid = duidLinkLayer(network.mac)
    this.#reports = new Reports(host)
    this.#leases = new Leases((l) => this.#reports.lease(l))
  }

  /** Give a port its address. Idempotent; another address than before starts over, and the client's next message takes the old one from it. */
  bind(port: number, b: Binding): void {
    this.#leases.bind(port, { ...b, address: parseIp(b.address).toString() }, this.#host.now(), this.#leaseMs)
  }

  unbind(port: number): void {
    this.#leases.unbind(port)
    this.#ration.forget(port)
    this.#reports.forget(port)
  }

  rows(): LeaseInfo[] {
    return this.#leases.rows(this.#host.now())
  }

  tick(now: number): void {
    this.#leases.tick(now)
    this.#reports.tick(now)
  }

  receive(d: Datagram): void {
    const refusal = this.#take(d, this.#host.now())
    if (refusal !== undefined) this.#drop(d.port, refusal)
  }

  #take(d: Datagram, now: number): DhcpDrop | undefined {
    const lease = this.#leases.get(d.port)
    if (lease === undefined) return 'dhcp-unknown-port'
    if (!this.#ration.allows(d.port, now)) return 'dhcp-flood'
    const { bytes } = this.#host.arena
    const type = d.len > 0 ? bytes[d.off] : 0
    if (type === RELAY_FORW || type === RELAY_REPL) return 'dhcp-relayed'
    try {
      const p = decode(bytes.subarray(d.off, d.off + d.len))
      const refusal = this.#admit(p)
      if (refusal !== undefined) return refusal
      const { clientFqdn } = p.options
      if (clientFqdn !== undefined) lease.hostname = printable(clientFqdn.name.replace(/\.$/, ''))
      return this.#handle(lease, p, d.src, now)
    } catch (e) {
      if (e instanceof DhcpError) return e.code === 'ERR_DHCP_SPACE' ? 'dhcp-too-long' : 'dhcp-malformed'
      throw e
    }
  }

  /** §16: what each message must have and must not have. */
  #admit({ type, options }: Packet6): DhcpDrop | undefined {
    const { clientId, serverId, ia, iaTemporary, iaPrefix } = options
    switch (type) {
      case 'SOLICIT':
      case 'CONFIRM':
      case 'REBIND':
        return clientId === undefined || serverId !== undefined ? 'dhcp-malformed' : undefined
      case 'REQUEST':
      case 'RENEW':
      case 'DECLINE':
      case 'RELEASE':
        if (clientId === undefined || serverId === undefined) return 'dhcp-malformed'
        return sameBytes(serverId, this.#duid) ? undefined : 'dhcp-other-server'
      case 'INFORMATION-REQUEST':
        if (ia !== undefined || iaTemporary !== undefined || iaPrefix !== undefined) return 'dhcp-malformed'
        return serverId === undefined || sameBytes(serverId, this.#duid) ? undefined : 'dhcp-other-server'
      default:
        return 'dhcp-malformed'
    }
  }

  #handle(l: Lease, p: Packet6, client: Address, now: number): DhcpDrop | undefined {
    const { ia = [], rapidCommit } = p.options
    /** It was declined a moment ago. */
    const held = l.state === 'declined' && now < l.heldUntil
    switch (p.type) {
      case 'SOLICIT': {
        if (held) return 'dhcp-declined'
        const commits = rapidCommit === true && ia.length > 0
        if (commits) this.#leases.acknowledge(l, now, this.#leaseMs)
        else if (ia.length > 0) this.#leases.offer(l, now)
        const more: Options6 = commits ? { rapidCommit: true } : { preference: PREFERENCE }
        return this.#send(l, p, client, commits ? 'REPLY' : 'ADVERTISE', { ...more, ...this.#associations(l, p) })
      }
      case 'REQUEST':
      case 'RENEW':
      case 'REBIND':
        if (held) return 'dhcp-declined'
        if (ia.length > 0) this.#leases.acknowledge(l, now, this.#leaseMs)
        return this.#send(l, p, client, 'REPLY', this.#associations(l, p))
      case 'CONFIRM': {
        // §18.3.3: is the client where it thinks it is? With an address that is not its own it has to begin again.
        const claimed = ia.flatMap((i) => i.addresses)
        if (claimed.length === 0) return 'dhcp-malformed'
        const status = claimed.every((a) => a.address === l.address)
          ? OK
          : { code: statusCodes.notOnLink, message: `the address of ${l.name} is ${l.address}` }
        return this.#send(l, p, client, 'REPLY', { status })
      }
      case 'RELEASE':
      case 'DECLINE': {
        const mine = ia.some((i) => i.addresses.some((a) => a.address === l.address))
        if (mine && p.type === 'RELEASE') this.#leases.release(l)
        else if (mine) {
          this.#leases.decline(l, now)
          this.#reports.declined(l)
        }
        return this.#send(l, p, client, 'REPLY', { status: OK, ia: unknown(ia, l.address) })
      }
      default:
        // INFORMATION-REQUEST
        return this.#send(l, p, client, 'REPLY', {})
    }
  }

  /** §18.3.1, .2, .4, .5: the answer to each association of a client that wants addresses, or wants to keep them. */
  #associations(l: Lease, { type, options }: Packet6): Options6 {
    const { ia = [], iaTemporary = [], iaPrefix = [] } = options
    const named = ia.findIndex((i) => i.addresses.some((a) => a.address === l.address))
    const owner = Math.max(0, named)
    const keeps = type === 'RENEW' || type === 'REBIND'
    const valid = this.#network.leaseSeconds
    const none: Status = keeps
      ? { code: statusCodes.noBinding, message: 'a VM has one address' }
      : { code: statusCodes.noAddrsAvail, message: 'a VM has one address' }
    const noTemporary = { code: statusCodes.noAddrsAvail, message: 'temporary addresses are the client’s own to make' }
    const noPrefix = { code: statusCodes.noPrefixAvail, message: 'prefixes are not delegated' }
    return {
      ia: ia.slice(0, MANY).map(({ iaid, addresses }, i) => {
        const gone = addresses.filter((a) => a.address !== l.address).slice(0, MANY)
        const ended: Address6[] = keeps ? gone.map(({ address }) => ({ address, preferred: 0, valid: 0 })) : []
        if (i !== owner) return { iaid, t1: 0, t2: 0, addresses: ended, status: none }
        const own = { address: l.address, preferred: valid, valid }
        // §14.2: renew after a half, rebind after eight tenths.
        return { iaid, t1: Math.floor(valid / 2), t2: Math.floor((valid * 4) / 5), addresses: [own, ...ended] }
      }),
      iaTemporary: iaTemporary.slice(0, MANY).map(({ iaid }) => ({ iaid, addresses: [], status: noTemporary })),
      iaPrefix: iaPrefix.slice(0, MANY).map(({ iaid }) => ({ iaid, t1: 0, t2: 0, prefixes: [], status: noPrefix })),
    }
  }

  #send(l: Lease, p: Packet6, client: Address, type: MessageType6, options: Options6): undefined {
    const room = new Uint8Array(this.#network.mtu - HEADERS)
    const { clientId } = p.options
    const more = { ...options, ...this.#parameters(l, p) }
    encode({ type, transactionId: p.transactionId, options: { clientId, serverId: this.#duid, ...more } }, room)
    this.#reply(l.port, this.#linkLocal, SERVER_PORT6, client, CLIENT_PORT6, room, encode.bytes)
    return undefined
  }

  /** What a client asked for; who asks for nothing in particular is told where names are resolved. */
  #parameters(l: Lease, { options }: Packet6): Options6 {
    const { services, domain } = this.#network
    const { optionRequest, clientFqdn } = options
    const wants = (code: number): boolean => optionRequest === undefined || optionRequest.includes(code)
    const told: Options6 = {}
    if (wants(optionCodes6.dnsServers)) told.dnsServers = [services]
    if (wants(optionCodes6.searchDomains)) told.searchDomains = [domain]
    if (clientFqdn !== undefined)
      told.clientFqdn = {
        // RFC 4704 §6: the server does the update, and says so if the client had wished otherwise.
        serverUpdates: true,
        override: !clientFqdn.serverUpdates,
        noServerUpdates: false,
        name: `${l.name}.${domain}.`,
      }
    return told
  }

  get #leaseMs(): number {
    return this.#network.leaseSeconds * 1000
  }
}

const OK: Status = { code: statusCodes.success, message: '' }

/** §18.3.7, .8: associations that hold nothing of this client's, each said to be unknown. */
const unknown = (ia: readonly Ia[], own: string): Ia[] =>
  ia
    .filter((i) => !i.addresses.some((a) => a.address === own))
    .slice(0, MANY)
    .map(({ iaid }) => ({
      iaid,
      t1: 0,
      t2: 0,
      addresses: [],
      status: { code: statusCodes.noBinding, message: 'nothing of it is yours' },
    }))

const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((v, i) => v === b[i])
