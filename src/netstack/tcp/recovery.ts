/**
 * Congestion window and loss recovery towards the guest: NewReno (RFC 5681, RFC 6582), with the guest's
 * scoreboard where it permits SACK (RFC 6675), and with a start of its own.
 *
 * The link to a guest is virtual: memory, not a wire. So the window starts at CWND_START instead of ten segments and only
 * the guest's own window bounds it. A link that does lose (a lossy bridge in between, a guest that drops) is noticed by the first
 * loss, and from then on the textbook holds.
 *
 * Owns: cwnd, ssthresh, recover, dupAcks, RECOVERING. Never does: sending; the sender asks and is told.
 */
import { seqGt, seqLt } from '../wire/tcp.ts'
import { RECOVERING, SACK, type TcpColumns } from './columns.ts'
import { sackClear, sackedBytes } from './scoreboard.ts'

export const CWND_START = 4 * 1024 * 1024
export const CWND_MAX = 16 * 1024 * 1024
const DUP_ACKS = 3
/** Above this congestion window frames are as long as they may be. */
const FRAMES_SPLIT = 256 * 1024

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

/** A duplicate ACK, or news of the scoreboard. True: recovery begins, the segment at sndUna is lost. */
export function dupAck(c: TcpColumns, i: number): boolean {
  const mss = c.mss[i]
  const sack = c.has(i, SACK)
  if (c.has(i, RECOVERING)) {
    // With a scoreboard what left the link is known; without, each duplicate tells of one segment.
    if (!sack) c.cwnd[i] = Math.min(CWND_MAX, c.cwnd[i] + mss)
    return false
  }
  if (c.dupAcks[i] < 255) c.dupAcks[i]++
  if (c.dupAcks[i] < DUP_ACKS && !(sack && sackedBytes(c, i) >= DUP_ACKS * mss)) return false
  // RFC 6582 §3.2 step 2: before `recover` they are echoes of what the last recovery sent twice. (At `recover` itself the RFC
  // waits for the timeout; a spurious segment is cheaper here.)
  if (seqLt(c.sndUna[i], c.recover[i])) return false
  const ssthresh = halved(c, i, (c.sndMax[i] - c.sndUna[i]) | 0)
  c.ssthresh[i] = ssthresh
  c.cwnd[i] = sack ? ssthresh : ssthresh + DUP_ACKS * mss
  c.recover[i] = c.sndMax[i]
  c.rtxNxt[i] = c.sndUna[i]
  c.flags[i] |= RECOVERING
  return true
}

/** New data was acknowledged (sndUna has moved). True: there is still a hole at sndUna (a partial acknowledgment). */
export function ackInRecovery(c: TcpColumns, i: number, acked: number): boolean {
  const mss = c.mss[i]
  if (seqGt(c.recover[i], c.sndUna[i])) {
    if (c.has(i, SACK)) return true
    const left = Math.max(0, c.cwnd[i] - acked)
    c.cwnd[i] = Math.max(mss, acked >= mss ? left + mss : left)
    return true
  }
  const flight = (c.sndMax[i] - c.sndUna[i]) | 0
  c.cwnd[i] = Math.max(mss, c.has(i, SACK) ? c.ssthresh[i] : Math.min(c.ssthresh[i], Math.max(flight, mss) + mss))
  c.flags[i] &= ~RECOVERING
  c.dupAcks[i] = 0
  return false
}

/**
 * The longest frame now. On a link that loses, a flight that is one frame is lost whole and nobody tells: a quarter of the
 * window at most, so that what arrives reports what did not.
 */
export function frameMax(c: TcpColumns, i: number, most: number): number {
  const cwnd = c.cwnd[i]
  return cwnd >= FRAMES_SPLIT ? most : Math.min(most, Math.max(2 * c.mss[i], cwnd >> 2))
}

/** All of a flight was lost, and the link works: half of it at once. */
export function cwndLostFlight(c: TcpColumns, i: number): void {
  c.ssthresh[i] = halved(c, i, (c.sndMax[i] - c.sndUna[i]) | 0)
  c.cwnd[i] = c.ssthresh[i]
  c.flags[i] &= ~RECOVERING
  c.dupAcks[i] = 0
}

/** The retransmission timer fired: RFC 5681 §3.1, RFC 6582 §4. */
export function cwndTimeout(c: TcpColumns, i: number): void {
  if (c.retries[i] === 0) c.ssthresh[i] = halved(c, i, (c.sndMax[i] - c.sndUna[i]) | 0)
  // Two segments where the RFC has one: a guest acknowledges one alone late.
  c.cwnd[i] = 2 * c.mss[i]
  c.recover[i] = c.sndMax[i]
  c.flags[i] &= ~RECOVERING
  c.dupAcks[i] = 0
  // The guest may have given up what it reported (RFC 2018 §8).
  sackClear(c, i)
}
