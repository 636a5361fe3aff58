/**
 * The way back: packets of the gateway, its services and its relays to guests.
 *
 * Owns: the transmit slot that relays write into, headers in front of it, identification numbers, fragments of what is longer than
 * the guests' MTU (RFC 791 §3.2). Never does: deciding whether something may be sent.
 * A packet with gso leaves as one frame whatever its length; the port, or the switch for it, splits it. Without gso what is longer
 * than the MTU is fragmented, its checksum finished first.
 * Ethernet source is the gateway's MAC also for packets "from" .254: guests take the sender's MAC from ARP, not from packets.
 */

import type { Arena } from '../arena.ts'
import { SLOT_FRAME, VNET } from '../arena.ts'
import type { FlowTable } from '../flow/table.ts'
import type { Frame } from '../frame.ts'
import type { Host } from '../host.ts'
import type { Ports } from '../switch/ports.ts'
import { unfinished } from '../switch/segment.ts'
import type { Switch } from '../switch/switch.ts'
import { put16 } from '../wire/bytes.ts'
import { finish, pseudo4, sum } from '../wire/checksum.ts'
import * as ethernet from '../wire/ethernet.ts'
import { ETHERNET, TYPE_IPV4 } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import { IPV4 } from '../wire/ipv4.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import * as vnet from '../wire/vnet.ts'
import type { Egress } from './egress.ts'
import type { IcmpErrors } from './icmp.ts'

/** What the gateway's own packets start with (RFC 1700's recommended 64). */
export const OUR_TTL = 64

export interface OutConfig {
  readonly gatewayHi: number
  readonly gatewayLo: number
  readonly mtu: number
}

export class Out implements Egress {
  readonly l4max = 65535 - IPV4
  readonly #b: Uint8Array
  readonly #switch: Switch
  readonly #ports: Ports
  readonly #flows: FlowTable
  readonly #config: OutConfig
  readonly #icmp: IcmpErrors
  readonly #slot: number
  readonly #l4: number
  /** Fragments and resets are made here, so that what lies in the transmit slot stays. */
  readonly #side: number
  #id: number

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
    this.#l4 = this.#slot + ETHERNET + IPV4
    this.#side = arena.alloc(SLOT_FRAME + ETHERNET + Math.max(config.mtu, 576)) + SLOT_FRAME
    this.#id = host.random32() & 0xffff
    this.#icmp = icmpErrors(this)
  }

  l4at(_family: number): number {
    return this.#l4
  }

  flow(i: number, l4len: number, csum: number, gsoType: number, gsoSize: number, hdr: number): number {
    const flows = this.#flows
    return this.send(flows.port[i], flows.peer3[i], flows.guest3[i], flows.proto[i], l4len, csum, gsoType, gsoSize, hdr)
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
    const l4 = this.#l4
    const whole = IPV4 + l4len
    // One segment's worth needs no splitting.
    if (gsoType !== 0 && l4len - hdr <= gsoSize) gsoType = 0
    if (gsoType === 0 && whole > this.#config.mtu)
      return this.#fragment(port, macHi, macLo, src, dst, proto, l4len, csum)
    this.#ethernet(off, macHi, macLo)
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
    return this.#switch.deliver(port, off, ETHERNET + whole)
  }

  #ethernet(off: number, macHi: number, macLo: number): void {
    const b = this.#b
    ethernet.setDst(b, off, macHi, macLo)
    ethernet.setSrc(b, off, this.#config.gatewayHi, this.#config.gatewayLo)
    ethernet.setType(b, off, TYPE_IPV4)
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
    const l4 = this.#l4
    if (proto === ipv4.ICMP) icmp.seal(b, l4, l4len)
    else {
      put16(b, l4 + csum, 0)
      put16(b, l4 + csum, finish(sum(b, l4, l4len, pseudo4(src, dst, proto, l4len))) || 0xffff)
    }
    const step = (this.#config.mtu - IPV4) & ~7
    const off = this.#side
    const id = this.#id
    this.#id = (id + 1) & 0xffff
    this.#ethernet(off, macHi, macLo)
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
    this.#ethernet(off, this.#ports.neighbourHi[port], this.#ports.neighbourLo[port])
    ipv4.write(b, off + ETHERNET, IPV4 + l4len, this.#id, 0, OUR_TTL, proto, src, dst)
    this.#id = (this.#id + 1) & 0xffff
    vnet.clear(b, off - VNET)
    return this.#switch.deliver(port, off, ETHERNET + IPV4 + l4len)
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
    const l4 = off + ETHERNET + IPV4
    const src = ipv4.dst(b, f.l3)
    const dst = ipv4.src(b, f.l3)
    const zero = 0 as tcp.Seq
    if ((flags & tcp.ACK) !== 0) tcp.write(b, l4, f.dstPort, f.srcPort, tcp.ack(b, f.l4), zero, tcp.TCP, tcp.RST, 0)
    else {
      const taken = f.l4len - header + ((flags & tcp.SYN) !== 0 ? 1 : 0) + ((flags & tcp.FIN) !== 0 ? 1 : 0)
      const next = tcp.seqAdd(tcp.seq(b, f.l4), taken)
      tcp.write(b, l4, f.dstPort, f.srcPort, zero, next, tcp.TCP, tcp.RST | tcp.ACK, 0)
    }
    tcp.setChecksum(b, l4, finish(sum(b, l4, tcp.TCP, pseudo4(src, dst, ipv4.TCP, tcp.TCP))))
    this.sendSmall(off, f.port, src, dst, ipv4.TCP, tcp.TCP)
  }

  /** A datagram of a service: `len` bytes of `bytes`, to a station or (macHi < 0) to the port's own. */
  datagram(
    port: number,
    macHi: number,
    macLo: number,
    src: number,
    srcPort: number,
    dst: number,
    dstPort: number,
    bytes: Uint8Array,
    len: number,
  ): number {
    const b = this.#b
    const l4 = this.#l4
    for (let n = 0; n < len; n++) b[l4 + udp.UDP + n] = bytes[n]
    udp.write(b, l4, srcPort, dstPort, udp.UDP + len)
    if (macHi >= 0)
      return this.sendTo(port, macHi, macLo, src, dst, ipv4.UDP, udp.UDP + len, udp.CHECKSUM, 0, 0, udp.UDP)
    return this.send(port, src, dst, ipv4.UDP, udp.UDP + len, udp.CHECKSUM, 0, 0, udp.UDP)
  }

  icmpError(f: Frame, type: number, code: number, info: number, from4: number): void {
    this.#icmp.about(f, type, code, info, from4)
  }

  icmpErrorOfFlow(i: number, type: number, code: number, info: number, from4: number, second = 0): void {
    this.#icmp.aboutFlow(i, type, code, info, from4, second)
  }
}
