/**
 * An address of either family, as four signed 32-bit words in network order; IPv4 in its mapped form ::ffff:a.b.c.d (RFC 4291 §2.5.5.2).
 *
 * The same words that the flow table keeps. Objects of this class are made at composition or by what is rare; the hot path fills one again
 * and again (`set`, `read`), so whoever keeps what it was given copies it. Text (RFC 4291 §2.2 in, RFC 5952 §4 out) exists at the edges only.
 */
import { be32, put32 } from './bytes.ts'
import * as ipv4 from './ipv4.ts'

/** Third word of a mapped IPv4 address. */
const MAPPED = 0x0000ffff

export class Address {
  w0 = 0
  w1 = 0
  w2 = 0
  w3 = 0

  set(w0: number, w1: number, w2: number, w3: number): this {
    this.w0 = w0
    this.w1 = w1
    this.w2 = w2
    this.w3 = w3
    return this
  }

  set4(a: number): this {
    return this.set(0, 0, MAPPED, a)
  }

  /** From 16 bytes. */
  read(b: Uint8Array, o: number): this {
    return this.set(be32(b, o), be32(b, o + 4), be32(b, o + 8), be32(b, o + 12))
  }

  /** As 16 bytes. */
  write(b: Uint8Array, o: number): void {
    put32(b, o, this.w0)
    put32(b, o + 4, this.w1)
    put32(b, o + 8, this.w2)
    put32(b, o + 12, this.w3)
  }

  equals(o: Address): boolean {
    return this.w3 === o.w3 && this.w2 === o.w2 && this.w1 === o.w1 && this.w0 === o.w0
  }

  copy(): Address {
    return new Address().set(this.w0, this.w1, this.w2, this.w3)
  }

  /** 4 or 6. */
  get family(): 4 | 6 {
    return this.w2 === MAPPED && this.w1 === 0 && this.w0 === 0 ? 4 : 6
  }

  toString(): string {
    return wordsText(this.w0, this.w1, this.w2, this.w3)
  }
}

/** "10.0.0.1" or "fd00::1"; throws RangeError on anything else. */
export function parseIp(text: string): Address {
  return text.includes(':') ? parseIpv6(text) : new Address().set4(ipv4.parseAddress(text))
}

/** The text of an address of either family, given as words. */
export const wordsText = (w0: number, w1: number, w2: number, w3: number): string =>
  w2 === MAPPED && w1 === 0 && w0 === 0 ? ipv4.addressText(w3) : ipv6Text(w0, w1, w2, w3)

/** With a port: "10.0.0.1:80", "[fd00::1]:80". */
export function endpointText(w0: number, w1: number, w2: number, w3: number, l4port: number): string {
  const text = wordsText(w0, w1, w2, w3)
  return text.includes(':') ? `[${text}]:${l4port}` : `${text}:${l4port}`
}

/** RFC 5952: lower case, no leading zeros, the longest (first) run of two zero groups or more as "::". */
function ipv6Text(...words: readonly number[]): string {
  const groups = words.flatMap((w) => [w >>> 16, w & 0xffff])
  let start = -1
  let length = 1
  for (let i = 0; i < 8; i++) {
    let n = 0
    while (i + n < 8 && groups[i + n] === 0) n++
    if (n > length) {
      start = i
      length = n
    }
    i += n
  }
  const hex = (from: number, to: number): string =>
    groups
      .slice(from, to)
      .map((g) => g.toString(16))
      .join(':')
  return start < 0 ? hex(0, 8) : `${hex(0, start)}::${hex(start + length, 8)}`
}

function parseIpv6(text: string): Address {
  const bad = (): never => {
    throw new RangeError(`not an IPv6 address: ${text}`)
  }
  let source = text
  const dotted = /^(.*:)([^:]+\.[^:]+)$/.exec(text)
  if (dotted !== null) {
    const a = /^[\d.]+$/.test(dotted[2] as string) ? ipv4.parseAddress(dotted[2] as string) : bad()
    source = `${dotted[1]}${(a >>> 16).toString(16)}:${(a & 0xffff).toString(16)}`
  }
  const halves = source.split('::')
  if (halves.length > 2) bad()
  const parts = halves.map((h) => (h === '' ? [] : h.split(':')))
  const [head, tail] = [parts[0] as string[], parts[1] ?? []]
  const missing = 8 - head.length - tail.length
  if (halves.length === 1 ? missing !== 0 : missing < 1) bad()
  const groups = [...head, ...new Array<string>(missing).fill('0'), ...tail].map((g) =>
    /^[0-9a-f]{1,4}$/i.test(g) ? Number.parseInt(g, 16) : bad(),
  )
  const word = (i: number): number => ((groups[i] as number) << 16) | (groups[i + 1] as number)
  return new Address().set(word(0), word(2), word(4), word(6))
}

/** "fd00:1::/64" → the first two words of its prefix; only /64 is a network here (RFC 7421). Throws RangeError otherwise. */
export function parsePrefix64(text: string): { readonly p0: number; readonly p1: number } {
  const [address, length] = text.split('/')
  if (address === undefined || length !== '64') throw new RangeError(`not an IPv6 /64: ${text}`)
  const { w0, w1 } = parseIpv6(address)
  return { p0: w0, p1: w1 }
}
