/**
 * A guest's connection to the name service (RFC 7766): queries in, answers out in whatever order they come.
 *
 * Owns: framing, the idle time-out, how much is asked at once (what is beyond waits with the guest, §6.2.1.1 has no limit that would end the
 * connection), and when to close: after the guest has finished and has all its answers.
 * Invariants: after `shut` nothing is sent and nothing is taken for a query; `gone` is called once.
 */
import type { StreamHandler } from '../gateway/service.ts'
import { MAX_QUERY } from './message.ts'
import { DnsStream, framed } from './stream.ts'

/** ms without a query, and none unanswered (RFC 7766 §6.2.3 asks for seconds). */
const IDLE = 15_000
/** Queries of one connection that may wait for an answer; when they do, so few must be left before more are taken. */
const MAX_WAITING = 64
const FEW_WAITING = 32

export interface GuestStreamEvents {
  query(m: Uint8Array): void
  gone(): void
  now(): number
}

export class GuestStream implements StreamHandler {
  readonly port: number
  /** Queries without an answer yet; counted by the server. */
  waiting = 0
  readonly #send: (bytes: Uint8Array) => boolean
  readonly #close: () => void
  readonly #more: () => void
  readonly #events: GuestStreamEvents
  readonly #framing = new DnsStream(MAX_QUERY)
  #lastQuery: number
  /** Bytes were left with the guest. */
  #full = false
  #ended = false
  #shut = false

  constructor(
    port: number,
    now: number,
    send: (bytes: Uint8Array) => boolean,
    close: () => void,
    more: () => void,
    events: GuestStreamEvents,
  ) {
    this.port = port
    this.#lastQuery = now
    this.#send = send
    this.#close = close
    this.#more = more
    this.#events = events
  }

  push(bytes: Uint8Array): number {
    this.#lastQuery = this.#events.now()
    const taken = this.#asks ? this.#framing.push(bytes, this.#query) : 0
    if (this.#framing.broken) this.shut()
    if (this.#shut) return bytes.length
    this.#full = taken < bytes.length
    return taken
  }

  /** May it ask one more? */
  get #asks(): boolean {
    return !this.#shut && this.waiting < MAX_WAITING
  }

  readonly #query = (m: Uint8Array): boolean => {
    this.#events.query(m)
    return this.#asks
  }

  end(): void {
    this.#ended = true
    this.#closeWhenDone()
  }

  answer(out: Uint8Array, len: number): void {
    if (this.#shut) return
    if (!this.#send(framed(out, len))) return this.shut()
    if (this.#full && this.waiting <= FEW_WAITING) {
      this.#full = false
      this.#more()
    }
    this.#closeWhenDone()
  }

  tick(now: number): void {
    if (this.waiting === 0 && now - this.#lastQuery >= IDLE) this.shut()
  }

  shut(): void {
    if (this.#shut) return
    this.#shut = true
    this.#events.gone()
    this.#close()
  }

  #closeWhenDone(): void {
    if (this.#ended && this.waiting === 0) this.shut()
  }
}
