/**
 * The scoreboard of what the guest has reported as received out of order (RFC 2018, RFC 6675), and what follows for sending again.
 *
 * Owns: RANGES sorted, disjoint ranges of each flow, above sndUna; `rtxNxt`, up to where holes have been sent again in this recovery.
 * When there are more ranges than columns the highest is forgotten: it costs a segment sent twice.
 * A guest that lies is sent again what it has, or not sent what it lacks (its own retransmission timeout forgets the board): never
 * more than it asked for. Everything below the highest range counts as lost, once DupThresh segments lie above the first hole.
 */
import { be32 } from '../wire/bytes.ts'
import { options, type Seq, seqAdd, seqDiff, seqGt, seqLe, seqLt, seqMax } from '../wire/tcp.ts'
import { RANGES, type TcpColumns } from './columns.ts'

/** What `nextHole` found. */
export const hole = { start: 0 as Seq, end: 0 as Seq }

export function sackClear(c: TcpColumns, i: number): void {
  c.ranges[i] = 0
  c.rtxNxt[i] = c.sndUna[i]
}

/** Take in the SACK blocks of the segment in `options`. True: something new was reported. */
export function sackUpdate(c: TcpColumns, i: number, b: Uint8Array): boolean {
  const before = sackedBytes(c, i)
  for (let k = 0, at = options.sackAt; k < options.sackBlocks; k++, at += 8) {
    const left = be32(b, at) as Seq
    const right = be32(b, at + 4) as Seq
    // Below una it is a duplicate's report (RFC 2883); beyond max a lie. As distances from una: comparing the edges alone lets a pair
    // through that is half the sequence space apart.
    const from = seqDiff(left, c.sndUna[i])
    const to = seqDiff(right, c.sndUna[i])
    if (from <= 0 || to <= from || to > seqDiff(c.sndMax[i], c.sndUna[i])) continue
    add(c, i, left, right)
  }
  return sackedBytes(c, i) !== before
}

function add(c: TcpColumns, i: number, left: Seq, right: Seq): void {
  const base = i * RANGES
  let n = c.ranges[i]
  let at = 0
  while (at < n && seqLt(c.rangeEnd[base + at], left)) at++
  // Join with every range that it touches.
  let to = at
  while (to < n && seqLe(c.rangeStart[base + to], right)) {
    if (seqLt(c.rangeStart[base + to], left)) left = c.rangeStart[base + to]
    if (seqGt(c.rangeEnd[base + to], right)) right = c.rangeEnd[base + to]
    to++
  }
  if (to === at) {
    if (n === RANGES) {
      if (at === n) return
      n--
    }
    for (let k = n; k > at; k--) {
      c.rangeStart[base + k] = c.rangeStart[base + k - 1]
      c.rangeEnd[base + k] = c.rangeEnd[base + k - 1]
    }
    n++
  } else if (to > at + 1) {
    const gone = to - at - 1
    for (let k = to; k < n; k++) {
      c.rangeStart[base + k - gone] = c.rangeStart[base + k]
      c.rangeEnd[base + k - gone] = c.rangeEnd[base + k]
    }
    n -= gone
  }
  c.rangeStart[base + at] = left
  c.rangeEnd[base + at] = right
  c.ranges[i] = n
}

/** sndUna has moved. */
export function sackAdvance(c: TcpColumns, i: number): void {
  const base = i * RANGES
  const una = c.sndUna[i]
  if (seqLt(c.rtxNxt[i], una)) c.rtxNxt[i] = una
  const n = c.ranges[i]
  let gone = 0
  while (gone < n && seqLe(c.rangeEnd[base + gone], una)) gone++
  if (gone > 0)
    for (let k = gone; k < n; k++) {
      c.rangeStart[base + k - gone] = c.rangeStart[base + k]
      c.rangeEnd[base + k - gone] = c.rangeEnd[base + k]
    }
  c.ranges[i] = n - gone
  if (n > gone && seqLt(c.rangeStart[base], una)) c.rangeStart[base] = una
}

export function sackedBytes(c: TcpColumns, i: number): number {
  const base = i * RANGES
  let bytes = 0
  for (let k = 0; k < c.ranges[i]; k++) bytes += seqDiff(c.rangeEnd[base + k], c.rangeStart[base + k])
  return bytes
}

/** The first hole below the highest range that has not been sent again yet: in `hole`. False: there is none. */
export function nextHole(c: TcpColumns, i: number): boolean {
  const base = i * RANGES
  let start = seqMax(c.sndUna[i], c.rtxNxt[i])
  for (let k = 0; k < c.ranges[i]; k++) {
    const left = c.rangeStart[base + k]
    if (seqLt(start, left)) {
      hole.start = start
      hole.end = left
      return true
    }
    start = seqMax(start, c.rangeEnd[base + k])
  }
  return false
}

/** Bytes under way: sent, not reported, not lost, or lost and sent again (RFC 6675 "pipe"). */
export function pipe(c: TcpColumns, i: number): number {
  const base = i * RANGES
  let bytes = seqDiff(c.sndMax[i], c.sndUna[i]) - sackedBytes(c, i)
  let from = seqMax(c.sndUna[i], c.rtxNxt[i])
  for (let k = 0; k < c.ranges[i]; k++) {
    const lost = seqDiff(c.rangeStart[base + k], from)
    if (lost > 0) bytes -= lost
    from = seqMax(from, c.rangeEnd[base + k])
  }
  return bytes
}

/** `start` … `start + n` has been sent again. */
export function sentAgain(c: TcpColumns, i: number, start: Seq, n: number): void {
  c.rtxNxt[i] = seqMax(c.rtxNxt[i], seqAdd(start, n))
}
