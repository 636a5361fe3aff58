/**
 * Which subnet a network gets, which address and MAC a VM gets, and why not another.
 *
 * Pure: numbers and text in, numbers and text out; what is taken is an argument. Addresses are unsigned 32-bit numbers
 * inside this file and text outside.
 * A subnet is cut up alike in every size from /16 to /28, so that .1 .2 .100-.250 .254 of a /24 are one case of a rule:
 *   first host          the gateway
 *   second host         services (DHCP server id, DNS)
 *   last host           the host
 *   the rest            VMs; `--ip` may name any of them, the pool hands out the middle (RFC 2131 servers do the same,
 *                       so that fixed addresses and handed-out ones rarely meet)
 * Invariant: planOf(s).pool lies inside usable(s), and none of the three fixed roles lies inside usable(s).
 */
import { createHash } from 'node:crypto'
import { NoidError } from '../errors.ts'

export interface Subnet {
  readonly base: number
  readonly prefix: number
}

export interface Plan {
  readonly subnet: Subnet
  readonly gateway: number
  readonly services: number
  readonly host: number
  /** What `--ip` may name. */
  readonly usable: readonly [first: number, last: number]
  /** What is handed out. */
  readonly pool: readonly [first: number, last: number]
}

export const DEFAULT_SUBNET: Subnet = { base: 0xc0a86400, prefix: 24 } // 192.168.100.0/24

const sizeOf = (s: Subnet): number => 2 ** (32 - s.prefix)
const lastOf = (s: Subnet): number => s.base + sizeOf(s) - 1

/** Dotted decimal only: "010.1.1.1" and "10.1" mean different things to different programs. */
export function parseIpv4(text: string): number | undefined {
  const m = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text)
  if (m === null) return undefined
  let n = 0
  for (const part of m.slice(1)) {
    if ((part.length > 1 && part[0] === '0') || Number(part) > 255) return undefined
    n = n * 256 + Number(part)
  }
  return n
}

export const formatIpv4 = (n: number): string => [n >>> 24, (n >>> 16) & 255, (n >>> 8) & 255, n & 255].join('.')

export const formatSubnet = (s: Subnet): string => `${formatIpv4(s.base)}/${s.prefix}`

/** Any CIDR, also one with host bits set (they are cut off); undefined when it is none. */
export function parseCidr(text: string): Subnet | undefined {
  const [address, bits, more] = text.split('/')
  const n = parseIpv4(address ?? '')
  if (n === undefined || more !== undefined || !/^\d{1,2}$/.test(bits ?? '') || Number(bits) > 32) return undefined
  const prefix = Number(bits)
  const size = 2 ** (32 - prefix)
  return { base: n - (n % size), prefix }
}

const PRIVATE = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10'].map((t) => parseCidr(t) as Subnet)

/** A subnet as a person gives it: private (RFC 1918, RFC 6598), /16 to /28, no host bits. */
export function parseSubnet(text: string): Subnet {
  const s = parseCidr(text)
  if (
    s === undefined ||
    formatSubnet(s) !== text ||
    s.prefix < 16 ||
    s.prefix > 28 ||
    !PRIVATE.some((p) => covers(p, s))
  )
    throw new NoidError('SUBNET_INVALID', { subnet: text })
  return s
}

const covers = (outer: Subnet, inner: Subnet): boolean => outer.base <= inner.base && lastOf(inner) <= lastOf(outer)

export const overlaps = (a: Subnet, b: Subnet): boolean => a.base <= lastOf(b) && b.base <= lastOf(a)

export function planOf(subnet: Subnet): Plan {
  const size = sizeOf(subnet)
  const last = lastOf(subnet)
  const scale = Math.min(size, 256) / 256
  return {
    subnet,
    gateway: subnet.base + 1,
    services: subnet.base + 2,
    host: last - 1,
    usable: [subnet.base + 3, last - 2],
    pool: [subnet.base + Math.max(3, Math.floor(100 * scale)), last - Math.max(2, Math.ceil(5 * scale))],
  }
}

export interface TakenSubnet {
  readonly subnet: Subnet
  /** Who has it, for a person: `the network "x"`, `the host route 10.0.0.0/8 (tun0)`. */
  readonly by: string
}

/** Throws SUBNET_TAKEN when the subnet overlaps something; a default route overlaps nothing. */
export function checkSubnet(s: Subnet, taken: readonly TakenSubnet[]): void {
  const hit = taken.find((t) => t.subnet.prefix > 0 && overlaps(t.subnet, s))
  if (hit !== undefined) throw new NoidError('SUBNET_TAKEN', { subnet: formatSubnet(s), by: hit.by })
}

/** The /24s a network may be given, in order: 192.168.100-255, then 10.100.0-255 (a VPN may claim 192.168.0.0/16). */
function* candidates(): Generator<Subnet> {
  for (let i = 100; i < 256; i++) yield { base: 0xc0a80000 + i * 256, prefix: 24 }
  for (let i = 0; i < 256; i++) yield { base: 0x0a640000 + i * 256, prefix: 24 }
}

export interface ChosenSubnet {
  readonly subnet: Subnet
  /** Who had the one that was wanted, when the default network could not have its own. */
  readonly insteadOf: string | undefined
}

/**
 * The next free /24. The default network is offered 192.168.100.0/24 first and others 192.168.101.0/24, so that the
 * addresses people read about stay free for it.
 */
export function chooseSubnet(isDefault: boolean, taken: readonly TakenSubnet[]): ChosenSubnet {
  const clash = (s: Subnet) => taken.find((t) => t.subnet.prefix > 0 && overlaps(t.subnet, s))
  let insteadOf: string | undefined
  for (const s of candidates()) {
    const first = s.base === DEFAULT_SUBNET.base
    if (first && !isDefault) continue
    const hit = clash(s)
    if (hit === undefined) return { subnet: s, insteadOf }
    if (first) insteadOf = hit.by
  }
  throw new NoidError('SUBNET_TAKEN', {
    subnet: '192.168.100.0/24 and every other candidate',
    by: 'routes of this host',
  })
}

export interface Holder {
  readonly address: number
  readonly vm: string
}

/** The address for `--ip`, or the reason why the VM cannot have it. */
export function claimAddress(text: string, network: string, p: Plan, holders: readonly Holder[]): number {
  const a = parseIpv4(text)
  if (a === undefined) throw new NoidError('ADDRESS_INVALID', { address: text })
  const subnet = formatSubnet(p.subnet)
  if (a < p.subnet.base || a > lastOf(p.subnet))
    throw new NoidError('ADDRESS_OUTSIDE', { address: text, network, subnet })
  const role = roleOf(a, p)
  if (role !== undefined) throw new NoidError('ADDRESS_RESERVED', { address: text, network, role })
  const by = holders.find((h) => h.address === a)
  if (by !== undefined) throw new NoidError('ADDRESS_TAKEN', { address: text, by: by.vm })
  return a
}

/** What a fixed address of the subnet is for; undefined when a VM may have it. */
export function roleOf(a: number, p: Plan): string | undefined {
  if (a === p.gateway) return 'gateway'
  if (a === p.services) return 'name service'
  if (a === p.host) return 'host'
  if (a === p.subnet.base) return 'network itself'
  if (a === lastOf(p.subnet)) return 'broadcast'
  return undefined
}

/** The lowest free address of the pool. */
export function nextAddress(network: string, p: Plan, holders: readonly Holder[]): number {
  const taken = new Set(holders.map((h) => h.address))
  for (let a = p.pool[0]; a <= p.pool[1]; a++) if (!taken.has(a)) return a
  throw new NoidError('POOL_EXHAUSTED', { network, range: `${formatIpv4(p.pool[0])}-${formatIpv4(p.pool[1])}` })
}

/** A unicast MAC address in the kernel's spelling (lower case, colons). */
export function parseMac(text: string): string {
  const mac = text.toLowerCase().replaceAll('-', ':')
  const usable = /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/.test(mac) && (Number.parseInt(mac.slice(0, 2), 16) & 1) === 0
  if (!usable || mac === '00:00:00:00:00:00') throw new NoidError('MAC_INVALID', { mac: text })
  return mac
}

/** A VM's own MAC: locally administered (IEEE 802 §8.4), from its id, so that it is the same for ever. */
export function macOf(vmId: string, taken: (mac: string) => boolean): string {
  for (let salt = 0; ; salt++) {
    const h = createHash('sha256').update(`${vmId}/${salt}`).digest()
    const mac = ['02', ...[...h.subarray(0, 5)].map((b) => b.toString(16).padStart(2, '0'))].join(':')
    if (!taken(mac)) return mac
  }
}

/**
 * The host's IPv4 routes, from the text of /proc/net/route (fields: Iface Destination Gateway Flags RefCnt Use Metric
 * Mask ..., addresses as little-endian hex on little-endian machines).
 */
export function parseRoutes(text: string): TakenSubnet[] {
  const routes: TakenSubnet[] = []
  for (const line of text.split('\n').slice(1)) {
    const f = line.trim().split(/\s+/)
    if (f.length < 8) continue
    const base = swap(Number.parseInt(f[1] as string, 16))
    const mask = swap(Number.parseInt(f[7] as string, 16))
    const subnet = { base, prefix: mask === 0 ? 0 : 32 - Math.log2(2 ** 32 - mask) }
    if (Number.isInteger(subnet.prefix)) routes.push({ subnet, by: `the host route ${formatSubnet(subnet)} (${f[0]})` })
  }
  return routes
}

const swap = (n: number): number => (((n & 0xff) << 24) | ((n & 0xff00) << 8) | ((n >>> 8) & 0xff00) | (n >>> 24)) >>> 0
