/**
 * The upstream name servers: who is asked, in which order, and who answered last.
 *
 * Owns: the list as the control plane gives it (the host's own resolvers) and what experience says about it.
 *  - A question goes to the server that answered last, at first to the first of the list: the order means something (a
 *    company's resolver stands before a public one), so servers are not raced. When it fails, the others follow in order.
 *  - When the one in use is not the first of the list, every PROBE the first one is asked as well, and is taken back when
 *    it answers.
 * So a server that is gone costs one try, and one that comes back is used again, without a state that forbids asking.
 */
import { type Address, parseIp } from '../wire/address.ts'

const PROBE = 10_000
/** Of a longer list the first are used, as resolv.conf(5) does with its three. */
const MAX_SERVERS = 3
const DNS_PORT = 53
/** fe80::/10. */
const LINK_LOCAL = 0xfe800000 | 0
const LINK_LOCAL_MASK = 0xffc00000 | 0

export class Server {
  readonly text: string
  /** A link-local one has its link's index in its second word, as host sockets take it (host.ts). */
  readonly address: Address
  readonly l4port: number
  /** Counters for people. */
  answers = 0
  failures = 0

  constructor(text: string, address: Address, l4port: number) {
    this.text = text
    this.address = address
    this.l4port = l4port
  }
}

/** "10.0.0.1", "fd00::1", "fe80::1%3" (the link's index), each with "#PORT" if it is not 53; undefined when it is none. */
export function parseServer(text: string): Server | undefined {
  const [name, port, ...rest] = text.trim().split('#')
  const l4port = port === undefined ? DNS_PORT : Number(port)
  if (rest.length > 0 || !Number.isInteger(l4port) || l4port < 1 || l4port > 65535) return undefined
  const address = parseScoped(name)
  return address === undefined ? undefined : new Server(text.trim(), address, l4port)
}

function parseScoped(text: string): Address | undefined {
  const [bare, zone] = text.split('%')
  let a: Address
  try {
    a = parseIp(bare)
  } catch {
    return undefined
  }
  const linkLocal = a.family === 6 && (a.w0 & LINK_LOCAL_MASK) === LINK_LOCAL
  if (linkLocal !== (zone !== undefined)) return undefined
  if (zone === undefined) return a
  return /^[1-9]\d{0,8}$/.test(zone) ? a.set(a.w0, Number(zone), a.w2, a.w3) : undefined
}

export class Servers {
  #list: readonly Server[] = []
  #good: Server | undefined
  #probed = -Infinity

  get list(): readonly Server[] {
    return this.#list
  }

  /** Returns whether the list is another one than before. What was learnt about a server that stays is kept. */
  set(list: readonly Server[]): boolean {
    const next = list.slice(0, MAX_SERVERS)
    const same = next.length === this.#list.length && next.every((s, i) => s.text === this.#list[i].text)
    if (same) return false
    const old = this.#list
    this.#list = next.map((s) => old.find((o) => o.text === s.text) ?? s)
    if (this.#good !== undefined && !this.#list.includes(this.#good)) this.#good = undefined
    return true
  }

  /** Everybody, in the order in which to ask. */
  order(): Server[] {
    const good = this.#good
    return good === undefined ? [...this.#list] : [good, ...this.#list.filter((s) => s !== good)]
  }

  /** Whom to ask beside the one in use, to learn whether it is back. */
  probe(now: number): Server | undefined {
    if (this.#good === undefined || this.#good === this.#list[0] || now - this.#probed < PROBE) return undefined
    this.#probed = now
    return this.#list[0]
  }

  answered(s: Server): void {
    s.answers++
    if (!this.#list.includes(s)) return
    if (this.#good === undefined || s === this.#list[0]) this.#good = s
  }

  failed(s: Server): void {
    s.failures++
    if (this.#good === s) this.#good = undefined
  }
}
