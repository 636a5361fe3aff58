/**
 * Port mappings as people type them: [HOSTIP:]HOST:GUEST[/tcp|/udp].
 *
 * Decisions: HOST alone ("8080") means the same port inside; a range needs an equally long one on the other side; HOST 0
 * picks a free port, for each port of a guest range when there is one; "localhost" is 127.0.0.1; an IPv6 address is written in
 * brackets, [::1]:8080:80. Without HOSTIP a port is opened on all addresses of both families (`*`), on a network without IPv6 on
 * those of IPv4; [::] is IPv6 alone, 0.0.0.0 is IPv4 alone, and both may be published side by side.
 * Pure. Who holds a port is asked elsewhere; `clash` only compares two mappings.
 */
import type { Publish } from '../api/contract.ts'
import { NoidError } from '../errors.ts'
import { parseIpv4 } from './addressing.ts'
import { formatIpv6, parseIpv6 } from './addressing6.ts'

/** All addresses of both families. */
export const ANY_ADDRESS = '*'
export const ANY_IPV4 = '0.0.0.0'
const ANY_IPV6 = '::'
/** More than this many ports of one VM is taken for a mistake: each is a descriptor. */
export const MAX_PORTS = 1000

const bad = (spec: string, why: string): NoidError => new NoidError('PORT_SPEC_INVALID', { spec, why })

type Range = readonly [first: number, last: number]

function range(spec: string, text: string, side: 'host' | 'guest'): Range {
  const m = /^(\d{1,6})(?:-(\d{1,6}))?$/.exec(text)
  if (m === null) throw bad(spec, `"${text}" is neither a port nor a range of ports`)
  const first = Number(m[1])
  const last = m[2] === undefined ? first : Number(m[2])
  if (first > 65535 || last > 65535) throw bad(spec, 'a port is at most 65535')
  if (last < first) throw bad(spec, `the range ${text} runs backwards`)
  if (first === 0 && (side === 'guest' || last !== 0)) throw bad(spec, 'only the host port alone may be 0')
  return [first, last]
}

export interface PortSpec {
  readonly text: string
  readonly proto: 'tcp' | 'udp'
  /** As typed; undefined when it was left out. */
  readonly hostAddress: string | undefined
  readonly host: Range
  /** undefined when only one port was typed. */
  readonly guest: Range | undefined
}

export function parseSpec(text: string): PortSpec {
  const spec = text.trim()
  if (spec === '') throw bad(text, 'it is empty')
  const [body, proto = 'tcp', more] = spec.split('/')
  if (more !== undefined || (proto !== 'tcp' && proto !== 'udp')) throw bad(text, 'what follows the / is tcp or udp')
  const { address, ports: parts } = hostPart(text, body as string)
  const host = range(text, parts[0] as string, 'host')
  const guest = parts.length === 1 ? undefined : range(text, parts[1] as string, 'guest')
  const picked = host[0] === 0
  if (picked && guest === undefined) throw bad(text, 'a host port of 0 needs a guest port')
  const count = (guest ?? host)[1] - (guest ?? host)[0] + 1
  if (guest !== undefined && !picked && count !== host[1] - host[0] + 1)
    throw bad(text, 'the two ranges are not equally long')
  if (count > MAX_PORTS) throw bad(text, `a range has at most ${MAX_PORTS} ports`)
  return { text, proto, hostAddress: address, host, guest }
}

/** What stands before the ports, and the one or two of those. */
function hostPart(text: string, body: string): { address: string | undefined; ports: string[] } {
  if (body.startsWith('[')) {
    const m = /^\[([^\]]*)\]:([^:]*):([^:]*)$/.exec(body)
    if (m === null) throw bad(text, 'after an address in brackets come both ports, [HOSTIP]:HOST:GUEST')
    return { address: hostAddress6(text, m[1] as string), ports: m.slice(2) }
  }
  const parts = body.split(':')
  if (/[a-f]|::/i.test(body) && parts.length > 3)
    throw bad(text, 'an IPv6 address is written in brackets, [::1]:8080:80')
  if (parts.length > 3) throw bad(text, `it has ${parts.length} parts, and [HOSTIP:]HOST:GUEST has at most three`)
  const address = parts.length === 3 ? hostAddress(text, parts.shift() as string) : undefined
  if (parts.length === 2 && parseIpv4(parts[0] as string) !== undefined)
    throw bad(text, 'after a host address come both ports, HOSTIP:HOST:GUEST')
  return { address, ports: parts }
}

function hostAddress(spec: string, text: string): string {
  if (text === 'localhost') return '127.0.0.1'
  if (text === '' || text === '*') return ANY_ADDRESS
  if (parseIpv4(text) === undefined) throw bad(spec, `"${text}" is not an IPv4 address`)
  return text
}

function hostAddress6(spec: string, text: string): string {
  if (text.includes('%')) throw bad(spec, 'a host address with a zone cannot be published on')
  const a = parseIpv6(text)
  if (a === undefined) throw bad(spec, `"${text}" is not an IPv6 address`)
  if (a >> 32n === 0xffffn) throw bad(spec, `"${text}" is an IPv4 address: write it as one`)
  if (a >> 118n === 0xfe80n >> 6n) throw bad(spec, `"${text}" is link-local: publish on [::] instead`)
  return formatIpv6(a)
}

/** The single mappings a spec stands for. */
export function mappings(s: PortSpec): Publish[] {
  const guest = s.guest ?? s.host
  return Array.from({ length: guest[1] - guest[0] + 1 }, (_, i) => ({
    proto: s.proto,
    hostAddress: s.hostAddress ?? ANY_ADDRESS,
    hostPort: s.host[0] === 0 ? 0 : s.host[0] + i,
    guestPort: guest[0] + i,
  }))
}

/** All the ports a VM asks for; two that cannot both be bound are refused here. */
export function parsePorts(specs: readonly string[], have: readonly Publish[] = []): Publish[] {
  const all: Publish[] = []
  for (const text of specs) {
    for (const p of mappings(parseSpec(text))) {
      if ([...have, ...all].some((q) => clash(p, q)))
        throw bad(text, `host port ${p.hostPort}/${p.proto} is mapped twice`)
      all.push(p)
    }
  }
  if (all.length + have.length > MAX_PORTS) throw bad(specs[0] as string, `a VM publishes at most ${MAX_PORTS} ports`)
  return all
}

/** Can both not be bound at once? */
export const clash = (a: Publish, b: Publish): boolean =>
  a.proto === b.proto && a.hostPort !== 0 && a.hostPort === b.hostPort && meet(a.hostAddress, b.hostAddress)

const meet = (a: string, b: string): boolean =>
  a === b ||
  a === ANY_ADDRESS ||
  b === ANY_ADDRESS ||
  (a.includes(':')
    ? b.includes(':') && (a === ANY_IPV6 || b === ANY_IPV6)
    : !b.includes(':') && (a === ANY_IPV4 || b === ANY_IPV4))

/** Does a spec name this mapping? What was left out of the spec matches anything: "8080" alone is enough to remove it. */
export function names(s: PortSpec, p: Publish): boolean {
  const i = p.hostPort - s.host[0]
  return (
    s.proto === p.proto &&
    (s.hostAddress === undefined || s.hostAddress === p.hostAddress) &&
    i >= 0 &&
    p.hostPort <= s.host[1] &&
    (s.guest === undefined || s.guest[0] + i === p.guestPort)
  )
}

/** A mapping as people and programs are shown it. */
export const publicPort = (p: Publish): Publish => ({
  proto: p.proto,
  hostAddress: p.hostAddress,
  hostPort: p.hostPort,
  guestPort: p.guestPort,
})
