/**
 * Towards the guest: what the host socket has, in segments, until the guest has acknowledged them.
 *
 * Payload stays in the host socket. `tcpPeek` copies it behind the headers in egress' place, from `sndNxt − sndUna` bytes past
 * the first unconsumed one; an acknowledgment consumes; a retransmission peeks again. So the socket's first unconsumed byte always
 * is sequence number sndUna, and a guest that never acknowledges keeps the host's own receive window shut, nothing else.
 *
 * Owns: snd columns, the retransmission and persist alarms. Reading: RFC 9293 §3.8, RFC 6582, RFC 6298 §5.
 * The guest's MTU is the link's; the path behind the host socket may be smaller and is the host kernel's affair.
 * No Nagle: whoever wrote into the host socket has decided on its segments already.
 */

import type { FlowTable } from '../flow/table.ts'
import { EAGAIN } from '../host.ts'
import { PSH, type Seq, seqAdd, seqDiff, seqGe, seqGt, seqLt } from '../wire/tcp.ts'
import type { Alarms } from './alarms.ts'
import {
  FIN_ACKED,
  FIN_SENT,
  HOST_EOF,
  PERSISTING,
  READABLE_NOW,
  RECOVERING,
  SACK,
  type TcpColumns,
  TIMING,
} from './columns.ts'
import type { TcpHost } from './context.ts'
import { ackInRecovery, cwndGrow, cwndStart, cwndTimeout, dupAck, holeEnd } from './recovery.ts'
import { rttBackOff, rttCompute, rttSample } from './rto.ts'
import type { Segments } from './segments.ts'

/** Frames of up to 64 KiB that one call may send: half a megabyte, then it is the next flow's turn. */
export const PUMP_FRAMES = 8
/** Retransmissions in a row before the guest is given up: about two and a half minutes (RFC 9293 §3.8.3 asks for 100 s). */
export const RETRIES_MAX = 10
/** The switch port refused a frame: try again after this many ms when no ACK will come by. */
const PORT_FULL_WAIT = 8

/** Results beside −errno of the host side. */
export const DONE = 0
export const MORE = 1
/** The acknowledgment number is not acceptable: answer with an ACK and forget the segment. */
export const UNACCEPTABLE = 2
/** The guest has not answered for too long. */
export const GIVEN_UP = 3

export class Sender {
  readonly #host: TcpHost
  readonly #table: FlowTable
  readonly #segments: Segments
  readonly #alarms: Alarms
  readonly #c: TcpColumns

  constructor(host: TcpHost, table: FlowTable, segments: Segments, alarms: Alarms, c: TcpColumns) {
    this.#host = host
    this.#table = table
    this.#segments = segments
    this.#alarms = alarms
    this.#c = c
  }

  /** The handshake is over: sndUna is the first byte of the stream. */
  start(i: number): void {
    cwndStart(this.#c, i)
    this.#c.retries[i] = 0
    this.#alarms.rest(i)
  }

  /** Send what windows allow. DONE, MORE (the budget is used up), or −errno: the host side has failed. */
  pump(i: number, force = false): number {
    const c = this.#c
    const sock = this.#table.sock[i]
    let frames = PUMP_FRAMES
    for (;;) {
      const nxt = c.sndNxt[i]
      const max = c.sndMax[i]
      const flags = c.flags[i]
      // Everything that is known of has been sent.
      if (nxt === max && (flags & FIN_SENT || !(flags & (READABLE_NOW | HOST_EOF)))) return DONE
      const flight = (nxt - c.sndUna[i]) | 0
      const mss = c.mss[i]
      const wnd = c.sndWnd[i]
      const room = Math.min(c.cwnd[i], wnd) - flight
      if (room < mss) {
        // Silly window syndrome, sender's side (RFC 9293 §3.8.6.2.1): wait, unless half of the guest's window is there.
        const enough = room > 0 && (force || flags & HOST_EOF || room * 2 >= c.sndWndMax[i])
        if (flight > 0 && !(room > 0 && flags & HOST_EOF && nxt === c.finSeq[i])) return DONE
        if (!enough) return this.#persist(i, sock)
      }
      if (flags & HOST_EOF && nxt === c.finSeq[i]) {
        this.#sent(i, nxt, 1)
        this.#segments.fin(i, nxt)
        return DONE
      }
      if (frames-- === 0) return MORE
      let len = Math.min(room, this.#segments.payloadMax(i))
      if (len > mss) len -= len % mss
      const n = this.#host.tcpPeek(sock, this.#segments.payloadAt(i), len, flight)
      if (n <= 0) {
        if (n < 0 && n !== -EAGAIN) return n
        c.flags[i] &= ~READABLE_NOW
        // What was sent before is gone from the socket: the host broke its promise; the timer will tell.
        if (nxt !== max) return DONE
        if (n < 0) return DONE
        c.flags[i] |= HOST_EOF
        c.finSeq[i] = nxt
        continue
      }
      if (this.#segments.data(i, nxt, n, n < len ? PSH : 0) < 0) {
        if (flight === 0) this.#alarms.set(i, this.#host.now() + PORT_FULL_WAIT)
        return DONE
      }
      this.#sent(i, nxt, n)
    }
  }

  /** The guest's window is shut and nothing is under way: probe it until it opens. */
  #persist(i: number, sock: number): number {
    const c = this.#c
    if (!c.has(i, HOST_EOF) && c.sndNxt[i] === c.sndMax[i]) {
      // Is there anything to send at all?
      const n = this.#host.tcpPeek(sock, this.#segments.payloadAt(i), 1, 0)
      if (n < 0) {
        c.flags[i] &= ~READABLE_NOW
        return n === -EAGAIN ? DONE : n
      }
      if (n === 0) {
        c.flags[i] = (c.flags[i] & ~READABLE_NOW) | HOST_EOF
        c.finSeq[i] = c.sndNxt[i]
      }
    }
    if (!c.has(i, PERSISTING)) {
      c.flags[i] |= PERSISTING
      rttCompute(c, i)
      this.#alarms.set(i, this.#host.now() + c.rto[i])
    }
    return DONE
  }

  /** `n` sequence numbers from `seq` are on their way. */
  #sent(i: number, seq: Seq, n: number): void {
    const c = this.#c
    const now = this.#host.now()
    const end = seqAdd(seq, n)
    c.sndNxt[i] = end
    if (seqGt(end, c.sndMax[i])) {
      if (!c.has(i, TIMING) && seq === c.sndMax[i]) {
        c.flags[i] |= TIMING
        c.rttSeq[i] = end
        c.rttAt[i] = now
      }
      c.sndMax[i] = end
    } else c.flags[i] &= ~TIMING
    if (c.alarm[i] === Infinity || c.has(i, PERSISTING)) {
      c.flags[i] &= ~PERSISTING
      this.#alarms.set(i, now + c.rto[i])
    }
  }

  /**
   * The guest's acknowledgment and window: `seq`, `ack` and `wnd` (scaled already) of an acceptable segment; `bare`: it has no
   * payload and no FIN; its options have been read. DONE, UNACCEPTABLE, or −errno of the host side.
   */
  acknowledge(i: number, seq: Seq, ack: Seq, wnd: number, bare: boolean): number {
    const c = this.#c
    const una = c.sndUna[i]
    if (seqGt(ack, c.sndMax[i])) return UNACCEPTABLE
    // RFC 5961 §5.2: an older one than any that may still be under way is forged.
    if (seqLt(ack, una)) return ((una - ack) | 0) > c.sndWndMax[i] ? UNACCEPTABLE : DONE
    const opened = wnd > c.sndWnd[i]
    const same = wnd === c.sndWnd[i]
    if (
      seqLt(c.sndWl1[i], seq) ||
      (c.sndWl1[i] === seq && seqGe(ack, c.sndWl2[i])) ||
      // An ACK that advances is never older than the last one.
      ack !== una
    ) {
      c.sndWnd[i] = wnd
      c.sndWl1[i] = seq
      c.sndWl2[i] = ack
      if (wnd > c.sndWndMax[i]) c.sndWndMax[i] = wnd
    }
    if (ack !== una) {
      const failed = this.#advance(i, una, ack)
      if (failed < 0) return failed
    } else if (bare && same && c.sndMax[i] !== una) {
      if (dupAck(c, i)) {
        const failed = this.#resend(i)
        if (failed < 0) return failed
      } else if (!c.has(i, RECOVERING)) return DONE
    } else if (!opened) return DONE
    else if (c.has(i, PERSISTING)) this.#alarms.rest(i)
    const n = this.pump(i)
    // The rest goes with the next acknowledgment: this guest's frames must not hold the others up.
    return n < 0 ? n : DONE
  }

  #advance(i: number, una: Seq, ack: Seq): number {
    const c = this.#c
    const acked = (ack - una) | 0
    let data = acked
    if (c.has(i, FIN_SENT) && ack === seqAdd(c.finSeq[i], 1)) {
      data--
      c.flags[i] |= FIN_ACKED
    }
    if (data > 0) {
      this.#host.tcpConsume(this.#table.sock[i], data)
      this.#table.bytesIn[i] += data
    }
    c.sndUna[i] = ack
    if (seqLt(c.sndNxt[i], ack)) c.sndNxt[i] = ack
    c.retries[i] = 0
    const now = this.#host.now()
    if (c.has(i, TIMING) && seqGe(ack, c.rttSeq[i])) {
      c.flags[i] &= ~TIMING
      rttSample(c, i, now - c.rttAt[i])
    } else rttCompute(c, i)
    this.#alarms.rest(i)
    if (ack !== c.sndMax[i]) this.#alarms.set(i, now + c.rto[i])
    if (!c.has(i, RECOVERING)) {
      c.dupAcks[i] = 0
      cwndGrow(c, i, acked)
    } else if (ackInRecovery(c, i, acked)) return this.#resend(i)
    return DONE
  }

  /** Send the first hole again. */
  #resend(i: number): number {
    const c = this.#c
    const una = c.sndUna[i]
    const mss = c.mss[i]
    c.flags[i] &= ~TIMING
    if (c.has(i, HOST_EOF) && una === c.finSeq[i]) {
      this.#segments.fin(i, una)
      return DONE
    }
    let len = mss
    if (c.has(i, SACK)) {
      const hole = seqDiff(holeEnd(this.#host.arena.bytes, una, c.sndMax[i]), una)
      if (hole > 0) len = Math.min(hole, this.#segments.payloadMax(i))
    }
    const most = (c.sndMax[i] - una) | 0
    const n = this.#host.tcpPeek(this.#table.sock[i], this.#segments.payloadAt(i), Math.min(len, most), 0)
    if (n < 0) return n === -EAGAIN ? DONE : n
    if (n > 0) this.#segments.data(i, una, n, 0)
    return DONE
  }

  /** The retransmission alarm rang. As `pump`, or GIVEN_UP: the guest does not answer any more. */
  timeout(i: number): number {
    const c = this.#c
    this.#alarms.rest(i)
    if (c.sndMax[i] !== c.sndUna[i]) {
      if (c.retries[i] >= RETRIES_MAX) return GIVEN_UP
      cwndTimeout(c, i)
      c.flags[i] &= ~TIMING
      c.sndNxt[i] = c.sndUna[i]
      rttBackOff(c, i)
      c.retries[i]++
      this.#alarms.set(i, this.#host.now() + c.rto[i])
      // The window shut behind what is under way: one segment is its probe.
      if (c.sndWnd[i] < c.mss[i]) return this.#resend(i)
    }
    return this.pump(i)
  }

  /** The persist timer rang: probe, or send what fits though it is silly. As `timeout`. */
  probe(i: number): number {
    const c = this.#c
    if (c.retries[i] >= RETRIES_MAX) return GIVEN_UP
    c.retries[i]++
    if (c.sndWnd[i] > 0) {
      this.#alarms.rest(i)
      return this.pump(i, true)
    }
    rttBackOff(c, i)
    this.#segments.probe(i)
    this.#alarms.set(i, this.#host.now() + c.rto[i])
    return DONE
  }
}
