/**
 * A network in memory, for tests that read like packets.
 *
 *   const net = new TestNet()
 *   const web = net.vm('web')
 *   web.send(udp({ to: '8.8.8.8:53', from: 4000, data: 'question' }))
 *   assert.equal(net.host.open('udp')[0].sent.length, 1)
 *   assert.deepEqual(web.take().map(summary), ['udp 8.8.8.8:53 > 192.168.100.10:4000 answer'])
 *
 * Packets are built by functions that are given the sender, so that its addresses need not be said; every field can be overridden.
 * What a port receives is decoded into plain objects; checksums are verified while decoding (unfinished ones are finished).
 */
import assert from 'node:assert/strict'
import type { NetworkConfig } from '../../src/dataplane/protocol.ts'
import { VNET } from '../../src/netstack/arena.ts'
import type { Limits } from '../../src/netstack/flow/context.ts'
import { Network } from '../../src/netstack/network.ts'
import { type Port, ROLE } from '../../src/netstack/switch/port.ts'
import { unfinished } from '../../src/netstack/switch/segment.ts'
import { DROP, type DropName } from '../../src/netstack/trace/drops.ts'
import { Address, parseIp } from '../../src/netstack/wire/address.ts'
import * as arpWire from '../../src/netstack/wire/arp.ts'
import { put16 } from '../../src/netstack/wire/bytes.ts'
import { finish, fold, pseudo4, pseudo6, sum } from '../../src/netstack/wire/checksum.ts'
import * as eth from '../../src/netstack/wire/ethernet.ts'
import * as icmpWire from '../../src/netstack/wire/icmp.ts'
import * as icmp6Wire from '../../src/netstack/wire/icmpv6.ts'
import * as ip from '../../src/netstack/wire/ipv4.ts'
import * as ip6 from '../../src/netstack/wire/ipv6.ts'
import * as nd from '../../src/netstack/wire/ndp.ts'
import * as tcpWire from '../../src/netstack/wire/tcp.ts'
import * as udpWire from '../../src/netstack/wire/udp.ts'
import * as vnet from '../../src/netstack/wire/vnet.ts'
import { MemoryHost } from './memory-host.ts'

export const CONFIG: NetworkConfig = {
  id: 'n1',
  name: 'default',
  subnet: '192.168.100.0/24',
  gateway: '192.168.100.1',
  services: '192.168.100.2',
  hostAddress: '192.168.100.254',
  domain: 'noid.internal',
  mtu: 1500,
  isolated: false,
  allowHostPorts: [],
  leaseSeconds: 3600,
}

/** The IPv6 side, for a network that has it: `new TestNet({ config: { ipv6: IPV6 } })`. */
export const IPV6 = {
  subnet: 'fd00:6::/64',
  gateway: 'fd00:6::1',
  services: 'fd00:6::2',
  hostAddress: 'fd00:6::254',
} as const
export const ALL_NODES = 'ff02::1'
export const ALL_NODES_MAC = '33:33:00:00:00:01'

/** The gateway's MAC on CONFIG's subnet. */
export const GATEWAY_MAC = '02:6e:c0:a8:64:01'
export const BROADCAST_MAC = 'ff:ff:ff:ff:ff:ff'

export interface Sender {
  readonly mac: string
  readonly ip: string
  readonly ip6?: string
}

/** A frame, and the vnet header it comes with. */
export interface Built {
  readonly bytes: Uint8Array
  readonly gso?: { readonly type: number; readonly size: number }
  /** The L4 checksum is unfinished. */
  readonly partial?: boolean
}
export type Build = (from: Sender) => Built

// -- what a port received ---------------------------------------------------------------------------------------------

export interface Received {
  readonly srcMac: string
  readonly dstMac: string
  readonly type: number
  readonly bytes: Uint8Array
  readonly gso: { readonly type: number; readonly size: number } | undefined
  readonly arp?: { op: number; senderMac: string; senderIp: string; targetMac: string; targetIp: string }
  readonly ip?: {
    src: string
    dst: string
    proto: number
    ttl: number
    id: number
    df: boolean
    mf: boolean
    offset: number
    length: number
  }
  readonly udp?: { srcPort: number; dstPort: number; data: Uint8Array }
  readonly tcp?: {
    srcPort: number
    dstPort: number
    seq: number
    ack: number
    flags: number
    window: number
    data: Uint8Array
  }
  /** ICMPv6 too. */
  readonly icmp?: { type: number; code: number; id: number; sequence: number; info: number; data: Uint8Array }
}

export function decode(bytes: Uint8Array, header: Uint8Array): Received {
  const gsoType = vnet.gsoType(header, 0)
  const r: Draft = {
    dstMac: eth.macText(eth.dstHi(bytes, 0), eth.dstLo(bytes, 0)),
    srcMac: eth.macText(eth.srcHi(bytes, 0), eth.srcLo(bytes, 0)),
    type: eth.type(bytes, 0),
    bytes,
    gso: gsoType === 0 ? undefined : { type: gsoType, size: vnet.gsoSize(header, 0) },
  }
  const l3 = eth.ETHERNET
  if (r.type === eth.TYPE_ARP) {
    r.arp = {
      op: arpWire.op(bytes, l3),
      senderMac: eth.macText(arpWire.senderHi(bytes, l3), arpWire.senderLo(bytes, l3)),
      senderIp: ip.addressText(arpWire.senderIp(bytes, l3)),
      targetMac: eth.macText(arpWire.targetHi(bytes, l3), arpWire.targetLo(bytes, l3)),
      targetIp: ip.addressText(arpWire.targetIp(bytes, l3)),
    }
    return r
  }
  if (r.type === eth.TYPE_IPV6) return decode6(r, bytes, header)
  if (r.type !== eth.TYPE_IPV4) return r
  assert.ok(ip.sound(bytes, l3), 'IPv4 header checksum')
  const src = ip.src(bytes, l3)
  const dst = ip.dst(bytes, l3)
  const proto = ip.protocol(bytes, l3)
  r.ip = {
    src: ip.addressText(src),
    dst: ip.addressText(dst),
    proto,
    ttl: ip.ttl(bytes, l3),
    id: ip.id(bytes, l3),
    df: ip.dontFragment(bytes, l3),
    mf: ip.moreFragments(bytes, l3),
    offset: ip.fragmentOffset(bytes, l3),
    length: ip.totalLength(bytes, l3),
  }
  const l4 = l3 + ip.headerLength(bytes, l3)
  const end = l3 + r.ip.length
  assert.ok(end <= bytes.length, 'the packet lies within its frame')
  if (r.ip.offset > 0 || r.ip.mf) return r
  finishChecksum(bytes, header, l4, end - l4)
  return decodeL4(r, bytes, proto, l4, end, pseudo4(src, dst, proto, end - l4))
}

function finishChecksum(bytes: Uint8Array, header: Uint8Array, l4: number, l4len: number): void {
  if ((vnet.flags(header, 0) & vnet.NEEDS_CSUM) === 0)
    return assert.equal(vnet.gsoType(header, 0), 0, 'gso goes with an unfinished checksum')
  assert.equal(vnet.csumStart(header, 0), l4)
  const field = l4 + vnet.csumOffset(header, 0)
  const value = finish(sum(bytes, l4, l4len, 0))
  bytes[field] = value >>> 8
  bytes[field + 1] = value & 255
}

type Draft = { -readonly [K in keyof Received]: Received[K] }

function decode6(r: Draft, bytes: Uint8Array, header: Uint8Array): Received {
  const l3 = eth.ETHERNET
  const payload = ip6.payloadLength(bytes, l3)
  const fragment = ip6.nextHeader(bytes, l3) === ip6.FRAGMENT ? l3 + ip6.IPV6 : 0
  const proto = fragment ? ip6.fragmentNext(bytes, fragment) : ip6.nextHeader(bytes, l3)
  r.ip = {
    src: new Address().read(bytes, l3 + ip6.SRC).toString(),
    dst: new Address().read(bytes, l3 + ip6.DST).toString(),
    proto,
    ttl: ip6.hopLimit(bytes, l3),
    id: fragment ? ip6.fragmentId(bytes, fragment) : 0,
    df: !fragment,
    mf: fragment > 0 && ip6.moreFragments(bytes, fragment),
    offset: fragment ? ip6.fragmentOffset(bytes, fragment) : 0,
    length: ip6.IPV6 + payload,
  }
  const l4 = l3 + ip6.IPV6 + (fragment ? ip6.FRAGMENT_HEADER : 0)
  const end = l3 + r.ip.length
  assert.equal(ip6.version(bytes, l3), 6)
  assert.ok(end <= bytes.length, 'the packet lies within its frame')
  if (fragment) return r
  finishChecksum(bytes, header, l4, end - l4)
  return decodeL4(r, bytes, proto, l4, end, pseudo6(bytes, l3, proto, end - l4))
}

function decodeL4(r: Draft, bytes: Uint8Array, proto: number, l4: number, end: number, pseudo: number): Received {
  const l4len = end - l4
  if (proto === ip.UDP) {
    if (udpWire.checksum(bytes, l4) !== 0) assert.equal(finish(sum(bytes, l4, l4len, pseudo)), 0, 'UDP checksum')
    assert.equal(udpWire.length(bytes, l4), l4len)
    r.udp = {
      srcPort: udpWire.srcPort(bytes, l4),
      dstPort: udpWire.dstPort(bytes, l4),
      data: bytes.slice(l4 + udpWire.UDP, end),
    }
  } else if (proto === ip.TCP) {
    assert.equal(finish(sum(bytes, l4, l4len, pseudo)), 0, 'TCP checksum')
    r.tcp = {
      srcPort: tcpWire.srcPort(bytes, l4),
      dstPort: tcpWire.dstPort(bytes, l4),
      seq: tcpWire.seq(bytes, l4),
      ack: tcpWire.ack(bytes, l4),
      flags: tcpWire.flags(bytes, l4),
      window: tcpWire.window(bytes, l4),
      data: bytes.slice(l4 + tcpWire.headerLength(bytes, l4), end),
    }
  } else if (proto === ip.ICMP || proto === ip6.ICMPV6) {
    const covered = proto === ip6.ICMPV6 ? pseudo : 0
    assert.equal(finish(sum(bytes, l4, l4len, covered)), 0, 'ICMP checksum')
    r.icmp = {
      type: icmpWire.type(bytes, l4),
      code: icmpWire.code(bytes, l4),
      id: icmpWire.id(bytes, l4),
      sequence: icmpWire.sequence(bytes, l4),
      info: icmpWire.info(bytes, l4),
      data: bytes.slice(l4 + icmpWire.ICMP, end),
    }
  }
  return r
}

const FLAG_NAMES = [
  [tcpWire.SYN, 'SYN'],
  [tcpWire.FIN, 'FIN'],
  [tcpWire.RST, 'RST'],
  [tcpWire.ACK, 'ACK'],
] as const
const text = (b: Uint8Array): string => (b.length === 0 ? '' : ` ${Buffer.from(b).toString('latin1')}`)

/** One line: "udp 8.8.8.8:53 > 192.168.100.10:4000 data". */
export function summary(r: Received): string {
  if (r.arp)
    return `arp ${r.arp.op === 1 ? 'who-has' : 'is-at'} ${r.arp.op === 1 ? r.arp.targetIp : `${r.arp.senderIp} ${r.arp.senderMac}`}`
  if (!r.ip) return `type 0x${r.type.toString(16)}`
  const six = r.type === eth.TYPE_IPV6
  const src = six && (r.udp || r.tcp) ? `[${r.ip.src}]` : r.ip.src
  const dst = six && (r.udp || r.tcp) ? `[${r.ip.dst}]` : r.ip.dst
  if (r.udp) return `udp ${src}:${r.udp.srcPort} > ${dst}:${r.udp.dstPort}${text(r.udp.data)}`
  if (r.tcp) {
    const flags = FLAG_NAMES.filter(([bit]) => (r.tcp as { flags: number }).flags & bit).map(([, n]) => n)
    return `tcp ${src}:${r.tcp.srcPort} > ${dst}:${r.tcp.dstPort} ${flags.join('+')}${text(r.tcp.data)}`
  }
  if (r.icmp && six) return `icmp6 ${src} > ${dst} ${discovery(r) ?? `${r.icmp.type}/${r.icmp.code}`}`
  if (r.icmp) return `icmp ${src} > ${dst} ${r.icmp.type}/${r.icmp.code}`
  return `ip ${src} > ${dst} proto ${r.ip.proto}${r.ip.mf || r.ip.offset ? ` fragment ${r.ip.offset}${r.ip.mf ? '+' : ''}` : ''}`
}

/** Neighbour discovery in words: "who-has fd00::1", "is-at fd00::1 02:…", "router". */
function discovery(r: Received): string | undefined {
  const { type, data: rest } = r.icmp as { type: number; data: Uint8Array }
  if (type === nd.ROUTER_ADVERTISEMENT) return 'router'
  if (type === nd.ROUTER_SOLICITATION) return 'router?'
  if (type !== nd.NEIGHBOUR_SOLICITATION && type !== nd.NEIGHBOUR_ADVERTISEMENT) return undefined
  const target = new Address().read(rest, 0)
  if (type === nd.NEIGHBOUR_SOLICITATION) return `who-has ${target}`
  return `is-at ${target} ${eth.macText((rest[18] << 8) | rest[19], (rest[20] << 24) | (rest[21] << 16) | (rest[22] << 8) | rest[23])}`
}

// -- building -------------------------------------------------------------------------------------------------------

const data = (d: string | Uint8Array | undefined): Uint8Array =>
  d === undefined ? new Uint8Array(0) : typeof d === 'string' ? Buffer.from(d, 'latin1') : d

function endpoint(e: string | number | undefined, address: string, port: number): { ip: string; port: number } {
  if (e === undefined) return { ip: address, port }
  if (typeof e === 'number') return { ip: address, port: e }
  const six = /^\[(.*)\](?::(\d+))?$/.exec(e)
  if (six) return { ip: six[1], port: six[2] === undefined ? port : Number(six[2]) }
  if (e.includes('::')) return { ip: e, port }
  const [a, p] = e.split(':')
  return { ip: a || address, port: p === undefined ? port : Number(p) }
}

interface Link {
  readonly srcMac?: string
  readonly dstMac?: string
}
interface Ip extends Link {
  readonly ttl?: number
  readonly id?: number
  readonly df?: boolean
  readonly mf?: boolean
  /** In bytes. */
  readonly offset?: number
  readonly options?: Uint8Array
  /** IPv6: extension headers before the payload, and the first one's number. */
  readonly before?: Uint8Array
  readonly next?: number
}

export function ethernet(from: Sender, type: number, payload: Uint8Array, o: Link = {}): Uint8Array {
  const b = new Uint8Array(eth.ETHERNET + payload.length)
  const dst = eth.parseMac(o.dstMac ?? GATEWAY_MAC)
  const src = eth.parseMac(o.srcMac ?? from.mac)
  eth.setDst(b, 0, dst.hi, dst.lo)
  eth.setSrc(b, 0, src.hi, src.lo)
  eth.setType(b, 0, type)
  b.set(payload, eth.ETHERNET)
  return b
}

export function ipv4(from: Sender, src: string, dst: string, proto: number, payload: Uint8Array, o: Ip): Uint8Array {
  const options = o.options ?? new Uint8Array(0)
  const header = ip.IPV4 + options.length
  const b = new Uint8Array(header + payload.length)
  const flags = (o.df ? ip.DF : 0) | (o.mf ? ip.MF : 0) | ((o.offset ?? 0) >>> 3)
  ip.write(b, 0, b.length, o.id ?? 1, flags, o.ttl ?? 64, proto, ip.parseAddress(src), ip.parseAddress(dst))
  b[0] = 0x40 | (header >>> 2)
  b.set(options, ip.IPV4)
  ip.seal(b, 0)
  b.set(payload, header)
  return ethernet(from, eth.TYPE_IPV4, b, o)
}

/** An IPv6 packet; `o.before`: extension headers, `o.next` what the first of them is. */
export function ipv6(from: Sender, src: string, dst: string, proto: number, payload: Uint8Array, o: Ip): Uint8Array {
  const before = o.before ?? new Uint8Array(0)
  const b = new Uint8Array(ip6.IPV6 + before.length + payload.length)
  ip6.write(b, 0, before.length + payload.length, o.next ?? proto, o.ttl ?? 64)
  parseIp(src).write(b, ip6.SRC)
  const to = parseIp(dst)
  to.write(b, ip6.DST)
  b.set(before, ip6.IPV6)
  b.set(payload, ip6.IPV6 + before.length)
  const group = ip6.isMulticast(to.w0) ? { dstMac: eth.macText(0x3333, to.w3) } : {}
  return ethernet(from, eth.TYPE_IPV6, b, { ...group, ...o })
}

/** The sum of the pseudo header of either family. */
export function pseudoSum(src: string, dst: string, proto: number, len: number): number {
  if (!src.includes(':')) return pseudo4(ip.parseAddress(src), ip.parseAddress(dst), proto, len)
  const b = new Uint8Array(ip6.IPV6)
  parseIp(src).write(b, ip6.SRC)
  parseIp(dst).write(b, ip6.DST)
  return pseudo6(b, 0, proto, len)
}

const ownAddress = (from: Sender, to: string): string => (to.includes('::') ? (from.ip6 as string) : from.ip)
const build = (from: Sender, src: string, dst: string, proto: number, payload: Uint8Array, o: Ip): Uint8Array =>
  dst.includes(':') ? ipv6(from, src, dst, proto, payload, o) : ipv4(from, src, dst, proto, payload, o)

export const arp =
  (o: Link & { op?: number; senderIp?: string; senderMac?: string; target: string }): Build =>
  (from) => {
    const b = new Uint8Array(arpWire.ARP)
    const sender = eth.parseMac(o.senderMac ?? from.mac)
    arpWire.write(
      b,
      0,
      o.op ?? arpWire.REQUEST,
      sender.hi,
      sender.lo,
      ip.parseAddress(o.senderIp ?? from.ip),
      0,
      0,
      ip.parseAddress(o.target),
    )
    return { bytes: ethernet(from, eth.TYPE_ARP, b, { dstMac: BROADCAST_MAC, ...o }) }
  }

export interface UdpOptions extends Ip {
  readonly from?: string | number
  readonly to: string
  readonly data?: string | Uint8Array
  /** Several datagrams of this size in one frame. */
  readonly segment?: number
  readonly checksum?: number
}

/** The L4 part alone, checksum finished. */
export function udpBytes(src: string, srcPort: number, dst: string, dstPort: number, payload: Uint8Array): Uint8Array {
  const b = new Uint8Array(udpWire.UDP + payload.length)
  udpWire.write(b, 0, srcPort, dstPort, b.length)
  b.set(payload, udpWire.UDP)
  const pseudo = pseudoSum(src, dst, ip.UDP, b.length)
  udpWire.setChecksum(b, 0, finish(sum(b, 0, b.length, pseudo)) || 0xffff)
  return b
}

export const udp =
  (o: UdpOptions): Build =>
  (from) => {
    const dst = endpoint(o.to, '0.0.0.0', 0)
    const src = endpoint(o.from, ownAddress(from, dst.ip), 4000)
    const b = udpBytes(src.ip, src.port, dst.ip, dst.port, data(o.data))
    if (o.checksum !== undefined) udpWire.setChecksum(b, 0, o.checksum)
    const gso = o.segment === undefined ? undefined : { type: vnet.GSO_UDP_L4, size: o.segment }
    return { bytes: build(from, src.ip, dst.ip, ip.UDP, b, o), gso, partial: gso !== undefined }
  }

export const tcp =
  (
    o: Ip & {
      from?: string | number
      to: string
      flags?: number
      seq?: number
      ack?: number
      window?: number
      data?: string | Uint8Array
      segment?: number
    },
  ): Build =>
  (from) => {
    const dst = endpoint(o.to, '0.0.0.0', 0)
    const src = endpoint(o.from, ownAddress(from, dst.ip), 4000)
    const payload = data(o.data)
    const b = new Uint8Array(tcpWire.TCP + payload.length)
    const seq = (o.seq ?? 1000) | 0
    tcpWire.write(
      b,
      0,
      src.port,
      dst.port,
      seq as tcpWire.Seq,
      ((o.ack ?? 0) | 0) as tcpWire.Seq,
      tcpWire.TCP,
      o.flags ?? tcpWire.SYN,
      o.window ?? 65535,
    )
    b.set(payload, tcpWire.TCP)
    const pseudo = pseudoSum(src.ip, dst.ip, ip.TCP, b.length)
    tcpWire.setChecksum(b, 0, finish(sum(b, 0, b.length, pseudo)))
    const type = dst.ip.includes(':') ? vnet.GSO_TCPV6 : vnet.GSO_TCPV4
    const gso = o.segment === undefined ? undefined : { type, size: o.segment }
    return { bytes: build(from, src.ip, dst.ip, ip.TCP, b, o), gso, partial: gso !== undefined }
  }

export function icmpBytes(type: number, code: number, second: number, payload: Uint8Array): Uint8Array {
  const b = new Uint8Array(icmpWire.ICMP + payload.length)
  icmpWire.setType(b, 0, type)
  icmpWire.setCode(b, 0, code)
  icmpWire.setInfo(b, 0, second)
  b.set(payload, icmpWire.ICMP)
  icmpWire.seal(b, 0, b.length)
  return b
}

export const icmp =
  (
    o: Ip & {
      to: string
      from?: string
      type?: number
      code?: number
      id?: number
      sequence?: number
      data?: string | Uint8Array
    },
  ): Build =>
  (from) => {
    const second = ((o.id ?? 7) << 16) | (o.sequence ?? 1)
    const b = icmpBytes(o.type ?? icmpWire.ECHO, o.code ?? 0, second, data(o.data))
    return { bytes: ipv4(from, o.from ?? from.ip, o.to, ip.ICMP, b, o) }
  }

/** An ICMPv6 message, checksum finished. */
export const icmp6 =
  (
    o: Ip & {
      to: string
      from?: string
      type?: number
      code?: number
      id?: number
      sequence?: number
      data?: string | Uint8Array
    },
  ): Build =>
  (from) => {
    const src = o.from ?? (from.ip6 as string)
    const b = icmpBytes(o.type ?? icmp6Wire.ECHO, o.code ?? 0, ((o.id ?? 7) << 16) | (o.sequence ?? 1), data(o.data))
    put16(b, icmpWire.CHECKSUM, 0)
    put16(b, icmpWire.CHECKSUM, finish(sum(b, 0, b.length, pseudoSum(src, o.to, ip6.ICMPV6, b.length))))
    return { bytes: ipv6(from, src, o.to, ip6.ICMPV6, b, o) }
  }

/** The solicited-node group of an address (RFC 4291 §2.7.1). */
export function solicitedNode(target: string): string {
  const w3 = parseIp(target).w3
  return new Address().set(0xff020000 | 0, 0, 1, (0xff << 24) | (w3 & 0xffffff)).toString()
}

const linkOption = (kind: number, mac: string): Uint8Array => {
  const { hi, lo } = eth.parseMac(mac)
  return Uint8Array.of(kind, 1, hi >> 8, hi, lo >> 24, lo >> 16, lo >> 8, lo)
}
const bytesOf = (address: string): Uint8Array => {
  const b = new Uint8Array(16)
  parseIp(address).write(b, 0)
  return b
}

/** A neighbour solicitation; from `::` it asks whether the address is free, and tells no MAC. */
export const solicit =
  (o: Ip & { target: string; from?: string; to?: string; told?: string }): Build =>
  (from) => {
    const src = o.from ?? (from.ip6 as string)
    const option = src === '::' && o.told === undefined ? [] : linkOption(nd.OPTION_SOURCE, o.told ?? from.mac)
    return icmp6({
      ttl: 255,
      ...o,
      from: src,
      to: o.to ?? solicitedNode(o.target),
      type: nd.NEIGHBOUR_SOLICITATION,
      id: 0,
      sequence: 0,
      data: Uint8Array.of(...bytesOf(o.target), ...option),
    })(from)
  }

export const advertise =
  (o: Ip & { target: string; from?: string; to?: string; told?: string }): Build =>
  (from) =>
    icmp6({
      ttl: 255,
      ...o,
      to: o.to ?? ALL_NODES,
      type: nd.NEIGHBOUR_ADVERTISEMENT,
      id: 0x2000,
      sequence: 0,
      data: Uint8Array.of(...bytesOf(o.target), ...linkOption(nd.OPTION_TARGET, o.told ?? from.mac)),
    })(from)

export const raw =
  (bytes: Uint8Array): Build =>
  () => ({ bytes })

/** Any IP protocol, or a fragment: the payload as it is. */
export const packet =
  (o: Ip & { from?: string; to: string; proto: number; payload: Uint8Array }): Build =>
  (from) => ({ bytes: build(from, o.from ?? ownAddress(from, o.to), o.to, o.proto, o.payload, o) })

// -- the network ------------------------------------------------------------------------------------------------------

export class TestPort implements Port {
  readonly offload: boolean
  readonly frames: { bytes: Uint8Array; header: Uint8Array }[] = []
  /** −errno of every transmit, 0 when it works. */
  failure = 0
  readonly #bytes: Uint8Array

  constructor(arena: Uint8Array, offload: boolean) {
    this.#bytes = arena
    this.offload = offload
  }

  transmit(off: number, len: number): number {
    if (this.failure < 0) return this.failure
    const header = this.offload ? this.#bytes.slice(off - VNET, off) : new Uint8Array(VNET)
    this.frames.push({ bytes: this.#bytes.slice(off, off + len), header })
    return len
  }

  flush(): void {}
}

export class Station implements Sender {
  readonly index: number
  readonly mac: string
  readonly ip: string
  readonly ip6: string
  readonly name: string
  readonly port: TestPort
  readonly #net: TestNet

  constructor(
    net: TestNet,
    index: number,
    name: string,
    mac: string,
    address: string,
    address6: string,
    port: TestPort,
  ) {
    this.#net = net
    this.index = index
    this.name = name
    this.mac = mac
    this.ip = address
    this.ip6 = address6
    this.port = port
  }

  send(...builds: Build[]): void {
    for (const build of builds) this.#net.inject(this, build(this))
  }

  /** What arrived since the last take, decoded. */
  take(): Received[] {
    return this.port.frames.splice(0).map((f) => decode(f.bytes, f.header))
  }

  /** What arrived since the last take, a line each. */
  lines(): string[] {
    return this.take().map(summary)
  }

  /** How often something of this station was refused for a reason. */
  drops(reason: DropName): number {
    return this.#net.network.drops.of(this.index, DROP[reason])
  }
}

export class TestNet {
  readonly host: MemoryHost
  readonly network: Network
  readonly #slot: number
  readonly #offload: boolean
  readonly #six: boolean
  #vms = 0

  constructor(
    o: { config?: Partial<NetworkConfig>; limits?: Partial<Limits>; offload?: boolean; host?: MemoryHost } = {},
  ) {
    this.host = o.host ?? new MemoryHost()
    this.network = new Network(
      this.host,
      { ...CONFIG, ...o.config },
      { flows: 256, ports: 16, reassemblies: 8, ...o.limits },
    )
    this.#six = o.config?.ipv6 !== undefined
    this.#slot = this.host.arena.slot()
    this.#offload = o.offload ?? true
  }

  vm(
    name: string,
    o: { mac?: string; address?: string; address6?: string; offload?: boolean; id?: string; bound?: boolean } = {},
  ): Station {
    const n = ++this.#vms
    const mac = o.mac ?? `02:00:00:00:00:${(0x10 + n).toString(16).padStart(2, '0')}`
    const address = o.address ?? `192.168.100.${9 + n}`
    const address6 = o.address6 ?? `fd00:6::${(9 + n).toString(16)}`
    const port = new TestPort(this.host.arena.bytes, o.offload ?? this.#offload)
    const id = o.id ?? name
    const six = this.#six ? { address6 } : {}
    const index = this.network.attach({ id, role: ROLE.vm, name, mac, address, ...six, bound: o.bound ?? true, port })
    return new Station(this, index, name, mac, address, address6, port)
  }

  /** The host's interface at .254. */
  hostPort(): Station {
    const port = new TestPort(this.host.arena.bytes, true)
    const mac = '02:00:00:00:00:fe'
    const address = CONFIG.hostAddress
    const six = this.#six ? { address6: IPV6.hostAddress } : {}
    const who = { id: 'host', role: ROLE.host, name: 'host', mac, address, ...six, bound: true, port }
    return new Station(this, this.network.attach(who), 'host', mac, address, IPV6.hostAddress, port)
  }

  /** A frame comes in; what it leads to is done when this returns. */
  inject(from: Station, built: Built): void {
    const b = this.host.arena.bytes
    const off = this.#slot
    b.set(built.bytes, off)
    vnet.clear(b, off - VNET)
    if (built.partial || built.gso) {
      const l3 = off + eth.ETHERNET
      const six = eth.type(b, off) === eth.TYPE_IPV6
      const l4 = eth.ETHERNET + (six ? ip6.IPV6 : ip.headerLength(b, l3))
      const proto = six ? ip6.nextHeader(b, l3) : ip.protocol(b, l3)
      const isTcp = proto === ip.TCP
      const field = isTcp ? tcpWire.CHECKSUM : udpWire.CHECKSUM
      const len = (six ? ip6.IPV6 + ip6.payloadLength(b, l3) : ip.totalLength(b, l3)) - (l4 - eth.ETHERNET)
      const start = six ? fold(pseudo6(b, l3, proto, len)) : unfinished(ip.src(b, l3), ip.dst(b, l3), proto, len)
      put16(b, off + l4 + field, start)
      const header = l4 + (isTcp ? tcpWire.headerLength(b, off + l4) : udpWire.UDP)
      vnet.write(b, off - VNET, vnet.NEEDS_CSUM, built.gso?.type ?? 0, header, built.gso?.size ?? 0, l4, field)
    }
    this.network.receive(from.index, off, built.bytes.length)
    this.deliver()
  }

  /** Sockets' events, until there are none. */
  deliver(): void {
    this.host.deliver(this.network)
    this.network.flush()
  }

  /** Time goes by, in steps as the data plane would take them. */
  advance(ms: number): void {
    const end = this.host.now() + ms
    while (this.host.now() < end) {
      const wake = Math.max(this.network.nextWake(), this.host.now() + 1)
      this.host.advance(Math.min(wake, end) - this.host.now())
      this.network.tick()
      this.deliver()
    }
  }

  drops(reason: DropName): number {
    return this.network.drops.total(DROP[reason])
  }
}
