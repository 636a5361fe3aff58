/**
 * What the TCP relay remembers of its flows, as columns of typed arrays indexed like the flow table.
 *
 * Owns: the transmission control block (RFC 9293 §3.3.1) of the relay's end that faces the guest: "snd" is what goes to the
 * guest, "rcv" what comes from it. Payload is never here: it lies in the host socket (towards the guest, until acknowledged)
 * or with the guest (away from it, until taken). About 220 bytes for each flow.
 * Never does: decisions; those are in receiver.ts, sender.ts, recovery.ts and relay.ts.
 * Invariants, sequence numbers modulo 2³²: sndUna ≤ sndNxt ≤ sndMax; rcvNxt ≤ edge, and `edge` never goes back.
 *
 * States. The relay's own steps are few; whether either side has finished is in flags, and RFC 9293's names follow from both:
 *
 *   state       GUEST_FIN  FIN_SENT  FIN_ACKED   RFC 9293        meaning
 *   CONNECTING      –         –         –        (LISTEN)        guest's SYN is kept, the host side connects
 *   SYN_RCVD        –         –         –        SYN-RECEIVED    host connected, SYN-ACK sent
 *   SYN_SENT        –         –         –        SYN-SENT        a published port's client is there, SYN sent to the guest
 *   OPEN            no        no        –        ESTABLISHED
 *   OPEN            yes       no        –        CLOSE-WAIT      the host was shut down for writing
 *   OPEN            no        yes       no       FIN-WAIT-1      the host's end of stream was passed on
 *   OPEN            no        yes       yes      FIN-WAIT-2
 *   OPEN            yes       yes       no       CLOSING, LAST-ACK
 *   TIME_WAIT       yes       yes       yes      TIME-WAIT       no host socket any more; answers late FINs, yields to a new SYN
 */
import type { Seq } from '../wire/tcp.ts'

export const STATE = { free: 0, connecting: 1, synRcvd: 2, synSent: 3, open: 4, timeWait: 5 } as const

const ZERO = 0 as Seq

/** The guest's FIN has been taken (and acknowledged, or will be with the next segment). */
export const GUEST_FIN = 1
/** The host's end of stream has been seen; `finSeq` is its place. */
export const HOST_EOF = 2
/** A FIN has been sent to the guest. */
export const FIN_SENT = 4
export const FIN_ACKED = 8
/** The host socket may hold bytes (or an end) that were not peeked yet. */
export const READABLE_NOW = 16
/** In fast recovery (RFC 6582). */
export const RECOVERING = 32
/** A round trip is being measured: `rttSeq` left at `rttAt`. */
export const TIMING = 64
/** WRITABLE was asked for: the window was small. */
export const WANT_SPACE = 128
/** An acknowledgment is owed; it goes with the next segment, or at the end of the burst. */
export const ACK_OWED = 256
/** The alarm is a persist timer (RFC 9293 §3.8.6.1), not a retransmission's. */
export const PERSISTING = 512
/** Both sides scale windows (RFC 7323 §2). */
export const SCALED = 1024
/** The host took less of a segment than had been offered: the guest must send its rest again. */
export const TOOK_LESS = 2048
/** The guest's SYN permitted selective acknowledgments (RFC 2018). */
export const SACK = 4096
/** The FIN that closed the guest's side came before ours: no TIME-WAIT (the guest has it). */
export const GUEST_FIRST = 8192

/** HANGUP or URGENT was told: behind what a short peek had, the host's end or more may be there. */
export const PEEK_ON = 32768

/** Ranges that the scoreboard of a flow holds (scoreboard.ts). */
export const RANGES = 8

/** An Int32Array whose elements are sequence numbers. */
export interface SeqColumn {
  [i: number]: Seq
}

/** The guest's FIN has come ahead of something; `finAhead` is its place. */
export const FIN_AHEAD = 16384

export class TcpColumns {
  readonly state: Uint8Array
  readonly flags: Uint16Array
  /** Payload bytes per segment towards the guest. */
  readonly mss: Uint16Array
  /** Bytes that the timestamps take in each segment of both sides (RFC 7323 §3): 0 where the SYNs did not agree on them. */
  readonly stamps: Uint8Array
  readonly dupAcks: Uint8Array
  /** Payload bytes of the last segments from the guest, on average (streams.ts). */
  readonly mean: Uint16Array
  /** Retransmissions, probes or keepalives in a row without an answer. */
  readonly retries: Uint8Array
  /** Early probes for what may be lost, since the last progress. */
  readonly probes: Uint8Array
  /** sndMax when the last of them was sent. */
  readonly probedTo: SeqColumn

  // -- towards the guest --------------------------------------------------------------------------------------------
  /** Shift of the windows that the guest advertises. */
  readonly sndShift: Uint8Array
  readonly iss: SeqColumn
  readonly sndUna: SeqColumn
  readonly sndNxt: SeqColumn
  readonly sndMax: SeqColumn
  /** The window the guest advertised, in bytes, and the largest one so far. */
  readonly sndWnd: Int32Array
  readonly sndWndMax: Int32Array
  /** SEG.SEQ and SEG.ACK of the segment that set sndWnd. */
  readonly sndWl1: SeqColumn
  readonly sndWl2: SeqColumn
  /** Sequence number of our FIN once HOST_EOF is set. */
  readonly finSeq: SeqColumn
  readonly cwnd: Int32Array
  readonly ssthresh: Int32Array
  /** sndMax when the loss was noticed. */
  readonly recover: SeqColumn
  /** What the guest has reported as received ahead of sndUna: how many ranges, and RANGES columns for each flow. */
  readonly ranges: Uint8Array
  readonly rangeStart: SeqColumn
  readonly rangeEnd: SeqColumn
  /** Up to where holes have been sent again. */
  readonly rtxNxt: SeqColumn
  readonly rttSeq: SeqColumn
  readonly rttAt: Float64Array
  /** RFC 6298: 8·SRTT and 4·RTTVAR in ms (0: no sample yet), RTO in ms. */
  readonly srtt8: Int32Array
  readonly rttvar4: Int32Array
  readonly rto: Int32Array

  // -- from the guest -----------------------------------------------------------------------------------------------
  readonly irs: SeqColumn
  readonly rcvNxt: SeqColumn
  /** TS.Recent: the guest's timestamp that is echoed. */
  readonly tsRecent: SeqColumn
  /** RCV.NXT as the guest was told last. */
  readonly rcvTold: SeqColumn
  /** The right edge of the window as advertised. */
  readonly edge: SeqColumn
  /** Shift of the windows we advertise: 0 unless SCALED. */
  readonly rcvShift: Uint8Array
  /** First chunk of what came ahead of RCV.NXT (disorder.ts), −1: none; and where the last of it began. */
  readonly held: Int32Array
  readonly heldLast: SeqColumn
  /** When the first of it came, or some of it went on. */
  readonly heldAt: Float64Array
  readonly finAhead: SeqColumn
  /** The largest window advertised so far. */
  readonly rcvWndMax: Int32Array

  // -- time, in ms --------------------------------------------------------------------------------------------------
  /** When something is to be sent again, probed or given up; Infinity: nothing. */
  readonly alarm: Float64Array
  /** When the guest was heard last. */
  readonly heard: Float64Array
  /** When a challenge ACK was sent last (RFC 5961 §7). */
  readonly challenged: Float64Array

  constructor(capacity: number) {
    const bytes = () => new Uint8Array(capacity)
    const shorts = () => new Uint16Array(capacity)
    const words = () => new Int32Array(capacity)
    const sequence = () => new Int32Array(capacity) as unknown as SeqColumn
    const times = () => new Float64Array(capacity)
    this.state = bytes()
    this.flags = shorts()
    this.mss = shorts()
    this.stamps = bytes()
    this.dupAcks = bytes()
    this.mean = shorts()
    this.retries = bytes()
    this.probes = bytes()
    this.probedTo = sequence()
    this.sndShift = bytes()
    this.iss = sequence()
    this.sndUna = sequence()
    this.sndNxt = sequence()
    this.sndMax = sequence()
    this.sndWnd = words()
    this.sndWndMax = words()
    this.sndWl1 = sequence()
    this.sndWl2 = sequence()
    this.finSeq = sequence()
    this.cwnd = words()
    this.ssthresh = words()
    this.recover = sequence()
    this.ranges = bytes()
    this.rangeStart = new Int32Array(capacity * RANGES) as unknown as SeqColumn
    this.rangeEnd = new Int32Array(capacity * RANGES) as unknown as SeqColumn
    this.rtxNxt = sequence()
    this.rttSeq = sequence()
    this.rttAt = times()
    this.srtt8 = words()
    this.rttvar4 = words()
    this.rto = words()
    this.irs = sequence()
    this.rcvNxt = sequence()
    this.tsRecent = sequence()
    this.rcvTold = sequence()
    this.edge = sequence()
    this.rcvShift = bytes()
    this.held = words().fill(-1)
    this.heldLast = sequence()
    this.heldAt = times()
    this.finAhead = sequence()
    this.rcvWndMax = words()
    this.alarm = times()
    this.heard = times()
    this.challenged = times()
  }

  /** A new flow of index `i`: nothing of the last one remains. */
  clear(i: number, iss: Seq, now: number): void {
    this.state[i] = STATE.free
    this.flags[i] = 0
    this.mss[i] = this.stamps[i] = 0
    this.dupAcks[i] = this.mean[i] = 0
    this.retries[i] = this.probes[i] = 0
    this.sndShift[i] = 0
    this.iss[i] = this.sndUna[i] = this.sndNxt[i] = this.sndMax[i] = iss
    this.sndWnd[i] = this.sndWndMax[i] = 0
    this.sndWl1[i] = this.sndWl2[i] = ZERO
    this.finSeq[i] = ZERO
    this.cwnd[i] = this.ssthresh[i] = 0
    this.recover[i] = this.rtxNxt[i] = this.probedTo[i] = iss
    this.ranges[i] = 0
    this.rttSeq[i] = ZERO
    this.rttAt[i] = 0
    this.srtt8[i] = this.rttvar4[i] = this.rto[i] = 0
    this.irs[i] = this.rcvNxt[i] = this.rcvTold[i] = this.edge[i] = this.tsRecent[i] = ZERO
    this.rcvShift[i] = 0
    this.held[i] = -1
    this.heldAt[i] = 0
    this.heldLast[i] = this.finAhead[i] = ZERO
    this.rcvWndMax[i] = 0
    this.alarm[i] = Infinity
    this.heard[i] = now
    this.challenged[i] = -Infinity
  }

  has(i: number, flag: number): boolean {
    return (this.flags[i] & flag) !== 0
  }
}

/** Throws where an invariant does not hold; for tests. */
export function checkColumns(c: TcpColumns, i: number): void {
  const from = (s: number): number => (s - c.sndUna[i]) | 0
  const fail = (what: string): never => {
    throw new Error(`flow ${i}: ${what}`)
  }
  if (from(c.sndNxt[i]) < 0 || from(c.sndMax[i]) < from(c.sndNxt[i])) fail('sndUna ≤ sndNxt ≤ sndMax')
  if (((c.edge[i] - c.rcvNxt[i]) | 0) < -1) fail('rcvNxt ≤ edge')
  if (c.state[i] === STATE.open && (c.cwnd[i] < c.mss[i] || c.mss[i] === 0)) fail('cwnd ≥ mss > 0')
  let last = 0
  for (let k = i * RANGES; k < i * RANGES + c.ranges[i]; k++) {
    if (from(c.rangeStart[k]) < last || from(c.rangeEnd[k]) <= from(c.rangeStart[k])) fail('ranges sorted and disjoint')
    last = from(c.rangeEnd[k]) + 1
  }
  if (last - 1 > from(c.sndMax[i])) fail('ranges below sndMax')
}
