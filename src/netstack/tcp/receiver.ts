/**
 * From the guest: payload goes from the arriving frame into the host socket, and what the socket took is acknowledged.
 *
 * Owns: rcv columns, and when an acknowledgment is due. Nothing in order is stored: what the socket did not take is the guest's to send
 * again; the window (window.ts) makes that rare. What comes ahead of a hole is disorder.ts's, and answered at once (RFC 5681 §4.2). Reading: RFC 9293 §3.8.6, §3.10.7.4.
 *
 * Acknowledgments: when there is nothing more to do (`flush`: before the data plane sleeps, within a millisecond in any case), or as soon as a quarter
 * of the window is owed, between ACK_LEAST and ACK_MOST bytes: each one runs the guest's TCP, which costs as much as half a frame of 64 KiB. What is sent to the guest meanwhile carries them: the
 * answer to a request, the other side's FIN. Where more than a small request is owed and nothing comes, its sender may be waiting (`urgent`). No delayed
 * ACK beyond that: it would cost every slow start its clock.
 */
import type { FlowTable } from '../flow/table.ts'
import { EAGAIN } from '../host.ts'
import { type Seq, seqAdd, seqDiff } from '../wire/tcp.ts'
import {
  ACK_OWED,
  FIN_AHEAD,
  FIN_SENT,
  GUEST_FIN,
  GUEST_FIRST,
  type TcpColumns,
  TOOK_LESS,
  WANT_SPACE,
} from './columns.ts'
import type { TcpHost } from './context.ts'
import type { Disorder } from './disorder.ts'
import type { Segments } from './segments.ts'
import { openWindow, windowLeft } from './window.ts'

/** Bytes taken that are acknowledged at once, however much more there is to do. */
const ACK_LEAST = 128 * 1024
const ACK_MOST = 1024 * 1024
/** More than this is no request that an answer will follow soon. */
const URGENT = 64 * 1024
/** Below this much window the host socket is asked to say when it has room again. */
export const LOW_WINDOW = 192 * 1024
/** RFC 5681 §3.2: duplicate ACKs that make the guest send again without waiting for its timer. */
const DUP_ACKS = 3

export class Receiver {
  readonly #host: TcpHost
  readonly #table: FlowTable
  readonly #segments: Segments
  readonly #disorder: Disorder
  readonly #c: TcpColumns
  /** Flows that owe an acknowledgment since the last `flush`. */
  readonly #owing: Int32Array
  #owed = 0
  /** Somebody who may have sent all that he can is owed an acknowledgment. */
  urgent = false

  constructor(host: TcpHost, table: FlowTable, segments: Segments, disorder: Disorder, c: TcpColumns) {
    this.#host = host
    this.#table = table
    this.#segments = segments
    this.#disorder = disorder
    this.#c = c
    this.#owing = new Int32Array(table.capacity)
  }

  /** An acknowledgment is due, by itself or with what is sent to the guest before `flush`. */
  owe(i: number): void {
    if (this.#c.has(i, ACK_OWED)) return
    this.#c.flags[i] |= ACK_OWED
    if (this.#owed === this.#owing.length) this.flush()
    this.#owing[this.#owed++] = i
  }

  /** Send what is owed. An index that was freed meanwhile owes nothing. */
  flush(): void {
    for (let k = 0; k < this.#owed; k++) {
      const i = this.#owing[k]
      if (this.#c.has(i, ACK_OWED)) this.ackNow(i)
    }
    this.#owed = 0
    this.urgent = false
  }

  /** Acknowledge now, with the window as it is. */
  ackNow(i: number): void {
    this.#segments.ack(i)
    this.#wantSpace(i)
  }

  /**
   * Payload in order: `len` bytes at `off`, RCV.NXT being the first; `fin`: the stream ends behind them.
   * ≥ 0, or −errno: the host side has failed.
   */
  take(i: number, off: number, len: number, fin: boolean): number {
    const c = this.#c
    const sock = this.#table.sock[i]
    const room = windowLeft(c, i)
    // Beyond the window nothing was promised. A probe of a shut window is of this kind, and learns whether it has opened.
    let taken = Math.min(len, room)
    if (taken > 0) {
      const n = this.#host.tcpSend(sock, off, taken)
      if (n < 0 && n !== -EAGAIN) return n
      if (n < taken) {
        // The host had less room than it said. It will tell when it has some.
        c.flags[i] |= TOOK_LESS
        taken = Math.max(0, n)
      }
      this.#segments.streams.heard(i, len, this.#host.now())
      c.rcvNxt[i] = seqAdd(c.rcvNxt[i], taken)
      this.#table.bytesOut[i] += taken
    }
    if (taken < len) {
      this.ackNow(i)
      return 0
    }
    if (fin) {
      this.#end(i)
      return 0
    }
    if (c.held[i] >= 0 || c.has(i, FIN_AHEAD)) return this.#afterHole(i)
    const owed = seqDiff(c.rcvNxt[i], c.rcvTold[i])
    if (owed >= ACK_LEAST && (owed >= ACK_MOST || owed >= c.rcvWndMax[i] >> 2)) {
      this.ackNow(i)
      return 0
    }
    if (owed >= URGENT) this.urgent = true
    this.owe(i)
    return 0
  }

  /** Payload (and an end) ahead of RCV.NXT by `ahead`, within the window: kept for later; the guest learns what is missing. */
  ahead(i: number, seq: Seq, off: number, len: number, fin: boolean, ahead: number): void {
    const c = this.#c
    const room = windowLeft(c, i) - ahead
    if (fin && len <= room) {
      c.flags[i] |= FIN_AHEAD
      c.finAhead[i] = seqAdd(seq, len)
    }
    this.#disorder.hold(i, seq, off, Math.min(len, room))
    this.ackNow(i)
  }

  /** Something that was missing has been taken: what follows it goes on. */
  #afterHole(i: number): number {
    const c = this.#c
    const failed = this.#disorder.drain(i)
    if (failed < 0) return failed
    if (c.has(i, FIN_AHEAD) && c.rcvNxt[i] === c.finAhead[i]) this.#end(i)
    else this.ackNow(i)
    return 0
  }

  /** The guest's stream ends at RCV.NXT. */
  #end(i: number): void {
    const c = this.#c
    c.rcvNxt[i] = seqAdd(c.rcvNxt[i], 1)
    // Who ends first has the TIME-WAIT.
    c.flags[i] |= c.has(i, FIN_SENT) ? GUEST_FIN : GUEST_FIN | GUEST_FIRST
    this.#disorder.release(i)
    this.#host.tcpShutdown(this.#table.sock[i])
    this.owe(i)
  }

  /** The host socket has room again: pass on what is held, and tell the guest when that opens its window. As `take`. */
  writable(i: number): number {
    const c = this.#c
    const wanted = c.has(i, WANT_SPACE)
    const less = c.has(i, TOOK_LESS)
    if (c.has(i, GUEST_FIN)) return 0
    if (c.held[i] >= 0) {
      const failed = this.#afterHole(i)
      if (failed < 0) return failed
    }
    if ((!wanted && !less) || c.has(i, GUEST_FIN)) return 0
    c.flags[i] &= ~(WANT_SPACE | TOOK_LESS)
    const edge = c.edge[i]
    openWindow(c, this.#host, this.#table.sock[i], i)
    if (less) {
      // What it has sent was not taken whole, and it believes that to be under way.
      for (let k = 0; k < DUP_ACKS; k++) this.#segments.ack(i)
    }
    if (less || edge !== c.edge[i]) this.ackNow(i)
    return 0
  }

  #wantSpace(i: number): void {
    const c = this.#c
    if (c.has(i, WANT_SPACE | GUEST_FIN)) return
    const sock = this.#table.sock[i]
    if (sock < 0 || windowLeft(c, i) >= Math.min(LOW_WINDOW, c.rcvWndMax[i] >> 1)) return
    c.flags[i] |= WANT_SPACE
    this.#host.armWrite(sock)
  }
}
