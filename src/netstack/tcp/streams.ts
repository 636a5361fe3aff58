/**
 * Which connections are long streams from the guest, and whether there are several at a time: how their acknowledgments travel.
 *
 * Theory. Each acknowledgment of a stream runs the guest's TCP, which sends its next frames, within our write: half of what the stream costs the data
 * plane. A thread of the kernel's may do that beside us (WAY.stream), at the cost of its wake-up. Where several streams keep the data plane busy that is a gain; one
 * alone waits for its acknowledgments, and a request for each round trip. A kernel that has much to send makes frames of up to 64 KiB, so their length tells streams better
 * than their number: a connection of requests and answers may carry gigabytes in a day.
 * Pure acknowledgments alone: one that is overtaken says nothing new. What the thread has not had yet waits in memory, and data that has waited is no longer in the
 * caches: frames of streams to the guest are received at once.
 *
 * Owns: `mean`, and when the last stream was another one. Never does: sending.
 */
import { WAY, type Way } from '../switch/port.ts'
import type { TcpColumns } from './columns.ts'

/** Bytes of payload, on average. */
const STREAM = 16 * 1024
/** Each segment counts for 1/16: five of 64 KiB make a stream. */
const SHARE = 4
/** ms in which another stream must have been heard; eight that take turns are heard within one. */
const TOGETHER = 2

export class Streams {
  readonly #c: TcpColumns
  #last = -1
  #changedAt = -Infinity

  constructor(c: TcpColumns) {
    this.#c = c
  }

  /** `len` bytes of payload have come, at `now` ms. */
  heard(i: number, len: number, now: number): void {
    const c = this.#c
    c.mean[i] += (len - c.mean[i]) >> SHARE
    if (c.mean[i] < STREAM || i === this.#last) return
    if (this.#last >= 0) this.#changedAt = now
    this.#last = i
  }

  /** How a pure acknowledgment travels. */
  ackWay(i: number, now: number): Way {
    return this.#c.mean[i] >= STREAM && now - this.#changedAt <= TOGETHER ? WAY.stream : WAY.now
  }
}
