/**
 * A guest's connection to the name service (RFC 7766): queries in, answers out in whatever order they come.
 *
 * Owns: framing, the idle time-out, and when to close: after the guest has finished and has all its answers.
 * Invariants: after `shut` nothing is sent and nothing is taken for a query; `gone` is called once.
 */
import type { StreamHandler } from '../gateway/service.ts'
import { MAX_QUERY } from './message.ts'
import { DnsStream, framed } from './stream.ts'

/** ms without a query, and none unanswered (RFC 7766 §6.2.3 asks for seconds). */
const IDLE = 15_000
/** Queries of one connection that may wait for an answer. */
const MAX_WAITING = 64

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
  readonly #events: GuestStreamEvents
  readonly #framing = new DnsStream(MAX_QUERY)
  #lastQuery: number
  #ended = false
  #shut = false

  constructor(
    port: number,
    now: number,
    send: (bytes: Uint8Array) => boolean,
    close: () => void,
    events: GuestStreamEvents,
  ) {
    this.port = port
    this.#lastQuery = now
    this.#send = send
    this.#close = close
    this.#events = events
  }

  push(bytes: Uint8Array): number {
    this.#lastQuery = this.#events.now()
    if (!this.#shut)
      this.#framing.push(bytes, (m) => {
        if (this.waiting >= MAX_WAITING) this.shut()
        if (!this.#shut) this.#events.query(m)
      })
    if (this.#framing.broken) this.shut()
    return bytes.length
  }

  end(): void {
    this.#ended = true
    this.#closeWhenDone()
  }

  answer(out: Uint8Array, len: number): void {
    if (this.#shut) return
    if (!this.#send(framed(out, len))) this.shut()
    else this.#closeWhenDone()
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
