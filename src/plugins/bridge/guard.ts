/**
 * The source guard of a bridged network's ports, as text for ebtables-restore: a VM speaks for itself and for nobody else. Pure.
 *
 * Theory. Guards stand in nat PREROUTING, where a frame comes by once, before the bridge does anything with it. A network has one chain of
 * jumps, and each port a chain of its own, named after a hash of what it says. So attaching adds one chain and detaching
 * takes one away: the others are not touched, and keep their counters. Frames from a foreign MAC end in the chain of claims, which counts for
 * each VM's MAC how often another used it.
 *
 * IPv6. A VM speaks from its reserved address and from those that its MAC makes; from another of the prefix or of fe80::/64 as long as that is nobody's
 * (TAKEN6 lists what is somebody's: guests with privacy extensions make addresses of their own, RFC 8981). ebtables does not see whom an advertisement of
 * neighbour discovery speaks for. So a VM's advertisements reach the router and the services alone (NA6), where they cannot do harm: the host knows VMs'
 * addresses for good (links.ts), and the services answer for VMs what one asks of another (netstack/gateway/gateway6.ts).
 */
import { createHash } from 'node:crypto'
import type { DropRow } from '../contract.ts'
import { eui64, linkLocal } from './addresses6.ts'

/** What the name of every port of a VM begins with. */
export const PORT_PREFIX = 'nb'

export interface Guard {
  readonly vm: string
  readonly ifname: string
  readonly mac: string
  /** Empty: it has none. */
  readonly address: string
  readonly address6?: string
}

/** The network that ports are guarded on. */
export interface GuardedNetwork {
  /** noid<N>. */
  readonly link: string
  readonly ipv4: boolean
  readonly six?: {
    readonly subnet: string
    /** Addresses of the router and the services. */
    readonly own: readonly string[]
    /** MACs of the router and the services. */
    readonly macs: readonly string[]
  }
}

interface Rule {
  readonly text: string
  /** A counted refusal; as the userspace backend names them. */
  readonly reason?: keyof typeof MEANING
}

const MEANING = {
  'guard-mac': 'a source MAC that is not the VM’s own: a cloned VM, or forged',
  'guard-address': 'a source address that is not the VM’s own: a static address in the guest, or forged',
  'guard-arp': 'ARP that speaks for an address or a MAC that is not the VM’s own',
  'guard-nd': 'neighbour discovery that tells another VM something: the network’s services do that',
  'guard-ra': 'router advertisements from a VM: only the network’s gateway is a router',
  'guard-dhcp-server': 'DHCP answers from a VM: only the network’s own service gives leases',
  'guard-redirect': 'an ICMP redirect or router advertisement from a VM',
  ipv4: 'IPv4 or ARP, which this network does not carry; guests try it when they start: nothing is wrong',
  ethertype: 'neither IPv4 nor ARP, nor IPv6 where the network has it: VLAN tags or other protocols',
}

const top = (link: string): string => link.toUpperCase()
const claims = (link: string): string => `${top(link)}-CLAIMS`
const taken6 = (link: string): string => `${top(link)}-TAKEN6`
const na6 = (link: string): string => `${top(link)}-NA6`
const portChain = (n: GuardedNetwork, g: Guard): string => {
  const what = [g.ifname, g.mac, g.address, ...(n.six === undefined ? [] : [g.address6 ?? '-', n.six.subnet])]
  return `${top(n.link)}-${createHash('sha256').update(what.join(' ')).digest('hex').slice(0, 10)}`
}
/** Every port of a bridge of noid's. (`--logical-in`, the bridge itself, is not to be had on every kernel.) */
const entry = (link: string): string => `-A PREROUTING -i ${PORT_PREFIX}+ -j ${top(link)}`
const claim = (link: string, g: Guard): string => `-A ${claims(link)} -s ${g.mac} -j DROP`
const enter = (n: GuardedNetwork, g: Guard): string => `-A ${top(n.link)} -i ${g.ifname} -j ${portChain(n, g)}`

/** The IPv6 addresses that are a VM's before it has said a word. */
export const addresses6Of = (subnet: string, { mac, address6 }: Pick<Guard, 'mac' | 'address6'>): readonly string[] => [
  ...(address6 === undefined ? [] : [address6]),
  eui64(subnet, mac),
  linkLocal(mac),
]

function rulesOf(n: GuardedNetwork, g: Guard): readonly Rule[] {
  return [
    { text: `-s ! ${g.mac} -j ${claims(n.link)}`, reason: 'guard-mac' },
    ...(n.ipv4
      ? rules4(g)
      : ([
          { text: '-p ARP -j DROP', reason: 'ipv4' },
          { text: '-p IPv4 -j DROP', reason: 'ipv4' },
        ] as const)),
    ...(n.six === undefined ? [] : rules6(n.link, n.six.subnet, g)),
    { text: '-j DROP', reason: 'ethertype' },
  ]
}

const rules4 = ({ mac, address }: Guard): readonly Rule[] => [
  // A probe (RFC 5227) speaks for nobody yet.
  { text: `-p ARP --arp-ip-src 0.0.0.0 --arp-mac-src ${mac} -j RETURN` },
  { text: `-p ARP --arp-ip-src ! ${address} -j DROP`, reason: 'guard-arp' },
  { text: `-p ARP --arp-mac-src ! ${mac} -j DROP`, reason: 'guard-arp' },
  { text: '-p ARP -j RETURN' },
  { text: '-p IPv4 --ip-proto udp --ip-dport 68 -j DROP', reason: 'guard-dhcp-server' },
  { text: '-p IPv4 --ip-src 0.0.0.0 --ip-proto udp --ip-sport 68 --ip-dport 67 -j RETURN' },
  { text: `-p IPv4 --ip-src ! ${address} -j DROP`, reason: 'guard-address' },
  { text: '-p IPv4 --ip-proto icmp --ip-icmp-type 5 -j DROP', reason: 'guard-redirect' },
  { text: '-p IPv4 --ip-proto icmp --ip-icmp-type 9 -j DROP', reason: 'guard-redirect' },
  { text: '-p IPv4 -j RETURN' },
]

function rules6(link: string, subnet: string, g: Guard): readonly Rule[] {
  const message = (type: string): string => `-p IPv6 --ip6-proto ipv6-icmp --ip6-icmp-type ${type}`
  return [
    { text: `${message('router-advertisement')} -j DROP`, reason: 'guard-ra' },
    { text: `${message('redirect')} -j DROP`, reason: 'guard-redirect' },
    { text: '-p IPv6 --ip6-proto udp --ip6-dport 546 -j DROP', reason: 'guard-dhcp-server' },
    { text: `${message('neighbour-advertisement')} -j ${na6(link)}` },
    // Nobody yet: duplicate address detection, router solicitations, reports of listeners.
    { text: '-p IPv6 --ip6-src :: --ip6-proto ipv6-icmp -j RETURN' },
    ...addresses6Of(subnet, g).map((a) => ({ text: `-p IPv6 --ip6-src ${a} -j RETURN` })),
    { text: `-p IPv6 -j ${taken6(link)}` },
    { text: `-p IPv6 --ip6-src ${subnet} -j RETURN` },
    { text: '-p IPv6 --ip6-src fe80::/64 -j RETURN' },
    { text: '-p IPv6 -j DROP', reason: 'guard-address' },
  ]
}

/** What the chains that all ports share must hold. */
function shared6(n: GuardedNetwork, guards: readonly Guard[]): ReadonlyMap<string, readonly string[]> {
  const { link, six } = n
  if (six === undefined) return new Map()
  const somebodys = new Set([...six.own, ...guards.flatMap((g) => addresses6Of(six.subnet, g))])
  return new Map([
    [taken6(link), [...somebodys].map((a) => `-A ${taken6(link)} -p IPv6 --ip6-src ${a} -j DROP`)],
    [na6(link), [...six.macs.map((mac) => `-A ${na6(link)} -d ${mac} -j RETURN`), `-A ${na6(link)} -j DROP`]],
  ])
}

const chainsIn = (link: string, present: string): string[] =>
  present.split('\n').flatMap((l) => l.match(`^:(${top(link)}(?:-\\S+)?) `)?.[1] ?? [])

const linesOf = (present: string): string[] => present.split('\n').map((l) => l.trimEnd())

/** Is the guard of every port there, and entered? `present` is what ebtables-save shows. */
export function guarded(n: GuardedNetwork, guards: readonly Guard[], present: string): boolean {
  const lines = new Set(linesOf(present))
  if (!lines.has(entry(n.link))) return false
  for (const wanted of shared6(n, guards).values()) if (!wanted.every((l) => lines.has(l))) return false
  return guards.every((g) => {
    const rules = [...lines].filter((l) => l.startsWith(`-A ${portChain(n, g)} `)).length
    return lines.has(enter(n, g)) && rules === rulesOf(n, g).length
  })
}

/** The text that makes a network's guards what they should be; empty when they are. */
export function guardText(n: GuardedNetwork, guards: readonly Guard[], present: string): string {
  const { link } = n
  const lines = linesOf(present)
  const there = new Set(chainsIn(link, present))
  const wanted = new Set(guards.map((g) => portChain(n, g)))
  const shared = shared6(n, guards)
  const kept = new Set([...wanted, ...shared.keys(), top(link), claims(link)])
  const begin: string[] = []
  const out: string[] = []
  for (const name of [top(link), claims(link), ...shared.keys()]) if (!there.has(name)) begin.push(`:${name} RETURN`)
  if (!there.has(claims(link))) out.push(`-A ${claims(link)} -j DROP`)
  for (const name of there) {
    if (kept.has(name)) continue
    const enters = lines.filter((l) => l.startsWith(`-A ${top(link)} `) && l.endsWith(` -j ${name}`))
    out.push(...enters.map((l) => l.replace('-A', '-D')), `-F ${name}`, `-X ${name}`)
  }
  for (const [name, rules] of shared) {
    const now = lines.filter((l) => l.startsWith(`-A ${name} `))
    // The order of NA6 matters, and it never changes; TAKEN6 has none.
    if (name === na6(link) && now.join() !== rules.join()) out.push(`-F ${name}`, ...rules)
    else if (name !== na6(link)) {
      out.push(...now.filter((l) => !rules.includes(l)).map((l) => l.replace('-A', '-D')))
      out.push(...rules.filter((l) => !now.includes(l)))
    }
  }
  const macs = new Set(guards.map((g) => claim(link, g)))
  for (const l of lines) if (l.startsWith(`-A ${claims(link)} -s `) && !macs.has(l)) out.push(l.replace('-A', '-D'))
  for (const g of guards) {
    const name = portChain(n, g)
    const rules = rulesOf(n, g)
    if (lines.filter((l) => l.startsWith(`-A ${name} `)).length !== rules.length) {
      if (there.has(name)) out.push(`-F ${name}`)
      else begin.push(`:${name} RETURN`)
      out.push(...rules.map((r) => `-A ${name} ${r.text}`))
    }
    if (!lines.includes(enter(n, g))) out.push(enter(n, g))
    if (!lines.includes(claim(link, g))) out.push(claim(link, g).replace('-A', '-I'))
  }
  if (!lines.includes(entry(link))) out.push(entry(link))
  return begin.length + out.length === 0 ? '' : `${['*nat', ...begin, ...out].join('\n')}\n`
}

/** The text that removes every guard of a link; empty when there is none. */
export function unguardText(link: string, present: string): string {
  const there = chainsIn(link, present)
  if (there.length === 0) return ''
  const entries = present
    .split('\n')
    .filter((l) => l.startsWith('-A PREROUTING ') && l.trimEnd().endsWith(` -j ${top(link)}`))
  return `${[
    '*nat',
    ...entries.map((l) => l.trimEnd().replace('-A', '-D')),
    // Flushed first: no chain leads to another then.
    ...there.map((c) => `-F ${c}`),
    ...there.map((c) => `-X ${c}`),
  ].join('\n')}\n`
}

export interface Refusals {
  readonly drops: readonly DropRow[]
  /** VMs whose MAC another VM sent from. */
  readonly warnings: readonly string[]
}

/** What the guards refused. @param listed `ebtables -t nat -L --Lc` */
export function refusals(n: GuardedNetwork, guards: readonly Guard[], listed: string): Refusals {
  const { link } = n
  const counts = new Map<string, number[]>()
  let chain: number[] = []
  for (const l of listed.split('\n')) {
    const name = l.match(/^Bridge chain: (\S+),/)?.[1]
    if (name !== undefined) counts.set(name, (chain = []))
    const count = l.match(/pcnt = (\d+)/)?.[1]
    if (count !== undefined) chain.push(Number(count))
  }
  const drops: DropRow[] = []
  for (const g of guards) {
    const own = counts.get(portChain(n, g)) ?? []
    const byReason = new Map<keyof typeof MEANING, number>()
    for (const [i, { reason }] of rulesOf(n, g).entries())
      if (reason !== undefined && own[i]) byReason.set(reason, (byReason.get(reason) ?? 0) + own[i])
    for (const [reason, count] of byReason) drops.push({ vm: g.vm, reason, count, meaning: MEANING[reason] })
  }
  // What all ports share does not tell one from the other.
  const everybodys = {
    'guard-address': counts.get(taken6(link)) ?? [],
    'guard-nd': (counts.get(na6(link)) ?? []).slice(-1),
  }
  for (const [reason, list] of Object.entries(everybodys) as [keyof typeof everybodys, number[]][]) {
    const count = list.reduce((sum, k) => sum + k, 0)
    if (count > 0) drops.push({ vm: '-', reason, count, meaning: MEANING[reason] })
  }
  const claimed = new Map<string, number>()
  for (const m of (listed.split(`Bridge chain: ${claims(link)},`)[1] ?? '')
    .split('Bridge chain:')[0]
    ?.matchAll(/-s (\S+) -j DROP *, pcnt = (\d+)/g) ?? [])
    claimed.set(fullMac(m[1] as string), Number(m[2]))
  const warnings = guards.flatMap((victim) => {
    if (!claimed.get(victim.mac)) return []
    const who = drops.filter((d) => d.reason === 'guard-mac' && d.vm !== victim.vm).map((d) => d.vm)
    if (who.length === 0) return []
    return [`${who.join(' or ')} sends from MAC ${victim.mac}, which belongs to ${victim.vm}; its frames are refused`]
  })
  return { drops, warnings }
}

/** ebtables may leave out zeros: "2:0:0:1:2:3". */
const fullMac = (mac: string): string =>
  mac
    .split(':')
    .map((b) => b.padStart(2, '0'))
    .join(':')
