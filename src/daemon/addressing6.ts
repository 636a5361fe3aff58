/**
 * The IPv6 side of addressing.ts: which /64 a network gets, which address a VM gets, and why not another.
 *
 * Pure: numbers and text in, numbers and text out. Addresses are bigints inside this file and text outside, in the one
 * spelling of RFC 5952.
 * Read: RFC 4193 §3 (each installation has a random /48 of its own), RFC 4291 §2.5 and §2.6.1 (an interface id of zero is
 * anycast of the routers), RFC 2526 (so are the highest 128), RFC 4862 §5.5.3 (what SLAAC makes of a MAC).
 * A prefix is cut up like a /24, with the same digits, so that a person who knows one address of a VM knows the other:
 *   ::1 gateway   ::2 services   ::254 the host   ::10 the VM that has .10
 * "Digits": the decimal digits of IPv4's last octet, read as hexadecimal.
 */
import { isIPv6 } from 'node:net'
import { NoidError } from '../errors.ts'

export interface Prefix6 {
  readonly base: bigint
  readonly prefix: number
}

export interface TakenPrefix6 {
  readonly subnet: Prefix6
  /** Who has it, for a person. */
  readonly by: string
}

export interface Holder6 {
  readonly address: bigint
  readonly vm: string
}

const ALL = (1n << 128n) - 1n
const ID = (1n << 64n) - 1n
const maskOf = (prefix: number): bigint => ALL ^ (ALL >> BigInt(prefix))
const GATEWAY = 0x1n
const SERVICES = 0x2n
const HOST = 0x254n
/** RFC 2526 §2, for an EUI-64 prefix and for another. */
const ANYCAST: readonly bigint[] = [0xfdff_ffff_ffff_ff80n, 0xffff_ffff_ffff_ff80n]

/** Text without a zone or a prefix; undefined when it is no IPv6 address. */
export function parseIpv6(text: string): bigint | undefined {
  if (!isIPv6(text) || text.includes('%')) return undefined
  // A dotted tail is two groups.
  const plain = text.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, ...d: string[]) => {
    const [a, b, c, e] = d.map(Number) as [number, number, number, number]
    return `${(a * 256 + b).toString(16)}:${(c * 256 + e).toString(16)}`
  })
  const [head, tail] = plain.split('::').map((half) => (half === '' ? [] : half.split(':'))) as [string[], string[]?]
  const groups = [...head, ...Array<string>(8 - head.length - (tail?.length ?? 0)).fill('0'), ...(tail ?? [])]
  return groups.reduce((n, g) => (n << 16n) | BigInt(`0x${g}`), 0n)
}

/** RFC 5952 §4: lower case, no leading zeros, the first longest run of two or more zero groups as "::". */
export function formatIpv6(n: bigint): string {
  const groups = Array.from({ length: 8 }, (_, i) => Number((n >> BigInt(112 - 16 * i)) & 0xffffn))
  let [at, length] = [0, 1]
  for (let i = 0; i < 8; i++) {
    let j = i
    while (j < 8 && groups[j] === 0) j++
    if (j - i > length) [at, length] = [i, j - i]
  }
  const text = (part: readonly number[]): string => part.map((g) => g.toString(16)).join(':')
  return length < 2 ? text(groups) : `${text(groups.slice(0, at))}::${text(groups.slice(at + length))}`
}

export const formatPrefix6 = (p: Prefix6): string => `${formatIpv6(p.base)}/${p.prefix}`

/** Any prefix; host bits are cut off. */
export function parsePrefix6(text: string): Prefix6 | undefined {
  const [address, bits, more] = text.split('/')
  const n = parseIpv6(address ?? '')
  if (n === undefined || more !== undefined || !/^\d{1,3}$/.test(bits ?? '') || Number(bits) > 128) return undefined
  return { base: n & maskOf(Number(bits)), prefix: Number(bits) }
}

const prefix6 = (text: string): Prefix6 => parsePrefix6(text) as Prefix6
const covers6 = (p: Prefix6, a: bigint): boolean => (a & maskOf(p.prefix)) === p.base

/** Unique local (RFC 4193) and global unicast (RFC 4291 §2.5.4): not multicast, link-local, loopback, mapped, site-local. */
const UNICAST = ['fc00::/7', '2000::/3'].map(prefix6)

/** A network's prefix as a person gives it: a unicast /64 without host bits. */
export function parseSubnet6(text: string): Prefix6 {
  const p = parsePrefix6(text)
  const host = parseIpv6(text.split('/')[0] ?? '')
  if (p === undefined || p.prefix !== 64 || p.base !== host || !UNICAST.some((u) => covers6(u, p.base)))
    throw new NoidError('SUBNET_INVALID', { subnet: text, family: 6 })
  return p
}

export const overlaps6 = (a: Prefix6, b: Prefix6): boolean => covers6(a, b.base) || covers6(b, a.base)

/** Who has some of it; a default route has nothing. */
const clashOf = (s: Prefix6, taken: readonly TakenPrefix6[]): TakenPrefix6 | undefined =>
  taken.find((t) => t.subnet.prefix > 0 && overlaps6(t.subnet, s))

/** Throws SUBNET_TAKEN when the prefix overlaps something. */
export function checkSubnet6(s: Prefix6, taken: readonly TakenPrefix6[]): void {
  const hit = clashOf(s, taken)
  if (hit !== undefined) throw new NoidError('SUBNET_TAKEN', { subnet: formatPrefix6(s), by: hit.by, family: 6 })
}

/** The /48 of an installation: fd, and 40 random bits (RFC 4193 §3.2.2). */
export function ulaOf(random: Uint8Array): Prefix6 {
  const global = random.subarray(0, 5).reduce((n, b) => (n << 8n) | BigInt(b), 0n)
  return { base: (0xfdn << 120n) | (global << 80n), prefix: 48 }
}

/** The next free /64 of the installation's /48, from the one with subnet id 1. */
export function chooseSubnet6(ula: Prefix6, taken: readonly TakenPrefix6[]): Prefix6 {
  const whole = taken.some((t) => t.subnet.prefix > 0 && t.subnet.prefix <= ula.prefix && overlaps6(t.subnet, ula))
  for (let id = 1n; !whole && id <= 0xffffn; id++) {
    const s = { base: ula.base | (id << 64n), prefix: 64 }
    if (clashOf(s, taken) === undefined) return s
  }
  throw new NoidError('SUBNET_TAKEN', {
    subnet: `${formatPrefix6(ula)}, this installation's own,`,
    by: clashOf(ula, taken)?.by ?? 'its networks',
    family: 6,
  })
}

export interface Plan6 {
  readonly subnet: Prefix6
  readonly gateway: bigint
  readonly services: bigint
  readonly host: bigint
}

export const plan6Of = (subnet: Prefix6): Plan6 => ({
  subnet,
  gateway: subnet.base | GATEWAY,
  services: subnet.base | SERVICES,
  host: subnet.base | HOST,
})

/** What a fixed address of the prefix is for; undefined when a VM may have it. */
export function role6Of(a: bigint, p: Plan6): string | undefined {
  if (a === p.gateway) return 'gateway'
  if (a === p.services) return 'name service'
  if (a === p.host) return 'host'
  const id = a & ID
  if (id === 0n || ANYCAST.some((first) => id >= first && id < first + 128n)) return 'routers (anycast)'
  return undefined
}

/** The address for `--ip`, or the reason why the VM cannot have it. */
export function claimAddress6(text: string, network: string, p: Plan6, holders: readonly Holder6[]): bigint {
  const a = parseIpv6(text)
  if (a === undefined) throw new NoidError('ADDRESS_INVALID', { address: text })
  if (!covers6(p.subnet, a))
    throw new NoidError('ADDRESS_OUTSIDE', { address: text, network, subnet: formatPrefix6(p.subnet) })
  const role = role6Of(a, p)
  if (role !== undefined) throw new NoidError('ADDRESS_RESERVED', { address: text, network, role })
  const by = holders.find((h) => h.address === a)
  if (by !== undefined) throw new NoidError('ADDRESS_TAKEN', { address: text, by: by.vm })
  return a
}

const digits = (octet: number): bigint => BigInt(`0x${octet}`)

/** The address with the digits of IPv4's last octet, or else the next free one: ::100 to ::250, then ::1000 and on. */
export function nextAddress6(p: Plan6, holders: readonly Holder6[], octet?: number): bigint {
  const taken = new Set(holders.map((h) => h.address))
  const free = (id: bigint): boolean => !taken.has(p.subnet.base | id) && role6Of(p.subnet.base | id, p) === undefined
  if (octet !== undefined && free(digits(octet))) return p.subnet.base | digits(octet)
  for (let i = 100; i <= 250; i++) if (free(digits(i))) return p.subnet.base | digits(i)
  let id = 0x1000n
  while (!free(id)) id++
  return p.subnet.base | id
}

/** What SLAAC makes of a MAC in the prefix (modified EUI-64, RFC 4291 appendix A). */
export function slaacOf(p: Plan6, mac: string): bigint {
  const b = mac.split(':').map((x) => BigInt(`0x${x}`))
  const id = [b[0]! ^ 2n, b[1]!, b[2]!, 0xffn, 0xfen, b[3]!, b[4]!, b[5]!].reduce((n, x) => (n << 8n) | x, 0n)
  return p.subnet.base | id
}

const RTF_REJECT = 0x200

/**
 * The host's IPv6 routes, from the text of /proc/net/ipv6_route (destination, its prefix, source, its prefix, next hop, metric,
 * references, uses, flags, link; numbers in hex). A route that refuses (fd00::/8 on a border router, RFC 4193 §4.3) takes nothing.
 */
export function parseRoutes6(text: string): TakenPrefix6[] {
  const routes: TakenPrefix6[] = []
  for (const line of text.split('\n')) {
    const f = line.trim().split(/\s+/)
    if (f.length < 10 || (Number.parseInt(f[8] as string, 16) & RTF_REJECT) !== 0) continue
    const prefix = Number.parseInt(f[1] as string, 16)
    const subnet = { base: BigInt(`0x${f[0]}`) & maskOf(prefix), prefix }
    routes.push({ subnet, by: `the host route ${formatPrefix6(subnet)} (${f[9]})` })
  }
  return routes
}
