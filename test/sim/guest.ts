/**
 * A guest's TCP, written apart from the engine so that neither inherits the other's mistakes: one connection, its own
 * reassembly, retransmission, delayed ACK and windows. Numbers here are positions (0 = SYN, 1 = first byte), unbounded; only the
 * wire is modulo 2³². Plain objects and allocation are fine: it is a model, not a data path.
 */
import type { Clock } from './clock.ts'
import { type Packet, tcpChecksum } from './link.ts'
import type { Stream } from './stream.ts'

const FIN = 1
const SYN = 2
const RST = 4
const PSH = 8
const ACK = 16

export interface GuestOptions {
  readonly address: number
  readonly port: number
  readonly peer: number
  readonly peerPort: number
  readonly isn: number
  readonly mss: number
  /** −1: no scaling offered. */
  readonly shift: number
  readonly sack: boolean
  /** Timestamps are offered (RFC 7323). */
  readonly stamps: boolean
  /** Most payload of a frame; above mss it sends GSO frames. */
  readonly frame: number
  readonly receiveBuffer: number
  /** Bytes per ms the application reads. */
  readonly readRate: number
  readonly gives: Stream
  readonly takes: Stream
  /** Close after `gives` at once (true), or only after the peer's end. */
  readonly finFirst: boolean
}

export interface Segment {
  seq: number
  ack: number
  flags: number
  window: number
  payload: Uint8Array
  mss: number
  shift: number
  sack: boolean
  /** Timestamps: value and echo. */
  stamps: readonly [number, number] | undefined
  blocks: [number, number][]
}

export function parseSegment(b: Uint8Array): Segment | undefined {
  if (tcpChecksum(b) !== 0) return undefined
  const v = new DataView(b.buffer, b.byteOffset)
  const header = (b[32] >> 4) << 2
  const s: Segment = {
    seq: v.getUint32(24),
    ack: v.getUint32(28),
    flags: b[33],
    window: v.getUint16(34),
    payload: b.subarray(20 + header),
    mss: 536,
    shift: -1,
    sack: false,
    stamps: undefined,
    blocks: [],
  }
  for (let o = 40; o < 20 + header; ) {
    if (b[o] === 0) break
    if (b[o] === 1) {
      o++
      continue
    }
    // A hostile guest's options are read too: one of no length would be read for ever.
    if (b[o + 1] < 2 || o + b[o + 1] > 20 + header) break
    if (b[o] === 2) s.mss = v.getUint16(o + 2)
    if (b[o] === 3) s.shift = b[o + 2]
    if (b[o] === 4) s.sack = true
    if (b[o] === 8) s.stamps = [v.getInt32(o + 2), v.getInt32(o + 6)]
    if (b[o] === 5)
      for (let at = o + 2; at < o + b[o + 1]; at += 8) s.blocks.push([v.getUint32(at), v.getUint32(at + 4)])
    o += b[o + 1]
  }
  return s
}

/** An IPv4 packet with a TCP segment, checksums done. */
export function buildSegment(
  from: number,
  to: number,
  fromPort: number,
  toPort: number,
  seq: number,
  ack: number,
  flags: number,
  window: number,
  options: readonly number[],
  payload: Uint8Array,
): Uint8Array {
  const header = 20 + options.length
  const b = new Uint8Array(20 + header + payload.length)
  const v = new DataView(b.buffer)
  b[0] = 0x45
  v.setUint16(2, b.length)
  b[8] = 64
  b[9] = 6
  v.setInt32(12, from)
  v.setInt32(16, to)
  v.setUint16(20, fromPort)
  v.setUint16(22, toPort)
  v.setUint32(24, seq >>> 0)
  v.setUint32(28, ack >>> 0)
  b[32] = (header >> 2) << 4
  b[33] = flags
  v.setUint16(34, window)
  b.set(options, 40)
  b.set(payload, 20 + header)
  v.setUint16(36, tcpChecksum(b))
  return b
}

export class Guest {
  state: 'closed' | 'syn-sent' | 'syn-rcvd' | 'open' | 'reset' | 'refused' = 'closed'
  /** Bytes received in order and read by the application. */
  read = 0
  /** The peer's end was received in order. */
  ended = false
  /** Our FIN was acknowledged. */
  finished = false
  timeouts = 0
  readonly o: GuestOptions
  readonly #clock: Clock
  readonly #out: (p: Packet) => void

  // Sending: positions.
  #una = 0
  #nxt = 0
  #max = 0
  #wnd = 0
  #wl1 = -1
  #finAt = Infinity
  #cwnd = 10 * 1448
  #ssthresh = Infinity
  #recover = -1
  #dups = 0
  #rto = 1000
  #timer = 0
  #peerMss = 536
  #peerShift = 0
  #scaled = false
  #peerSack = false
  #stamped = false
  /** Our clock's offset, the peer's timestamp to echo, and up to where we had acknowledged when it came. */
  readonly #clockBase: number
  #tsRecent = 0
  #lastAcked = 0
  /** The relay's right edge never goes back. */
  #edge = 0
  // Receiving.
  #irs = 0
  #rcv = 0
  #queue: { at: number; bytes: Uint8Array; fin: boolean }[] = []
  #buffered = 0
  #advertised = 0
  #ackTimer = 0
  #unacked = 0
  /** Positions received out of order, most recent first. */
  #blocks: { from: number; to: number }[] = []
  #reading = false

  constructor(clock: Clock, o: GuestOptions, out: (p: Packet) => void) {
    this.#clock = clock
    this.o = o
    this.#out = out
    this.#clockBase = o.isn >>> 3
  }

  #now(): number {
    return (this.#clockBase + Math.floor(this.#clock.now)) | 0
  }

  #stamps(): readonly number[] {
    const word = (v: number) => [v >>> 24, (v >>> 16) & 255, (v >>> 8) & 255, v & 255]
    return [1, 1, 8, 10, ...word(this.#now()), ...word(this.#tsRecent)]
  }

  get done(): boolean {
    return this.finished && this.ended && this.read === this.o.takes.length
  }

  connect(): void {
    this.state = 'syn-sent'
    this.#nxt = this.#max = 1
    this.#sendSyn(SYN)
    this.#arm()
  }

  #sendSyn(flags: number): void {
    const options = [2, 4, this.o.mss >> 8, this.o.mss & 255]
    if (this.o.sack) options.push(1, 1, 4, 2)
    if (this.o.shift >= 0 && (flags === SYN || this.#scaled)) options.push(1, 3, 3, this.o.shift)
    if (this.o.stamps && (flags === SYN || this.#stamped)) options.push(...this.#stamps())
    this.#emit(0, flags, options, 0)
  }

  #window(): number {
    const free = Math.max(0, this.o.receiveBuffer - this.#buffered)
    const shift = this.#scaled ? this.o.shift : 0
    // Never shrink; and do not open by less than a segment.
    const old = Math.max(0, this.#advertised - this.#rcv)
    let w = free - old < Math.min(this.o.mss, this.o.receiveBuffer >> 1) ? old : free
    w = Math.min(w, 0xffff << shift)
    const field = Math.ceil(w / (1 << shift))
    this.#advertised = Math.max(this.#advertised, this.#rcv + (field << shift))
    return Math.min(field, 0xffff)
  }

  #emit(at: number, flags: number, more: readonly number[], len: number): void {
    const { o } = this
    const options = this.#stamped && (flags & SYN) === 0 ? [...this.#stamps(), ...more] : more
    const payload = new Uint8Array(len)
    if (len > 0) o.gives.fill(payload, 0, len, at - 1)
    const acks = (flags & ACK) !== 0
    const w = (flags & SYN) !== 0 ? Math.min(0xffff, o.receiveBuffer) : this.#window()
    if ((flags & SYN) !== 0) this.#advertised = Math.max(this.#advertised, this.#rcv + w)
    if (acks) {
      this.#unacked = 0
      this.#ackTimer++
      this.#lastAcked = this.#rcv
    }
    const ack = acks ? this.#irs + this.#rcv : 0
    const bytes = buildSegment(o.address, o.peer, o.port, o.peerPort, o.isn + at, ack, flags, w, options, payload)
    this.#out({ bytes, gsoSize: len > this.#segment() ? this.#segment() : 0 })
  }

  #segment(): number {
    return Math.min(this.#peerMss, this.o.mss) - (this.#stamped ? 12 : 0)
  }

  #ack(): void {
    const options: number[] = []
    if (this.o.sack && this.#peerSack && this.#blocks.length > 0) {
      const some = this.#blocks.slice(0, 3)
      options.push(1, 1, 5, 2 + 8 * some.length)
      for (const b of some)
        for (const edge of [b.from, b.to]) {
          const s = (this.#irs + edge) >>> 0
          options.push(s >>> 24, (s >>> 16) & 255, (s >>> 8) & 255, s & 255)
        }
    }
    this.#emit(this.#nxt, ACK, options, 0)
  }

  // -- sending ------------------------------------------------------------------------------------------------------

  #arm(): void {
    const mine = ++this.#timer
    this.#clock.after(this.#rto, () => {
      if (mine === this.#timer) this.#timeout()
    })
  }

  #timeout(): void {
    if (this.state === 'syn-sent' || this.state === 'syn-rcvd') {
      this.timeouts++
      if (this.timeouts > 6) return
      this.#rto *= 2
      this.#sendSyn(this.state === 'syn-sent' ? SYN : SYN | ACK)
      this.#arm()
      return
    }
    if (this.state !== 'open') return
    if (this.#una === this.#max && !this.#toSend()) return
    this.timeouts++
    this.#rto = Math.min(this.#rto * 2, 10_000)
    if (this.#wnd === 0) {
      // The classical probe: one byte beyond the window (RFC 9293 §3.8.6.1).
      this.#nxt = this.#una
      if (this.#una <= this.o.gives.length) this.#emit(this.#una, ACK | PSH, [], 1)
      else {
        this.#finAt = this.#una
        this.#emit(this.#una, ACK | FIN, [], 0)
      }
      this.#nxt = this.#una + 1
      this.#max = Math.max(this.#max, this.#nxt)
    } else {
      this.#ssthresh = Math.max(this.#cwnd / 2, 2 * this.#segment())
      this.#cwnd = this.#segment()
      this.#recover = this.#max
      this.#dups = 0
      this.#nxt = this.#una
      this.#push(true)
    }
    this.#arm()
  }

  #toSend(): boolean {
    return this.#nxt <= this.o.gives.length || (this.#mayFin() && this.#nxt <= this.#finPosition())
  }

  #finPosition(): number {
    return this.o.gives.length + 1
  }

  #mayFin(): boolean {
    return this.o.finFirst || this.ended
  }

  #push(force = false): void {
    if (this.state !== 'open') return
    for (;;) {
      const wnd = Math.min(this.#wnd, this.#cwnd)
      const room = this.#una + wnd - this.#nxt
      const left = this.o.gives.length + 1 - this.#nxt
      if (left > 0) {
        let len = Math.min(left, this.o.frame, Math.max(room, force ? Math.min(this.#segment(), this.#wnd) : 0))
        if (len <= 0) break
        // Silly window syndrome avoidance.
        if (len < left && len < this.#segment() && this.#nxt !== this.#una && !force) break
        if (len > this.#segment()) len -= len % this.#segment()
        const last = len === left
        const fin = last && this.#mayFin()
        this.#emit(this.#nxt, ACK | (last ? PSH : 0) | (fin ? FIN : 0), [], len)
        this.#nxt += len
        if (fin) {
          this.#finAt = this.#nxt
          this.#nxt++
        }
        force = false
      } else if (left === 0 && this.#mayFin() && (room > 0 || force)) {
        this.#finAt = this.#nxt
        this.#emit(this.#nxt, ACK | FIN, [], 0)
        this.#nxt++
      } else break
      const idle = this.#max === this.#una
      this.#max = Math.max(this.#max, this.#nxt)
      if (idle) this.#arm()
    }
    if (this.#una === this.#max && this.#toSend()) this.#arm()
  }

  // -- receiving ----------------------------------------------------------------------------------------------------

  receive(p: Packet): void {
    const parts = p.bytes
    const s = parseSegment(parts)
    if (s === undefined || this.state === 'closed' || this.state === 'reset' || this.state === 'refused') {
      if (this.state === 'closed' && s !== undefined && (s.flags & (SYN | ACK)) === SYN) this.#passiveOpen(s)
      return
    }
    if (this.state === 'syn-sent') {
      this.#synAnswered(s)
      return
    }
    const at = this.#position(s.seq, this.#irs, this.#rcv)
    if ((s.flags & (RST | SYN)) === 0 && !this.#timely(s, at)) return
    if ((s.flags & RST) !== 0) {
      if (at === this.#rcv) this.state = 'reset'
      else this.#ack()
      return
    }
    if ((s.flags & SYN) !== 0) {
      if (this.state === 'syn-rcvd' && (s.flags & ACK) === 0) this.#sendSyn(SYN | ACK)
      else this.#ack()
      return
    }
    if ((s.flags & ACK) === 0) return
    const ack = this.#position(s.ack, this.o.isn, this.#una)
    if (this.state === 'syn-rcvd') {
      if (ack !== 1) return
      this.state = 'open'
      this.#una = 1
      this.#timer++
      this.#rto = 200
    }
    const length = s.payload.length + (s.flags & FIN ? 1 : 0)
    if (length === 0 && at < this.#rcv) {
      // A probe or keepalive; its window and acknowledgment count all the same where they are newer.
      this.#acked(s, ack, at)
      this.#ack()
      return
    }
    this.#acked(s, ack, at)
    if (length > 0) this.#data(at, s.payload, (s.flags & FIN) !== 0)
  }

  /** RFC 7323 §3.2, §4.3, §5.3. False: an old duplicate. */
  #timely(s: Segment, at: number): boolean {
    if (!this.#stamped) {
      if (s.stamps !== undefined) throw new Error('the relay sends timestamps that were not agreed on')
      return true
    }
    if (s.stamps === undefined) throw new Error('the relay sends a segment without timestamps')
    if (((this.#now() - s.stamps[1]) | 0) < 0) throw new Error('the relay echoes a timestamp that was never sent')
    if (((s.stamps[0] - this.#tsRecent) | 0) < 0) {
      this.#ack()
      return false
    }
    if (at <= this.#lastAcked) this.#tsRecent = s.stamps[0]
    return true
  }

  #position(wire: number, base: number, near: number): number {
    return near + ((wire - base - near) | 0)
  }

  #passiveOpen(s: Segment): void {
    this.state = 'syn-rcvd'
    this.#learn(s)
    this.#nxt = this.#max = 1
    this.#sendSyn(SYN | ACK)
    this.#arm()
  }

  #learn(s: Segment): void {
    this.#irs = s.seq
    this.#rcv = 1
    this.#advertised = Math.max(this.#advertised, 1)
    this.#peerMss = s.mss
    this.#scaled = s.shift >= 0 && this.o.shift >= 0
    this.#peerShift = this.#scaled ? s.shift : 0
    this.#peerSack = s.sack
    this.#stamped = s.stamps !== undefined && this.o.stamps
    if (s.stamps !== undefined) this.#tsRecent = s.stamps[0]
    this.#wnd = s.window
    this.#wl1 = 0
  }

  #synAnswered(s: Segment): void {
    if ((s.flags & ACK) !== 0 && ((s.ack - this.o.isn) | 0) !== 1) return
    if ((s.flags & RST) !== 0) {
      if ((s.flags & ACK) !== 0) this.state = 'refused'
      return
    }
    if ((s.flags & (SYN | ACK)) !== (SYN | ACK)) return
    this.#learn(s)
    this.state = 'open'
    this.#una = this.#edge = 1
    this.#edge = 1 + s.window
    this.#advertised = 1 + Math.min(0xffff, this.o.receiveBuffer)
    this.#timer++
    this.#rto = 200
    this.#ack()
    this.#push()
  }

  #acked(s: Segment, ack: number, at: number): void {
    if (ack > this.#max) throw new Error(`the relay acknowledged ${ack} of ${this.#max}`)
    if (ack < this.#una) return
    const wnd = s.window << this.#peerShift
    if (ack + wnd < this.#edge && at >= this.#wl1 && at >= this.#rcv)
      if (ack > this.#una || (ack === this.#una && at > this.#wl1))
        throw new Error(`the relay's window edge went back from ${this.#edge} to ${ack + wnd}`)
    this.#edge = Math.max(this.#edge, ack + wnd)
    const opened = wnd > this.#wnd
    const same = wnd === this.#wnd
    this.#wnd = Math.max(0, this.#edge - ack)
    this.#wl1 = Math.max(this.#wl1, at)
    if (ack > this.#una) {
      const n = ack - this.#una
      this.#una = ack
      this.#nxt = Math.max(this.#nxt, ack)
      this.#rto = 200
      this.#dups = 0
      if (ack > this.#finAt) this.finished = true
      if (ack < this.#recover) {
        // A partial acknowledgment: the next hole.
        this.#again()
      } else
        this.#cwnd = Math.min(
          1 << 24,
          this.#cwnd + (this.#cwnd < this.#ssthresh ? n : Math.max(1, n * (1448 / this.#cwnd))),
        )
      this.#timer++
      if (this.#una < this.#max) this.#arm()
    } else if (this.#max > this.#una && same && s.payload.length === 0 && (s.flags & FIN) === 0) {
      this.#dups++
      if (this.#dups === 3 && this.#una >= this.#recover) {
        this.#ssthresh = Math.max((this.#max - this.#una) / 2, 2 * this.#segment())
        this.#cwnd = this.#ssthresh
        this.#recover = this.#max
        this.#again()
      }
    } else if (opened) this.#rto = 200
    this.#push()
  }

  /** The first unacknowledged segment once more. */
  #again(): void {
    const len = Math.min(this.#segment(), this.o.gives.length + 1 - this.#una, this.#max - this.#una)
    if (len > 0) {
      const fin = this.#una + len === this.#finAt
      this.#emit(this.#una, ACK | (fin ? FIN : 0), [], len)
    } else if (this.#una === this.#finAt) this.#emit(this.#una, ACK | FIN, [], 0)
  }

  #data(at: number, bytes: Uint8Array, fin: boolean): void {
    const end = at + bytes.length
    if (end <= this.#rcv && !(fin && end === this.#rcv && !this.ended)) {
      this.#ack()
      return
    }
    if (at > this.#rcv) {
      if (end > this.#advertised) throw new Error(`the relay sent ${end}, beyond the window's edge ${this.#advertised}`)
      this.#queue.push({ at, bytes: bytes.slice(), fin })
      this.#blocks.unshift({ from: at, to: end + (fin ? 1 : 0) })
      this.#merge()
      this.#ack()
      return
    }
    const hadHole = this.#queue.length > 0
    this.#inOrder(at, bytes, fin)
    for (let more = true; more; ) {
      more = false
      for (const q of this.#queue)
        if (q.at <= this.#rcv) {
          this.#queue.splice(this.#queue.indexOf(q), 1)
          this.#inOrder(q.at, q.bytes, q.fin)
          more = true
          break
        }
    }
    this.#merge()
    this.#startReading()
    this.#unacked += bytes.length
    if (hadHole || fin || this.#unacked >= 2 * this.#segment()) this.#ack()
    else {
      const mine = ++this.#ackTimer
      this.#clock.after(40, () => {
        if (mine === this.#ackTimer) this.#ack()
      })
    }
    if (this.ended) this.#push()
  }

  #inOrder(at: number, bytes: Uint8Array, fin: boolean): void {
    const skip = this.#rcv - at
    const len = bytes.length - skip
    if (len > 0) {
      if (this.#rcv + len > this.#advertised)
        throw new Error(`the relay sent up to ${this.#rcv + len}, beyond the window's edge ${this.#advertised}`)
      this.o.takes.check(bytes, skip, len, this.#rcv - 1)
      this.#rcv += len
      this.#buffered += len
    }
    if (fin && len >= 0 && !this.ended) {
      this.#rcv++
      this.ended = true
    }
  }

  /** Blocks that were filled are forgotten, and what touches is one. */
  #merge(): void {
    const live = this.#blocks.filter((b) => b.to > this.#rcv)
    const out: { from: number; to: number }[] = []
    for (const b of live) {
      const same = out.find((x) => x.from <= b.to && b.from <= x.to)
      if (same === undefined) out.push({ ...b })
      else {
        same.from = Math.min(same.from, b.from)
        same.to = Math.max(same.to, b.to)
      }
    }
    this.#blocks = out
  }

  #startReading(): void {
    if (this.#reading) return
    this.#reading = true
    const step = () => {
      const n = Math.min(this.#buffered, this.o.readRate)
      const before = Math.max(0, this.#advertised - this.#rcv)
      this.#buffered -= n
      this.read += n
      const free = this.o.receiveBuffer - this.#buffered
      if (n > 0 && before < 2 * this.o.mss && free - before >= Math.min(this.o.receiveBuffer >> 1, 2 * this.o.mss))
        this.#ack()
      if (this.#buffered > 0) this.#clock.after(1, step)
      else this.#reading = false
    }
    this.#clock.after(0.2, step)
  }
}
