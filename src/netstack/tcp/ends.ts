/**
 * How a guest's connection ends, and what is refused or challenged on the way.
 *
 * An end is told to whom it concerns: RST to the guest, a reset or a shutdown to the host's socket; then the flow is removed, or stays in TIME-WAIT
 * when the guest was not the first to finish. What may be forged is answered with what the guest should know, and not without end.
 * Reading: RFC 9293 §3.6, §3.10; RFC 5961.
 *
 * Owns: the count of half-open connections (everything that ends one must give it back), the ring of TIME-WAITs.
 * Never does: deciding that a connection ends.
 */
import { DROP } from '../trace/drops.ts'
import type { Alarms } from './alarms.ts'
import { FIN_ACKED, GUEST_FIN, GUEST_FIRST, STATE, type TcpColumns } from './columns.ts'
import type { TcpContext } from './context.ts'
import type { Disorder } from './disorder.ts'
import type { Receiver } from './receiver.ts'
import type { Segments } from './segments.ts'

/** Long enough for a late FIN to be answered; a new SYN does not wait for it (RFC 6191). */
export const TIME_WAIT = 2000
/** Of a network at once: a guest that opens thousands of connections in a second must not fill its table with ended ones. */
export const TIME_WAITS = 1024
/** RFC 5961 §7: how often one flow is challenged, in ms. */
const CHALLENGE_INTERVAL = 100

export class Ends {
  readonly #x: TcpContext
  readonly #c: TcpColumns
  readonly #segments: Segments
  readonly #disorder: Disorder
  readonly #alarms: Alarms
  readonly #receiver: Receiver
  /** Connections of each switch port whose handshakes are not over. */
  readonly halfOpen: Int32Array
  /** The latest flows that went to TIME-WAIT, as a ring. */
  readonly #timeWaits = new Int32Array(TIME_WAITS).fill(-1)
  #timeWaitAt = 0

  constructor(
    x: TcpContext,
    c: TcpColumns,
    segments: Segments,
    disorder: Disorder,
    alarms: Alarms,
    receiver: Receiver,
  ) {
    this.#x = x
    this.#c = c
    this.#segments = segments
    this.#disorder = disorder
    this.#alarms = alarms
    this.#receiver = receiver
    this.halfOpen = new Int32Array(x.limits.ports)
  }

  /** The flow ceases to exist. Its socket has been dealt with, or is closed here. */
  remove(i: number): void {
    const x = this.#x
    const state = this.#c.state[i]
    if (state !== STATE.open && state !== STATE.timeWait) this.halfOpen[x.flows.port[i]]--
    const sock = x.flows.sock[i]
    if (sock >= 0) x.host.close(sock)
    this.#c.state[i] = STATE.free
    this.#c.flags[i] = 0
    this.#disorder.release(i)
    this.#alarms.end(i)
    x.flows.remove(i)
  }

  /** RST to the client or server behind the host socket. */
  resetHost(i: number): void {
    const x = this.#x
    if (x.flows.sock[i] >= 0) x.host.tcpReset(x.flows.sock[i])
    x.flows.sock[i] = -1
  }

  /** RST to both sides. */
  abort(i: number): void {
    if (this.#c.state[i] !== STATE.timeWait) this.#segments.rst(i)
    this.resetHost(i)
    this.remove(i)
  }

  /** The host side has failed (reset, timed out): the guest learns by RST. */
  hostFailed(i: number): void {
    this.#segments.rst(i)
    this.remove(i)
  }

  /** Both sides have finished, and each knows it of the other? */
  finishing(i: number): void {
    const c = this.#c
    const flags = c.flags[i]
    if ((flags & (GUEST_FIN | FIN_ACKED)) !== (GUEST_FIN | FIN_ACKED)) return
    if (flags & GUEST_FIRST) {
      this.remove(i)
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
    if (oldest >= 0 && oldest !== i && c.state[oldest] === STATE.timeWait) this.remove(oldest)
    this.#alarms.rest(i)
    this.#alarms.set(i, x.host.now() + TIME_WAIT)
  }

  /** Counted: a segment that cannot be of this connection. */
  refused(i: number): void {
    this.#x.drops.count(this.#x.flows.port[i], DROP['tcp-refused'])
  }

  /** RFC 5961: answer something that may be forged with what the guest should know, but not without end. */
  challenge(i: number): void {
    const now = this.#x.host.now()
    if (now - this.#c.challenged[i] < CHALLENGE_INTERVAL) {
      this.refused(i)
      return
    }
    this.#c.challenged[i] = now
    this.#receiver.ackNow(i)
  }
}
