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
import * as arpWire from '../../src/netstack/wire/arp.ts'
import { put16 } from '../../src/netstack/wire/bytes.ts'
import { finish, pseudo4, sum } from '../../src/netstack/wire/checksum.ts'
import * as eth from '../../src/netstack/wire/ethernet.ts'
import * as icmpWire from '../../src/netstack/wire/icmp.ts'
import * as ip from '../../src/netstack/wire/ipv4.ts'
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

/** The gateway's MAC on CONFIG's subnet. */
export const GATEWAY_MAC = '02:6e:c0:a8:64:01'
export const BROADCAST_MAC = 'ff:ff:ff:ff:ff:ff'

export interface Sender {
  readonly mac: string
  readonly ip: string
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
  readonly icmp?: { type: number; code: number; id: number; sequence: number; info: number; data: Uint8Array }
}

export function decode(bytes: Uint8Array, header: Uint8Array): Received {
  const gsoType = vnet.gsoType(header, 0)
  const r: { -readonly [K in keyof Received]: Received[K] } = {
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
  const l4len = end - l4
  if ((vnet.flags(header, 0) & vnet.NEEDS_CSUM) !== 0) {
    assert.equal(vnet.csumStart(header, 0), l4)
    const field = l4 + vnet.csumOffset(header, 0)
    const value = finish(sum(bytes, l4, l4len, 0))
    bytes[field] = value >>> 8
    bytes[field + 1] = value & 255
  } else assert.equal(gsoType, 0, 'gso goes with an unfinished checksum')
  const pseudo = pseudo4(src, dst, proto, l4len)
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
  } else if (proto === ip.ICMP) {
    assert.ok(icmpWire.sound(bytes, l4, l4len), 'ICMP checksum')
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
  const { src, dst } = r.ip
  if (r.udp) return `udp ${src}:${r.udp.srcPort} > ${dst}:${r.udp.dstPort}${text(r.udp.data)}`
  if (r.tcp) {
    const flags = FLAG_NAMES.filter(([bit]) => (r.tcp as { flags: number }).flags & bit).map(([, n]) => n)
    return `tcp ${src}:${r.tcp.srcPort} > ${dst}:${r.tcp.dstPort} ${flags.join('+')}${text(r.tcp.data)}`
  }
  if (r.icmp) return `icmp ${src} > ${dst} ${r.icmp.type}/${r.icmp.code}`
  return `ip ${src} > ${dst} proto ${r.ip.proto}${r.ip.mf || r.ip.offset ? ` fragment ${r.ip.offset}${r.ip.mf ? '+' : ''}` : ''}`
}

// -- building -------------------------------------------------------------------------------------------------------

const data = (d: string | Uint8Array | undefined): Uint8Array =>
  d === undefined ? new Uint8Array(0) : typeof d === 'string' ? Buffer.from(d, 'latin1') : d

function endpoint(e: string | number | undefined, address: string, port: number): { ip: string; port: number } {
  if (e === undefined) return { ip: address, port }
  if (typeof e === 'number') return { ip: address, port: e }
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
  const pseudo = pseudo4(ip.parseAddress(src), ip.parseAddress(dst), ip.UDP, b.length)
  udpWire.setChecksum(b, 0, finish(sum(b, 0, b.length, pseudo)) || 0xffff)
  return b
}

export const udp =
  (o: UdpOptions): Build =>
  (from) => {
    const src = endpoint(o.from, from.ip, 4000)
    const dst = endpoint(o.to, '0.0.0.0', 0)
    const b = udpBytes(src.ip, src.port, dst.ip, dst.port, data(o.data))
    if (o.checksum !== undefined) udpWire.setChecksum(b, 0, o.checksum)
    const gso = o.segment === undefined ? undefined : { type: vnet.GSO_UDP_L4, size: o.segment }
    return { bytes: ipv4(from, src.ip, dst.ip, ip.UDP, b, o), gso, partial: gso !== undefined }
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
    const src = endpoint(o.from, from.ip, 4000)
    const dst = endpoint(o.to, '0.0.0.0', 0)
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
    const pseudo = pseudo4(ip.parseAddress(src.ip), ip.parseAddress(dst.ip), ip.TCP, b.length)
    tcpWire.setChecksum(b, 0, finish(sum(b, 0, b.length, pseudo)))
    const gso = o.segment === undefined ? undefined : { type: vnet.GSO_TCPV4, size: o.segment }
    return { bytes: ipv4(from, src.ip, dst.ip, ip.TCP, b, o), gso, partial: gso !== undefined }
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

export const raw =
  (bytes: Uint8Array): Build =>
  () => ({ bytes })

/** Any IP protocol, or a fragment: the payload as it is. */
export const packet =
  (o: Ip & { from?: string; to: string; proto: number; payload: Uint8Array }): Build =>
  (from) => ({ bytes: ipv4(from, o.from ?? from.ip, o.to, o.proto, o.payload, o) })

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
  readonly name: string
  readonly port: TestPort
  readonly #net: TestNet

  constructor(net: TestNet, index: number, name: string, mac: string, address: string, port: TestPort) {
    this.#net = net
    this.index = index
    this.name = name
    this.mac = mac
    this.ip = address
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
    this.#slot = this.host.arena.slot()
    this.#offload = o.offload ?? true
  }

  vm(
    name: string,
    o: { mac?: string; address?: string; offload?: boolean; id?: string; bound?: boolean } = {},
  ): Station {
    const n = ++this.#vms
    const mac = o.mac ?? `02:00:00:00:00:${(0x10 + n).toString(16).padStart(2, '0')}`
    const address = o.address ?? `192.168.100.${9 + n}`
    const port = new TestPort(this.host.arena.bytes, o.offload ?? this.#offload)
    const id = o.id ?? name
    const index = this.network.attach({ id, role: ROLE.vm, name, mac, address, bound: o.bound ?? true, port })
    return new Station(this, index, name, mac, address, port)
  }

  /** The host's interface at .254. */
  hostPort(): Station {
    const port = new TestPort(this.host.arena.bytes, true)
    const mac = '02:00:00:00:00:fe'
    const address = CONFIG.hostAddress
    const index = this.network.attach({ id: 'host', role: ROLE.host, name: 'host', mac, address, bound: true, port })
    return new Station(this, index, 'host', mac, address, port)
  }

  /** A frame comes in; what it leads to is done when this returns. */
  inject(from: Station, built: Built): void {
    const b = this.host.arena.bytes
    const off = this.#slot
    b.set(built.bytes, off)
    vnet.clear(b, off - VNET)
    if (built.partial || built.gso) {
      const l4 = eth.ETHERNET + ip.headerLength(b, off + eth.ETHERNET)
      const isTcp = ip.protocol(b, off + eth.ETHERNET) === ip.TCP
      const field = isTcp ? tcpWire.CHECKSUM : udpWire.CHECKSUM
      const l3 = off + eth.ETHERNET
      const len = ip.totalLength(b, l3) - (l4 - eth.ETHERNET)
      put16(b, off + l4 + field, unfinished(ip.src(b, l3), ip.dst(b, l3), ip.protocol(b, l3), len))
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
