/**
 * What the host's socket of a datagram flow was told of the way (wire/hops.ts), so that it is told again only when the guest's packets ask for something
 * else: the TTL to leave with, and that nobody may fragment.
 */
import type { Frame } from '../frame.ts'
import type { Sock } from '../host.ts'
import { arrivedTtl, DEFAULT_TTL, keptWhole, leavingTtl } from '../wire/hops.ts'
import type { RelayContext } from './context.ts'

export class Hops {
  readonly #b: Uint8Array
  readonly #host: RelayContext['host']
  readonly #ttl: Uint8Array
  readonly #dontFragment: Uint8Array

  constructor({ arena, host, flows }: RelayContext) {
    this.#b = arena.bytes
    this.#host = host
    this.#ttl = new Uint8Array(flows.capacity)
    this.#dontFragment = new Uint8Array(flows.capacity)
  }

  /** Flow `i` begins: a fresh socket's ways. */
  begin(i: number): void {
    this.#ttl[i] = DEFAULT_TTL
    this.#dontFragment[i] = 0
  }

  /** Before the packet in `f` leaves by `sock`. */
  follow(i: number, sock: Sock, f: Frame): void {
    const ttl = leavingTtl(arrivedTtl(this.#b, f))
    if (this.#ttl[i] !== ttl) {
      this.#ttl[i] = ttl
      this.#host.setTtl(sock, ttl)
    }
    const df = keptWhole(this.#b, f)
    if (this.#dontFragment[i] !== df) {
      this.#dontFragment[i] = df
      this.#host.setDontFragment(sock, df)
    }
  }
}
