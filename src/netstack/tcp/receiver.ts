/**
 * From the guest: payload goes from the arriving frame into the host socket, and what the socket took is acknowledged.
 *
 * Owns: rcv columns, and when an acknowledgment is due. Nothing is stored: a segment out of order is answered with a duplicate
 * ACK and forgotten (RFC 5681 §4.2), and what the socket did not take is the guest's to send again; the window (window.ts) makes
 * that rare. Reading: RFC 9293 §3.8.6, §3.10.7.4.
 *
 * Acknowledgments: one for each burst of frames (`flush`), which is prompt for a request and efficient for bulk, or as soon as ACK_EVERY
 * bytes are owed. No delayed ACK: a timer would save a 54-byte frame and cost every slow start its clock.
 */
import type { FlowTable } from '../flow/table.ts'
import { EAGAIN } from '../host.ts'
import { seqAdd, seqDiff } from '../wire/tcp.ts'
import { ACK_OWED, GUEST_FIN, type TcpColumns, TOOK_LESS, WANT_SPACE } from './columns.ts'
import type { TcpHost } from './context.ts'
import type { Segments } from './segments.ts'
import { openWindow, windowLeft } from './window.ts'

/** Bytes taken that are acknowledged at once, within a burst. */
export const ACK_EVERY = 128 * 1024
/** Below this much window the host socket is asked to say when it has room again. */
export const LOW_WINDOW = 192 * 1024
/** RFC 5681 §3.2: duplicate ACKs that make the guest send again without waiting for its timer. */
const DUP_ACKS = 3

export class Receiver {
  readonly #host: TcpHost
  readonly #table: FlowTable
  readonly #segments: Segments
  readonly #c: TcpColumns
  /** Flows that owe an acknowledgment since the last `flush`. */
  readonly #owing: Int32Array
  #owed = 0

  constructor(host: TcpHost, table: FlowTable, segments: Segments, c: TcpColumns) {
    this.#host = host
    this.#table = table
    this.#segments = segments
    this.#c = c
    this.#owing = new Int32Array(table.capacity)
  }

  /** An acknowledgment is due at the end of this burst. */
  owe(i: number): void {
    if (this.#c.has(i, ACK_OWED)) return
    this.#c.flags[i] |= ACK_OWED
    if (this.#owed === this.#owing.length) this.flush()
    this.#owing[this.#owed++] = i
  }

  /** The end of a burst: send what is owed. An index that was freed meanwhile owes nothing. */
  flush(): void {
    for (let k = 0; k < this.#owed; k++) {
      const i = this.#owing[k]
      if (this.#c.has(i, ACK_OWED)) this.ackNow(i)
    }
    this.#owed = 0
  }

  /** Acknowledge now, with the window as it is. */
  ackNow(i: number): void {
    this.#segments.ack(i)
    this.#wantSpace(i)
  }

  /**
   * Payload in order: `len` bytes at `off`, RCV.NXT being the first; `fin`: the stream ends behind them.
   * ≥ 0, or −errno: the host side has failed.
   */
  take(i: number, off: number, len: number, fin: boolean): number {
    const c = this.#c
    const sock = this.#table.sock[i]
    const room = windowLeft(c, i)
    // Beyond the window nothing was promised. A probe of a shut window is of this kind, and learns whether it has opened.
    let taken = Math.min(len, room)
    if (taken > 0) {
      const n = this.#host.tcpSend(sock, off, taken)
      if (n < 0 && n !== -EAGAIN) return n
      if (n < taken) {
        // The host had less room than it said. It will tell when it has some.
        c.flags[i] |= TOOK_LESS
        taken = Math.max(0, n)
      }
      c.rcvNxt[i] = seqAdd(c.rcvNxt[i], taken)
      this.#table.bytesOut[i] += taken
    }
    if (taken < len) {
      this.ackNow(i)
      return 0
    }
    if (fin) {
      c.rcvNxt[i] = seqAdd(c.rcvNxt[i], 1)
      c.flags[i] |= GUEST_FIN
      this.#host.tcpShutdown(sock)
      this.ackNow(i)
      return 0
    }
    if (seqDiff(c.rcvNxt[i], c.rcvTold[i]) >= ACK_EVERY) this.ackNow(i)
    else this.owe(i)
    return 0
  }

  /** The host socket has room again: tell the guest when that opens its window. */
  writable(i: number): void {
    const c = this.#c
    const wanted = c.has(i, WANT_SPACE)
    const less = c.has(i, TOOK_LESS)
    if ((!wanted && !less) || c.has(i, GUEST_FIN)) return
    c.flags[i] &= ~(WANT_SPACE | TOOK_LESS)
    const edge = c.edge[i]
    openWindow(c, this.#host, this.#table.sock[i], i)
    if (less) {
      // What it has sent was not taken whole, and it believes that to be under way.
      for (let k = 0; k < DUP_ACKS; k++) this.#segments.ack(i)
    }
    if (less || edge !== c.edge[i]) this.ackNow(i)
  }

  #wantSpace(i: number): void {
    const c = this.#c
    if (c.has(i, WANT_SPACE | GUEST_FIN)) return
    const sock = this.#table.sock[i]
    if (sock < 0 || windowLeft(c, i) >= Math.min(LOW_WINDOW, c.rcvWndMax[i] >> 1)) return
    c.flags[i] |= WANT_SPACE
    this.#host.armWrite(sock)
  }
}
