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
import { options, PSH, type Seq, seqAdd, seqDiff, seqGe, seqGt, seqLt } from '../wire/tcp.ts'
import type { Alarms } from './alarms.ts'
import {
  FIN_ACKED,
  FIN_SENT,
  HOST_EOF,
  PEEK_ON,
  PERSISTING,
  READABLE_NOW,
  RECOVERING,
  SACK,
  type TcpColumns,
  TIMING,
} from './columns.ts'
import type { TcpHost } from './context.ts'
import { ackInRecovery, cwndGrow, cwndLostFlight, cwndStart, cwndTimeout, dupAck, frameMax } from './recovery.ts'
import { RTO_MAX, rttBackOff, rttCompute, rttSample } from './rto.ts'
import { hole, nextHole, pipe, sackAdvance, sackUpdate, sentAgain } from './scoreboard.ts'
import type { Segments } from './segments.ts'

/** Frames of up to 64 KiB that one call may send: half a megabyte, then it is the next flow's turn. */
export const PUMP_FRAMES = 8
/** Retransmissions in a row before the guest is given up: about two and a half minutes (RFC 9293 §3.8.3 asks for 100 s). */
export const RETRIES_MAX = 10
/** ms that a guest whose window is shut may say nothing, when it has had all retries: two probes' time. */
const SILENCE = 2 * RTO_MAX
/** ms without an acknowledgment after which the first segment is sent again: several under way, or one that may be acknowledged late. */
const PROBE_LEAST = 10
const PROBE_SINGLE = 50
/** The second and third wait twice as long each; then it is the timeout's turn. */
const PROBES_MAX = 3
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
    const mending = (c.flags[i] & (RECOVERING | SACK)) === (RECOVERING | SACK)
    if (mending) {
      frames = this.#mend(i, frames)
      if (frames <= 0) return frames === 0 ? MORE : frames
    }
    for (;;) {
      const nxt = c.sndNxt[i]
      const max = c.sndMax[i]
      const flags = c.flags[i]
      // Everything that is known of has been sent.
      if (nxt === max && (flags & FIN_SENT || !(flags & (READABLE_NOW | HOST_EOF)))) return DONE
      const flight = (nxt - c.sndUna[i]) | 0
      const mss = c.mss[i]
      const wnd = c.sndWnd[i]
      const room = Math.min(c.cwnd[i] - (mending ? pipe(c, i) : flight), wnd - flight)
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
      let len = Math.min(room, frameMax(c, i, this.#segments.payloadMax(i)))
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
      // All there was: what comes later is told, and so are an end (with HANGUP) and a byte before which a peek ends (URGENT), so there is
      // no need to ask again.
      if (n < len && (c.flags[i] & PEEK_ON) === 0) c.flags[i] &= ~READABLE_NOW
    }
  }

  /** Send holes of the scoreboard again as the congestion window allows. The frames that are left of the budget, or −errno. */
  #mend(i: number, frames: number): number {
    const c = this.#c
    const mss = c.mss[i]
    while (frames > 0 && nextHole(c, i)) {
      const { start, end } = hole
      const size = seqDiff(end, start)
      // The first goes out in any case: it is what everything waits for.
      const room = start === c.sndUna[i] ? Math.max(mss, c.cwnd[i] - pipe(c, i)) : c.cwnd[i] - pipe(c, i)
      if (room < Math.min(size, mss)) break
      const n = this.#again(i, start, Math.min(size, room < mss ? room : room - (room % mss)))
      if (n <= 0) return n < 0 ? n : frames
      sentAgain(c, i, start, n)
      frames--
    }
    return frames
  }

  /** Send `len` bytes from `start` again; the bytes sent, or −errno. */
  #again(i: number, start: Seq, len: number): number {
    const c = this.#c
    c.flags[i] &= ~TIMING
    const most = Math.min(len, this.#segments.payloadMax(i))
    const sock = this.#table.sock[i]
    const n = this.#host.tcpPeek(sock, this.#segments.payloadAt(i), most, seqDiff(start, c.sndUna[i]))
    if (n <= 0) return n === -EAGAIN ? 0 : n
    return this.#segments.data(i, start, n, 0) < 0 ? 0 : n
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
      this.#alarms.set(i, now + this.#patience(i))
    }
  }

  /** How long to wait for an acknowledgment before asking for one (RFC 8985 §7.2), or for the timeout when that was done. */
  #patience(i: number): number {
    const c = this.#c
    if (c.probes[i] === PROBES_MAX || c.retries[i] > 0 || c.srtt8[i] === 0) return c.rto[i]
    const least = seqDiff(c.sndMax[i], c.sndUna[i]) <= c.mss[i] ? PROBE_SINGLE : PROBE_LEAST
    return Math.min(c.rto[i], Math.max(least, c.srtt8[i] >> 2) << c.probes[i])
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
    const news = c.has(i, SACK) && options.sackBlocks > 0 && sackUpdate(c, i, this.#host.arena.bytes)
    if (ack !== una) {
      const failed = this.#advance(i, una, ack)
      if (failed < 0) return failed
    } else if (((bare && same) || news) && c.sndMax[i] !== una) {
      if (dupAck(c, i)) {
        if (!nextHole(c, i)) {
          const failed = this.#resend(i)
          if (failed < 0) return failed
        }
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
    sackAdvance(c, i)
    c.retries[i] = 0
    const probed = c.probes[i] > 0
    c.probes[i] = 0
    const now = this.#host.now()
    if (c.has(i, TIMING) && seqGe(ack, c.rttSeq[i])) {
      c.flags[i] &= ~TIMING
      rttSample(c, i, now - c.rttAt[i])
    } else rttCompute(c, i)
    this.#alarms.rest(i)
    if (ack !== c.sndMax[i]) this.#alarms.set(i, now + this.#patience(i))
    if (probed && c.ranges[i] === 0 && seqLt(ack, c.probedTo[i])) {
      // Only what was sent again has arrived: all of the flight was lost, as when it was one frame. Once more from here.
      cwndLostFlight(c, i)
      c.sndNxt[i] = ack
    } else if (!c.has(i, RECOVERING)) {
      c.dupAcks[i] = 0
      cwndGrow(c, i, acked)
    } else if (ackInRecovery(c, i, acked) && !nextHole(c, i) && c.rtxNxt[i] === ack) return this.#resend(i)
    return DONE
  }

  /** Send the segment at sndUna again, or the FIN. DONE, or −errno. */
  #resend(i: number): number {
    const c = this.#c
    const una = c.sndUna[i]
    c.flags[i] &= ~TIMING
    if (c.has(i, HOST_EOF) && una === c.finSeq[i]) {
      this.#segments.fin(i, una)
      return DONE
    }
    // Two segments, because one alone may be acknowledged late.
    const n = this.#again(i, una, Math.min(2 * c.mss[i], seqDiff(c.sndMax[i], una)))
    if (n > 0) sentAgain(c, i, una, n)
    return n < 0 ? n : DONE
  }

  /**
   * Has the guest been asked in vain for too long? One whose window is shut may have dropped what was under way, and acknowledges nothing new: while it
   * says anything it is there (RFC 9293 §3.8.6.1).
   */
  #silent(i: number): boolean {
    const c = this.#c
    if (c.retries[i] < RETRIES_MAX) return false
    return c.sndWnd[i] >= c.mss[i] || this.#host.now() - c.heard[i] > SILENCE
  }

  /** Counted no further than it matters: a column's byte must not come round. */
  #retry(i: number): void {
    if (this.#c.retries[i] < RETRIES_MAX) this.#c.retries[i]++
  }

  /** The retransmission alarm rang. As `pump`, or GIVEN_UP: the guest does not answer any more. */
  timeout(i: number): number {
    const c = this.#c
    this.#alarms.rest(i)
    if (c.sndMax[i] !== c.sndUna[i]) {
      if (this.#silent(i)) return GIVEN_UP
      if (c.probes[i] < PROBES_MAX && c.retries[i] === 0 && c.srtt8[i] !== 0) {
        // An early probe: if that is what was lost, it costs a few ms instead of a timeout; if not, the guest answers.
        c.probes[i]++
        this.#alarms.set(i, this.#host.now() + this.#patience(i))
        c.rtxNxt[i] = c.sndUna[i]
        c.probedTo[i] = c.sndMax[i]
        if (c.sndNxt[i] !== c.sndMax[i]) c.sndNxt[i] = c.sndUna[i]
        const failed = this.#resend(i)
        return failed < 0 ? failed : this.pump(i)
      }
      c.probes[i] = 0
      cwndTimeout(c, i)
      c.flags[i] &= ~TIMING
      c.sndNxt[i] = c.sndUna[i]
      rttBackOff(c, i)
      this.#retry(i)
      this.#alarms.set(i, this.#host.now() + c.rto[i])
      // The window shut behind what is under way: one segment is its probe.
      if (c.sndWnd[i] < c.mss[i]) return this.#resend(i)
    }
    return this.pump(i)
  }

  /** The persist timer rang: probe, or send what fits though it is silly. As `timeout`. */
  probe(i: number): number {
    const c = this.#c
    if (this.#silent(i)) return GIVEN_UP
    this.#retry(i)
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
