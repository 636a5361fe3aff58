/**
 * The gateway's IPv6: what is for its addresses it answers, what is for elsewhere becomes a flow. The order of decisions is gateway.ts's.
 *
 * Its addresses: ::1 (the router) and fe80::1, ::2 (services) and ::254 where no host interface has it. Neighbour discovery takes ARP's place
 * (RFC 4861): it answers for its own addresses, and says for a VM that its address is taken (guard6.ts); what a VM uses is asked by probe.ts. On a bridge of the kernel, where
 * VMs' own advertisements reach no VM (plugins/bridge/guard.ts), it answers for them what one asks of another. Router advertisements: advertise.ts.
 * Invariants: those of gateway.ts; a packet from a link-local address never leaves its link (RFC 4291 §2.5.6).
 */
import { type Arena, SLOT_FRAME } from '../arena.ts'
import type { RelayContext } from '../flow/context.ts'
import { toLoopback } from '../flow/nat.ts'
import { classOf6, DESTINATION, type Destination, verdict } from '../flow/policy.ts'
import type { Relay } from '../flow/relay.ts'
import { ICMP, OUT } from '../flow/table.ts'
import { find6, findAny, insert6 } from '../flow/tuple.ts'
import type { Frame } from '../frame.ts'
import { ROUTE } from '../host.ts'
import { DHCP6_SERVER } from '../switch/guard6.ts'
import { ROLE } from '../switch/port.ts'
import type { Ports } from '../switch/ports.ts'
import { DROP, type Drop } from '../trace/drops.ts'
import { Address, parseIp } from '../wire/address.ts'
import { be32 } from '../wire/bytes.ts'
import { fold, pseudo, sum } from '../wire/checksum.ts'
import { ETHERNET } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as icmpv6 from '../wire/icmpv6.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { IPV6 } from '../wire/ipv6.ts'
import * as ndp from '../wire/ndp.ts'
import { parseIpv6 } from '../wire/parse.ts'
import * as tcp from '../wire/tcp.ts'
import { type Relays, room } from './admission.ts'
import type { RouterAdvertiser } from './advertise.ts'
import type { Fragments } from './fragments.ts'
import type { Out } from './out.ts'
import { FROM_GATEWAY, FROM_PEER, SAY } from './say.ts'
import { type Datagram, type DatagramService, hand, type Mutable } from './service.ts'

const DNS = 53
const ALL_NODES = parseIp('ff02::1')
const ALL_ROUTERS = parseIp('ff02::2')

export interface Gateway6Config {
  /** The network's /64. */
  readonly p0: number
  readonly p1: number
  readonly gateway: Address
  readonly linkLocal: Address
  readonly services: Address
  readonly hostAddress: Address
  readonly gatewayHi: number
  readonly gatewayLo: number
  readonly isolated: boolean
  /** False: the kernel's bridge is the router, and only services answer here. */
  readonly forwards: boolean
  /** Who has an address, where VMs do not hear each other's advertisements. */
  readonly neighbours?: Neighbours
}

/** What neighbour discovery on behalf of VMs needs to know. */
export interface Neighbours {
  /** The entry of an address, or −1. */
  find(w0: number, w1: number, w2: number, w3: number): number
  portOf(entry: number): number
  macHi(entry: number): number
  macLo(entry: number): number
}

export interface Services6 {
  readonly dns: DatagramService
  readonly dhcp6?: DatagramService
}

export class Gateway6 {
  readonly #x: RelayContext
  readonly #b: Uint8Array
  readonly #out: Out
  readonly #ports: Ports
  readonly #relays: Relays
  readonly #fragments: Fragments
  readonly #config: Gateway6Config
  readonly #opensHost: (f: Frame) => boolean
  readonly #slot: number
  readonly #datagram = { port: 0, off: 0, len: 0, src: new Address(), srcPort: 0, dst: new Address(), dstPort: 0 }
  readonly #src = new Address()
  readonly #dst = new Address()
  readonly advertiser: RouterAdvertiser
  #services!: Services6

  constructor(
    x: RelayContext,
    arena: Arena,
    out: Out,
    ports: Ports,
    relays: Relays,
    fragments: Fragments,
    advertiser: RouterAdvertiser,
    config: Gateway6Config,
    opensHost: (f: Frame) => boolean,
  ) {
    this.#x = x
    this.#b = arena.bytes
    this.#out = out
    this.#ports = ports
    this.#relays = relays
    this.#fragments = fragments
    this.advertiser = advertiser
    this.#config = config
    this.#opensHost = opensHost
    this.#slot = arena.alloc(SLOT_FRAME + ETHERNET + IPV6 + ndp.NEIGHBOUR + ndp.LINK_OPTION) + SLOT_FRAME
  }

  connect(services: Services6): void {
    this.#services = services
  }

  #isTo(f: Frame, a: Address): boolean {
    return same(this.#b, f.l3 + ipv6.DST, a)
  }

  receive(f: Frame): void {
    const b = this.#b
    const { drops } = this.#x
    const config = this.#config
    if (ipv6.isMulticast(ipv6.dst(b, f.l3, 0))) return this.#group(f)
    if (f.fragment === 1) {
      if (!this.#fragments.add(f, this.#x.host.now())) return
      f = this.#fragments.frame
      const bad = parseIpv6(b, f)
      if (bad !== 0) return drops.count(f.port, bad)
    }
    if (this.#isTo(f, config.gateway) || this.#isTo(f, config.services) || this.#isTo(f, config.linkLocal))
      return this.#own(f)
    if (!config.forwards) return drops.count(f.port, DROP['not-router'])
    if (this.#ports.role[f.port] === ROLE.host) return drops.count(f.port, DROP['host-through'])
    if (this.#isTo(f, config.hostAddress)) return this.#toHost(f)
    if (ipv6.hopLimit(b, f.l3) <= 1) {
      drops.count(f.port, DROP.ttl)
      return this.#out.icmpError(f, SAY.ttl, 0, FROM_GATEWAY)
    }
    this.#forward(f)
  }

  // -- groups, neighbours, routers ------------------------------------------------------------------------------------

  #group(f: Frame): void {
    if (f.fragment === 0) {
      if (f.proto === ipv6.ICMPV6) return this.#groupMessage(f)
      if (f.proto === ipv4.UDP && f.dstPort === DHCP6_SERVER) return this.#toService(f)
    }
    this.#x.drops.count(f.port, DROP['broadcast-leaving'])
  }

  #groupMessage(f: Frame): void {
    switch (icmp.type(this.#b, f.l4)) {
      case ndp.NEIGHBOUR_SOLICITATION:
        return this.#neighbour(f)
      case ndp.ROUTER_SOLICITATION:
        if (!icmpv6.sound(this.#b, f.l3, f.l4, f.l4len)) return this.#x.drops.count(f.port, DROP.checksum)
        return this.advertiser.solicited(f.port, f.l3)
      case icmpv6.ECHO:
        // Who is there (ff02::1), and who is a router (ff02::2)?
        if (this.#isTo(f, ALL_NODES) || (this.#config.forwards && this.#isTo(f, ALL_ROUTERS)))
          return this.#echo(f, this.#config.linkLocal)
        break
      case ndp.NEIGHBOUR_ADVERTISEMENT:
      case icmpv6.MLD_QUERY:
      case icmpv6.MLD_REPORT:
      case icmpv6.MLD_DONE:
      case icmpv6.MLD2_REPORT:
        return
    }
    this.#x.drops.count(f.port, DROP['broadcast-leaving'])
  }

  /** A solicitation, which the guard found well-formed: answered when it asks for an address of ours. */
  #neighbour(f: Frame): void {
    const target = this.#dst.read(this.#b, f.l4 + 8)
    const flags = this.#flagsFor(f, target)
    const { gatewayHi, gatewayLo, neighbours } = this.#config
    if (flags >= 0) return this.#answer(f, target, flags, gatewayHi, gatewayLo)
    const entry = neighbours?.find(target.w0, target.w1, target.w2, target.w3) ?? -1
    if (neighbours === undefined || entry < 0) return
    const owner = neighbours.portOf(entry)
    if (owner >= 0 && owner !== f.port) this.#answer(f, target, 0, neighbours.macHi(entry), neighbours.macLo(entry))
  }

  /** Somebody asks for an address that another VM has. */
  defend(f: Frame): void {
    const { gatewayHi, gatewayLo } = this.#config
    this.#answer(f, this.#dst.read(this.#b, f.l4 + 8), 0, gatewayHi, gatewayLo)
  }

  /** @param hi, lo the MAC that the target is at */
  #answer(f: Frame, target: Address, flags: number, hi: number, lo: number): void {
    const b = this.#b
    const { l3, l4 } = f
    const src = this.#src.read(b, l3 + ipv6.SRC)
    const asks = (src.w0 | src.w1 | src.w2 | src.w3) === 0
    if (!icmpv6.sound(b, l3, l4, f.l4len)) return this.#x.drops.count(f.port, DROP.checksum)
    const { linkLocal } = this.#config
    const to = this.#slot + ETHERNET
    ;(asks ? linkLocal : target).write(b, to + ipv6.SRC)
    // Who has no address yet hears what everybody hears.
    if (asks) ipv6.setDst(b, to, 0xff020000, 0, 0, 1)
    else src.write(b, to + ipv6.DST)
    const how = flags | ndp.OVERRIDE | (asks ? 0 : ndp.SOLICITED)
    const at = to + IPV6
    const len = ndp.writeAdvertisement(b, at, how, target.w0, target.w1, target.w2, target.w3, hi, lo)
    icmpv6.seal(b, to, at, len)
    this.#out.sendSmall6(this.#slot, f.port, ipv6.ICMPV6, len, 255)
  }

  /** With which flags the gateway answers for the target; −1: not at all. */
  #flagsFor(f: Frame, target: Address): number {
    const { gateway, services, linkLocal, hostAddress, isolated, forwards } = this.#config
    if (target.equals(gateway) || target.equals(linkLocal) || target.equals(services)) return forwards ? ndp.ROUTER : 0
    const ports = this.#ports
    const hosts = target.equals(hostAddress) && ports.role[f.port] === ROLE.vm && (ports.host < 0 || isolated)
    return hosts ? 0 : -1
  }

  // -- the gateway's own addresses ------------------------------------------------------------------------------------

  #own(f: Frame): void {
    const { drops } = this.#x
    switch (f.proto) {
      case ipv6.ICMPV6:
        if (ndp.isDiscovery(icmp.type(this.#b, f.l4))) return this.#groupMessage(f)
        return this.#echo(f, this.#src.read(this.#b, f.l3 + ipv6.DST))
      case ipv4.UDP:
        if (f.dstPort === DNS || (f.dstPort === DHCP6_SERVER && this.#services.dhcp6 !== undefined))
          return this.#toService(f)
        if (!this.#config.forwards) {
          // A client of a published port that the services speak for.
          const i = this.#find(f, ipv4.UDP)
          if (i >= 0) return this.#relays.udp.receive(i, f)
        }
        drops.count(f.port, DROP.closed)
        return this.#out.icmpError(f, SAY.port, 0, FROM_PEER)
      case ipv4.TCP: {
        const i = this.#find(f, ipv4.TCP)
        if (i >= 0) return this.#relays.tcp.receive(i, f)
        if (f.dstPort === DNS) return this.#begin(f, this.#relays.tcp, ipv4.TCP, false)
        drops.count(f.port, DROP.closed)
        return this.#out.reset(f)
      }
      default:
        drops.count(f.port, DROP.protocol)
        return this.#out.icmpError(f, SAY.protocol, 0, FROM_PEER)
    }
  }

  #echo(f: Frame, us: Address): void {
    const b = this.#b
    const { drops } = this.#x
    const type = icmp.type(b, f.l4)
    if (type !== icmpv6.ECHO) return drops.count(f.port, DROP['icmp-unhandled'])
    if (!icmpv6.sound(b, f.l3, f.l4, f.l4len)) return drops.count(f.port, DROP.checksum)
    const at = this.#out.l4at
    b.copyWithin(at, f.l4, f.l4 + f.l4len)
    icmp.setType(b, at, icmpv6.ECHO_REPLY)
    const guest = this.#dst.read(b, f.l3 + ipv6.SRC)
    this.#out.send6(f.port, us, guest, ipv6.ICMPV6, f.l4len, icmp.CHECKSUM, icmp.ICMP)
  }

  #toService(f: Frame): void {
    const b = this.#b
    const service = f.dstPort === DNS ? this.#services.dns : this.#services.dhcp6
    if (service === undefined) return this.#x.drops.count(f.port, DROP.closed)
    if (f.partialChecksum === 0 && fold(sum(b, f.l4, f.l4len, pseudo(b, f))) !== 0xffff)
      return this.#x.drops.count(f.port, DROP.checksum)
    const d: Mutable<Datagram> = this.#datagram
    d.port = f.port
    d.src.read(b, f.l3 + ipv6.SRC)
    d.srcPort = f.srcPort
    d.dst.read(b, f.l3 + ipv6.DST)
    d.dstPort = f.dstPort
    hand(service, f, d)
  }

  // -- the host's address -------------------------------------------------------------------------------------------

  takesFromHost(f: Frame): boolean {
    if (!this.#isTo(f, this.#config.hostAddress)) return false
    if (f.proto !== ipv4.TCP && f.proto !== ipv4.UDP) return false
    // A fragment names its ports once it is whole; what is not ours is handed on then.
    if (f.fragment === 1) return true
    return this.#opensHost(f) || this.#find(f, f.proto) >= 0
  }

  #toHost(f: Frame): void {
    const { drops } = this.#x
    if (f.proto === ipv4.TCP || f.proto === ipv4.UDP) {
      const relay = f.proto === ipv4.TCP ? this.#relays.tcp : this.#relays.udp
      const i = this.#find(f, f.proto)
      if (i >= 0) return relay.receive(i, f)
      if (this.#opensHost(f)) {
        const rule = verdict(this.#config.isolated, DESTINATION.allowedHostPort, ROUTE.outside)
        return rule === 0 ? this.#begin(f, relay, f.proto, true) : this.#refuse(f, rule)
      }
    }
    const message = f.proto === ipv6.ICMPV6 ? icmp.type(this.#b, f.l4) : -1
    if (!this.#config.isolated) {
      // By a stale neighbour entry, or put together from fragments: the host's interface is there.
      if (this.#ports.host >= 0) return this.#out.pass(f, this.#ports.host)
      if (message === ndp.NEIGHBOUR_SOLICITATION) return this.#neighbour(f)
      if (message >= 0) return this.#echo(f, this.#config.hostAddress)
    }
    if (message === ndp.NEIGHBOUR_SOLICITATION) return this.#neighbour(f)
    if (message >= 0 && message !== icmpv6.ECHO) return drops.count(f.port, DROP['icmp-unhandled'])
    this.#refuse(f, verdict(this.#config.isolated, DESTINATION.hostAddress, ROUTE.outside))
  }

  // -- elsewhere ----------------------------------------------------------------------------------------------------

  #find(f: Frame, proto: number): number {
    const i = find6(this.#x.flows, f.port, proto, this.#b, f.l3 + ipv6.SRC, f.srcPort, f.dstPort)
    return i >= 0 || proto !== ipv4.UDP ? i : this.#findReply(f)
  }

  /**
   * The flow of a published port's client that a VM answers from another of its addresses: a UDP server on :: that does not look where it was
   * spoken to is answered for by its kernel's choice, and a VM has two addresses or more (its own, and what it makes of the prefix). −1: none.
   */
  #findReply(f: Frame): number {
    const { flows } = this.#x
    const own = this.#ports.read6(f.port, this.#src)
    const i = findAny(flows, f.port, ipv4.UDP, own, f.srcPort, this.#dst.read(this.#b, f.l3 + ipv6.DST), f.dstPort)
    return i >= 0 && flows.publish[i] >= 0 ? i : -1
  }

  #forward(f: Frame): void {
    const b = this.#b
    const { drops } = this.#x
    let relay: Relay
    let proto = f.proto
    switch (proto) {
      case ipv4.TCP:
        relay = this.#relays.tcp
        break
      case ipv4.UDP:
        relay = this.#relays.udp
        break
      case ipv6.ICMPV6:
        if (icmp.type(b, f.l4) !== icmpv6.ECHO) return drops.count(f.port, DROP['icmp-unhandled'])
        relay = this.#relays.ping
        proto = ICMP
        // A ping flow's own l4port is the echo id.
        f.srcPort = icmp.id(b, f.l4)
        f.dstPort = 0
        break
      default:
        drops.count(f.port, DROP.protocol)
        return this.#out.icmpError(f, SAY.protocol, 0, FROM_GATEWAY)
    }
    const i = this.#find(f, proto)
    if (i >= 0) return relay.receive(i, f)
    if (proto === ipv4.TCP && (tcp.flags(b, f.l4) & (tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN)) !== tcp.SYN) {
      drops.count(f.port, DROP['no-flow'])
      return this.#out.reset(f)
    }
    const rule = this.#judge(f)
    if (rule !== 0) return this.#refuse(f, rule)
    if (ipv6.isLinkLocal(ipv6.src(b, f.l3, 0))) {
      drops.count(f.port, DROP.scope)
      return this.#out.icmpError(f, SAY.scope, 0, FROM_GATEWAY)
    }
    this.#begin(f, relay, proto, false)
  }

  #judge(f: Frame): Drop {
    const { p0, p1, isolated } = this.#config
    const b = this.#b
    const at = f.l3 + ipv6.DST
    const w0 = be32(b, at)
    const w1 = be32(b, at + 4)
    const destination: Destination =
      w0 === p0 && w1 === p1 ? DESTINATION.subnet : classOf6(w0, w1, be32(b, at + 8), be32(b, at + 12))
    const route = destination === DESTINATION.elsewhere ? this.#x.host.route(at) : ROUTE.outside
    return verdict(isolated, destination, route)
  }

  /** Say no: RST to TCP, ICMP to the rest. Where there is merely no way, that is what is said. */
  #refuse(f: Frame, rule: Drop): void {
    this.#x.drops.count(f.port, rule)
    if (rule === DROP.unreachable) return this.#out.icmpError(f, SAY.net, 0, FROM_GATEWAY)
    if (rule === DROP['no-route']) return this.#out.icmpError(f, SAY.host, 0, FROM_GATEWAY)
    if (f.proto === ipv4.TCP) return this.#out.reset(f)
    this.#out.icmpError(f, SAY.prohibited, 0, FROM_GATEWAY)
  }

  #begin(f: Frame, relay: Relay, proto: number, loopback: boolean): void {
    const x = this.#x
    if (!room(x, this.#relays, relay, f.port)) return
    const at = f.l3 + ipv6.SRC
    const i = insert6(x.flows, f.port, proto, this.#b, at, f.srcPort, f.dstPort, OUT, x.host.now())
    if (i < 0) return x.drops.count(f.port, DROP['flow-table-full'])
    if (loopback) toLoopback(x.flows, i)
    relay.open(i, f)
  }
}

const same = (b: Uint8Array, o: number, a: Address): boolean =>
  be32(b, o + 12) === a.w3 && be32(b, o + 8) === a.w2 && be32(b, o + 4) === a.w1 && be32(b, o) === a.w0
