/**
 * The TCP relay: a guest's connection on one side, a host socket on the other, no payload in between.
 *
 * Theory. Each side is a TCP of its own; the relay ends the guest's here (states in columns.ts) and speaks through the host's
 * socket with the other. What makes it transparent is that neither side is told more than the other has done:
 *  - connect first, accept after (handshake.ts).
 *  - what the host socket took is acknowledged (receiver.ts); what the guest acknowledged is consumed (sender.ts).
 *  - a FIN is passed on when everything before it has been: guest's FIN → shutdown, host's end → FIN, each side alone (ends.ts).
 *  - a reset is passed on at once. What lay unread behind a host's reset and does not fit the guest's window is lost with it.
 *
 * Hostile guests: RST and SYN within a connection must match exactly or are challenged (RFC 5961), acknowledgments of what was
 * never sent are refused, payload beyond the window is not looked at, half-open connections are bounded for each VM, and a guest that never
 * answers is given up after RETRIES_MAX (one that keeps its window shut and says so is not: sender.ts). Reading: RFC 9293 §3.10; RFC 5961; RFC 7323
 * §4.3, §5.3 (a segment without timestamps where they were agreed on is taken as it is; a guest's clock is never so old that it could have come round,
 * because keepalives ask for it).
 *
 * Owns: what a segment, an event or a moment means in each state. Never does: policy, NAT, the flow's tuple.
 */
import type { Relay } from '../flow/relay.ts'
import type { Frame } from '../frame.ts'
import { FAILED, HANGUP, READABLE, URGENT, WRITABLE } from '../host.ts'
import { DROP } from '../trace/drops.ts'
import { finish, pseudo, sum } from '../wire/checksum.ts'
import * as tcp from '../wire/tcp.ts'
import { seqDiff, seqLe, seqLt } from '../wire/tcp.ts'
import { Alarms, KEEPALIVE_PROBES } from './alarms.ts'
import {
  checkColumns,
  FIN_ACKED,
  FIN_SENT,
  GUEST_FIN,
  GUEST_FIRST,
  PEEK_ON,
  PERSISTING,
  READABLE_NOW,
  STATE,
  TcpColumns,
} from './columns.ts'
import type { TcpContext } from './context.ts'
import { Disorder } from './disorder.ts'
import { Ends } from './ends.ts'
import { ESTABLISHED, Handshakes } from './handshake.ts'
import { Receiver } from './receiver.ts'
import { Segments } from './segments.ts'
import { GIVEN_UP, MORE, Sender, UNACCEPTABLE } from './sender.ts'
import { windowLeft } from './window.ts'

export class TcpRelay implements Relay {
  readonly #x: TcpContext
  readonly #c: TcpColumns
  readonly #segments: Segments
  readonly #alarms: Alarms
  readonly #sender: Sender
  readonly #receiver: Receiver
  readonly #ends: Ends
  readonly #handshakes: Handshakes

  constructor(x: TcpContext) {
    this.#x = x
    const c = new TcpColumns(x.flows.capacity)
    const disorder = new Disorder(x.host, x.flows, c, x.limits.ports)
    const segments = new Segments(x.host, x.flows, x.egress, c, disorder, x.mtu)
    const alarms = new Alarms(x.timers, c)
    const sender = new Sender(x.host, x.flows, segments, alarms, c)
    const receiver = new Receiver(x.host, x.flows, segments, disorder, c)
    const ends = new Ends(x, c, segments, disorder, alarms, receiver)
    this.#c = c
    this.#segments = segments
    this.#alarms = alarms
    this.#sender = sender
    this.#receiver = receiver
    this.#ends = ends
    this.#handshakes = new Handshakes(x, c, segments, alarms, sender, receiver, ends)
  }

  /** Acknowledgments that are owed go out. */
  flush(): void {
    this.#receiver.flush()
  }

  open(i: number, f: Frame): void {
    if (this.#sound(f)) this.#handshakes.open(i, f)
    else this.#handshakes.decline(i, f)
  }

  /** Nothing is ready: is there anybody who should not wait for `flush`? */
  get urgent(): boolean {
    return this.#receiver.urgent
  }

  /** What becomes of a published port's client whom the guest refused (handshake.ts). */
  set onRefused(turn: (i: number) => boolean) {
    this.#handshakes.onRefused = turn
  }

  accept(i: number): void {
    this.#handshakes.accept(i)
  }

  abort(i: number): void {
    this.#ends.abort(i)
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
    if (finish(sum(b, f.l4, f.l4len, pseudo(b, f))) === 0) return true
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
        this.#handshakes.whileConnecting(i, f)
        return
      case STATE.synRcvd:
        if (this.#handshakes.whileSynRcvd(i, f) === ESTABLISHED) this.#accepted(i, f)
        return
      case STATE.synSent:
        if (this.#handshakes.whileSynSent(i, f) === ESTABLISHED) this.#pump(i)
        return
      case STATE.timeWait:
        this.#handshakes.whileTimeWait(i, f)
        return
    }
  }

  /** The last segment of a handshake may bring data; a SYN-ACK (simultaneous open) was answered already. */
  #accepted(i: number, f: Frame): void {
    if ((tcp.flags(this.#x.arena.bytes, f.l4) & tcp.SYN) === 0) this.#segment(i, f)
    // What the host said before the guest was ready.
    if (this.#c.state[i] === STATE.open) this.#pump(i)
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
      this.#ends.refused(i)
      return
    }
    const bare = len === 0 && !fin
    tcp.readOptions(b, f.l4)
    const { options } = tcp
    const stamped = c.stamps[i] > 0 && options.timestamps
    if (stamped && seqLt(options.tsValue, c.tsRecent[i])) {
      // PAWS (RFC 7323 §5.3): from before the sequence numbers came round, or overtaken.
      this.#ends.challenge(i)
      return
    }
    if (ahead < 0) {
      // Old: a keepalive or a window probe, or something whose acknowledgment was lost.
      if (bare) {
        this.#ends.challenge(i)
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
        this.#ends.challenge(i)
        return
      }
      this.#ends.refused(i)
      this.#receiver.ackNow(i)
      return
    }
    const now = this.#x.host.now()
    c.heard[i] = now
    this.#x.flows.usedAt[i] = now
    if (c.sndUna[i] === c.sndMax[i]) c.retries[i] = 0
    // What is echoed is the timestamp of the first segment that is not acknowledged yet (§4.3).
    if (stamped && seqLe(seq, c.rcvTold[i])) c.tsRecent[i] = options.tsValue
    const wnd = tcp.window(b, f.l4) << c.sndShift[i]
    const did = this.#sender.acknowledge(i, seq, tcp.ack(b, f.l4), wnd, bare)
    if (did < 0) {
      this.#ends.hostFailed(i)
      return
    }
    if (did === UNACCEPTABLE) {
      this.#ends.challenge(i)
      return
    }
    if (!bare) {
      if (c.has(i, GUEST_FIN)) this.#receiver.ackNow(i)
      else if (ahead > 0) this.#receiver.ahead(i, seq, off, len, fin, ahead)
      else {
        if (this.#receiver.take(i, off, len, fin) < 0) {
          this.#ends.hostFailed(i)
          return
        }
      }
    }
    this.#ends.finishing(i)
  }

  /** RFC 5961 §3, §4: only an exact RST ends the connection; a SYN never does. */
  #resetOrSyn(i: number, flags: number, ahead: number): void {
    if ((flags & tcp.RST) !== 0 && ahead === 0) {
      this.#ends.resetHost(i)
      this.#ends.remove(i)
      return
    }
    if ((flags & tcp.RST) !== 0 && (ahead < 0 || ahead > windowLeft(this.#c, i))) {
      this.#ends.refused(i)
      return
    }
    this.#ends.challenge(i)
  }

  // -- from the host ------------------------------------------------------------------------------------------------

  ready(i: number, events: number): boolean {
    const c = this.#c
    if ((events & (READABLE | HANGUP)) !== 0)
      c.flags[i] |= events & (HANGUP | URGENT) ? READABLE_NOW | PEEK_ON : READABLE_NOW
    switch (c.state[i]) {
      case STATE.connecting:
        this.#handshakes.connected(i, events)
        return false
      case STATE.open:
        break
      case STATE.synRcvd:
      case STATE.synSent:
        if ((events & FAILED) !== 0 && this.#x.host.error(this.#x.flows.sock[i]) !== 0) this.#ends.hostFailed(i)
        return false
      default:
        return false
    }
    if ((events & WRITABLE) !== 0) {
      if (this.#receiver.writable(i) < 0) {
        this.#ends.hostFailed(i)
        return false
      }
      this.#ends.finishing(i)
      if (c.state[i] !== STATE.open) return false
    }
    if ((events & FAILED) !== 0 && this.#x.host.error(this.#x.flows.sock[i]) !== 0) {
      // What fits the guest's window before the reset reaches it.
      this.#sender.pump(i)
      this.#ends.hostFailed(i)
      return false
    }
    if ((events & (READABLE | HANGUP)) === 0 && !c.has(i, READABLE_NOW)) return false
    return this.#pump(i)
  }

  /** True: more to send. */
  #pump(i: number): boolean {
    const did = this.#sender.pump(i)
    if (did < 0) this.#ends.hostFailed(i)
    return did === MORE
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
        this.#ends.remove(i)
        return false
      case STATE.connecting:
      case STATE.synRcvd:
      case STATE.synSent:
        return this.#handshakes.overdue(i)
    }
    const did = c.has(i, PERSISTING) ? this.#sender.probe(i) : this.#sender.timeout(i)
    if (did < 0) this.#ends.hostFailed(i)
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
