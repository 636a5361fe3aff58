/**
 * The gateway: the network's own layer 3. What is for its addresses it answers; what is for elsewhere becomes a flow. IPv6: gateway6.ts.
 *
 * Its addresses: .1 (the router), .2 (services: DHCP, DNS; asked at .1 they answer too) and .254 where no host interface has it.
 * Owns: the order of decisions for a packet that goes up from the switch: neighbour, fragments, own address or not, TTL, flow
 * table, policy, NAT, relay. Never does: sockets, payload, text.
 * Invariants: a packet whose flow exists is never judged again; policy and NAT run once for each flow, before its relay opens;
 * nothing addressed to a group leaves the network.
 */
import type { Arena } from '../arena.ts'
import type { RelayContext } from '../flow/context.ts'
import { toLoopback } from '../flow/nat.ts'
import { classOf, DESTINATION, type Destination, verdict } from '../flow/policy.ts'
import type { Relay } from '../flow/relay.ts'
import { OUT } from '../flow/table.ts'
import { find4, insert4, writeMapped } from '../flow/tuple.ts'
import type { Frame } from '../frame.ts'
import { ROUTE } from '../host.ts'
import { ROLE } from '../switch/port.ts'
import type { Ports } from '../switch/ports.ts'
import type { Switch, Uplink } from '../switch/switch.ts'
import { DROP, type Drop } from '../trace/drops.ts'
import { Address } from '../wire/address.ts'
import * as arp from '../wire/arp.ts'
import { fold, pseudo4, sum } from '../wire/checksum.ts'
import * as ethernet from '../wire/ethernet.ts'
import { TYPE_ARP } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import { parseL4 } from '../wire/parse.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import { type Relays, room } from './admission.ts'
import type { RouterAdvertiser } from './advertise.ts'
import { answer } from './arp.ts'
import { Fragments } from './fragments.ts'
import { Gateway6, type Gateway6Config } from './gateway6.ts'
import type { Out } from './out.ts'
import { FROM_GATEWAY, FROM_PEER, SAY } from './say.ts'
import { type Datagram, type DatagramService, hand, type Mutable, type Reply } from './service.ts'

const DHCP_SERVER = 67
const DNS = 53

export interface GatewayConfig {
  readonly gateway: number
  readonly services: number
  readonly hostAddress: number
  readonly gatewayHi: number
  readonly gatewayLo: number
  readonly subnet: number
  readonly mask: number
  readonly isolated: boolean
  /** False: the kernel's bridge is the router, and only services answer here. */
  readonly forwards: boolean
}

export interface Services {
  readonly dhcp: DatagramService
  readonly dns: DatagramService
  /** Datagrams to port 547, at ff02::1:2 or the gateway's and services' own addresses. Absent: counted as closed. */
  readonly dhcp6?: DatagramService
}

export class Gateway implements Uplink {
  readonly #x: RelayContext
  readonly #b: Uint8Array
  readonly #out: Out
  readonly #switch: Switch
  readonly #ports: Ports
  readonly #config: GatewayConfig
  readonly #broadcast: number
  readonly #relays: Relays
  readonly #fragments: Fragments
  readonly #scratch: number
  readonly #datagram = { port: 0, off: 0, len: 0, src: new Address(), srcPort: 0, dst: new Address(), dstPort: 0 }
  readonly #allowHost = new Uint8Array(65536)
  readonly #six: Gateway6 | undefined
  #services!: Services

  constructor(
    x: RelayContext,
    arena: Arena,
    out: Out,
    sw: Switch,
    ports: Ports,
    relays: Relays,
    config: GatewayConfig,
    six?: { readonly advertiser: RouterAdvertiser; readonly config: Gateway6Config },
  ) {
    this.#x = x
    this.#b = arena.bytes
    this.#out = out
    this.#switch = sw
    this.#ports = ports
    this.#relays = relays
    this.#config = config
    this.#broadcast = config.subnet | ~config.mask
    this.#fragments = new Fragments(arena, x.drops, x.limits.reassemblies)
    this.#scratch = arena.alloc(16)
    if (six !== undefined)
      this.#six = new Gateway6(x, arena, out, ports, relays, this.#fragments, six.advertiser, six.config, (f) =>
        this.#opensHost(f),
      )
  }

  connect(services: Services): void {
    this.#services = services
    this.#six?.connect(services)
  }

  allowHostPorts(list: readonly number[]): void {
    this.#allowHost.fill(0)
    for (const p of list) this.#allowHost[p] = 1
  }

  /** How services answer. */
  readonly reply: Reply = (port, src, srcPort, dst, dstPort, bytes, len, dstMac) => {
    let hi = dstMac?.hi ?? -1
    let lo = dstMac?.lo ?? 0
    if (hi < 0 && dst.w3 === ipv4.LIMITED_BROADCAST && dst.family === 4) {
      hi = ethernet.BROADCAST_HI
      lo = ethernet.BROADCAST_LO
    }
    this.#out.datagram(port, hi, lo, src, srcPort, dst, dstPort, bytes, len)
  }

  // -- in -----------------------------------------------------------------------------------------------------------

  receive(f: Frame): void {
    if (f.family === 4) this.#ipv4(f)
    else if (f.etherType === TYPE_ARP) this.#arp(f)
    else (this.#six as Gateway6).receive(f)
  }

  #arp(f: Frame): void {
    const b = this.#b
    const ports = this.#ports
    const sender = arp.senderIp(b, f.l3)
    if (sender === ports.address[f.port]) this.#station(f.port, arp.senderHi(b, f.l3), arp.senderLo(b, f.l3))
    if (arp.op(b, f.l3) !== arp.REQUEST) return
    const target = arp.targetIp(b, f.l3)
    const { gateway, services, hostAddress, gatewayHi, gatewayLo, isolated } = this.#config
    const hosts = target === hostAddress && ports.role[f.port] === ROLE.vm && (ports.host < 0 || isolated)
    if (target === gateway || target === services || hosts) answer(b, f, this.#switch, target, gatewayHi, gatewayLo)
  }

  /** Where a port's address was heard from. */
  #station(port: number, hi: number, lo: number): void {
    this.#ports.neighbourHi[port] = hi
    this.#ports.neighbourLo[port] = lo
  }

  #ipv4(f: Frame): void {
    const b = this.#b
    const { drops } = this.#x
    const config = this.#config
    const dst = ipv4.dst(b, f.l3)
    const group = ethernet.isGroup(ethernet.dstHi(b, f.off))
    if (group || dst === ipv4.LIMITED_BROADCAST || dst === this.#broadcast || ipv4.isMulticast(dst)) {
      if (f.proto === ipv4.UDP && f.dstPort === DHCP_SERVER && f.fragment === 0) return this.#toService(f, dst)
      return drops.count(f.port, DROP['broadcast-leaving'])
    }
    if (ipv4.src(b, f.l3) === this.#ports.address[f.port])
      this.#station(f.port, ethernet.srcHi(b, f.off), ethernet.srcLo(b, f.off))
    if (f.fragment === 1) {
      if (!this.#fragments.add(f, this.#x.host.now())) return
      f = this.#fragments.frame
      const bad = parseL4(b, f)
      if (bad !== 0) return drops.count(f.port, bad)
    }
    if (dst === config.gateway || dst === config.services) return this.#own(f, dst)
    if (!config.forwards) return drops.count(f.port, DROP['not-router'])
    if (this.#ports.role[f.port] === ROLE.host) return drops.count(f.port, DROP['host-through'])
    if (dst === config.hostAddress) return this.#toHost(f, dst)
    if (ipv4.ttl(b, f.l3) <= 1) {
      drops.count(f.port, DROP.ttl)
      return this.#out.icmpError(f, SAY.ttl, 0, FROM_GATEWAY)
    }
    this.#forward(f, dst)
  }

  // -- the gateway's own addresses ------------------------------------------------------------------------------------

  #own(f: Frame, dst: number): void {
    const b = this.#b
    const { drops } = this.#x
    switch (f.proto) {
      case ipv4.ICMP:
        return this.#echo(f, dst)
      case ipv4.UDP:
        if (f.dstPort === DNS || f.dstPort === DHCP_SERVER) return this.#toService(f, dst)
        drops.count(f.port, DROP.closed)
        return this.#out.icmpError(f, SAY.port, 0, FROM_PEER)
      case ipv4.TCP: {
        const i = find4(this.#x.flows, f.port, ipv4.TCP, ipv4.src(b, f.l3), f.srcPort, dst, f.dstPort)
        if (i >= 0) return this.#relays.tcp.receive(i, f)
        if (f.dstPort === DNS) return this.#begin(f, dst, this.#relays.tcp, false)
        drops.count(f.port, DROP.closed)
        return this.#out.reset(f)
      }
      default:
        drops.count(f.port, DROP.protocol)
        return this.#out.icmpError(f, SAY.protocol, 0, FROM_PEER)
    }
  }

  #echo(f: Frame, dst: number): void {
    const b = this.#b
    const { drops } = this.#x
    if (icmp.type(b, f.l4) !== icmp.ECHO) return drops.count(f.port, DROP['icmp-unhandled'])
    if (!icmp.sound(b, f.l4, f.l4len)) return drops.count(f.port, DROP.checksum)
    const at = this.#out.l4at
    b.copyWithin(at, f.l4, f.l4 + f.l4len)
    icmp.setType(b, at, icmp.ECHO_REPLY)
    this.#out.send(f.port, dst, ipv4.src(b, f.l3), ipv4.ICMP, f.l4len, icmp.CHECKSUM, 0, 0, icmp.ICMP)
  }

  #toService(f: Frame, dst: number): void {
    const b = this.#b
    if (f.partialChecksum === 0 && udp.checksum(b, f.l4) !== 0) {
      const pseudo = pseudo4(ipv4.src(b, f.l3), dst, ipv4.UDP, f.l4len)
      if (fold(sum(b, f.l4, f.l4len, pseudo)) !== 0xffff) return this.#x.drops.count(f.port, DROP.checksum)
    }
    const d: Mutable<Datagram> = this.#datagram
    d.port = f.port
    d.src.set4(ipv4.src(b, f.l3))
    d.srcPort = f.srcPort
    d.dst.set4(dst)
    d.dstPort = f.dstPort
    const service: DatagramService = f.dstPort === DNS ? this.#services.dns : this.#services.dhcp
    hand(service, f, d)
  }

  // -- the host's address -------------------------------------------------------------------------------------------

  takesFromHost(f: Frame): boolean {
    if (f.family === 6) return (this.#six as Gateway6).takesFromHost(f)
    const b = this.#b
    if (ipv4.dst(b, f.l3) !== this.#config.hostAddress) return false
    if (f.proto !== ipv4.TCP && f.proto !== ipv4.UDP) return false
    // A fragment names its ports once it is whole; what is not ours is handed on then.
    if (f.fragment === 1) return true
    if (this.#opensHost(f)) return true
    return this.#findOut(f, this.#config.hostAddress) >= 0
  }

  #opensHost(f: Frame): boolean {
    return (f.proto === ipv4.TCP || f.proto === ipv4.UDP) && this.#allowHost[f.dstPort] === 1
  }

  #toHost(f: Frame, dst: number): void {
    const { drops } = this.#x
    if (f.proto === ipv4.TCP || f.proto === ipv4.UDP) {
      const relay = f.proto === ipv4.TCP ? this.#relays.tcp : this.#relays.udp
      const i = this.#findOut(f, dst)
      if (i >= 0) return relay.receive(i, f)
      if (this.#opensHost(f)) {
        const rule = verdict(this.#config.isolated, DESTINATION.allowedHostPort, ROUTE.outside)
        return rule === 0 ? this.#begin(f, dst, relay, true) : this.#refuse(f, rule)
      }
    }
    if (!this.#config.isolated) {
      // By a stale ARP entry, or put together from fragments: the host's interface is there.
      if (this.#ports.host >= 0) return this.#out.pass(f, this.#ports.host)
      if (f.proto === ipv4.ICMP) return this.#echo(f, dst)
    }
    if (f.proto === ipv4.ICMP && icmp.type(this.#b, f.l4) !== icmp.ECHO)
      return drops.count(f.port, DROP['icmp-unhandled'])
    this.#refuse(f, verdict(this.#config.isolated, DESTINATION.hostAddress, ROUTE.outside))
  }

  // -- elsewhere ----------------------------------------------------------------------------------------------------

  #findOut(f: Frame, dst: number): number {
    return find4(this.#x.flows, f.port, f.proto, ipv4.src(this.#b, f.l3), f.srcPort, dst, f.dstPort)
  }

  #forward(f: Frame, dst: number): void {
    const b = this.#b
    const { drops } = this.#x
    let relay: Relay
    switch (f.proto) {
      case ipv4.TCP:
        relay = this.#relays.tcp
        break
      case ipv4.UDP:
        relay = this.#relays.udp
        break
      case ipv4.ICMP:
        if (icmp.type(b, f.l4) !== icmp.ECHO) return drops.count(f.port, DROP['icmp-unhandled'])
        relay = this.#relays.ping
        // A ping flow's own l4port is the echo id.
        f.srcPort = icmp.id(b, f.l4)
        f.dstPort = 0
        break
      default:
        drops.count(f.port, DROP.protocol)
        return this.#out.icmpError(f, SAY.protocol, 0, FROM_GATEWAY)
    }
    const i = this.#findOut(f, dst)
    if (i >= 0) return relay.receive(i, f)
    if (f.proto === ipv4.TCP && (tcp.flags(b, f.l4) & (tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN)) !== tcp.SYN) {
      drops.count(f.port, DROP['no-flow'])
      return this.#out.reset(f)
    }
    const rule = this.#judge(dst)
    if (rule !== 0) return this.#refuse(f, rule)
    this.#begin(f, dst, relay, false)
  }

  #judge(dst: number): Drop {
    const { subnet, mask, isolated } = this.#config
    const destination: Destination = (dst & mask) === subnet ? DESTINATION.subnet : classOf(dst)
    if (destination !== DESTINATION.elsewhere) return verdict(isolated, destination, ROUTE.outside)
    writeMapped(this.#b, this.#scratch, dst)
    return verdict(isolated, destination, this.#x.host.route(this.#scratch))
  }

  /** Say no: RST to TCP, ICMP to the rest. Where there is merely no way, that is what is said. */
  #refuse(f: Frame, rule: Drop): void {
    this.#x.drops.count(f.port, rule)
    if (rule === DROP.unreachable) return this.#out.icmpError(f, SAY.net, 0, FROM_GATEWAY)
    if (rule === DROP['no-route']) return this.#out.icmpError(f, SAY.host, 0, FROM_GATEWAY)
    if (f.proto === ipv4.TCP) return this.#out.reset(f)
    this.#out.icmpError(f, SAY.prohibited, 0, FROM_GATEWAY)
  }

  #begin(f: Frame, dst: number, relay: Relay, loopback: boolean): void {
    const { flows, drops, host } = this.#x
    if (!room(this.#x, this.#relays, relay, f.port)) return
    const src = ipv4.src(this.#b, f.l3)
    const i = insert4(flows, f.port, f.proto, src, f.srcPort, dst, f.dstPort, OUT, host.now())
    if (i < 0) return drops.count(f.port, DROP['flow-table-full'])
    if (loopback) toLoopback(flows, i)
    relay.open(i, f)
  }

  // -- time, and ports that go ----------------------------------------------------------------------------------------

  tick(now: number): void {
    this.#fragments.tick(now, this.#late)
    this.#six?.advertiser.tick(now)
  }

  readonly #late = (f: Frame): void => this.#out.icmpError(f, SAY.reassembly, 0, FROM_GATEWAY)

  attach(port: number): void {
    this.#six?.advertiser.attach(port)
  }

  /** Tell who asks for an IPv6 address that it is taken. */
  readonly defend = (f: Frame): void => this.#six?.defend(f)

  /** The network ends: guests are told that this is no router any more. */
  retire(): void {
    this.#six?.advertiser.retire()
  }

  detach(port: number): void {
    this.#six?.advertiser.detach(port)
    this.#fragments.clear(port)
  }
}
