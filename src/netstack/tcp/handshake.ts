/**
 * Handshakes: how a connection between a guest and a host socket comes to be, from either side.
 *
 * Connect first: the guest's SYN is answered when the host's connect has succeeded; refused becomes RST, unreachable ICMP + RST. Inbound, the
 * kernel has accepted already, so a guest's refusal becomes a reset of the client. States and their way are in columns.ts.
 *
 * Hostile guests: half-open connections are bounded for each VM; a SYN within a handshake must be the one that began it or is challenged;
 * an acknowledgment of what was never sent is reset; a guest that never answers is given up; what policy has not allowed a guest is not connected to,
 * whatever is left of a client's connection with the same ports.
 * Reading: RFC 9293 §3.5, §3.10.7.3; RFC 5961 §4; RFC 6191.
 *
 * A handshake that has ended well is told by the return value: what follows (data, the host's first bytes) is the relay's.
 */
import { OUT } from '../flow/table.ts'
import type { Frame } from '../frame.ts'
import { FROM_GATEWAY, SAY, type Say } from '../gateway/say.ts'
import {
  EACCES,
  ECONNREFUSED,
  ECONNRESET,
  EHOSTUNREACH,
  ENETUNREACH,
  ETIMEDOUT,
  FAILED,
  HANGUP,
  WRITABLE,
} from '../host.ts'
import { DROP } from '../trace/drops.ts'
import * as tcp from '../wire/tcp.ts'
import { type Seq, seqAdd, seqGt } from '../wire/tcp.ts'
import type { Alarms } from './alarms.ts'
import { READABLE_NOW, SACK, SCALED, STATE, type TcpColumns, TIMING } from './columns.ts'
import type { TcpContext } from './context.ts'
import type { Ends } from './ends.ts'
import type { Receiver } from './receiver.ts'
import { rttSample, rttStart } from './rto.ts'
import { type Segments, WINDOW_SHIFT } from './segments.ts'
import type { Sender } from './sender.ts'

/** The host's own connect gives up after about two minutes; guests' do at about the same time. */
export const CONNECT_TIMEOUT = 130_000
/** First interval of SYN and SYN-ACK; it doubles: 1, 3, 7, 15, 31 s. */
const SYN_INTERVAL = 1000
const SYN_RETRIES = 4
/** RFC 9293 §3.7.1: when the guest's SYN names none. */
const MSS_DEFAULT = 536
/** A smaller one would only make work (Linux' TCP_MIN_MSS). */
const MSS_MIN = 88

const EPERM = 1

/** What became of a segment within a handshake. */
export const PENDING = 0
export const ESTABLISHED = 1

export class Handshakes {
  readonly #x: TcpContext
  readonly #c: TcpColumns
  readonly #segments: Segments
  readonly #alarms: Alarms
  readonly #sender: Sender
  readonly #receiver: Receiver
  readonly #ends: Ends
  /** A guest refused a client: true when its socket was taken over, to be led elsewhere. */
  onRefused: (i: number) => boolean = () => false

  constructor(
    x: TcpContext,
    c: TcpColumns,
    segments: Segments,
    alarms: Alarms,
    sender: Sender,
    receiver: Receiver,
    ends: Ends,
  ) {
    this.#x = x
    this.#c = c
    this.#segments = segments
    this.#alarms = alarms
    this.#sender = sender
    this.#receiver = receiver
    this.#ends = ends
  }

  /** The guest's first segment, of a flow that was just made. */
  open(i: number, f: Frame): void {
    const x = this.#x
    const b = x.arena.bytes
    const port = x.flows.port[i]
    if ((tcp.flags(b, f.l4) & (tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN)) !== tcp.SYN) {
      this.decline(i, f)
      return
    }
    if (this.#ends.halfOpen[port] >= x.limits.halfOpenPerVm) {
      // Silence: the guest's own retransmission asks again.
      x.drops.count(port, DROP['half-open-limit'])
      x.flows.remove(i)
      return
    }
    this.#begin(i, STATE.connecting)
    this.#readSyn(i, f)
    const sock = x.host.tcpConnect(x.far(i), x.flows.farPort[i])
    if (sock < 0) {
      this.refuse(i, -sock)
      return
    }
    x.flows.sock[i] = sock
    const { connected } = x.host
    if (connected) this.#answer(i)
    else this.#alarms.set(i, x.host.now() + CONNECT_TIMEOUT)
    x.host.watch(sock, x.ref(i))
  }

  /** A segment of no connection, or a broken one: no flow comes of it. */
  decline(i: number, f: Frame): void {
    const x = this.#x
    x.drops.count(x.flows.port[i], DROP['no-flow'])
    x.egress.reset(f)
    x.flows.remove(i)
  }

  /** A client of a published port, whose socket the host has accepted. */
  accept(i: number): void {
    const x = this.#x
    if (this.#ends.halfOpen[x.flows.port[i]] >= x.limits.halfOpenPerVm) {
      x.drops.count(x.flows.port[i], DROP['half-open-limit'])
      x.host.tcpReset(x.flows.sock[i])
      x.flows.remove(i)
      return
    }
    this.#begin(i, STATE.synSent)
    this.#c.flags[i] |= READABLE_NOW
    this.#sendSyn(i)
  }

  #begin(i: number, state: number): void {
    const now = this.#x.host.now()
    const c = this.#c
    c.clear(i, this.#x.host.random32() as Seq, now)
    rttStart(c, i)
    c.state[i] = state
    this.#ends.halfOpen[this.#x.flows.port[i]]++
    this.#alarms.sleep(i)
  }

  /** Keep what the guest's SYN (or SYN-ACK) says about itself. */
  #readSyn(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    tcp.readOptions(b, f.l4)
    const { mss, scale, sackPermitted, timestamps, tsValue } = tcp.options
    c.stamps[i] = timestamps ? tcp.TIMESTAMPS : 0
    c.tsRecent[i] = tsValue
    // MSS counts no options (RFC 9293 §3.7.1).
    c.mss[i] = Math.min(this.#segments.ownMss(i), Math.max(MSS_MIN, mss === 0 ? MSS_DEFAULT : mss)) - c.stamps[i]
    if (scale >= 0) {
      c.flags[i] |= SCALED
      c.sndShift[i] = scale
      c.rcvShift[i] = WINDOW_SHIFT
    }
    if (sackPermitted) c.flags[i] |= SACK
    c.irs[i] = tcp.seq(b, f.l4)
    c.rcvNxt[i] = c.rcvTold[i] = c.edge[i] = seqAdd(c.irs[i], 1)
    // Windows of SYNs are not scaled.
    c.sndWnd[i] = c.sndWndMax[i] = tcp.window(b, f.l4)
    c.sndWl1[i] = c.irs[i]
    c.sndWl2[i] = c.iss[i]
  }

  /** SYN or SYN-ACK, now and until it is answered. */
  #sendSyn(i: number): void {
    const c = this.#c
    const now = this.#x.host.now()
    // The handshake times the first round trip, unless it is sent twice (Karn): a flow without any would wait RTO_INITIAL for its first loss.
    if (c.retries[i] === 0) c.flags[i] |= TIMING
    else c.flags[i] &= ~TIMING
    c.rttAt[i] = now
    this.#segments.syn(i)
    c.sndNxt[i] = c.sndMax[i] = seqAdd(c.iss[i], 1)
    this.#alarms.set(i, now + (SYN_INTERVAL << c.retries[i]))
  }

  #established(i: number): void {
    const c = this.#c
    c.state[i] = STATE.open
    this.#ends.halfOpen[this.#x.flows.port[i]]--
    c.sndUna[i] = seqAdd(c.iss[i], 1)
    if (c.has(i, TIMING)) rttSample(c, i, this.#x.host.now() - c.rttAt[i])
    c.flags[i] &= ~TIMING
    this.#sender.start(i)
  }

  /** The host's connect failed with `errno`, or could not even begin. */
  refuse(i: number, errno: number): void {
    const x = this.#x
    const say: Say | undefined =
      errno === ENETUNREACH
        ? SAY.net
        : errno === EHOSTUNREACH || errno === ETIMEDOUT
          ? SAY.host
          : errno === EACCES || errno === EPERM
            ? SAY.prohibited
            : undefined
    if (say !== undefined) x.egress.icmpErrorOfFlow(i, say, 0, FROM_GATEWAY, this.#c.irs[i])
    if (say !== undefined || errno === ECONNREFUSED || errno === ECONNRESET) this.#segments.rst(i)
    // Descriptors, ports or memory ran out: silence, the guest asks again.
    else x.drops.count(x.flows.port[i], DROP['host-socket'])
    this.#ends.remove(i)
  }

  /** The guest's SYN waits for the host's connect: its repetitions need no answer. */
  whileConnecting(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    if ((flags & tcp.RST) !== 0) {
      if (tcp.seq(b, f.l4) === c.rcvNxt[i]) this.#ends.remove(i)
      return
    }
    // It gave up and begins anew with the same ports: nothing was promised to the first one.
    if ((flags & (tcp.SYN | tcp.ACK)) === tcp.SYN && tcp.seq(b, f.l4) !== c.irs[i]) {
      c.flags[i] &= ~(SCALED | SACK)
      c.sndShift[i] = c.rcvShift[i] = 0
      this.#readSyn(i, f)
    }
  }

  whileSynRcvd(i: number, f: Frame): typeof PENDING | typeof ESTABLISHED {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    const seq = tcp.seq(b, f.l4)
    if ((flags & tcp.RST) !== 0) {
      if (seq !== c.rcvNxt[i]) {
        this.#ends.refused(i)
        return PENDING
      }
      this.#ends.resetHost(i)
      this.#ends.remove(i)
      return PENDING
    }
    if ((flags & tcp.SYN) !== 0 && (flags & tcp.ACK) === 0) {
      if (seq === c.irs[i]) {
        c.flags[i] &= ~TIMING
        this.#segments.syn(i)
      } else this.#ends.challenge(i)
      return PENDING
    }
    // Simultaneous open: its SYN-ACK acknowledges our SYN.
    if ((flags & tcp.ACK) === 0) {
      this.#ends.refused(i)
      return PENDING
    }
    if (tcp.ack(b, f.l4) !== seqAdd(c.iss[i], 1)) {
      this.#ends.refused(i)
      this.#x.egress.reset(f)
      return PENDING
    }
    this.#established(i)
    if ((flags & tcp.SYN) !== 0) this.#receiver.ackNow(i)
    return ESTABLISHED
  }

  whileSynSent(i: number, f: Frame): typeof PENDING | typeof ESTABLISHED {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    const acked = (flags & tcp.ACK) !== 0
    if (acked && tcp.ack(b, f.l4) !== seqAdd(c.iss[i], 1)) {
      this.#ends.refused(i)
      this.#x.egress.reset(f)
      return PENDING
    }
    if ((flags & tcp.RST) !== 0) {
      // Connection refused by the guest.
      if (!acked) {
        this.#ends.refused(i)
        return PENDING
      }
      if (!this.onRefused(i)) this.#ends.resetHost(i)
      this.#ends.remove(i)
      return PENDING
    }
    if ((flags & tcp.SYN) === 0) {
      this.#ends.refused(i)
      return PENDING
    }
    this.#readSyn(i, f)
    c.retries[i] = 0
    if (!acked) {
      c.state[i] = STATE.synRcvd
      this.#sendSyn(i)
      return PENDING
    }
    this.#established(i)
    this.#receiver.ackNow(i)
    return ESTABLISHED
  }

  whileTimeWait(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    if ((flags & tcp.RST) !== 0) {
      if (tcp.seq(b, f.l4) === c.rcvNxt[i]) this.#ends.remove(i)
      return
    }
    // Of a published port's client policy has said nothing: it is no server. Challenged, the guest resets what it does not know (RFC 9293 §3.10.7.3), and
    // its next SYN is judged as any other.
    const { direction } = this.#x.flows
    if ((flags & (tcp.SYN | tcp.ACK)) === tcp.SYN && direction[i] === OUT && this.#anew(i, f)) {
      // The flow's tuple, policy and NAT are the same.
      this.#alarms.end(i)
      c.state[i] = STATE.free
      c.flags[i] = 0
      this.open(i, f)
      return
    }
    this.#ends.challenge(i)
  }

  /** RFC 6191 §2: does this SYN begin a new connection with the ports of one in TIME-WAIT? Its timestamp or its sequence number is behind all of that. */
  #anew(i: number, f: Frame): boolean {
    const c = this.#c
    const b = this.#x.arena.bytes
    tcp.readOptions(b, f.l4)
    const { timestamps, tsValue } = tcp.options
    if (c.stamps[i] > 0 && timestamps && tsValue !== c.tsRecent[i]) return seqGt(tsValue, c.tsRecent[i])
    return seqGt(tcp.seq(b, f.l4), c.rcvNxt[i])
  }

  connected(i: number, events: number): void {
    // A failed connect is told as such; asking each time would cost every connection a call.
    if ((events & (FAILED | HANGUP)) !== 0) {
      const errno = this.#x.host.error(this.#x.flows.sock[i])
      if (errno !== 0) {
        this.refuse(i, errno)
        return
      }
    }
    if ((events & WRITABLE) !== 0) this.#answer(i)
  }

  /** The host is connected: so is the guest, if it still wants to be. */
  #answer(i: number): void {
    this.#c.state[i] = STATE.synRcvd
    this.#alarms.rest(i)
    this.#sendSyn(i)
  }

  /** The alarm of a handshake. False: the flow is no more. */
  overdue(i: number): boolean {
    const c = this.#c
    if (c.state[i] === STATE.connecting) {
      this.refuse(i, ETIMEDOUT)
      return false
    }
    if (c.retries[i] >= SYN_RETRIES) {
      this.#ends.abort(i)
      return false
    }
    c.retries[i]++
    this.#sendSyn(i)
    return true
  }
}
