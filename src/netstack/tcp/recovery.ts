/**
 * Congestion window and loss recovery towards the guest: NewReno (RFC 5681, RFC 6582) with a start of its own.
 *
 * The link to a guest is virtual: memory, not a wire. So the window starts at CWND_START instead of ten segments and only
 * the guest's own window bounds it. A link that does lose (a lossy bridge in between, a guest that drops) is noticed by the first
 * loss, and from then on the textbook holds.
 *
 * Owns: cwnd, ssthresh, recover, dupAcks, RECOVERING. Never does: sending; the sender asks and is told.
 */
import { be32 } from '../wire/bytes.ts'
import { options, type Seq, seqGt, seqLt } from '../wire/tcp.ts'
import { RECOVERING, type TcpColumns } from './columns.ts'

export const CWND_START = 4 * 1024 * 1024
export const CWND_MAX = 16 * 1024 * 1024
const DUP_ACKS = 3

export function cwndStart(c: TcpColumns, i: number): void {
  c.cwnd[i] = CWND_START
  c.ssthresh[i] = CWND_MAX
  c.recover[i] = c.iss[i]
}

/** RFC 5681 equation (4). `flight`: bytes not acknowledged. */
const halved = (c: TcpColumns, i: number, flight: number): number => Math.max(flight >> 1, 2 * c.mss[i])

/** `acked` bytes were newly acknowledged outside recovery: slow start or avoidance, counted in bytes (RFC 3465). */
export function cwndGrow(c: TcpColumns, i: number, acked: number): void {
  const cwnd = c.cwnd[i]
  if (cwnd >= CWND_MAX) return
  const more = cwnd < c.ssthresh[i] ? acked : Math.max(1, Math.floor((c.mss[i] * acked) / cwnd))
  c.cwnd[i] = Math.min(CWND_MAX, cwnd + more)
}

/** A duplicate ACK. True: the segment at sndUna is lost, send it again. */
export function dupAck(c: TcpColumns, i: number): boolean {
  const mss = c.mss[i]
  if (c.has(i, RECOVERING)) {
    c.cwnd[i] = Math.min(CWND_MAX, c.cwnd[i] + mss)
    return false
  }
  if (c.dupAcks[i] < 255) c.dupAcks[i]++
  if (c.dupAcks[i] !== DUP_ACKS) return false
  // RFC 6582 §3.2 step 2: before `recover` they are echoes of what the last recovery sent twice. (At `recover` itself the RFC
  // waits for the timeout; a spurious segment is cheaper here.)
  if (seqLt(c.sndUna[i], c.recover[i])) return false
  const ssthresh = halved(c, i, (c.sndMax[i] - c.sndUna[i]) | 0)
  c.ssthresh[i] = ssthresh
  c.cwnd[i] = ssthresh + DUP_ACKS * mss
  c.recover[i] = c.sndMax[i]
  c.flags[i] |= RECOVERING
  return true
}

/** New data up to `ack` was acknowledged (sndUna is `ack` already). True: still a hole there, send it again (a partial acknowledgment). */
export function ackInRecovery(c: TcpColumns, i: number, acked: number): boolean {
  const mss = c.mss[i]
  const flight = (c.sndMax[i] - c.sndUna[i]) | 0
  if (seqGt(c.recover[i], c.sndUna[i])) {
    const left = Math.max(0, c.cwnd[i] - acked)
    c.cwnd[i] = Math.max(mss, acked >= mss ? left + mss : left)
    return true
  }
  c.cwnd[i] = Math.max(mss, Math.min(c.ssthresh[i], Math.max(flight, mss) + mss))
  c.flags[i] &= ~RECOVERING
  c.dupAcks[i] = 0
  return false
}

/** The retransmission timer fired: RFC 5681 §3.1, RFC 6582 §4. */
export function cwndTimeout(c: TcpColumns, i: number): void {
  if (c.retries[i] === 0) c.ssthresh[i] = halved(c, i, (c.sndMax[i] - c.sndUna[i]) | 0)
  c.cwnd[i] = c.mss[i]
  c.recover[i] = c.sndMax[i]
  c.flags[i] &= ~RECOVERING
  c.dupAcks[i] = 0
}

/**
 * The end of the first hole: the lowest left edge among the SACK blocks of the segment in `options` that lies in (una, max),
 * or `una` when there is none (RFC 2018 §3). A guest that lies makes us send again what it has, never more than it asked for.
 */
export function holeEnd(b: Uint8Array, una: Seq, max: Seq): Seq {
  let lowest = una
  for (let k = 0, at = options.sackAt; k < options.sackBlocks; k++, at += 8) {
    const left = be32(b, at) as Seq
    if (seqGt(left, una) && seqLt(left, max) && (lowest === una || seqLt(left, lowest))) lowest = left
  }
  return lowest
}
