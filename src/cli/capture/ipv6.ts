/**
 * The IPv6 part of a frame's line: addresses, the chain of extension headers (RFC 8200 §4), what ICMPv6 (RFC 4443, 4861) says.
 *
 * Reads what a guest wrote: every length is checked, and the chain is followed for a few headers only. Pure.
 */
const HEADER = 40
const HOP_BY_HOP = 0
const ROUTING = 43
const FRAGMENT = 44
const DESTINATION = 60
/** More than anybody sends. */
const CHAIN_MAX = 6

const UNREACHABLE: Readonly<Record<number, string>> = {
  0: 'no route',
  1: 'not allowed',
  2: 'beyond scope',
  3: 'address',
  4: 'port',
  5: 'source not allowed',
  6: 'route refused',
}
const TOLD: Readonly<Record<number, string>> = {
  3: 'time exceeded',
  4: 'parameter problem',
  130: 'group query',
  131: 'group report',
  132: 'group left',
  143: 'group report',
}
const DHCP6 = [
  '',
  'SOLICIT',
  'ADVERTISE',
  'REQUEST',
  'CONFIRM',
  'RENEW',
  'REBIND',
  'REPLY',
  'RELEASE',
  'DECLINE',
  'RECONFIGURE',
  'INFORMATION-REQUEST',
]

/** RFC 5952 §4. */
export function address6(b: Buffer, at: number): string {
  const words = Array.from({ length: 8 }, (_, i) => b.readUInt16BE(at + 2 * i).toString(16))
  const text = words.join(':')
  const runs = text.match(/\b0(?::0)+\b/g) ?? []
  const longest = runs.reduce((a, r) => (r.length > a.length ? r : a), '')
  if (longest === '') return text
  const i = text.search(new RegExp(`(?<![0-9a-f])${longest}(?![0-9a-f])`))
  return `${text.slice(0, i).replace(/:$/, '')}::${text.slice(i + longest.length).replace(/^:/, '')}`
}

export interface Upper {
  readonly source: string
  readonly target: string
  readonly protocol: number
  /** What the packet carries, as far as it was captured. */
  readonly payload: Buffer
  /** Its length on the wire. */
  readonly length: number
}

/** What lies behind the headers; a text where that cannot be known. */
export function upper(b: Buffer): Upper | string {
  if (b.length < HEADER) return 'ipv6, short'
  const [source, target] = [address6(b, 8), address6(b, 24)]
  const total = HEADER + b.readUInt16BE(4)
  let protocol = b[6] as number
  let at = HEADER
  for (let n = 0; n < CHAIN_MAX; n++) {
    const length =
      protocol === FRAGMENT
        ? 8
        : protocol === HOP_BY_HOP || protocol === ROUTING || protocol === DESTINATION
          ? ((b[at + 1] ?? 0) + 1) * 8
          : 0
    if (length === 0) return { source, target, protocol, payload: b.subarray(at), length: total - at }
    if (at + length > b.length) return `${source} > ${target} ipv6, short`
    if (protocol === FRAGMENT) {
      const offset = b.readUInt16BE(at + 2) & 0xfff8
      if (offset > 0) return `${source} > ${target} fragment at ${offset}`
    }
    protocol = b[at] as number
    at += length
  }
  return `${source} > ${target} ipv6 with more than ${CHAIN_MAX} extension headers`
}

export function icmp6(b: Buffer): string {
  const [type = 0, code = 0] = [b[0], b[1]]
  if (b.length < 8) return 'icmpv6, short'
  const target = b.length >= 24 ? address6(b, 8) : '?'
  switch (type) {
    case 128:
      return `ping ${b.readUInt16BE(6)}`
    case 129:
      return `ping reply ${b.readUInt16BE(6)}`
    case 1:
      return `icmpv6 unreachable: ${UNREACHABLE[code] ?? `code ${code}`}`
    case 2:
      return `icmpv6 too big: mtu ${b.readUInt32BE(4)}`
    case 133:
      return 'router solicitation'
    case 134:
      return `router advertisement${prefixOf(b)}`
    case 135:
      return `who has ${target}`
    case 136:
      return `${target} is here`
    default:
      return `icmpv6 ${TOLD[type] ?? `type ${type} code ${code}`}`
  }
}

/** The first prefix of an advertisement (RFC 4861 §4.6.2). */
function prefixOf(b: Buffer): string {
  for (let at = 16; at + 32 <= b.length; at += (b[at + 1] ?? 0) * 8) {
    if (b[at] === 3 && b[at + 1] === 4) return `: ${address6(b, at + 16)}/${b[at + 2]}`
    if (b[at + 1] === 0) break
  }
  return ''
}

export const dhcp6 = (b: Buffer): string => `dhcpv6 ${DHCP6[b[0] ?? 0] || 'unknown'}`
