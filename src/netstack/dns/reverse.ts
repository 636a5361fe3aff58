/**
 * Names of addresses as the reverse trees have them (RFC 1035 §3.5, RFC 3596 §2.5), read from their text.
 *
 * Owns: what part of such a tree is a network's own, and where in it a name lies. Never does: records.
 */
import { Address, parseIp } from '../wire/address.ts'
import { addressText, parseSubnet } from '../wire/ipv4.ts'

/** Where a name lies in a network's part of a reverse tree. */
export type Place =
  /** Not the network's. */
  | { readonly kind: 'elsewhere' }
  /** The top of its part. */
  | { readonly kind: 'top'; readonly apex: string }
  /** Above addresses: it exists, and has no records (RFC 8020). */
  | { readonly kind: 'between'; readonly apex: string }
  | { readonly kind: 'address'; readonly apex: string; readonly address: Address }
  | { readonly kind: 'nothing'; readonly apex: string }

export interface ReverseTree {
  /** @param name in lower case, without a final dot */
  place(name: string): Place
}

const ELSEWHERE: Place = { kind: 'elsewhere' }

/** The part of in-addr.arpa for an IPv4 subnet: its top is the subnet in whole octets; of another subnet only its addresses are ours. */
export class Reverse4 implements ReverseTree {
  readonly #subnet: ReturnType<typeof parseSubnet>
  readonly #apex: string
  readonly #whole: boolean

  constructor(cidr: string) {
    this.#subnet = parseSubnet(cidr)
    const { base, bits } = this.#subnet
    const octets = addressText(base)
      .split('.')
      .slice(0, bits >> 3)
    this.#apex = [...octets.reverse(), 'in-addr', 'arpa'].join('.')
    this.#whole = (bits & 7) === 0
  }

  place(name: string): Place {
    const labels = name.split('.').slice(0, -2).reverse()
    if (!name.endsWith('.in-addr.arpa') || labels.length === 0) return ELSEWHERE
    const apex = this.#apex
    const below = this.#whole && name.endsWith(`.${apex}`)
    // By its first four octets.
    const octets = labels.slice(0, 4).map((l) => (/^(0|[1-9]\d{0,2})$/.test(l) ? Number(l) : 256))
    if (octets.some((n) => n > 255)) return below ? { kind: 'nothing', apex } : ELSEWHERE
    if (octets.length < 4) {
      if (this.#whole && name === apex) return { kind: 'top', apex }
      return below ? { kind: 'between', apex } : ELSEWHERE
    }
    const address = (octets[0] << 24) | (octets[1] << 16) | (octets[2] << 8) | octets[3]
    if ((address & this.#subnet.mask) !== this.#subnet.base) return ELSEWHERE
    return labels.length === 4
      ? { kind: 'address', apex, address: new Address().set4(address) }
      : { kind: 'nothing', apex }
  }
}

/** Nibbles of an address, of the network's prefix. */
const NIBBLES = 32
const PREFIX_NIBBLES = 16
/** fe80::/10: addresses of every link and of none, so that nobody elsewhere knows them (RFC 6303 §4.5). */
const LINK_LOCAL = /^fe[89ab]/

/** The part of ip6.arpa for a /64, and what no server elsewhere could answer: link-local addresses. */
export class Reverse6 implements ReverseTree {
  readonly #prefix: string
  readonly #apex: string

  /** @param cidr "fd12:3456:789a:1::/64" */
  constructor(cidr: string) {
    const { w0, w1 } = parseIp(cidr.split('/')[0])
    this.#prefix = hex(w0) + hex(w1)
    this.#apex = treeName(this.#prefix)
  }

  place(name: string): Place {
    if (!name.endsWith('.ip6.arpa')) return ELSEWHERE
    const labels = name.split('.').slice(0, -2).reverse()
    // As many as are nibbles, in the address's order.
    let nibbles = ''
    while (nibbles.length < labels.length && /^[0-9a-f]$/.test(labels[nibbles.length]))
      nibbles += labels[nibbles.length]
    if (LINK_LOCAL.test(nibbles)) return { kind: 'nothing', apex: treeName(nibbles.slice(0, 3)) }
    if (!nibbles.startsWith(this.#prefix)) return ELSEWHERE
    const apex = this.#apex
    if (nibbles.length < labels.length || nibbles.length > NIBBLES) return { kind: 'nothing', apex }
    if (nibbles.length === PREFIX_NIBBLES) return { kind: 'top', apex }
    if (nibbles.length < NIBBLES) return { kind: 'between', apex }
    const word = (i: number): number => Number.parseInt(nibbles.slice(8 * i, 8 * i + 8), 16) | 0
    return { kind: 'address', apex, address: new Address().set(word(0), word(1), word(2), word(3)) }
  }
}

const hex = (word: number): string => (word >>> 0).toString(16).padStart(8, '0')
const treeName = (nibbles: string): string => `${[...nibbles].reverse().join('.')}.ip6.arpa`
