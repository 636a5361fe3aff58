/**
 * The switch: a frame comes in by one port and leaves by others, or goes up to the gateway.
 *
 * Owns: learning with ageing (fdb.ts), the guard of each port, flooding within bounds (storm.ts), isolation, the rules of the host's port, delivery with
 * software offloads for ports that have none. Never does: anything above layer 3's addresses.
 *
 * The guard (who may say what):
 *  - a VM sends from any MAC that is nobody else's: not another port's (assigned or learned), not the gateway's, not a group's;
 *  - it sends IPv4 from its own address only; from 0.0.0.0 only DHCP requests; ARP only in its own name (or a probe, RFC 5227);
 *  - it gives no DHCP answers, no ICMP redirects, no router advertisements; IPv6 and its neighbour discovery: guard6.ts;
 *  - the host's port sends from its own MAC and from .254 only, so that the host never routes into the network.
 * The host's port receives only what is for .254, and broadcasts of the subnet: the host's kernel must never become a router for a guest.
 * On an isolated network a VM's frames go to the gateway and nowhere else.
 *
 * Invariants: a frame never leaves by the port it came from; DHCP requests are seen by the gateway alone; nothing here allocates
 * but the warning about a duplicate MAC, at most one per minute and port.
 */
import { type Arena, VNET } from '../arena.ts'
import type { Frame } from '../frame.ts'
import { EAGAIN, ECONNREFUSED, EIO, ENETDOWN, ENOBUFS, ENOTCONN, type Host } from '../host.ts'
import type { Captures } from '../trace/capture.ts'
import { DROP, type Drop, type Drops, dropComment } from '../trace/drops.ts'
import type { Address } from '../wire/address.ts'
import * as arp from '../wire/arp.ts'
import * as ethernet from '../wire/ethernet.ts'
import { TYPE_ARP } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as ndp from '../wire/ndp.ts'
import * as vnet from '../wire/vnet.ts'
import { Bindings, PER_PORT } from './bindings.ts'
import type { Fdb } from './fdb.ts'
import { DHCP6_SERVER, Guard6 } from './guard6.ts'
import { ROLE, WAY, type Way } from './port.ts'
import type { Ports } from './ports.ts'
import { SoftwareOffload } from './segment.ts'
import { StormControl } from './storm.ts'

/** What lies above the switch: the gateway. */
export interface Uplink {
  /** A frame for the gateway's MAC, or a broadcast. It may use the frame's bytes. */
  receive(f: Frame): void
  /** Is this packet for the host's address one of a flow of the gateway's (a published port's client, --allow-host)? */
  takesFromHost(f: Frame): boolean
}

export interface SwitchConfig {
  readonly gatewayHi: number
  readonly gatewayLo: number
  readonly subnet: number
  readonly mask: number
  readonly hostAddress: number
  /** Undefined: the network has no IPv6. */
  readonly ipv6?: { readonly p0: number; readonly p1: number; readonly hostAddress: Address }
  readonly isolated: boolean
  readonly macsPerPort: number
  readonly floodCopiesPerSecond: number
}

const DHCP_SERVER = 67
const DHCP_CLIENT = 68
/** How often one port's duplicate MAC is reported. */
const WARN_INTERVAL = 60_000

export class Switch {
  readonly #host: Host
  readonly #b: Uint8Array
  readonly #ports: Ports
  readonly #fdb: Fdb
  readonly #drops: Drops
  readonly #captures: Captures
  readonly #config: SwitchConfig
  readonly #broadcast: number
  readonly #software: SoftwareOffload
  readonly #storm: StormControl
  readonly #warnedAt: Float64Array
  /** Whose an IPv6 address is; undefined on a network without. */
  readonly bindings: Bindings | undefined
  readonly guard6: Guard6 | undefined
  #uplink!: Uplink

  constructor(
    host: Host,
    arena: Arena,
    ports: Ports,
    fdb: Fdb,
    drops: Drops,
    captures: Captures,
    config: SwitchConfig,
  ) {
    this.#host = host
    this.#b = arena.bytes
    this.#ports = ports
    this.#fdb = fdb
    this.#drops = drops
    this.#captures = captures
    this.#config = config
    this.#broadcast = config.subnet | ~config.mask
    this.#software = new SoftwareOffload(arena)
    this.#storm = new StormControl(ports.capacity, config.floodCopiesPerSecond)
    this.#warnedAt = new Float64Array(ports.capacity).fill(-Infinity)
    const { ipv6: six } = config
    if (six !== undefined) {
      this.bindings = new Bindings(powerOfTwo(ports.capacity * (PER_PORT + 4)), ports.capacity, host.random32())
      this.guard6 = new Guard6(arena.bytes, ports, this.bindings, six.p0, six.p1)
    }
  }

  connect(uplink: Uplink): void {
    this.#uplink = uplink
  }

  /** A frame that `parse` found sound. */
  receive(f: Frame): void {
    const bad = this.#ports.role[f.port] === ROLE.vm ? this.#guard(f) : this.#guardHost(f)
    if (bad !== 0) return this.#drops.count(f.port, bad)
    const b = this.#b
    const hi = ethernet.dstHi(b, f.off)
    const lo = ethernet.dstLo(b, f.off)
    const config = this.#config
    if (hi === config.gatewayHi && lo === config.gatewayLo) return this.#uplink.receive(f)
    if (ethernet.isGroup(hi)) return this.#group(f)
    const to = this.#fdb.lookup(hi, lo)
    if (to >= 0) return this.#unicast(f, to)
    // Nobody has been heard with this MAC: everybody is asked, as a switch does.
    if (config.isolated) return this.#drops.count(f.port, DROP.isolated)
    this.#flood(f, false)
  }

  #unicast(f: Frame, to: number): void {
    if (to === f.port) return this.#drops.count(f.port, DROP.hairpin)
    if (this.#ports.role[to] === ROLE.host) {
      if (f.family !== 0) {
        if (this.#uplink.takesFromHost(f)) return this.#uplink.receive(f)
        if (!this.#isHosts(f)) return this.#drops.count(f.port, DROP['host-foreign'])
      }
    }
    if (this.#config.isolated) return this.#drops.count(f.port, DROP.isolated)
    this.deliver(to, f.off, f.len, WAY.stays)
  }

  /** Is it for an address of the host's interface? */
  #isHosts(f: Frame): boolean {
    const b = this.#b
    if (f.family === 4) return ipv4.dst(b, f.l3) === this.#config.hostAddress
    const w0 = ipv6.dst(b, f.l3, 0)
    if (ipv6.isLinkLocal(w0)) return true
    const own = this.#config.ipv6?.hostAddress
    return (
      own?.w0 === w0 &&
      own.w1 === ipv6.dst(b, f.l3, 1) &&
      own.w2 === ipv6.dst(b, f.l3, 2) &&
      own.w3 === ipv6.dst(b, f.l3, 3)
    )
  }

  /** Broadcast and multicast: to the gateway and, unless isolated, to every port that may see it. */
  #group(f: Frame): void {
    const b = this.#b
    if (f.etherType === TYPE_ARP) {
      if (!this.#config.isolated) this.#flood(f, true)
      return this.#uplink.receive(f)
    }
    if (f.family === 6) return this.#group6(f)
    if (f.proto === ipv4.UDP && f.dstPort === DHCP_SERVER) return this.#uplink.receive(f)
    if (!this.#config.isolated) {
      const dst = ipv4.dst(b, f.l3)
      this.#flood(f, dst === ipv4.LIMITED_BROADCAST || dst === this.#broadcast)
    }
    this.#uplink.receive(f)
  }

  /** What is for routers and DHCP servers the gateway alone sees; the host is asked for its MAC like everybody, and hears of nothing else. */
  #group6(f: Frame): void {
    const type = f.proto === ipv6.ICMPV6 && f.fragment === 0 ? icmp.type(this.#b, f.l4) : -1
    const routers = type === ndp.ROUTER_SOLICITATION || (f.proto === ipv4.UDP && f.dstPort === DHCP6_SERVER)
    if (!this.#config.isolated && !routers)
      this.#flood(f, type === ndp.NEIGHBOUR_SOLICITATION || type === ndp.NEIGHBOUR_ADVERTISEMENT)
    this.#uplink.receive(f)
  }

  #flood(f: Frame, hostToo: boolean): void {
    const ports = this.#ports
    if (!this.#storm.allows(f.port, Math.max(1, ports.end - 1), this.#host.now()))
      return this.#drops.count(f.port, DROP.storm)
    for (let p = 0; p < ports.end; p++)
      if (p !== f.port && ports.port[p] !== null && (hostToo || ports.role[p] === ROLE.vm))
        this.deliver(p, f.off, f.len)
  }

  /**
   * Send a frame with its vnet header to a port. ≥ 0, or −errno; what fails is counted for that port.
   */
  deliver(to: number, off: number, len: number, way: Way = WAY.now): number {
    const ports = this.#ports
    const port = ports.port[to]
    if (port === null || port === undefined) {
      this.#drops.count(-1, DROP['port-gone'])
      return -ENOBUFS
    }
    const hdr = off - VNET
    const asks = (vnet.flags(this.#b, hdr) & vnet.NEEDS_CSUM) | vnet.gsoType(this.#b, hdr)
    const r = port.offload || asks === 0 ? port.transmit(off, len, way) : this.#software.transmit(port, off, len)
    if (r < 0) {
      const reason = this.#countLost(to, r)
      if (this.#captures.active) this.#captures.left(to, this.#b, off, len, dropComment(reason))
      return r
    }
    if (this.#captures.active) this.#captures.left(to, this.#b, off, len, undefined)
    ports.framesOut[to]++
    ports.bytesOut[to] += len
    return r
  }

  /** A frame that a port had put off could not be sent after all. */
  lost(to: number, error: number, len: number): void {
    this.#countLost(to, error)
    if (to < 0) return
    this.#ports.framesOut[to]--
    this.#ports.bytesOut[to] -= len
  }

  #countLost(to: number, error: number): Drop {
    const busy = error === -EAGAIN || error === -ENOBUFS
    const absent = error === -ENOTCONN || error === -ECONNREFUSED || error === -EIO || error === -ENETDOWN
    const reason = DROP[busy ? 'port-busy' : absent ? 'port-absent' : 'port-error']
    this.#drops.count(to, reason)
    return reason
  }

  // -- guards -------------------------------------------------------------------------------------------------------

  #guard(f: Frame): Drop {
    const b = this.#b
    const { port, l3 } = f
    const own = this.#ports.address[port]
    const bad = this.#guardMac(f)
    if (bad !== 0) return bad
    if (f.family === 4) {
      const src = ipv4.src(b, l3)
      if (f.proto === ipv4.UDP) {
        // Some clients take an answer from any port.
        if (f.dstPort === DHCP_CLIENT) return DROP['guard-dhcp-server']
        if (src === ipv4.ANY && f.srcPort === DHCP_CLIENT && f.dstPort === DHCP_SERVER) return 0
      } else if (f.proto === ipv4.ICMP && ipv4.fragmentOffset(b, l3) === 0) {
        const type = icmp.type(b, f.l4)
        if (type === icmp.REDIRECT || type === icmp.ROUTER_ADVERTISEMENT) return DROP['guard-redirect']
      }
      return src === own && own !== 0 ? 0 : DROP['guard-address']
    }
    if (f.family === 6) return (this.guard6 as Guard6).check(f, this.#host.now())
    const sender = arp.senderIp(b, l3)
    if (sender !== own && sender !== ipv4.ANY) return DROP['guard-arp']
    if (arp.senderHi(b, l3) !== ethernet.srcHi(b, f.off) || arp.senderLo(b, l3) !== ethernet.srcLo(b, f.off))
      return DROP['guard-arp']
    return 0
  }

  /** May the port use its source MAC? Learns it if so. */
  #guardMac(f: Frame): Drop {
    const b = this.#b
    const port = f.port
    const hi = ethernet.srcHi(b, f.off)
    const lo = ethernet.srcLo(b, f.off)
    const fdb = this.#fdb
    const now = this.#host.now()
    let entry = fdb.find(hi, lo)
    if (entry >= 0 && fdb.portOf(entry) !== port && fdb.isOld(entry, now)) {
      fdb.remove(entry)
      entry = -1
    }
    if (entry >= 0) {
      if (fdb.portOf(entry) !== port) {
        this.#reportDuplicate(port, fdb.portOf(entry), hi, lo, now)
        return DROP['guard-mac']
      }
      fdb.seen(entry, now)
      return 0
    }
    const config = this.#config
    if (ethernet.isGroup(hi) || (hi === config.gatewayHi && lo === config.gatewayLo)) return DROP['guard-mac']
    if (fdb.ofPort(port) >= config.macsPerPort || !fdb.add(hi, lo, port, false, now)) return DROP['guard-mac-limit']
    return 0
  }

  #guardHost(f: Frame): Drop {
    const b = this.#b
    const { port, l3 } = f
    const own = this.#config.hostAddress
    if (ethernet.srcHi(b, f.off) !== this.#ports.macHi[port] || ethernet.srcLo(b, f.off) !== this.#ports.macLo[port])
      return DROP['guard-host']
    if (f.family === 4) {
      if (f.proto === ipv4.UDP && f.dstPort === DHCP_CLIENT) return DROP['guard-dhcp-server']
      return ipv4.src(b, l3) === own ? 0 : DROP['guard-host']
    }
    if (f.family === 6) return (this.guard6 as Guard6).check(f, this.#host.now()) === 0 ? 0 : DROP['guard-host']
    const sender = arp.senderIp(b, l3)
    return sender === own || sender === ipv4.ANY ? 0 : DROP['guard-host']
  }

  #reportDuplicate(port: number, other: number, hi: number, lo: number, now: number): void {
    if (now - this.#warnedAt[port] < WARN_INTERVAL) return
    this.#warnedAt[port] = now
    const names = this.#ports.name
    this.#host.notify({
      type: 'warning',
      message: `${names[port]} sends from MAC ${ethernet.macText(hi, lo)}, which belongs to ${names[other]}; its frames are refused`,
    })
  }

  // -- a bridge of the kernel in front of one port ---------------------------------------------------------------------

  /** Is the frame at `off` for the gateway's MAC, or for a group? */
  isOurs(off: number): boolean {
    const hi = ethernet.dstHi(this.#b, off)
    return (
      ethernet.isGroup(hi) || (hi === this.#config.gatewayHi && ethernet.dstLo(this.#b, off) === this.#config.gatewayLo)
    )
  }

  /** The port that its source MAC is assigned to, or −1. */
  portOfSource(off: number): number {
    return this.#fdb.lookup(ethernet.srcHi(this.#b, off), ethernet.srcLo(this.#b, off))
  }

  // -- ports that come and go ---------------------------------------------------------------------------------------

  /** A port's assigned MAC becomes its own; what somebody else had learned of it is forgotten. */
  assign(port: number): void {
    const { macHi, macLo, name } = this.#ports
    const now = this.#host.now()
    this.guard6?.assign(port, now)
    const entry = this.#fdb.find(macHi[port], macLo[port])
    if (entry >= 0) {
      const other = this.#fdb.portOf(entry)
      if (other !== port && this.#fdb.isPermanent(entry)) {
        this.#warnedAt[port] = -Infinity
        this.#reportDuplicate(port, other, macHi[port], macLo[port], now)
        return
      }
      this.#fdb.remove(entry)
    }
    if (!this.#fdb.add(macHi[port], macLo[port], port, true, now))
      this.#host.notify({ type: 'warning', message: `no room for the MAC of ${name[port]}` })
  }

  /** Forget the port; a MAC that it had and another port was assigned too is that other's now. */
  release(port: number): void {
    const { macHi, macLo, end, port: ports } = this.#ports
    this.#fdb.clear(port)
    this.guard6?.release(port)
    this.#storm.clear(port)
    this.#warnedAt[port] = -Infinity
    for (let p = 0; p < end; p++)
      if (p !== port && ports[p] !== null && macHi[p] === macHi[port] && macLo[p] === macLo[port]) return this.assign(p)
  }

  tick(now: number): void {
    this.#fdb.age(now)
    this.bindings?.age(now)
  }
}

const powerOfTwo = (n: number): number => 2 ** Math.ceil(Math.log2(n))
