/**
 * The DHCP server of a network (RFC 2131 §4.3, with RFC 2132, 3442, 3397, 4039, 4702, 6842).
 *
 * Owns: the conversation with clients. Each switch port has one address, which the control plane chose (leases.ts); so
 * nothing is allocated here and no two clients ever compete. A request for any other address is refused with a NAK, which
 * sends the client back to DISCOVER at once.
 * Never does: relaying (a message with giaddr is dropped), talking to ports that have no address, answering for other
 * servers, trusting the client about anything but what it wants to be sent.
 * Invariants: nothing that arrives throws; every message that is not answered is counted with a reason; a port's messages
 * are rationed, so that a guest which floods costs little and floods neither the store that leases are reported to nor the log.
 */
import { DhcpError, decode, encode, type Packet } from '#dhcp-packet'
import type { Datagram, DatagramService, Reply } from '../gateway/service.ts'
import type { Host } from '../host.ts'
import { Address, parseIp } from '../wire/address.ts'
import { LIMITED_BROADCAST } from '../wire/ipv4.ts'
import { type Binding, type Lease, type LeaseInfo, Leases } from './leases.ts'
import { type DhcpNetwork, leaseOptions, type ReplyOptions } from './options.ts'
import { printable, Ration, Reports } from './ration.ts'
import { BROADCAST_MAC, type Mac, stationOf } from './station.ts'

export const SERVER_PORT = 67
export const CLIENT_PORT = 68

/** Reasons a message is not answered, and what they mean to a person. */
export const dhcpDrops = {
  'dhcp-malformed': 'a DHCP message could not be read',
  'dhcp-relayed': 'a DHCP message came through a relay; relays are not served',
  'dhcp-unknown-port': 'a DHCP message came from a port that has no address to give',
  'dhcp-other-server': 'a client took the offer of another DHCP server; is one running in a VM?',
  'dhcp-declined': 'the client said that its address is in use; it is offered again after ten seconds',
  'dhcp-not-its-own': 'a client spoke of an address that is not its own',
  'dhcp-too-long': 'the answer does not fit into what the client can receive',
  'dhcp-flood': 'a VM sent more DHCP messages than a client ever needs',
} as const
export type DhcpDrop = keyof typeof dhcpDrops

/** Bytes of IP and UDP headers, which a client's maximum message size includes. */
const HEADERS = 28
/** What every client can receive (RFC 2131 §2). */
const MIN_MESSAGE = 576
const ANY = '0.0.0.0'
const EVERYBODY = new Address().set4(LIMITED_BROADCAST)

export class DhcpServer implements DatagramService {
  readonly #host: Host
  readonly #reply: Reply
  readonly #drop: (port: number, reason: DhcpDrop) => void
  readonly #leases: Leases
  readonly #ration = new Ration()
  readonly #reports: Reports
  readonly #network: DhcpNetwork
  readonly #serverAddress: Address

  constructor(host: Host, reply: Reply, drop: (port: number, reason: DhcpDrop) => void, network: DhcpNetwork) {
    this.#host = host
    this.#reply = reply
    this.#drop = drop
    this.#network = network
    this.#serverAddress = parseIp(network.services)
    this.#reports = new Reports(host)
    this.#leases = new Leases((l) => this.#reports.lease(l))
  }

  /** Give a port its address. Idempotent; another address than before starts over, and the client's next message is NAKed. */
  bind(port: number, b: Binding): void {
    this.#leases.bind(port, b, this.#host.now(), this.#leaseMs)
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
    try {
      const p = decode(this.#host.arena.bytes.subarray(d.off, d.off + d.len))
      const station = stationOf(p.chaddr)
      if (p.op !== 'request' || p.htype !== 1 || station === undefined) return 'dhcp-malformed'
      if (p.giaddr !== ANY) return 'dhcp-relayed'
      lease.mac = p.chaddr
      if (p.options.hostname !== undefined) lease.hostname = printable(p.options.hostname)
      return this.#handle(lease, p, station, now)
    } catch (e) {
      if (e instanceof DhcpError) return e.code === 'ERR_DHCP_SPACE' ? 'dhcp-too-long' : 'dhcp-malformed'
      throw e
    }
  }

  #handle(l: Lease, p: Packet, station: Mac, now: number): DhcpDrop | undefined {
    switch (p.options.messageType) {
      case 'DISCOVER':
        return this.#discover(l, p, station, now)
      case 'REQUEST':
        return this.#request(l, p, station, now)
      case 'DECLINE':
        if (p.options.serverId !== this.#network.services) return 'dhcp-other-server'
        if (p.options.requestedAddress !== l.address) return 'dhcp-not-its-own'
        this.#leases.decline(l, now)
        this.#reports.declined(l)
        return undefined
      case 'RELEASE':
        if (p.options.serverId !== this.#network.services) return 'dhcp-other-server'
        if (p.ciaddr !== l.address) return 'dhcp-not-its-own'
        this.#leases.release(l)
        return undefined
      case 'INFORM':
        // §4.3.5: parameters, and neither an address nor times.
        if (p.ciaddr !== l.address) return 'dhcp-not-its-own'
        this.#send(l, p, station, 'ACK', { lease: false })
        return undefined
      default:
        return 'dhcp-malformed'
    }
  }

  #discover(l: Lease, p: Packet, station: Mac, now: number): DhcpDrop | undefined {
    if (l.state === 'declined' && now < l.heldUntil) return 'dhcp-declined'
    if (p.options.rapidCommit) {
      this.#leases.acknowledge(l, now, this.#leaseMs)
      this.#send(l, p, station, 'ACK', { lease: true, rapidCommit: true })
    } else {
      this.#leases.offer(l, now)
      this.#send(l, p, station, 'OFFER', { lease: true })
    }
    return undefined
  }

  /** §4.3.2: which of its four states the client is in shows in what it fills in. */
  #request(l: Lease, p: Packet, station: Mac, now: number): DhcpDrop | undefined {
    const { serverId, requestedAddress } = p.options
    if (serverId !== undefined && serverId !== this.#network.services) {
      if (l.state === 'offered') this.#leases.release(l)
      return 'dhcp-other-server'
    }
    // SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in ciaddr.
    const wanted = requestedAddress ?? (serverId === undefined && p.ciaddr !== ANY ? p.ciaddr : undefined)
    if (wanted === undefined) return 'dhcp-malformed'
    if (wanted !== l.address) {
      this.#refuse(l, p, `${wanted} is not the address of ${l.name}`)
      return undefined
    }
    if (l.state === 'declined' && now < l.heldUntil) return 'dhcp-declined'
    this.#leases.acknowledge(l, now, this.#leaseMs)
    this.#send(l, p, station, 'ACK', { lease: true })
    return undefined
  }

  #send(l: Lease, p: Packet, station: Mac, messageType: 'OFFER' | 'ACK', how: ReplyOptions): void {
    const limit = Math.max(MIN_MESSAGE, p.options.maxMessageSize ?? 0)
    const bytes = encode(
      {
        op: 'reply',
        xid: p.xid,
        broadcast: p.broadcast,
        ciaddr: messageType === 'ACK' ? p.ciaddr : ANY,
        yiaddr: how.lease ? l.address : ANY,
        chaddr: p.chaddr,
        options: { messageType, ...leaseOptions(this.#network, l, p, how) },
      },
      undefined,
      0,
      Math.min(limit, this.#network.mtu) - HEADERS,
    )
    // §4.1: to ciaddr when the client has one, else broadcast if it asks for that, else to yiaddr at its MAC. A ciaddr that got
    // this far is the port's own address.
    const known = messageType === 'ACK' && p.ciaddr !== ANY
    const broadcast = p.broadcast && !known
    this.#emit(l.port, broadcast ? EVERYBODY : parseIp(l.address), bytes, broadcast ? BROADCAST_MAC : station)
  }

  #refuse(l: Lease, p: Packet, message: string): void {
    const { clientId } = p.options
    const bytes = encode({
      op: 'reply',
      xid: p.xid,
      broadcast: p.broadcast,
      chaddr: p.chaddr,
      options: { messageType: 'NAK', serverId: this.#network.services, clientId, message },
    })
    this.#emit(l.port, EVERYBODY, bytes, BROADCAST_MAC)
  }

  #emit(port: number, dst: Address, bytes: Uint8Array, mac: Mac): void {
    this.#reply(port, this.#serverAddress, SERVER_PORT, dst, CLIENT_PORT, bytes, bytes.length, mac)
  }

  get #leaseMs(): number {
    return this.#network.leaseSeconds * 1000
  }
}
