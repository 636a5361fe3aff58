/**
 * Software offload: what a port without offloads needs before it can take a frame whose checksum is unfinished or which is larger
 * than the MTU. The only place where the project splits frames itself.
 *
 * TCP (RFC 9293) and UDP_L4 frames of either family become segments of gsoSize payload bytes, as Linux's tcp_gso_segment and __udp_gso_segment do:
 * identification counts up, sequence numbers move on, FIN and PSH stay on the last segment, CWR on the first.
 * The frame itself is not changed: it may be flooded to further ports. Works in one slot of its own.
 */
import { type Arena, VNET } from '../arena.ts'
import { be16, put16 } from '../wire/bytes.ts'
import { finish, fold, pseudo4, sum } from '../wire/checksum.ts'
import { ETHERNET } from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import * as vnet from '../wire/vnet.ts'
import { type Port, WAY } from './port.ts'

export class SoftwareOffload {
  readonly #b: Uint8Array
  readonly #slot: number

  constructor(arena: Arena) {
    this.#b = arena.bytes
    this.#slot = arena.slot()
  }

  /** Send the frame at (off, len), whose vnet header asks for something, to a port that cannot do it. The first failure ends it. */
  transmit(port: Port, off: number, len: number): number {
    const b = this.#b
    const hdr = off - VNET
    const gso = vnet.gsoType(b, hdr) & ~vnet.GSO_ECN
    const l4 = vnet.csumStart(b, hdr)
    const field = vnet.csumOffset(b, hdr)
    if (gso === vnet.GSO_NONE) {
      const to = this.#slot
      b.copyWithin(to, off, off + len)
      const end = packetEnd(b, off)
      const value = finish(sum(b, to + l4, end - l4, 0))
      // Zero means "none" in UDP (RFC 768).
      const word = value === 0 && field === udp.CHECKSUM ? 0xffff : value
      b[to + l4 + field] = word >>> 8
      b[to + l4 + field + 1] = word
      return port.transmit(to, len, WAY.now)
    }
    return this.#split(port, off, len, l4, gso !== vnet.GSO_UDP_L4)
  }

  #split(port: Port, off: number, len: number, l4: number, isTcp: boolean): number {
    const b = this.#b
    const size = vnet.gsoSize(b, off - VNET)
    const header = l4 + (isTcp ? tcp.headerLength(b, off + l4) : udp.UDP)
    const to = this.#slot
    const l3 = to + ETHERNET
    const t = to + l4
    // The headers stay where they are, each segment's payload is laid behind them.
    b.copyWithin(to, off, off + header)
    const six = isSix(b, off)
    // The pseudo header's part that all segments have in common; both families' addresses lie behind each other.
    const proto = isTcp ? ipv4.TCP : ipv4.UDP
    const addresses = six ? sum(b, l3 + ADDRESSES6, 32, proto) : sum(b, l3 + ADDRESSES4, 8, proto)
    const flags = isTcp ? tcp.flags(b, t) : 0
    const firstSeq = tcp.seq(b, t)
    const firstId = six ? 0 : ipv4.id(b, l3)
    const total = Math.min(len, packetEnd(b, off)) - header
    for (let done = 0, n = 0; done < total; done += size, n++) {
      const part = Math.min(size, total - done)
      const l4len = header - l4 + part
      b.copyWithin(to + header, off + header + done, off + header + done + part)
      if (six) put16(b, l3 + PAYLOAD6, header - ETHERNET - HEADER6 + part)
      else {
        ipv4.setTotalLength(b, l3, header - ETHERNET + part)
        ipv4.setId(b, l3, firstId + n)
        ipv4.seal(b, l3)
      }
      const pseudo = addresses + l4len
      if (isTcp) {
        let flag = flags
        if (n > 0) flag &= ~tcp.CWR
        if (done + part < total) flag &= ~(tcp.FIN | tcp.PSH)
        tcp.setFlags(b, t, flag)
        tcp.setSeq(b, t, tcp.seqAdd(firstSeq, done))
        tcp.setChecksum(b, t, 0)
        tcp.setChecksum(b, t, finish(sum(b, t, l4len, pseudo)))
      } else {
        udp.setLength(b, t, l4len)
        udp.setChecksum(b, t, 0)
        udp.setChecksum(b, t, finish(sum(b, t, l4len, pseudo)) || 0xffff)
      }
      const r = port.transmit(to, header + part, WAY.now)
      if (r < 0) return r
    }
    return 0
  }
}

// The IPv6 header (RFC 8200 §3): payload length, addresses, its end. Extension headers are between it and what is split, and stay as they are.
const PAYLOAD6 = 4
const ADDRESSES6 = 8
const HEADER6 = 40
const ADDRESSES4 = 12

const isSix = (b: Uint8Array, off: number): boolean => b[off + ETHERNET] >>> 4 === 6

/** Where the packet ends in its frame; padding is behind it. */
const packetEnd = (b: Uint8Array, off: number): number => {
  const l3 = off + ETHERNET
  return ETHERNET + (isSix(b, off) ? HEADER6 + be16(b, l3 + PAYLOAD6) : ipv4.totalLength(b, l3))
}

/** The checksum field's start value for whoever finishes it: the pseudo header's sum, not complemented (virtio 1.2 §5.1.6.2.1). */
export const unfinished = (src: number, dst: number, proto: number, len: number): number =>
  fold(pseudo4(src, dst, proto, len))
