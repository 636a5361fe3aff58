/**
 * The retransmission timeout (RFC 6298), in integer milliseconds.
 *
 * Owns: srtt8, rttvar4 and rto of a flow. One segment is timed at once, and never one that was sent twice (Karn).
 * The RFC's lower bound of one second is a SHOULD that hosts do not follow; 200 ms is Linux's, above any delayed ACK.
 */
import type { TcpColumns } from './columns.ts'

export const RTO_INITIAL = 1000
export const RTO_MIN = 200
export const RTO_MAX = 60_000

export function rttStart(c: TcpColumns, i: number): void {
  c.srtt8[i] = 0
  c.rttvar4[i] = 0
  c.rto[i] = RTO_INITIAL
}

/** A round trip took `ms`. §2.2, §2.3, with the shifts of Jacobson & Karels. */
export function rttSample(c: TcpColumns, i: number, ms: number): void {
  const srtt8 = c.srtt8[i] as number
  if (srtt8 === 0) {
    c.srtt8[i] = Math.max(1, ms << 3)
    c.rttvar4[i] = ms << 1
  } else {
    const delta = ms - (srtt8 >> 3)
    c.srtt8[i] = Math.max(1, srtt8 + delta)
    c.rttvar4[i] += Math.abs(delta) - ((c.rttvar4[i] as number) >> 2)
  }
  rttCompute(c, i)
}

/** The timeout without back-off: after new data was acknowledged. */
export function rttCompute(c: TcpColumns, i: number): void {
  const srtt8 = c.srtt8[i] as number
  c.rto[i] =
    srtt8 === 0 ? RTO_INITIAL : Math.min(RTO_MAX, Math.max(RTO_MIN, (srtt8 >> 3) + Math.max(4, c.rttvar4[i] as number)))
}

/** §5.5: it fired. */
export function rttBackOff(c: TcpColumns, i: number): void {
  c.rto[i] = Math.min(RTO_MAX, c.rto[i] * 2)
}
