/**
 * The way back: packets of the gateway, its services and its relays to guests.
 *
 * Owns: the transmit slot that relays write into, headers in front of it, identification numbers, fragments of what is longer than
 * the guests' MTU (RFC 791 §3.2, RFC 8200 §4.5). Never does: deciding whether something may be sent.
 * A packet with gso leaves as one frame whatever its length; the port, or the switch for it, splits it. Without gso what is longer
 * than the MTU is fragmented, its checksum finished first.
 * The L4 header lies at one place for both families, so that it need not be known when payload arrives; the frame begins earlier for IPv6.
 * IPv6 addresses are written into the header first, and the rest (`#send6`) reads them there.
 * Ethernet source is the gateway's MAC also for packets "from" .254: guests take the sender's MAC from ARP, not from packets.
 */

import type { Arena } from '../arena.ts'
import { SLOT_FRAME, VNET } from '../arena.ts'
import { type FlowTable, MAPPED } from '../flow/table.ts'
import type { Frame } from '../frame.ts'
import type { Host } from '../host.ts'
import type { Bindings } from '../switch/bindings.ts'
import { WAY, type Way } from '../switch/port.ts'
import type { Ports } from '../switch/ports.ts'
import { unfinished } from '../switch/segment.ts'
import type { Switch } from '../switch/switch.ts'
import type { Address } from '../wire/address.ts'
import { be32, put16 } from '../wire/bytes.ts'
import { finish, fold, pseudo4, pseudo6, sum } from '../wire/checksum.ts'
import * as ethernet from '../wire/ethernet.ts'
import { ETHERNET, TYPE_IPV4, TYPE_IPV6 } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as icmpv6 from '../wire/icmpv6.ts'
import * as ipv4 from '../wire/ipv4.ts'
import { IPV4 } from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { IPV6 } from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import * as vnet from '../wire/vnet.ts'
import type { Egress } from './egress.ts'
import type { IcmpErrors } from './icmp.ts'
import { codeOf, SAY, type Say, typeOf } from './say.ts'

/** What the gateway's own packets start with (RFC 1700's recommended 64). */
export const OUR_TTL = 64

export interface OutConfig {
  readonly gatewayHi: number
  readonly gatewayLo: number
  readonly mtu: number
}

export class Out implements Egress {
  readonly l4max = 65535 - IPV4
  readonly l4at: number
  readonly #b: Uint8Array
  readonly #switch: Switch
  readonly #ports: Ports
  readonly #flows: FlowTable
  readonly #config: OutConfig
  readonly #icmp: IcmpErrors
  readonly #slot: number
  readonly #slot6: number
  /** Fragments and resets are made here, so that what lies in the transmit slot stays. */
  readonly #side: number
  #id: number
  #id6: number
  /** How what is being sent travels: `flow` says so, for one packet. */
  #way: Way = WAY.now

  constructor(
    host: Host,
    arena: Arena,
    sw: Switch,
    ports: Ports,
    flows: FlowTable,
    icmpErrors: (out: Out) => IcmpErrors,
    config: OutConfig,
  ) {
    this.#b = arena.bytes
    this.#switch = sw
    this.#ports = ports
    this.#flows = flows
    this.#config = config
    this.#slot = arena.slot()
    this.#slot6 = this.#slot - (IPV6 - IPV4)
    this.l4at = this.#slot + ETHERNET + IPV4
    this.#side = arena.alloc(SLOT_FRAME + ETHERNET + Math.max(config.mtu, 576)) + SLOT_FRAME
    this.#id = host.random32() & 0xffff
    this.#id6 = host.random32()
    this.#icmp = icmpErrors(this)
  }

  flow(i: number, l4len: number, csum: number, gsoType: number, gsoSize: number, hdr: number, way: Way): number {
    const flows = this.#flows
    this.#way = way
    const r =
      flows.family[i] === 6
        ? this.#flow6(i, l4len, csum, gsoType, gsoSize, hdr)
        : this.send(flows.port[i], flows.peer3[i], flows.guest3[i], flows.proto[i], l4len, csum, gsoType, gsoSize, hdr)
    this.#way = WAY.now
    return r
  }

  /** Like `flow`, for what has none. Goes to the port's own station. */
  send(
    port: number,
    src: number,
    dst: number,
    proto: number,
    l4len: number,
    csum: number,
    gsoType: number,
    gsoSize: number,
    hdr: number,
  ): number {
    const { neighbourHi, neighbourLo } = this.#ports
    return this.sendTo(port, neighbourHi[port], neighbourLo[port], src, dst, proto, l4len, csum, gsoType, gsoSize, hdr)
  }

  sendTo(
    port: number,
    macHi: number,
    macLo: number,
    src: number,
    dst: number,
    proto: number,
    l4len: number,
    csum: number,
    gsoType: number,
    gsoSize: number,
    hdr: number,
  ): number {
    const b = this.#b
    const off = this.#slot
    const l4 = this.l4at
    const whole = IPV4 + l4len
    // One segment's worth needs no splitting.
    if (gsoType !== 0 && l4len - hdr <= gsoSize) gsoType = 0
    if (gsoType === 0 && whole > this.#config.mtu)
      return this.#fragment(port, macHi, macLo, src, dst, proto, l4len, csum)
    this.#ethernet(off, macHi, macLo, TYPE_IPV4)
    // A segment of TCP never needs identification (RFC 6864 §4.1); a datagram may be fragmented further on.
    const flags = proto === ipv4.TCP ? ipv4.DF : 0
    ipv4.write(b, off + ETHERNET, whole, this.#id, flags, OUR_TTL, proto, src, dst)
    this.#id = (this.#id + (gsoType === 0 ? 1 : Math.ceil((l4len - hdr) / gsoSize))) & 0xffff
    if (proto === ipv4.ICMP) {
      icmp.seal(b, l4, l4len)
      vnet.clear(b, off - VNET)
    } else {
      put16(b, l4 + csum, unfinished(src, dst, proto, l4len))
      vnet.write(
        b,
        off - VNET,
        vnet.NEEDS_CSUM,
        gsoType,
        ETHERNET + IPV4 + hdr,
        gsoType === 0 ? 0 : gsoSize,
        ETHERNET + IPV4,
        csum,
      )
    }
    return this.#switch.deliver(port, off, ETHERNET + whole, this.#way)
  }

  #ethernet(off: number, macHi: number, macLo: number, type: number): void {
    const b = this.#b
    ethernet.setDst(b, off, macHi, macLo)
    ethernet.setSrc(b, off, this.#config.gatewayHi, this.#config.gatewayLo)
    ethernet.setType(b, off, type)
  }

  #fragment(
    port: number,
    macHi: number,
    macLo: number,
    src: number,
    dst: number,
    proto: number,
    l4len: number,
    csum: number,
  ): number {
    const b = this.#b
    const l4 = this.l4at
    if (proto === ipv4.ICMP) icmp.seal(b, l4, l4len)
    else {
      put16(b, l4 + csum, 0)
      put16(b, l4 + csum, finish(sum(b, l4, l4len, pseudo4(src, dst, proto, l4len))) || 0xffff)
    }
    const step = (this.#config.mtu - IPV4) & ~7
    const off = this.#side
    const id = this.#id
    this.#id = (id + 1) & 0xffff
    this.#ethernet(off, macHi, macLo, TYPE_IPV4)
    vnet.clear(b, off - VNET)
    for (let done = 0; done < l4len; done += step) {
      const part = Math.min(step, l4len - done)
      const more = done + part < l4len ? ipv4.MF : 0
      ipv4.write(b, off + ETHERNET, IPV4 + part, id, (done >>> 3) | more, OUR_TTL, proto, src, dst)
      b.copyWithin(off + ETHERNET + IPV4, l4 + done, l4 + done + part)
      const r = this.#switch.deliver(port, off, ETHERNET + IPV4 + part)
      if (r < 0) return r
    }
    return 0
  }

  /** Send what lies at `l4` behind room for headers in another slot: small packets that must not disturb the transmit slot. */
  sendSmall(off: number, port: number, src: number, dst: number, proto: number, l4len: number): number {
    const b = this.#b
    this.#ethernet(off, this.#ports.neighbourHi[port], this.#ports.neighbourLo[port], TYPE_IPV4)
    ipv4.write(b, off + ETHERNET, IPV4 + l4len, this.#id, 0, OUR_TTL, proto, src, dst)
    this.#id = (this.#id + 1) & 0xffff
    vnet.clear(b, off - VNET)
    return this.#switch.deliver(port, off, ETHERNET + IPV4 + l4len)
  }

  // -- IPv6 ---------------------------------------------------------------------------------------------------------

  #flow6(i: number, l4len: number, csum: number, gsoType: number, gsoSize: number, hdr: number): number {
    const flows = this.#flows
    const b = this.#b
    const l3 = this.#slot6 + ETHERNET
    ipv6.setSrc(b, l3, flows.peer0[i], flows.peer1[i], flows.peer2[i], flows.peer3[i])
    ipv6.setDst(b, l3, flows.guest0[i], flows.guest1[i], flows.guest2[i], flows.guest3[i])
    const proto = flows.proto[i] === ipv4.ICMP ? ipv6.ICMPV6 : flows.proto[i]
    return this.#send6(flows.port[i], proto, l4len, csum, gsoType, gsoSize, hdr)
  }

  /** Send the L4 that lies at `l4at` between two addresses. */
  send6(port: number, src: Address, dst: Address, proto: number, l4len: number, csum: number, hdr: number): number {
    const b = this.#b
    const l3 = this.#slot6 + ETHERNET
    src.write(b, l3 + ipv6.SRC)
    dst.write(b, l3 + ipv6.DST)
    return this.#send6(port, proto, l4len, csum, 0, 0, hdr)
  }

  /** The addresses are in the header already. */
  #send6(
    port: number,
    proto: number,
    l4len: number,
    csum: number,
    gsoType: number,
    gsoSize: number,
    hdr: number,
  ): number {
    const b = this.#b
    const off = this.#slot6
    const l3 = off + ETHERNET
    const l4 = this.l4at
    if (gsoType !== 0 && l4len - hdr <= gsoSize) gsoType = 0
    if (gsoType === 0 && IPV6 + l4len > this.#config.mtu) return this.#fragment6(port, proto, l4len, csum)
    this.#station6(port, off, l3)
    ipv6.write(b, l3, l4len, proto, OUR_TTL)
    if (proto === ipv6.ICMPV6) {
      icmpv6.seal(b, l3, l4, l4len)
      vnet.clear(b, off - VNET)
    } else {
      put16(b, l4 + csum, fold(pseudo6(b, l3, proto, l4len)))
      vnet.write(
        b,
        off - VNET,
        vnet.NEEDS_CSUM,
        gsoType,
        ETHERNET + IPV6 + hdr,
        gsoType === 0 ? 0 : gsoSize,
        ETHERNET + IPV6,
        csum,
      )
    }
    return this.#switch.deliver(port, off, ETHERNET + IPV6 + l4len, this.#way)
  }

  #fragment6(port: number, proto: number, l4len: number, csum: number): number {
    const b = this.#b
    const from = this.#slot6 + ETHERNET
    const l4 = this.l4at
    put16(b, l4 + csum, 0)
    const value = finish(sum(b, l4, l4len, pseudo6(b, from, proto, l4len)))
    put16(b, l4 + csum, proto === ipv4.UDP ? value || 0xffff : value)
    const headers = IPV6 + ipv6.FRAGMENT_HEADER
    const step = (this.#config.mtu - headers) & ~7
    const off = this.#side
    const l3 = off + ETHERNET
    b.copyWithin(l3 + ipv6.SRC, from + ipv6.SRC, from + IPV6)
    this.#station6(port, off, l3)
    vnet.clear(b, off - VNET)
    this.#id6 = (this.#id6 + 1) | 0
    for (let done = 0; done < l4len; done += step) {
      const part = Math.min(step, l4len - done)
      ipv6.write(b, l3, ipv6.FRAGMENT_HEADER + part, ipv6.FRAGMENT, OUR_TTL)
      ipv6.writeFragment(b, l3 + IPV6, proto, done, done + part < l4len, this.#id6)
      b.copyWithin(l3 + headers, l4 + done, l4 + done + part)
      const r = this.#switch.deliver(port, off, ETHERNET + headers + part)
      if (r < 0) return r
    }
    return 0
  }

  /** Ethernet to where the destination address at `l3` was heard from, a group's own (RFC 2464 §7), or the port's assigned MAC. */
  #station6(port: number, off: number, l3: number): void {
    const b = this.#b
    const bindings = this.#switch.bindings as Bindings
    const to = l3 + ipv6.DST
    if (ipv6.isMulticast(be32(b, to))) return this.#ethernet(off, ethernet.GROUP6_HI, be32(b, to + 12), TYPE_IPV6)
    const entry = bindings.find(be32(b, to), be32(b, to + 4), be32(b, to + 8), be32(b, to + 12))
    if (entry >= 0 && bindings.portOf(entry) === port)
      this.#ethernet(off, bindings.macHi(entry), bindings.macLo(entry), TYPE_IPV6)
    else this.#ethernet(off, this.#ports.macHi[port], this.#ports.macLo[port], TYPE_IPV6)
  }

  /** A small packet in a slot of its own, whose addresses and finished L4 are there. */
  sendSmall6(off: number, port: number, proto: number, l4len: number, hops = OUR_TTL): number {
    const b = this.#b
    const l3 = off + ETHERNET
    this.#station6(port, off, l3)
    ipv6.write(b, l3, l4len, proto, hops)
    vnet.clear(b, off - VNET)
    return this.#switch.deliver(port, off, ETHERNET + IPV6 + l4len)
  }

  /** Hand a frame over to another port as it is, with a new destination MAC. */
  pass(f: Frame, port: number): void {
    ethernet.setDst(this.#b, f.off, this.#ports.neighbourHi[port], this.#ports.neighbourLo[port])
    this.#switch.deliver(port, f.off, f.len)
  }

  reset(f: Frame): void {
    const b = this.#b
    const flags = tcp.flags(b, f.l4)
    if ((flags & tcp.RST) !== 0) return
    const header = tcp.headerLength(b, f.l4)
    const off = this.#side
    const l4 = off + ETHERNET + (f.family === 4 ? IPV4 : IPV6)
    const zero = 0 as tcp.Seq
    if ((flags & tcp.ACK) !== 0) tcp.write(b, l4, f.dstPort, f.srcPort, tcp.ack(b, f.l4), zero, tcp.TCP, tcp.RST, 0)
    else {
      const taken = f.l4len - header + ((flags & tcp.SYN) !== 0 ? 1 : 0) + ((flags & tcp.FIN) !== 0 ? 1 : 0)
      const next = tcp.seqAdd(tcp.seq(b, f.l4), taken)
      tcp.write(b, l4, f.dstPort, f.srcPort, zero, next, tcp.TCP, tcp.RST | tcp.ACK, 0)
    }
    if (f.family === 4) {
      const src = ipv4.dst(b, f.l3)
      const dst = ipv4.src(b, f.l3)
      tcp.setChecksum(b, l4, finish(sum(b, l4, tcp.TCP, pseudo4(src, dst, ipv4.TCP, tcp.TCP))))
      this.sendSmall(off, f.port, src, dst, ipv4.TCP, tcp.TCP)
      return
    }
    const l3 = off + ETHERNET
    b.copyWithin(l3 + ipv6.SRC, f.l3 + ipv6.DST, f.l3 + IPV6)
    b.copyWithin(l3 + ipv6.DST, f.l3 + ipv6.SRC, f.l3 + ipv6.DST)
    tcp.setChecksum(b, l4, finish(sum(b, l4, tcp.TCP, pseudo6(b, l3, ipv4.TCP, tcp.TCP))))
    this.sendSmall6(off, f.port, ipv4.TCP, tcp.TCP)
  }

  /** A datagram of a service: `len` bytes of `bytes`, to a station or (macHi < 0) to where the address was heard from. */
  datagram(
    port: number,
    macHi: number,
    macLo: number,
    src: Address,
    srcPort: number,
    dst: Address,
    dstPort: number,
    bytes: Uint8Array,
    len: number,
  ): number {
    const b = this.#b
    const l4 = this.l4at
    for (let n = 0; n < len; n++) b[l4 + udp.UDP + n] = bytes[n]
    const l4len = udp.UDP + len
    udp.write(b, l4, srcPort, dstPort, l4len)
    if (dst.family === 6) return this.send6(port, src, dst, ipv4.UDP, l4len, udp.CHECKSUM, udp.UDP)
    if (macHi >= 0) return this.sendTo(port, macHi, macLo, src.w3, dst.w3, ipv4.UDP, l4len, udp.CHECKSUM, 0, 0, udp.UDP)
    return this.send(port, src.w3, dst.w3, ipv4.UDP, l4len, udp.CHECKSUM, 0, 0, udp.UDP)
  }

  icmpError(f: Frame, say: Say, info: number, from: number): void {
    this.#icmp.about(f, say, info, from)
  }

  icmpErrorOfFlow(i: number, say: Say, info: number, from: number, second = 0): void {
    const family = this.#flows.family[i]
    this.#icmp.aboutFlow(i, typeOf(say, family), codeOf(say, family), info, from, second)
  }

  icmpErrorPassed(i: number, type: number, code: number, info: number, from: number, second = 0): void {
    const flows = this.#flows
    // --allow-host: an IPv6 flow may end at a service of the host's IPv4 loopback.
    if (flows.family[i] === 4 || !isMappedWords(flows.far0[i], flows.far1[i], flows.far2[i]))
      this.#icmp.aboutFlow(i, type, code, info, from, second)
    else
      this.icmpErrorOfFlow(i, type === icmp.UNREACHABLE && code === icmp.PORT ? SAY.port : SAY.host, info, from, second)
  }
}

const isMappedWords = (w0: number, w1: number, w2: number): boolean => w2 === MAPPED && w1 === 0 && w0 === 0
