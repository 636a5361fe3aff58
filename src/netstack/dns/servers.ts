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
import { put16 } from '../wire/bytes.ts'
import { parseAddress } from '../wire/ipv4.ts'

const PROBE = 10_000
/** Of a longer list the first are used, as resolv.conf(5) does with its three. */
const MAX_SERVERS = 3
const DNS_PORT = 53

export class Server {
  readonly text: string
  /** 16 bytes, IPv4 as ::ffff:a.b.c.d. */
  readonly address: Uint8Array
  readonly l4port: number
  /** Counters for people. */
  answers = 0
  failures = 0

  constructor(text: string, address: Uint8Array, l4port: number) {
    this.text = text
    this.address = address
    this.l4port = l4port
  }
}

/** "10.0.0.1", "fd00::1", each with "#PORT" if it is not 53; undefined when it is none (a zone id is not served). */
export function parseServer(text: string): Server | undefined {
  const [address, port, ...rest] = text.trim().split('#')
  const l4port = port === undefined ? DNS_PORT : Number(port)
  if (rest.length > 0 || !Number.isInteger(l4port) || l4port < 1 || l4port > 65535) return undefined
  const bytes = address.includes(':') ? parse6(address) : parse4(address)
  return bytes === undefined ? undefined : new Server(text.trim(), bytes, l4port)
}

function parse4(text: string): Uint8Array | undefined {
  if (!/^\d{1,3}(\.\d{1,3}){3}$/.test(text) || !text.split('.').every((n) => Number(n) <= 255)) return undefined
  const b = new Uint8Array(16)
  b[10] = b[11] = 0xff
  const a = parseAddress(text)
  for (let i = 0; i < 4; i++) b[12 + i] = a >>> (24 - 8 * i)
  return b
}

function parse6(text: string): Uint8Array | undefined {
  const halves = text.split('::')
  if (halves.length > 2) return undefined
  const groups = halves.map((h) => (h === '' ? [] : h.split(':')))
  const all = groups.flat()
  if (!all.every((g) => /^[0-9a-f]{1,4}$/i.test(g))) return undefined
  if (halves.length === 1 ? all.length !== 8 : all.length > 7) return undefined
  const b = new Uint8Array(16)
  for (let i = 0; i < groups[0].length; i++) put16(b, i * 2, Number.parseInt(groups[0][i], 16))
  const tail = groups[1] ?? []
  for (let i = 0; i < tail.length; i++) put16(b, (8 - tail.length + i) * 2, Number.parseInt(tail[i], 16))
  return b
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
