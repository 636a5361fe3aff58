/**
 * Emission: every segment that the relay sends to a guest leaves here.
 *
 * Owns: writing headers at egress' place, taking window and acknowledgment from the columns, splitting by GSO (a frame of up
 * to 64 KiB leaves whole; the guest's kernel, or a port without offloads, sees segments of `mss`), timestamps (RFC 7323 §3.2): every
 * segment but a reset carries them once the SYNs have agreed. They count from the machine's boot, because a guest that remembers an
 * ended connection takes a SYN with the same ports and an older one for a late duplicate.
 * Never does: deciding when; copying payload (the sender has peeked it behind the header already).
 */
import { EVEN } from '../arena.ts'
import type { FlowTable } from '../flow/table.ts'
import type { Egress } from '../gateway/egress.ts'
import { WAY } from '../switch/port.ts'
import type { Seq } from '../wire/tcp.ts'
import * as tcp from '../wire/tcp.ts'
import { GSO_NONE, GSO_TCPV4, GSO_TCPV6 } from '../wire/vnet.ts'
import { ACK_OWED, FIN_SENT, SACK, SCALED, STATE, type TcpColumns } from './columns.ts'
import type { TcpHost } from './context.ts'
import type { Disorder } from './disorder.ts'
import { Streams } from './streams.ts'
import { openWindow, windowField } from './window.ts'

/** IP header, fixed TCP header. */
const HEADERS4 = 40
const HEADERS6 = 60
/** 256-byte units: windows of up to 16 MiB. */
export const WINDOW_SHIFT = 8

const ZERO = 0 as Seq

export class Segments {
  readonly #host: TcpHost
  readonly #table: FlowTable
  readonly #egress: Egress
  readonly #bytes: Uint8Array
  readonly #c: TcpColumns
  readonly #disorder: Disorder
  /** How acknowledgments travel; told by whoever takes payload. */
  readonly streams: Streams
  readonly #mtu: number

  constructor(host: TcpHost, table: FlowTable, egress: Egress, c: TcpColumns, disorder: Disorder, mtu: number) {
    this.#host = host
    this.#table = table
    this.#egress = egress
    this.#bytes = host.arena.bytes
    this.#c = c
    this.streams = new Streams(c)
    this.#disorder = disorder
    this.#mtu = mtu
  }

  /**
   * The MSS that we announce: what fits the link, less what makes the payload of whole segments a multiple of EVEN behind the options that they will have. So a
   * stream stays aligned through all of its copies: 1452 for an MTU of 1500, of which timestamps take 12.
   */
  ownMss(i: number): number {
    const c = this.#c
    const most = this.#mtu - (this.#table.family[i] === 4 ? HEADERS4 : HEADERS6)
    const declined = c.state[i] !== STATE.synSent && c.stamps[i] === 0
    return most - ((most - (declined ? 0 : tcp.TIMESTAMPS)) % EVEN)
  }

  /** Where payload is to be put before `data`. */
  payloadAt(i: number): number {
    return this.#egress.l4at + tcp.TCP + this.#c.stamps[i]
  }

  /** Most payload of one `data` call: whole segments. */
  payloadMax(i: number): number {
    const mss = this.#c.mss[i]
    // A packet of either family is at most 64 KiB with its headers: so long are the buffers of those who take it whole.
    const header = tcp.TCP + this.#c.stamps[i]
    const room = this.#egress.l4max - (this.#table.family[i] === 4 ? header : HEADERS6 - HEADERS4 + header)
    return room < mss ? room : room - (room % mss)
  }

  /** Header and `len` bytes of payload that lie there, from sequence number `seq`. ≥ 0, or −errno. */
  data(i: number, seq: Seq, len: number, flags: number): number {
    const c = this.#c
    if (c.has(i, ACK_OWED)) openWindow(c, this.#host, this.#table.sock[i], i)
    c.flags[i] &= ~ACK_OWED
    return this.#send(i, seq, c.rcvNxt[i], flags | tcp.ACK, windowField(c, i), 0, len)
  }

  /** A pure acknowledgment with the current window. */
  ack(i: number): number {
    const c = this.#c
    openWindow(c, this.#host, this.#table.sock[i], i)
    c.flags[i] &= ~ACK_OWED
    let options = 0
    if (c.held[i] >= 0 && c.has(i, SACK)) {
      options = this.#disorder.writeSack(this.#bytes, this.payloadAt(i), i)
    }
    return this.#send(i, c.sndNxt[i], c.rcvNxt[i], tcp.ACK, windowField(c, i), options, 0)
  }

  /** Window probe and keepalive: an old sequence number, which the guest answers with an ACK (RFC 9293 §3.8.4, §3.10.7.4). */
  probe(i: number): number {
    const c = this.#c
    return this.#send(i, tcp.seqAdd(c.sndUna[i], -1), c.rcvNxt[i], tcp.ACK, windowField(c, i), 0, 0)
  }

  fin(i: number, seq: Seq): number {
    this.#c.flags[i] |= FIN_SENT
    return this.data(i, seq, 0, tcp.FIN)
  }

  /** SYN to the guest (inbound), or the SYN-ACK that answers its own. Windows of SYNs are never scaled. */
  syn(i: number): number {
    const c = this.#c
    const answer = c.state[i] !== STATE.synSent
    const at = this.#egress.l4at
    let end = tcp.putMss(this.#bytes, at + tcp.TCP, this.ownMss(i))
    if (!answer || c.has(i, SACK)) end = tcp.putSackPermitted(this.#bytes, end)
    if (!answer || c.has(i, SCALED)) end = tcp.putScale(this.#bytes, end, WINDOW_SHIFT)
    if (!answer || c.stamps[i] > 0) end = tcp.putTimestamps(this.#bytes, end, this.#clock(), c.tsRecent[i])
    const options = end - at - tcp.TCP
    const wnd = Math.min(0xffff, this.#host.tcpFree(this.#table.sock[i]))
    if (answer) {
      const edge = tcp.seqAdd(c.rcvNxt[i], wnd)
      if (tcp.seqGt(edge, c.edge[i])) c.edge[i] = edge
      if (wnd > c.rcvWndMax[i]) c.rcvWndMax[i] = wnd
    }
    const ack = answer ? c.rcvNxt[i] : ZERO
    return this.#send(i, c.iss[i], ack, answer ? tcp.SYN | tcp.ACK : tcp.SYN, wnd, options, 0)
  }

  /**
   * RST of a connection that the guest believes in. It must hit the guest's RCV.NXT (RFC 5961 §3): all that was sent has likely
   * arrived, unless something is being sent again. Otherwise the guest's challenge finds no flow, and is answered by egress.reset.
   */
  rst(i: number): number {
    const c = this.#c
    const seq = c.retries[i] === 0 ? c.sndMax[i] : c.sndUna[i]
    return this.#send(i, seq, c.rcvNxt[i], tcp.RST | tcp.ACK, 0, 0, 0)
  }

  /** TSval. */
  #clock(): number {
    return (this.#host.began + this.#host.now()) | 0
  }

  /** `options`: bytes of those that have been written (behind the timestamps, but a SYN's own are among them). */
  #send(i: number, seq: Seq, ack: Seq, flags: number, wnd: number, options: number, len: number): number {
    const c = this.#c
    const at = this.#egress.l4at
    if ((flags & tcp.ACK) !== 0) c.rcvTold[i] = ack
    let header = tcp.TCP + options
    if ((flags & (tcp.SYN | tcp.RST)) === 0 && c.stamps[i] > 0) {
      header += tcp.TIMESTAMPS
      tcp.putTimestamps(this.#bytes, at + tcp.TCP, this.#clock(), c.tsRecent[i])
    }
    const t = this.#table
    tcp.write(this.#bytes, at, t.peerPort[i], t.guestPort[i], seq, ack, header, flags, wnd)
    const mss = c.mss[i]
    const gso = len <= mss ? GSO_NONE : t.family[i] === 4 ? GSO_TCPV4 : GSO_TCPV6
    const way = len === 0 ? this.streams.ackWay(i, this.#host.now()) : WAY.now
    return this.#egress.flow(i, header + len, tcp.CHECKSUM, gso, gso === GSO_NONE ? 0 : mss, header, way)
  }
}
