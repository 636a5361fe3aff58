/**
 * The source guard of a bridged network's ports, as text for ebtables-restore: a VM speaks for itself and for nobody else. Pure.
 *
 * Theory. Guards stand in nat PREROUTING, where a frame comes by once, before the bridge does anything with it. A network has one chain of
 * jumps, and each port a chain of its own, named after a hash of what it says. So attaching adds one chain and detaching
 * takes one away: the others are not touched, and keep their counters. Frames from a foreign MAC end in the chain of claims, which counts for
 * each VM's MAC how often another used it.
 */
import { createHash } from 'node:crypto'
import type { DropRow } from '../contract.ts'

/** What the name of every port of a VM begins with. */
export const PORT_PREFIX = 'nb'

export interface Guard {
  readonly vm: string
  readonly ifname: string
  readonly mac: string
  readonly address: string
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
  'guard-dhcp-server': 'DHCP answers from a VM: only the network’s own service gives leases',
  'guard-redirect': 'an ICMP redirect or router advertisement from a VM',
  ethertype: 'neither IPv4 nor ARP: this network carries no IPv6, VLAN tags or other protocols',
}

const top = (link: string): string => link.toUpperCase()
const claims = (link: string): string => `${top(link)}-CLAIMS`
const portChain = (link: string, g: Guard): string =>
  `${top(link)}-${createHash('sha256').update(`${g.ifname} ${g.mac} ${g.address}`).digest('hex').slice(0, 10)}`
/** Every port of a bridge of noid's. (`--logical-in`, the bridge itself, is not to be had on every kernel.) */
const entry = (link: string): string => `-A PREROUTING -i ${PORT_PREFIX}+ -j ${top(link)}`
const claim = (link: string, g: Guard): string => `-A ${claims(link)} -s ${g.mac} -j DROP`
const enter = (link: string, g: Guard): string => `-A ${top(link)} -i ${g.ifname} -j ${portChain(link, g)}`

function rulesOf(link: string, { mac, address }: Guard): readonly Rule[] {
  return [
    { text: `-s ! ${mac} -j ${claims(link)}`, reason: 'guard-mac' },
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
    { text: '-j DROP', reason: 'ethertype' },
  ]
}

const chainsIn = (link: string, present: string): string[] =>
  present.split('\n').flatMap((l) => l.match(`^:(${top(link)}(?:-\\S+)?) `)?.[1] ?? [])

/** Is the guard of every port there, and entered? `present` is what ebtables-save shows. */
export function guarded(link: string, guards: readonly Guard[], present: string): boolean {
  const lines = new Set(present.split('\n').map((l) => l.trimEnd()))
  if (!lines.has(entry(link))) return false
  return guards.every((g) => {
    const rules = [...lines].filter((l) => l.startsWith(`-A ${portChain(link, g)} `)).length
    return lines.has(enter(link, g)) && rules === rulesOf(link, g).length
  })
}

/** The text that makes a network's guards what they should be; empty when they are. */
export function guardText(link: string, guards: readonly Guard[], present: string): string {
  const lines = present.split('\n').map((l) => l.trimEnd())
  const there = new Set(chainsIn(link, present))
  const wanted = new Set(guards.map((g) => portChain(link, g)))
  const begin: string[] = []
  const out: string[] = []
  for (const name of [top(link), claims(link)]) if (!there.has(name)) begin.push(`:${name} RETURN`)
  if (!there.has(claims(link))) out.push(`-A ${claims(link)} -j DROP`)
  for (const name of there) {
    if (wanted.has(name) || name === top(link) || name === claims(link)) continue
    const enters = lines.filter((l) => l.startsWith(`-A ${top(link)} `) && l.endsWith(` -j ${name}`))
    out.push(...enters.map((l) => l.replace('-A', '-D')), `-F ${name}`, `-X ${name}`)
  }
  const macs = new Set(guards.map((g) => claim(link, g)))
  for (const l of lines) if (l.startsWith(`-A ${claims(link)} -s `) && !macs.has(l)) out.push(l.replace('-A', '-D'))
  for (const g of guards) {
    const name = portChain(link, g)
    const rules = rulesOf(link, g)
    if (lines.filter((l) => l.startsWith(`-A ${name} `)).length !== rules.length) {
      if (there.has(name)) out.push(`-F ${name}`)
      else begin.push(`:${name} RETURN`)
      out.push(...rules.map((r) => `-A ${name} ${r.text}`))
    }
    if (!lines.includes(enter(link, g))) out.push(enter(link, g))
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
    ...there.map((c) => `-F ${c}`),
    ...there.filter((c) => c !== top(link)).map((c) => `-X ${c}`),
    ...there.filter((c) => c === top(link)).map((c) => `-X ${c}`),
  ].join('\n')}\n`
}

export interface Refusals {
  readonly drops: readonly DropRow[]
  /** VMs whose MAC another VM sent from. */
  readonly warnings: readonly string[]
}

/** What the guards refused. @param listed `ebtables -t nat -L --Lc` */
export function refusals(link: string, guards: readonly Guard[], listed: string): Refusals {
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
    const own = counts.get(portChain(link, g)) ?? []
    const byReason = new Map<keyof typeof MEANING, number>()
    for (const [i, { reason }] of rulesOf(link, g).entries())
      if (reason !== undefined && own[i]) byReason.set(reason, (byReason.get(reason) ?? 0) + own[i])
    for (const [reason, count] of byReason) drops.push({ vm: g.vm, reason, count, meaning: MEANING[reason] })
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
