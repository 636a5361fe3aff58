/**
 * TCP headers (RFC 9293 §3.1), their options (RFC 7323 scaling and timestamps, RFC 2018 SACK) and sequence arithmetic (§3.4).
 *
 * A sequence number is a signed 32-bit integer; it is compared by the sign of a difference, never by < or >. Options are
 * read into one shared record: valid until the next `readOptions`.
 */
import { be16, be32, put16, put32 } from './bytes.ts'

declare const unit: unique symbol
/** A sequence number: compare with seqLt and its siblings, add with seqAdd. */
export type Seq = number & { readonly [unit]: 'Seq' }

const SRC = 0
const DST = 2
const SEQ = 4
const ACK_NUMBER = 8
const OFFSET = 12
const FLAGS = 13
const WINDOW = 14
/** Offset of the checksum field, for egress. */
export const CHECKSUM = 16
const URGENT = 18
/** Without options. */
export const TCP = 20

export const FIN = 1
export const SYN = 2
export const RST = 4
export const PSH = 8
export const ACK = 16
export const URG = 32
export const CWR = 128

export const srcPort = (b: Uint8Array, o: number): number => be16(b, o + SRC)
export const dstPort = (b: Uint8Array, o: number): number => be16(b, o + DST)
export const seq = (b: Uint8Array, o: number): Seq => be32(b, o + SEQ) as Seq
export const ack = (b: Uint8Array, o: number): Seq => be32(b, o + ACK_NUMBER) as Seq
/** Header with options, in bytes. */
export const headerLength = (b: Uint8Array, o: number): number => (b[o + OFFSET] >>> 4) << 2
export const flags = (b: Uint8Array, o: number): number => b[o + FLAGS]
/** As it stands, not scaled. */
export const window = (b: Uint8Array, o: number): number => be16(b, o + WINDOW)
export const checksum = (b: Uint8Array, o: number): number => be16(b, o + CHECKSUM)
export const urgent = (b: Uint8Array, o: number): number => be16(b, o + URGENT)

export const setSrcPort = (b: Uint8Array, o: number, v: number): void => put16(b, o + SRC, v)
export const setDstPort = (b: Uint8Array, o: number, v: number): void => put16(b, o + DST, v)
export const setSeq = (b: Uint8Array, o: number, v: Seq): void => put32(b, o + SEQ, v)
export const setAck = (b: Uint8Array, o: number, v: Seq): void => put32(b, o + ACK_NUMBER, v)
export const setHeaderLength = (b: Uint8Array, o: number, v: number): void => {
  b[o + OFFSET] = (v >>> 2) << 4
}
export const setFlags = (b: Uint8Array, o: number, v: number): void => {
  b[o + FLAGS] = v
}
export const setWindow = (b: Uint8Array, o: number, v: number): void => put16(b, o + WINDOW, v)
export const setChecksum = (b: Uint8Array, o: number, v: number): void => put16(b, o + CHECKSUM, v)
export const setUrgent = (b: Uint8Array, o: number, v: number): void => put16(b, o + URGENT, v)

/** Write a header with an empty checksum and no urgent pointer. `header`: 20 plus options, a multiple of 4. */
export function write(
  b: Uint8Array,
  o: number,
  from: number,
  to: number,
  sequence: Seq,
  acknowledgment: Seq,
  header: number,
  flag: number,
  win: number,
): void {
  put16(b, o + SRC, from)
  put16(b, o + DST, to)
  put32(b, o + SEQ, sequence)
  put32(b, o + ACK_NUMBER, acknowledgment)
  b[o + OFFSET] = (header >>> 2) << 4
  b[o + FLAGS] = flag
  put16(b, o + WINDOW, win)
  put32(b, o + CHECKSUM, 0)
}

// -- sequence arithmetic --------------------------------------------------------------------------------------------

export const seqAdd = (a: Seq, n: number): Seq => ((a + n) | 0) as Seq
/** a − b, as a signed distance. */
export const seqDiff = (a: Seq, b: Seq): number => (a - b) | 0
export const seqLt = (a: Seq, b: Seq): boolean => ((a - b) | 0) < 0
export const seqLe = (a: Seq, b: Seq): boolean => ((a - b) | 0) <= 0
export const seqGt = (a: Seq, b: Seq): boolean => ((a - b) | 0) > 0
export const seqGe = (a: Seq, b: Seq): boolean => ((a - b) | 0) >= 0
export const seqMax = (a: Seq, b: Seq): Seq => (seqLt(a, b) ? b : a)
export const seqMin = (a: Seq, b: Seq): Seq => (seqLt(a, b) ? a : b)

// -- options --------------------------------------------------------------------------------------------------------

const END = 0
const NOP = 1
export const OPTION_MSS = 2
export const OPTION_SCALE = 3
export const OPTION_SACK_PERMITTED = 4
export const OPTION_SACK = 5
export const OPTION_TIMESTAMPS = 8
/** Bytes of the timestamps with two NOPs in front (RFC 7323 appendix A): all the options that most segments have, and their first word. */
export const TIMESTAMPS = 12
const TIMESTAMPS_WORD = 0x0101_080a

/** What the last `readOptions` found. */
export const options = {
  /** 0 when absent. */
  mss: 0,
  /** Shift count, at most 14 (RFC 7323 §2.3); −1 when absent. */
  scale: -1,
  sackPermitted: false,
  timestamps: false,
  /** A timestamp is compared as a sequence number is (RFC 7323 §5.2). */
  tsValue: 0 as Seq,
  tsEcho: 0 as Seq,
  /** SACK blocks: `sackBlocks` pairs of sequence numbers from arena offset `sackAt` on. */
  sackAt: 0,
  sackBlocks: 0,
}

/** Read the options of the header at `o` into `options`. Bad lengths end the reading; nothing throws. */
export function readOptions(b: Uint8Array, o: number): void {
  options.mss = 0
  options.scale = -1
  options.sackPermitted = false
  options.timestamps = false
  options.tsValue = options.tsEcho = 0 as Seq
  options.sackAt = options.sackBlocks = 0
  const end = o + headerLength(b, o)
  let at = o + TCP
  if (end === at) return
  if (end === at + TIMESTAMPS && be32(b, at) === TIMESTAMPS_WORD) {
    readTimestamps(b, at + 4)
    return
  }
  while (at < end) {
    const kind = b[at]
    if (kind === END) return
    if (kind === NOP) {
      at++
      continue
    }
    if (at + 1 >= end) return
    const length = b[at + 1]
    if (length < 2 || at + length > end) return
    if (kind === OPTION_MSS && length === 4) options.mss = be16(b, at + 2)
    else if (kind === OPTION_SCALE && length === 3) options.scale = Math.min(14, b[at + 2])
    else if (kind === OPTION_SACK_PERMITTED && length === 2) options.sackPermitted = true
    else if (kind === OPTION_TIMESTAMPS && length === 10) {
      readTimestamps(b, at + 2)
    } else if (kind === OPTION_SACK && length >= 10 && (length - 2) % 8 === 0) {
      options.sackAt = at + 2
      options.sackBlocks = (length - 2) / 8
    }
    at += length
  }
}

function readTimestamps(b: Uint8Array, at: number): void {
  options.timestamps = true
  options.tsValue = be32(b, at) as Seq
  options.tsEcho = be32(b, at + 4) as Seq
}

/** Write an MSS option (4 bytes) and return the offset behind it. */
export function putMss(b: Uint8Array, o: number, mss: number): number {
  b[o] = OPTION_MSS
  b[o + 1] = 4
  put16(b, o + 2, mss)
  return o + 4
}

/** Write NOP and a window scale option (4 bytes). */
export function putScale(b: Uint8Array, o: number, shift: number): number {
  b[o] = NOP
  b[o + 1] = OPTION_SCALE
  b[o + 2] = 3
  b[o + 3] = shift
  return o + 4
}

/** Write NOP, NOP and SACK-permitted (4 bytes). */
export function putSackPermitted(b: Uint8Array, o: number): number {
  b[o] = NOP
  b[o + 1] = NOP
  b[o + 2] = OPTION_SACK_PERMITTED
  b[o + 3] = 2
  return o + 4
}

/** Write NOP, NOP and timestamps (12 bytes; RFC 7323 appendix A). */
export function putTimestamps(b: Uint8Array, o: number, value: number, echo: number): number {
  put32(b, o, TIMESTAMPS_WORD)
  put32(b, o + 4, value)
  put32(b, o + 8, echo)
  return o + TIMESTAMPS
}
