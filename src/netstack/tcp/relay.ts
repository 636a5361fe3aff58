/**
 * The TCP relay: a guest's connection on one side, a host socket on the other, no payload in between.
 *
 * Theory. Each side is a TCP of its own; the relay ends the guest's here (states in columns.ts) and speaks through the host's
 * socket with the other. What makes it transparent is that neither side is told more than the other has done:
 *  - connect first: the guest's SYN is answered when the host's connect has succeeded; refused becomes RST, unreachable ICMP + RST.
 *    Inbound, the kernel has accepted already, so a guest's refusal becomes a reset of the client.
 *  - what the host socket took is acknowledged (receiver.ts); what the guest acknowledged is consumed (sender.ts).
 *  - a FIN is passed on when everything before it has been: guest's FIN → shutdown, host's end → FIN, each side alone.
 *  - a reset is passed on at once. What lay unread behind a host's reset and does not fit the guest's window is lost with it.
 *
 * Hostile guests: RST and SYN within a connection must match exactly or are challenged (RFC 5961), acknowledgments of what was
 * never sent are refused, payload beyond the window is not looked at, half-open connections are bounded for each VM, and a guest that never
 * answers is given up after RETRIES_MAX. Reading: RFC 9293 §3.10; RFC 5961; RFC 6191.
 *
 * Owns: states, handshakes, ends, alarms' meaning. Never does: policy, NAT, the flow's tuple.
 */
import type { Relay } from '../flow/relay.ts'
import type { Frame } from '../frame.ts'
import {
  EACCES,
  ECONNREFUSED,
  ECONNRESET,
  EHOSTUNREACH,
  ENETUNREACH,
  ETIMEDOUT,
  FAILED,
  HANGUP,
  READABLE,
  WRITABLE,
} from '../host.ts'
import { DROP } from '../trace/drops.ts'
import { finish, pseudo4, sum } from '../wire/checksum.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as tcp from '../wire/tcp.ts'
import { type Seq, seqAdd, seqDiff, seqGt } from '../wire/tcp.ts'
import { Alarms, KEEPALIVE_PROBES } from './alarms.ts'
import {
  checkColumns,
  FIN_ACKED,
  FIN_SENT,
  GUEST_FIN,
  GUEST_FIRST,
  HOST_HANGUP,
  PERSISTING,
  READABLE_NOW,
  SACK,
  SCALED,
  STATE,
  TcpColumns,
} from './columns.ts'
import type { TcpContext } from './context.ts'
import { Disorder } from './disorder.ts'
import { Receiver } from './receiver.ts'
import { rttStart } from './rto.ts'
import { Segments, WINDOW_SHIFT } from './segments.ts'
import { GIVEN_UP, MORE, Sender, UNACCEPTABLE } from './sender.ts'
import { windowLeft } from './window.ts'

/** The host's own connect gives up after about two minutes; guests' do at about the same time. */
export const CONNECT_TIMEOUT = 130_000
/** First interval of SYN and SYN-ACK; it doubles: 1, 3, 7, 15, 31 s. */
const SYN_INTERVAL = 1000
const SYN_RETRIES = 4
/** Long enough for a late FIN to be answered; a new SYN does not wait for it (RFC 6191). */
export const TIME_WAIT = 2000
/** Of a network at once: a guest that opens thousands of connections in a second must not fill its table with ended ones. */
export const TIME_WAITS = 1024
/** RFC 5961 §7: how often one flow is challenged, in ms. */
const CHALLENGE_INTERVAL = 100
/** RFC 9293 §3.7.1: when the guest's SYN names none. */
const MSS_DEFAULT = 536
/** A smaller one would only make work (Linux' TCP_MIN_MSS). */
const MSS_MIN = 88

const EPERM = 1
const ICMP_UNREACHABLE = 3
const UNREACHABLE_NET = 0
const UNREACHABLE_HOST = 1
const UNREACHABLE_PROHIBITED = 13

export class TcpRelay implements Relay {
  readonly #x: TcpContext
  readonly #c: TcpColumns
  readonly #disorder: Disorder
  readonly #segments: Segments
  readonly #alarms: Alarms
  readonly #sender: Sender
  readonly #receiver: Receiver
  /** Connections of each switch port whose handshakes are not over. */
  readonly #halfOpen: Int32Array
  /** The latest flows that went to TIME-WAIT, as a ring. */
  readonly #timeWaits = new Int32Array(TIME_WAITS).fill(-1)
  #timeWaitAt = 0

  constructor(x: TcpContext) {
    this.#x = x
    this.#c = new TcpColumns(x.flows.capacity)
    this.#disorder = new Disorder(x.host, x.flows, this.#c)
    this.#segments = new Segments(x.host, x.flows, x.egress, this.#c, this.#disorder, x.mtu)
    this.#alarms = new Alarms(x.timers, this.#c)
    this.#sender = new Sender(x.host, x.flows, this.#segments, this.#alarms, this.#c)
    this.#receiver = new Receiver(x.host, x.flows, this.#segments, this.#disorder, this.#c)
    this.#halfOpen = new Int32Array(x.limits.ports)
  }

  /** The end of a burst of frames: acknowledgments that are owed go out. */
  flush(): void {
    this.#receiver.flush()
  }

  // -- beginnings ---------------------------------------------------------------------------------------------------

  open(i: number, f: Frame): void {
    const x = this.#x
    const b = x.arena.bytes
    const port = x.flows.port[i]
    if (!this.#sound(f) || (tcp.flags(b, f.l4) & (tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN)) !== tcp.SYN) {
      x.drops.count(port, DROP['no-flow'])
      x.egress.reset(f)
      x.flows.remove(i)
      return
    }
    if (this.#halfOpen[port] >= x.limits.halfOpenPerVm) {
      // Silence: the guest's own retransmission asks again.
      x.drops.count(port, DROP['half-open-limit'])
      x.flows.remove(i)
      return
    }
    this.#begin(i, STATE.connecting)
    this.#readSyn(i, f)
    const sock = x.host.tcpConnect(x.far(i), x.flows.farPort[i])
    if (sock < 0) {
      this.#refuse(i, -sock)
      return
    }
    x.flows.sock[i] = sock
    this.#alarms.set(i, x.host.now() + CONNECT_TIMEOUT)
    x.host.watch(sock, x.ref(i))
  }

  accept(i: number): void {
    const x = this.#x
    if (this.#halfOpen[x.flows.port[i]] >= x.limits.halfOpenPerVm) {
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
    this.#halfOpen[this.#x.flows.port[i]]++
    this.#alarms.sleep(i)
  }

  /** Keep what the guest's SYN (or SYN-ACK) says about itself. */
  #readSyn(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    tcp.readOptions(b, f.l4)
    const { mss, scale, sackPermitted } = tcp.options
    c.mss[i] = Math.min(this.#segments.ownMss(i), Math.max(MSS_MIN, mss === 0 ? MSS_DEFAULT : mss))
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
    this.#segments.syn(i)
    c.sndNxt[i] = c.sndMax[i] = seqAdd(c.iss[i], 1)
    this.#alarms.set(i, this.#x.host.now() + (SYN_INTERVAL << c.retries[i]))
  }

  #established(i: number): void {
    const c = this.#c
    c.state[i] = STATE.open
    this.#halfOpen[this.#x.flows.port[i]]--
    c.sndUna[i] = seqAdd(c.iss[i], 1)
    this.#sender.start(i)
  }

  // -- ends ---------------------------------------------------------------------------------------------------------

  /** The flow ceases to exist. Its socket has been dealt with, or is closed here. */
  #remove(i: number): void {
    const x = this.#x
    const state = this.#c.state[i]
    if (state !== STATE.open && state !== STATE.timeWait) this.#halfOpen[x.flows.port[i]]--
    const sock = x.flows.sock[i]
    if (sock >= 0) x.host.close(sock)
    this.#c.state[i] = STATE.free
    this.#c.flags[i] = 0
    this.#disorder.release(i)
    this.#alarms.end(i)
    x.flows.remove(i)
  }

  /** RST to the client or server behind the host socket. */
  #resetHost(i: number): void {
    const x = this.#x
    if (x.flows.sock[i] >= 0) x.host.tcpReset(x.flows.sock[i])
    x.flows.sock[i] = -1
  }

  abort(i: number): void {
    if (this.#c.state[i] !== STATE.timeWait) this.#segments.rst(i)
    this.#resetHost(i)
    this.#remove(i)
  }

  /** The host's connect failed with `errno`, or could not even begin. */
  #refuse(i: number, errno: number): void {
    const x = this.#x
    const code =
      errno === ENETUNREACH
        ? UNREACHABLE_NET
        : errno === EHOSTUNREACH || errno === ETIMEDOUT
          ? UNREACHABLE_HOST
          : errno === EACCES || errno === EPERM
            ? UNREACHABLE_PROHIBITED
            : -1
    if (code >= 0) x.egress.icmpErrorOfFlow(i, ICMP_UNREACHABLE, code, 0, 0, this.#c.irs[i])
    if (code >= 0 || errno === ECONNREFUSED || errno === ECONNRESET) this.#segments.rst(i)
    // Descriptors, ports or memory ran out: silence, the guest asks again.
    else x.drops.count(x.flows.port[i], DROP['host-socket'])
    this.#remove(i)
  }

  /** The host side has failed (reset, timed out): the guest learns by RST. */
  #hostFailed(i: number): void {
    this.#segments.rst(i)
    this.#remove(i)
  }

  /** Both sides have finished, and each knows it of the other? */
  #finishing(i: number): void {
    const c = this.#c
    const flags = c.flags[i]
    if ((flags & (GUEST_FIN | FIN_ACKED)) !== (GUEST_FIN | FIN_ACKED)) return
    if (flags & GUEST_FIRST) {
      this.#remove(i)
      return
    }
    const x = this.#x
    if (x.flows.sock[i] >= 0) x.host.close(x.flows.sock[i])
    x.flows.sock[i] = -1
    c.state[i] = STATE.timeWait
    // Not more of them than TIME_WAITS: the oldest makes room. (A stale entry may name a younger one: no harm.)
    const oldest = this.#timeWaits[this.#timeWaitAt]
    this.#timeWaits[this.#timeWaitAt] = i
    this.#timeWaitAt = (this.#timeWaitAt + 1) % TIME_WAITS
    if (oldest >= 0 && oldest !== i && c.state[oldest] === STATE.timeWait) this.#remove(oldest)
    this.#alarms.rest(i)
    this.#alarms.set(i, x.host.now() + TIME_WAIT)
  }

  // -- from the guest -----------------------------------------------------------------------------------------------

  /** Header and checksum as they should be? Counts when not. */
  #sound(f: Frame): boolean {
    const b = this.#x.arena.bytes
    const header = tcp.headerLength(b, f.l4)
    if (header < tcp.TCP || header > f.l4len) {
      this.#x.drops.count(f.port, DROP['tcp-malformed'])
      return false
    }
    if (f.partialChecksum) return true
    const pseudo = pseudo4(ipv4.src(b, f.l3), ipv4.dst(b, f.l3), ipv4.TCP, f.l4len)
    if (finish(sum(b, f.l4, f.l4len, pseudo)) === 0) return true
    this.#x.drops.count(f.port, DROP.checksum)
    return false
  }

  receive(i: number, f: Frame): void {
    if (!this.#sound(f)) return
    const c = this.#c
    switch (c.state[i]) {
      case STATE.open:
        this.#segment(i, f)
        return
      case STATE.connecting:
        this.#whileConnecting(i, f)
        return
      case STATE.synRcvd:
        this.#whileSynRcvd(i, f)
        return
      case STATE.synSent:
        this.#whileSynSent(i, f)
        return
      case STATE.timeWait:
        this.#whileTimeWait(i, f)
        return
    }
  }

  #refused(i: number): void {
    this.#x.drops.count(this.#x.flows.port[i], DROP['tcp-refused'])
  }

  /** RFC 5961: answer something that may be forged with what the guest should know, but not without end. */
  #challenge(i: number): void {
    const now = this.#x.host.now()
    if (now - this.#c.challenged[i] < CHALLENGE_INTERVAL) {
      this.#refused(i)
      return
    }
    this.#c.challenged[i] = now
    this.#receiver.ackNow(i)
  }

  /** The guest's SYN waits for the host's connect: its repetitions need no answer. */
  #whileConnecting(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    if ((flags & tcp.RST) !== 0) {
      if (tcp.seq(b, f.l4) === c.rcvNxt[i]) this.#remove(i)
      return
    }
    // It gave up and begins anew with the same ports: nothing was promised to the first one.
    if ((flags & (tcp.SYN | tcp.ACK)) === tcp.SYN && tcp.seq(b, f.l4) !== c.irs[i]) {
      c.flags[i] &= ~(SCALED | SACK)
      c.sndShift[i] = c.rcvShift[i] = 0
      this.#readSyn(i, f)
    }
  }

  #whileSynRcvd(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    const seq = tcp.seq(b, f.l4)
    if ((flags & tcp.RST) !== 0) {
      if (seq !== c.rcvNxt[i]) {
        this.#refused(i)
        return
      }
      this.#resetHost(i)
      this.#remove(i)
      return
    }
    if ((flags & tcp.SYN) !== 0 && (flags & tcp.ACK) === 0) {
      if (seq === c.irs[i]) this.#segments.syn(i)
      else this.#challenge(i)
      return
    }
    // Simultaneous open: its SYN-ACK acknowledges our SYN.
    if ((flags & tcp.ACK) === 0) {
      this.#refused(i)
      return
    }
    if (tcp.ack(b, f.l4) !== seqAdd(c.iss[i], 1)) {
      this.#refused(i)
      this.#x.egress.reset(f)
      return
    }
    this.#established(i)
    if ((flags & tcp.SYN) === 0) this.#segment(i, f)
    else this.#receiver.ackNow(i)
    // What the host said before the guest was ready.
    if (c.state[i] === STATE.open) this.#pump(i)
  }

  #whileSynSent(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    const acked = (flags & tcp.ACK) !== 0
    if (acked && tcp.ack(b, f.l4) !== seqAdd(c.iss[i], 1)) {
      this.#refused(i)
      this.#x.egress.reset(f)
      return
    }
    if ((flags & tcp.RST) !== 0) {
      // Connection refused by the guest.
      if (!acked) {
        this.#refused(i)
        return
      }
      this.#resetHost(i)
      this.#remove(i)
      return
    }
    if ((flags & tcp.SYN) === 0) {
      this.#refused(i)
      return
    }
    this.#readSyn(i, f)
    c.retries[i] = 0
    if (!acked) {
      c.state[i] = STATE.synRcvd
      this.#sendSyn(i)
      return
    }
    this.#established(i)
    this.#receiver.ackNow(i)
    this.#pump(i)
  }

  #whileTimeWait(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    if ((flags & tcp.RST) !== 0) {
      if (tcp.seq(b, f.l4) === c.rcvNxt[i]) this.#remove(i)
      return
    }
    if ((flags & (tcp.SYN | tcp.ACK)) === tcp.SYN && seqGt(tcp.seq(b, f.l4), c.rcvNxt[i])) {
      // RFC 6191: a new connection with the old one's ports. The flow's tuple, policy and NAT are the same.
      this.#alarms.end(i)
      c.state[i] = STATE.free
      c.flags[i] = 0
      this.open(i, f)
      return
    }
    this.#challenge(i)
  }

  /** A segment of an open connection: RFC 9293 §3.10.7.4, in its order. */
  #segment(i: number, f: Frame): void {
    const c = this.#c
    const b = this.#x.arena.bytes
    const flags = tcp.flags(b, f.l4)
    const seq = tcp.seq(b, f.l4)
    const header = tcp.headerLength(b, f.l4)
    let off = f.l4 + header
    let len = f.l4len - header
    const fin = (flags & tcp.FIN) !== 0
    const ahead = seqDiff(seq, c.rcvNxt[i])
    if ((flags & (tcp.RST | tcp.SYN)) !== 0) {
      this.#resetOrSyn(i, flags, ahead)
      return
    }
    if ((flags & tcp.ACK) === 0) {
      this.#refused(i)
      return
    }
    const bare = len === 0 && !fin
    if (ahead < 0) {
      // Old: a keepalive or a window probe, or something whose acknowledgment was lost.
      if (bare) {
        this.#challenge(i)
        return
      }
      if (-ahead >= len + (fin ? 1 : 0)) {
        this.#receiver.ackNow(i)
        return
      }
      off -= ahead
      len += ahead
    } else if (ahead > windowLeft(c, i)) {
      if (bare) {
        this.#challenge(i)
        return
      }
      this.#refused(i)
      this.#receiver.ackNow(i)
      return
    }
    const now = this.#x.host.now()
    c.heard[i] = now
    this.#x.flows.usedAt[i] = now
    if (c.sndUna[i] === c.sndMax[i]) c.retries[i] = 0
    if (header > tcp.TCP) tcp.readOptions(b, f.l4)
    else tcp.options.sackBlocks = 0
    const wnd = tcp.window(b, f.l4) << c.sndShift[i]
    const did = this.#sender.acknowledge(i, seq, tcp.ack(b, f.l4), wnd, bare)
    if (did < 0) {
      this.#hostFailed(i)
      return
    }
    if (did === UNACCEPTABLE) {
      this.#challenge(i)
      return
    }
    if (!bare) {
      if (c.has(i, GUEST_FIN)) this.#receiver.ackNow(i)
      else if (ahead > 0) this.#receiver.ahead(i, seq, off, len, fin, ahead)
      else {
        if (this.#receiver.take(i, off, len, fin) < 0) {
          this.#hostFailed(i)
          return
        }
      }
    }
    this.#finishing(i)
  }

  /** RFC 5961 §3, §4: only an exact RST ends the connection; a SYN never does. */
  #resetOrSyn(i: number, flags: number, ahead: number): void {
    if ((flags & tcp.RST) !== 0 && ahead === 0) {
      this.#resetHost(i)
      this.#remove(i)
      return
    }
    if ((flags & tcp.RST) !== 0 && (ahead < 0 || ahead > windowLeft(this.#c, i))) {
      this.#refused(i)
      return
    }
    this.#challenge(i)
  }

  // -- from the host ------------------------------------------------------------------------------------------------

  ready(i: number, events: number): boolean {
    const c = this.#c
    if ((events & (READABLE | HANGUP)) !== 0) c.flags[i] |= events & HANGUP ? READABLE_NOW | HOST_HANGUP : READABLE_NOW
    switch (c.state[i]) {
      case STATE.connecting:
        this.#connected(i, events)
        return false
      case STATE.open:
        break
      case STATE.synRcvd:
      case STATE.synSent:
        if ((events & FAILED) !== 0 && this.#x.host.error(this.#x.flows.sock[i]) !== 0) this.#hostFailed(i)
        return false
      default:
        return false
    }
    if ((events & WRITABLE) !== 0) {
      if (this.#receiver.writable(i) < 0) {
        this.#hostFailed(i)
        return false
      }
      this.#finishing(i)
      if (c.state[i] !== STATE.open) return false
    }
    if ((events & FAILED) !== 0 && this.#x.host.error(this.#x.flows.sock[i]) !== 0) {
      // What fits the guest's window before the reset reaches it.
      this.#sender.pump(i)
      this.#hostFailed(i)
      return false
    }
    if ((events & (READABLE | HANGUP)) === 0 && !c.has(i, READABLE_NOW)) return false
    return this.#pump(i)
  }

  /** True: more to send. */
  #pump(i: number): boolean {
    const did = this.#sender.pump(i)
    if (did < 0) this.#hostFailed(i)
    return did === MORE
  }

  #connected(i: number, events: number): void {
    const errno = this.#x.host.error(this.#x.flows.sock[i])
    if (errno !== 0) {
      this.#refuse(i, errno)
      return
    }
    if ((events & WRITABLE) === 0) return
    this.#c.state[i] = STATE.synRcvd
    this.#alarms.rest(i)
    this.#sendSyn(i)
  }

  // -- time ---------------------------------------------------------------------------------------------------------

  expire(i: number): void {
    const c = this.#c
    if (c.state[i] === STATE.free) return
    const now = this.#x.host.now()
    if (now >= c.alarm[i]) {
      if (!this.#alarm(i)) return
    } else if (now >= this.#alarms.keepaliveAt(i)) {
      if (c.retries[i] >= KEEPALIVE_PROBES) {
        this.abort(i)
        return
      }
      this.#segments.probe(i)
      c.retries[i]++
    }
    this.#alarms.sleep(i)
  }

  /** False: the flow is no more. */
  #alarm(i: number): boolean {
    const c = this.#c
    switch (c.state[i]) {
      case STATE.timeWait:
        this.#remove(i)
        return false
      case STATE.connecting:
        this.#refuse(i, ETIMEDOUT)
        return false
      case STATE.synRcvd:
      case STATE.synSent:
        if (c.retries[i] < SYN_RETRIES) {
          c.retries[i]++
          this.#sendSyn(i)
          return true
        }
        this.abort(i)
        return false
    }
    const did = c.has(i, PERSISTING) ? this.#sender.probe(i) : this.#sender.timeout(i)
    if (did < 0) this.#hostFailed(i)
    else if (did === GIVEN_UP) this.abort(i)
    return did >= 0 && did !== GIVEN_UP
  }

  stateName(i: number): string {
    const c = this.#c
    switch (c.state[i]) {
      case STATE.connecting:
        return 'CONNECTING'
      case STATE.synSent:
        return 'SYN-SENT'
      case STATE.synRcvd:
        return 'SYN-RECEIVED'
      case STATE.timeWait:
        return 'TIME-WAIT'
      case STATE.free:
        return 'CLOSED'
    }
    const guest = c.has(i, GUEST_FIN)
    if (!c.has(i, FIN_SENT)) return guest ? 'CLOSE-WAIT' : 'ESTABLISHED'
    if (c.has(i, FIN_ACKED)) return 'FIN-WAIT-2'
    if (!guest) return 'FIN-WAIT-1'
    return c.has(i, GUEST_FIRST) ? 'LAST-ACK' : 'CLOSING'
  }

  /** For tests: throws where an invariant of columns.ts does not hold. */
  check(i: number): void {
    if (this.#c.state[i] !== STATE.free) checkColumns(this.#c, i)
  }
}
