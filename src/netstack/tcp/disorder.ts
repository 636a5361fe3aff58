/**
 * Disorder: the only payload that the relay ever keeps, and it is bounded for the whole network.
 *
 * The link to a guest is memory and neither loses nor reorders. Where something in between does, throwing away all that follows a
 * hole costs a window for every loss, and a guest that was told SACK-permitted waits for blocks that never come (Linux counts no
 * plain duplicate ACKs then). So segments ahead of RCV.NXT are copied into chunks of a pool, reported as SACK blocks (RFC 2018
 * §4), and passed to the host socket when the hole is filled.
 *
 * Owns: CHUNKS chunks of CHUNK bytes in the arena; for each flow a list of its chunks, sorted and disjoint (`held` is its head).
 * What has been reported is kept: reneging is allowed (RFC 2018 §8), but a Linux guest answers each time with a timeout that doubles the
 * next (seen: two minutes after a dozen). When there is no chunk segments are refused, not forgotten; only one that
 * nobody came to fill the hole of for STALE ms is given to another flow.
 *
 * Shares: a VM may have as many chunks as are free. So one that asks for all gets half and leaves half, the next one leaves a quarter; who is alone on a bad
 * link has more than an equal share of it. A stale chunk of another VM goes to one that has fewer, which evens out what was first come, first served.
 */
import type { FlowTable } from '../flow/table.ts'
import { EAGAIN } from '../host.ts'
import { put32 } from '../wire/bytes.ts'
import { OPTION_SACK, type Seq, seqAdd, seqDiff, seqGe, seqGt, seqLe, seqLt } from '../wire/tcp.ts'
import type { SeqColumn, TcpColumns } from './columns.ts'
import type { TcpHost } from './context.ts'

export const CHUNKS = 256
export const CHUNK = 16 * 1024
/** Chunks of one flow. */
const CHUNKS_PER_FLOW = 64
/** ms without any progress of a chunk's flow. */
const STALE = 60_000
/** What fits 40 bytes of options beside two NOPs, and beside timestamps. */
const SACK_BLOCKS = 4
const SACK_BLOCKS_STAMPED = 3
const NONE = -1
const NOP = 1

export class Disorder {
  readonly #host: TcpHost
  readonly #table: FlowTable
  readonly #c: TcpColumns
  readonly #bytes: Uint8Array
  readonly #at: number
  readonly #owner = new Int32Array(CHUNKS).fill(NONE)
  readonly #next = new Int32Array(CHUNKS).fill(NONE)
  readonly #seq = new Int32Array(CHUNKS) as unknown as SeqColumn
  readonly #len = new Int32Array(CHUNKS)
  /** Chunks that are free; and where to look for a stale one next. */
  readonly #free = new Int32Array(CHUNKS)
  #frees = 0
  #hand = 0
  /** Chunks of each switch port. */
  readonly #perPort: Int32Array

  constructor(host: TcpHost, table: FlowTable, c: TcpColumns, ports: number) {
    this.#host = host
    this.#table = table
    this.#c = c
    this.#bytes = host.arena.bytes
    this.#at = host.arena.alloc(CHUNKS * CHUNK, 4096)
    this.#perPort = new Int32Array(ports)
    while (this.#frees < CHUNKS) this.#free[this.#frees] = this.#frees++
  }

  #end(k: number): Seq {
    return seqAdd(this.#seq[k], this.#len[k])
  }

  /** Keep what is new of `len` bytes at `off` from `seq`, which lies ahead of RCV.NXT and within the window. */
  hold(i: number, seq: Seq, off: number, len: number): void {
    const c = this.#c
    c.heldLast[i] = seq
    if (c.held[i] === NONE) c.heldAt[i] = this.#host.now()
    let before = NONE
    let after = c.held[i]
    let count = 0
    for (let k = after; k !== NONE; k = this.#next[k]) count++
    while (len > 0) {
      while (after !== NONE && seqLe(this.#seq[after], seq)) {
        before = after
        after = this.#next[after]
      }
      if (before !== NONE && seqGt(this.#end(before), seq)) {
        const known = Math.min(len, seqDiff(this.#end(before), seq))
        seq = seqAdd(seq, known)
        off += known
        len -= known
        continue
      }
      const gap = after === NONE ? len : Math.min(len, seqDiff(this.#seq[after], seq))
      let room = before === NONE || this.#end(before) !== seq ? 0 : CHUNK - this.#len[before]
      if (room === 0) {
        if (count >= CHUNKS_PER_FLOW) return
        const k = this.#allocate(i)
        if (k === NONE) return
        count++
        this.#seq[k] = seq
        this.#len[k] = 0
        this.#next[k] = after
        if (before === NONE) c.held[i] = k
        else this.#next[before] = k
        before = k
        room = CHUNK
      }
      const n = Math.min(gap, room)
      this.#bytes.copyWithin(this.#at + before * CHUNK + this.#len[before], off, off + n)
      this.#len[before] += n
      seq = seqAdd(seq, n)
      off += n
      len -= n
    }
  }

  /** A chunk for flow `i`: a free one, or when its VM has its share a stale one; each call looks at one. */
  #allocate(i: number): number {
    const port = this.#table.port[i]
    const mine = this.#perPort[port]
    if (mine >= this.#frees) {
      // There is one: either all have owners, or this VM is one.
      while (this.#owner[this.#hand] === NONE) this.#hand = (this.#hand + 1) % CHUNKS
      const k = this.#hand
      this.#hand = (k + 1) % CHUNKS
      const owner = this.#owner[k]
      if (owner === i || this.#host.now() - this.#c.heldAt[owner] < STALE) return NONE
      const other = this.#table.port[owner]
      if (other !== port && this.#perPort[other] <= mine) return NONE
      this.#drop(owner, k)
    }
    const k = this.#free[--this.#frees]
    this.#owner[k] = i
    this.#perPort[port]++
    return k
  }

  #drop(i: number, k: number): void {
    const c = this.#c
    if (c.held[i] === k) c.held[i] = this.#next[k]
    else {
      let at = c.held[i]
      while (this.#next[at] !== k) at = this.#next[at]
      this.#next[at] = this.#next[k]
    }
    this.#perPort[this.#table.port[i]]--
    this.#owner[k] = NONE
    this.#next[k] = NONE
    this.#free[this.#frees++] = k
  }

  /** The flow is gone, or has taken its FIN. */
  release(i: number): void {
    while (this.#c.held[i] !== NONE) this.#drop(i, this.#c.held[i])
  }

  /** RCV.NXT has moved: pass on what follows it. ≥ 0, or −errno: the host side has failed. */
  drain(i: number): number {
    const c = this.#c
    for (let k = c.held[i]; k !== NONE; k = c.held[i]) {
      const skip = seqDiff(c.rcvNxt[i], this.#seq[k])
      if (skip < 0) return 0
      const left = this.#len[k] - skip
      if (left > 0) {
        const n = this.#host.tcpSend(this.#table.sock[i], this.#at + k * CHUNK + skip, left)
        if (n < 0) return n === -EAGAIN ? 0 : n
        c.rcvNxt[i] = seqAdd(c.rcvNxt[i], n)
        c.heldAt[i] = this.#host.now()
        this.#table.bytesOut[i] += n
        if (n < left) return 0
      }
      this.#drop(i, k)
    }
    return 0
  }

  /** Write NOP, NOP and SACK blocks at `o`, the one that changed last first; the bytes written (0: nothing is held). */
  writeSack(b: Uint8Array, o: number, i: number): number {
    const c = this.#c
    const most = c.stamps[i] > 0 ? SACK_BLOCKS_STAMPED : SACK_BLOCKS
    let n = 0
    let at = o + 4
    for (let pass = 0; pass < 2; pass++) {
      for (let k = c.held[i]; k !== NONE && n < most; ) {
        const left = this.#seq[k]
        let right = this.#end(k)
        for (k = this.#next[k]; k !== NONE && this.#seq[k] === right; k = this.#next[k]) right = this.#end(k)
        const last = seqGe(c.heldLast[i], left) && seqLt(c.heldLast[i], right)
        if (last !== (pass === 0) || !seqGt(left, c.rcvNxt[i])) continue
        put32(b, at, left)
        put32(b, at + 4, right)
        at += 8
        n++
      }
    }
    if (n === 0) return 0
    b[o] = b[o + 1] = NOP
    b[o + 2] = OPTION_SACK
    b[o + 3] = 2 + 8 * n
    return 4 + 8 * n
  }
}
