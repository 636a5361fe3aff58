/**
 * A network: one subnet, one switch, one gateway, composed. The only wiring file of the engine.
 *
 * Owns: the parts and their order of construction, references of host sockets (kind and index), time's distribution, rows for people.
 * Never does: anything with a packet that a part could do.
 * Everything is allocated here; after that only people's rows, warnings, and the services' own bounded memory are.
 *
 * On a medium `bridge` there is one port for all VMs: the index that `receive` is given says nothing, the source MAC does.
 *
 * The data plane calls: `receive` for each frame, `ready` for a socket's event, `flush` before it sleeps, `tick` after each turn and when
 * `nextWake` has come. host.now() stands still during a call.
 */
import type { NetworkConfig, StatsAnswer } from '../dataplane/protocol.ts'
import type { FlowRow } from '../plugins/contract.ts'
import { type DhcpDrop, DhcpServer, dhcpDrops } from './dhcp/server.ts'
import { Dhcp6Server } from './dhcp/server6.ts'
import { type DnsDrop, DnsServer, dnsDrops } from './dns/server.ts'
import { DEFAULT_LIMITS, type Limits, type RelayContext } from './flow/context.ts'
import { Publishes, type PublishRequest } from './flow/publish.ts'
import type { Relay } from './flow/relay.ts'
import { FlowTable, ICMP, OUT, TCP, UDP } from './flow/table.ts'
import { Frame } from './frame.ts'
import { RouterAdvertiser } from './gateway/advertise.ts'
import { Gateway } from './gateway/gateway.ts'
import { IcmpErrors } from './gateway/icmp.ts'
import { Out } from './gateway/out.ts'
import { NeighbourProbe } from './gateway/probe.ts'
import type { Host, Ref } from './host.ts'
import { PingRelay } from './ping/relay.ts'
import { Fdb } from './switch/fdb.ts'
import { type Port, ROLE, type Role } from './switch/port.ts'
import { type Identity, Ports } from './switch/ports.ts'
import { Switch } from './switch/switch.ts'
import { LocalStreams } from './tcp/local.ts'
import { TcpRelay } from './tcp/relay.ts'
import { Timers } from './timers.ts'
import { Capture, Captures } from './trace/capture.ts'
import { DROP, Drops } from './trace/drops.ts'
import { UdpRelay } from './udp/relay.ts'
import { Address, endpointText, parseIp, parsePrefix64, wordsText } from './wire/address.ts'
import { put32 } from './wire/bytes.ts'
import { ETHERNET, macText, parseMac } from './wire/ethernet.ts'
import { addressText, parseAddress, parseSubnet } from './wire/ipv4.ts'
import { eui64Lower, eui64Upper } from './wire/ipv6.ts'
import { CARRIES_IPV4, CARRIES_IPV6, parse } from './wire/parse.ts'

// A reference of a host socket: what it belongs to, and which one of those.
const KIND_FLOW = 0
const KIND_PUBLISH = 1
const KIND_DNS = 2
const KIND_BITS = 2
const KIND_MASK = (1 << KIND_BITS) - 1

/** How often services, reassembly and the forwarding database are told the time, in ms. */
const HOUSEKEEPING = 1000
const MACS_MAX = 8192
/** First 16 bits of the gateway's MAC: locally administered, and no VM's prefix. The rest is its address. */
const GATEWAY_HI = 0x026e

export interface AttachOptions {
  readonly id: string
  readonly role: Role
  /** The VM's name. */
  readonly name: string
  readonly mac: string
  readonly address: string
  /** Its IPv6 address on a network that has IPv6; without a prefix length or with one. */
  readonly address6?: string
  /** Its client holds the lease already. */
  readonly bound: boolean
  readonly port: Port
}

export class Network {
  readonly #host: Host
  readonly #b: Uint8Array
  readonly #frame = new Frame()
  readonly #ports: Ports
  readonly #drops: Drops
  readonly #captures = new Captures()
  readonly #flows: FlowTable
  readonly #timers: Timers
  readonly #switch: Switch
  readonly #gateway: Gateway
  readonly #probe: NeighbourProbe | undefined
  readonly #tcp: TcpRelay
  readonly #udp: UdpRelay
  readonly #ping: PingRelay
  readonly #local: LocalStreams
  readonly #dhcp: DhcpServer
  readonly #dhcp6: Dhcp6Server | undefined
  readonly #dns: DnsServer
  readonly #publishes: Publishes
  /** Every VM is behind one and the same port (a kernel's bridge) and told by its MAC. */
  readonly #shared: boolean
  /** Families, as parse is told. */
  readonly #carries: number
  /** The network's /64. */
  readonly #prefix: { readonly p0: number; readonly p1: number } | undefined
  #housekeepingAt = 0
  #flushedAt = 0

  constructor(host: Host, config: NetworkConfig, limits: Partial<Limits> = {}) {
    const { arena } = host
    const l: Limits = { ...DEFAULT_LIMITS, ...limits }
    const { base: subnet, mask } = parseSubnet(config.subnet)
    const services = parseAddress(config.services)
    // On a bridge the kernel owns .1 and .254 and forwards; here only the services answer, and nothing passes through.
    this.#shared = config.medium === 'bridge'
    const gateway = this.#shared ? services : parseAddress(config.gateway)
    const hostAddress = this.#shared ? 0 : parseAddress(config.hostAddress)
    const isolated = this.#shared || config.isolated
    const { mtu } = config
    const macs = { gatewayHi: GATEWAY_HI, gatewayLo: gateway }
    const ipv6 = config.ipv6 === undefined ? undefined : addresses6(config.ipv6, this.#shared)
    this.#prefix = ipv6
    this.#carries = (config.ipv4 === false ? 0 : CARRIES_IPV4) | (ipv6 === undefined ? 0 : CARRIES_IPV6)
    const forwards = !this.#shared
    const net = { subnet, mask, gateway, services, hostAddress, ...macs, isolated, forwards, ipv6 }
    this.#host = host
    this.#b = arena.bytes
    const ports = new Ports(l.ports)
    const drops = new Drops(l.ports)
    const flows = new FlowTable(l.flows, l.ports, host.random32())
    const timers = new Timers(l.flows, host.now())
    const fdb = new Fdb(Math.min(MACS_MAX, powerOfTwo(l.ports * l.macsPerPort)), l.ports, host.random32())
    const sw = new Switch(host, arena, ports, fdb, drops, this.#captures, {
      ...net,
      macsPerPort: l.macsPerPort,
      floodCopiesPerSecond: l.floodCopiesPerSecond,
    })
    const errors = (out: Out): IcmpErrors =>
      new IcmpErrors(
        host,
        arena,
        out,
        flows,
        drops,
        l.ports,
        gateway,
        ipv6?.gateway ?? new Address(),
        subnet | ~mask,
        l.icmpPerSecond,
      )
    const out = new Out(host, arena, sw, ports, flows, errors, { ...net, mtu })
    const farAt = arena.alloc(16)
    const context: RelayContext = {
      host,
      arena,
      flows,
      timers,
      egress: out,
      drops,
      limits: l,
      mtu,
      ref: (i) => (i << KIND_BITS) | KIND_FLOW,
      far: (i) => {
        put32(arena.bytes, farAt, flows.far0[i])
        put32(arena.bytes, farAt + 4, flows.far1[i])
        put32(arena.bytes, farAt + 8, flows.far2[i])
        put32(arena.bytes, farAt + 12, flows.far3[i])
        return farAt
      },
    }
    this.#ports = ports
    this.#drops = drops
    this.#flows = flows
    this.#timers = timers
    this.#switch = sw
    this.#local = new LocalStreams(host, (ref) => flows.port[ref >> KIND_BITS])
    this.#tcp = new TcpRelay({ ...context, host: this.#local })
    this.#udp = new UdpRelay(context)
    this.#ping = new PingRelay(context)
    const six =
      ipv6 === undefined
        ? undefined
        : {
            advertiser: new RouterAdvertiser(host, arena, out, ports, {
              ...ipv6,
              linkLocal: ipv6.router,
              mac: ipv6.routerMac ?? { hi: GATEWAY_HI, lo: gateway },
              domain: config.domain,
              mtu,
              isolated: config.isolated,
              managed: true,
              shared: this.#shared,
            }),
            config: {
              ...ipv6,
              ...macs,
              isolated,
              forwards,
              neighbours: this.#shared && !config.isolated ? sw.bindings : undefined,
            },
          }
    if (ipv6 !== undefined && sw.bindings !== undefined)
      this.#probe = new NeighbourProbe(arena, out, ports, sw.bindings, { ...ipv6, ...macs })
    if (ipv6 !== undefined)
      for (const a of [ipv6.gateway, ipv6.services, ipv6.linkLocal, ipv6.router])
        sw.guard6?.reserve(a.w0, a.w1, a.w2, a.w3, GATEWAY_HI, gateway)
    this.#gateway = new Gateway(
      context,
      arena,
      out,
      sw,
      ports,
      { tcp: this.#tcp, udp: this.#udp, ping: this.#ping },
      net,
      six,
    )
    sw.connect(this.#gateway)
    if (sw.guard6 !== undefined) sw.guard6.onTaken = this.#gateway.defend
    this.#gateway.allowHostPorts(config.allowHostPorts)
    this.#publishes = new Publishes(
      context,
      ports,
      this.#tcp,
      this.#udp,
      // On a bridge the services speak for whoever has no address there.
      {
        ...net,
        isolated: config.isolated,
        ...(this.#shared ? { hostAddress: services } : {}),
        ...(this.#shared && ipv6 !== undefined ? { ipv6: { ...ipv6, hostAddress: ipv6.services } } : {}),
        bindings: sw.bindings,
      },
      (index) => (index << KIND_BITS) | KIND_PUBLISH,
    )
    this.#tcp.onRefused = (i) => this.#publishes.turn(i)
    const { reply } = this.#gateway
    const dhcpDrop = (port: number, reason: DhcpDrop): void => drops.countNamed(port, reason, dhcpDrops[reason])
    this.#dhcp = new DhcpServer(host, reply, dhcpDrop, config)
    if (ipv6 !== undefined) {
      const { domain, leaseSeconds } = config
      const told = { services: `${ipv6.services}`, linkLocal: `${ipv6.linkLocal}`, domain, mtu, leaseSeconds }
      this.#dhcp6 = new Dhcp6Server(host, reply, dhcpDrop, { ...told, mac: macText(GATEWAY_HI, gateway) })
    }
    this.#dns = new DnsServer(
      {
        host,
        reply,
        drop: (port, reason: DnsDrop) => drops.countNamed(port, reason, dnsDrops[reason]),
        ref: (index) => (index << KIND_BITS) | KIND_DNS,
        speaks: (a) => sw.bindings?.speaks(a.w0, a.w1, a.w2, a.w3) === true,
      },
      config,
    )
    this.#gateway.connect({ dhcp: this.#dhcp, dhcp6: this.#dhcp6, dns: this.#dns })
    this.#local.listen(new Address().set4(services), 53, this.#dns)
    this.#local.listen(new Address().set4(gateway), 53, this.#dns)
    if (ipv6 !== undefined)
      for (const a of [ipv6.services, ipv6.gateway, ipv6.linkLocal]) this.#local.listen(a, 53, this.#dns)
  }

  // -- ports --------------------------------------------------------------------------------------------------------

  /**
   * @returns the port's index, stable until `detach`. A second attach of an id replaces its Port: leases stay, and flows
   * too unless its address is another one.
   * @throws RangeError when addresses cannot be read, every index is taken, or there is a host port already
   */
  attach(a: AttachOptions): number {
    const { hi, lo } = parseMac(a.mac)
    // A VM of a network without IPv4 has no such address.
    const four = (this.#carries & CARRIES_IPV4) !== 0 && a.address !== ''
    const address = four ? parseAddress(a.address.split('/')[0]) : 0
    const six = (this.#carries & CARRIES_IPV6) !== 0 && a.address6 !== undefined
    const address6 = six ? parseIp((a.address6 as string).split('/')[0]) : undefined
    const who: Identity = { id: a.id, role: a.role, name: a.name, macHi: hi, macLo: lo, address, address6 }
    let index = this.#ports.indexOf(a.id)
    if (index >= 0) {
      const same6 = this.#ports.has6(index, address6 ?? NOWHERE)
      if (this.#ports.address[index] !== address || !same6) this.#abortFlows(index)
      this.#switch.release(index)
      this.#ports.replace(index, who, a.port)
    } else {
      index = this.#ports.add(who, a.port)
      this.#drops.clear(index)
    }
    this.#switch.assign(index)
    this.#gateway.attach(index)
    this.#probe?.attach(index)
    if (a.role === ROLE.vm) {
      const { name, mac, bound } = a
      const names: string[] = []
      if (four) names.push(addressText(address))
      if (address6 !== undefined) names.push(`${address6}`)
      // What its kernel makes of the advertised prefix leads back to it as well.
      if (this.#prefix !== undefined)
        names.push(wordsText(this.#prefix.p0, this.#prefix.p1, eui64Upper(hi, lo), eui64Lower(lo)))
      if (four) this.#dhcp.bind(index, { name, mac, address: addressText(address), bound })
      if (address6 !== undefined) this.#dhcp6?.bind(index, { name, mac, address: `${address6}`, bound })
      this.#dns.bind(index, name, names)
    }
    return index
  }

  detach(index: number): void {
    if (index < 0 || index >= this.#ports.end || this.#ports.port[index] === null) return
    this.#abortFlows(index)
    this.#gateway.detach(index)
    this.#probe?.detach(index)
    this.#dhcp.unbind(index)
    this.#dhcp6?.unbind(index)
    this.#dns.unbind(index)
    this.#ports.remove(index)
    this.#switch.release(index)
    this.#captures.forget(index)
  }

  #abortFlows(port: number): void {
    for (let i = this.#flows.oldest(port); i >= 0; i = this.#flows.oldest(port)) this.#relayOf(i).abort(i)
  }

  // -- from the data plane ------------------------------------------------------------------------------------------

  /** One Ethernet frame at (off, len) of the arena; when the port has offloads its vnet header lies VNET bytes before it. */
  receive(index: number, off: number, len: number): void {
    const ports = this.#ports
    if (this.#shared) {
      // What a bridge floods is not for us unless it is.
      index = len < ETHERNET || !this.#switch.isOurs(off) ? -1 : this.#switch.portOfSource(off)
      if (index < 0) return
    }
    const port = ports.port[index]
    if (port === null || port === undefined) return this.#drops.count(-1, DROP['port-gone'])
    ports.framesIn[index]++
    ports.bytesIn[index] += len
    const captures = this.#captures
    if (captures.active) captures.arrived(index, this.#b, off, len)
    const f = this.#frame
    f.off = off
    f.len = len
    f.port = index
    const bad = parse(this.#b, f, port.offload, this.#carries)
    if (bad !== 0) return this.#drops.count(index, bad)
    this.#switch.receive(f)
    if (captures.active) captures.settle()
    this.#local.turn(this.#readyLocal)
  }

  /** A frame that port `index` had put off (port.ts) could not be sent: −errno. */
  lost(index: number, error: number, len: number): void {
    this.#switch.lost(index, error, len)
  }

  /** Nothing more to do for now, or a millisecond has passed: acknowledgments that are owed, and that no answer has carried, go out. */
  flush(): void {
    this.#tcp.flush()
  }

  /** Is there a guest that may be waiting for `flush`, now that nothing is ready? */
  get urgent(): boolean {
    return this.#tcp.urgent
  }

  /** A host socket has something. True: call again this turn, its budget is spent. */
  ready(ref: Ref, events: number): boolean {
    const again = this.#ready(ref, events)
    this.#local.turn(this.#readyLocal)
    return again
  }

  readonly #readyLocal = (ref: Ref, events: number): void => {
    this.#ready(ref, events)
  }

  #ready(ref: Ref, events: number): boolean {
    const index = ref >> KIND_BITS
    switch (ref & KIND_MASK) {
      case KIND_FLOW:
        return this.#flows.inUse(index) && this.#relayOf(index).ready(index, events)
      case KIND_PUBLISH:
        return this.#publishes.ready(index, events)
      case KIND_DNS:
        return this.#dns.ready(index, events)
      default:
        return false
    }
  }

  #relayOf(i: number): Relay {
    switch (this.#flows.proto[i]) {
      case TCP:
        return this.#tcp
      case UDP:
        return this.#udp
      default:
        return this.#ping
    }
  }

  readonly #expire = (i: number): void => this.#relayOf(i).expire(i)

  /** Timers that are due fire. */
  tick(): void {
    const now = this.#host.now()
    if (now !== this.#flushedAt) {
      this.#flushedAt = now
      this.flush()
    }
    this.#timers.advance(now, this.#expire)
    if (this.#dns.wake() <= now) this.#dns.tick(now)
    if (now >= this.#housekeepingAt) {
      this.#housekeepingAt = now + HOUSEKEEPING
      this.#dhcp.tick(now)
      this.#dhcp6?.tick(now)
      this.#dns.tick(now)
      this.#local.tick(now)
      this.#gateway.tick(now)
      this.#probe?.tick(now)
      this.#switch.tick(now)
      this.#publishes.tick()
    }
    this.#local.turn(this.#readyLocal)
  }

  /** When `tick` is due next, in ms of host.now(); Infinity when nothing runs. */
  nextWake(): number {
    if (this.#ports.end === 0) return Infinity
    return Math.min(this.#timers.nextWake(), this.#dns.wake(), this.#housekeepingAt)
  }

  // -- control ------------------------------------------------------------------------------------------------------

  /** Forward a host socket to a VM: a listening TCP socket or a bound UDP one, which is the network's from now on. */
  publish(p: PublishRequest): void {
    this.#publishes.add(p)
  }

  /** Close it. UDP flows end with it, TCP connections go on. */
  unpublish(id: string): void {
    this.#publishes.remove(id)
  }

  /** The host's name servers; what cannot be used is left out, with a warning. */
  setResolvers(list: readonly string[]): void {
    for (const text of this.#dns.setServers(list))
      this.#host.notify({ type: 'warning', message: `${text} cannot be used as a name server` })
  }

  /** Ports of the host's loopback that VMs may reach at the host's address, from now on. Flows that exist go on. */
  allowHostPorts(list: readonly number[]): void {
    this.#gateway.allowHostPorts(list)
  }

  /**
   * Begin to write every frame that comes or goes to a ring, until `endCapture`.
   * @param o.only a port's index, −1 for all
   * @param o.clock microseconds since 1970
   */
  capture(o: { readonly only: number; readonly snapLength?: number; readonly clock: () => number }): Capture {
    const capture = new Capture({ ...o, describe: (port) => this.#ports.name[port] })
    this.#captures.add(capture)
    this.#drops.observer = this.#captures
    return capture
  }

  endCapture(c: Capture): void {
    this.#captures.remove(c)
    if (!this.#captures.active) this.#drops.observer = undefined
  }

  /** The network ends (not: its process is started again): guests learn that this is no router any more. */
  retire(): void {
    this.#gateway.retire()
  }

  // -- for people ---------------------------------------------------------------------------------------------------

  stats(): StatsAnswer {
    return {
      flows: this.#flowRows(),
      leases: [...this.#dhcp.rows(), ...(this.#dhcp6?.rows() ?? [])],
      drops: this.#drops.rows((port) => this.#ports.name[port]),
      ports: this.#ports.rows(),
      warnings: [],
    }
  }

  #flowRows(): FlowRow[] {
    const flows = this.#flows
    const now = this.#host.now()
    const rows: FlowRow[] = []
    for (let i = 0; i < flows.capacity; i++) {
      if (!flows.inUse(i)) continue
      const proto = flows.proto[i]
      const { guest0, guest1, guest2, guest3, peer0, peer1, peer2, peer3 } = flows
      const end = proto === ICMP ? wordsText : endpointText
      const guest = end(guest0[i], guest1[i], guest2[i], guest3[i], flows.guestPort[i])
      const peer = end(peer0[i], peer1[i], peer2[i], peer3[i], flows.peerPort[i])
      rows.push({
        proto: proto === TCP ? 'tcp' : proto === UDP ? 'udp' : 'icmp',
        vm: this.#ports.name[flows.port[i]],
        guest,
        peer,
        direction: flows.direction[i] === OUT ? 'out' : 'in',
        state: this.#relayOf(i).stateName(i),
        ageMs: now - flows.createdAt[i],
        idleMs: now - flows.usedAt[i],
        bytesOut: flows.bytesOut[i],
        bytesIn: flows.bytesIn[i],
      })
    }
    return rows
  }

  /** Refusals, by port and reason. */
  get drops(): Drops {
    return this.#drops
  }
}

const powerOfTwo = (n: number): number => 2 ** Math.ceil(Math.log2(n))

const NOWHERE = new Address()

/**
 * The addresses of the IPv6 side. On a bridge of the kernel the router is the bridge: services answer at ::2 and fe80::2, and router advertisements say
 * what the configuration says of it.
 */
function addresses6(spec: NonNullable<NetworkConfig['ipv6']>, shared: boolean) {
  const services = parseIp(spec.services)
  const router = parseIp(spec.routerLinkLocal ?? 'fe80::1')
  return {
    ...parsePrefix64(spec.subnet),
    services,
    gateway: shared ? services : parseIp(spec.gateway),
    hostAddress: shared ? new Address() : parseIp(spec.hostAddress),
    router,
    routerMac: spec.routerMac === undefined ? undefined : parseMac(spec.routerMac),
    linkLocal: shared ? parseIp('fe80::2') : router,
    advertises: !shared || spec.routerLinkLocal !== undefined,
  }
}
