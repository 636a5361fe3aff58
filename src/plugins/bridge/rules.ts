/**
 * The rules of one bridged network, as text for iptables-restore. Pure: a model in, text out. What a port may send is guard.ts.
 *
 * Theory. Each network has chains of its own, named after its link, that are written anew as a whole on every change, in one
 * transaction (`--noflush`: nothing else is touched); a jump into each stands first in the built-in chains. So the rules always are a function of
 * the model, and repeating is harmless. What each network says of itself is enough: no rule lists other networks, so none can be stale. The one
 * list there is, the host's addresses on links that are not noid's, says what is allowed: an address that is new is refused until it is listed.
 *
 *   raw     PREROUTING   what comes from the network for or from 127/8 is a martian, also while route_localnet is on (CVE-2020-8558)
 *   nat     PREROUTING, OUTPUT   published ports → the VM; the host's address with --allow-host → the host's loopback
 *           POSTROUTING  out of the network by masquerade; what was published and comes from the subnet or loopback as well
 *   mangle  FORWARD      MSS clamp, both ways; nothing published is for an isolated VM (here, so that no other network's chain comes before)
 *   filter  FORWARD      who may reach whom (below)
 *           INPUT        a VM reaches the host at its own network's addresses and at those of the outside; an isolated one not at all; nobody of
 *                        another noid network reaches this one's gateway
 *           OUTPUT       the host speaks to no isolated VM of its own accord
 *   bridge  PREROUTING   what each port may send (guard.ts)
 *
 * Who may reach whom: VM → VM of its network, yes; → another noid network, never, but a published port is a service of the
 * host; → outside, yes; → link-local, no; from outside, only what was published. From isolated: outside and nothing else.
 */

export interface PortRule {
  readonly proto: 'tcp' | 'udp'
  /** 0.0.0.0 for all. */
  readonly hostAddress: string
  readonly hostPort: number
  readonly guestAddress: string
  readonly guestPort: number
}

export interface RuleModel {
  /** noid<N>. */
  readonly link: string
  readonly subnet: string
  readonly gateway: string
  readonly services: string
  readonly hostAddress: string
  readonly isolated: boolean
  readonly allowHostPorts: readonly number[]
  readonly publishes: readonly PortRule[]
  /** What the host is called on links that are not noid's. */
  readonly hostAddresses: readonly string[]
}

/** Every noid link. */
const NOID = 'noid+'
const LINK_LOCAL = '169.254.0.0/16'

export type Table = 'raw' | 'nat' | 'mangle' | 'filter'

export interface Chain {
  readonly table: Table
  readonly name: string
  /** Built-in chain and match under which it is entered. */
  readonly jumps: readonly (readonly [builtIn: string, match: string])[]
  readonly rules: readonly string[]
}

const upper = (link: string): string => link.toUpperCase()

/** What iptables holds of a network. */
export function chains(m: RuleModel): readonly Chain[] {
  const { link, subnet, gateway, hostAddress, isolated } = m
  const name = upper(link)
  const refuse = (match: string): string[] => [
    `${match} -p tcp -j REJECT --reject-with tcp-reset`.trim(),
    `${match} -j REJECT --reject-with icmp-admin-prohibited`.trim(),
  ]
  const established = '-m conntrack --ctstate RELATED,ESTABLISHED'
  const translated = '-m conntrack --ctstate DNAT'
  // As the VM wrote it, whatever somebody else's rules have made of it.
  const linkLocal = `-m conntrack --ctorigdst ${LINK_LOCAL}`
  const both = ['tcp', 'udp']
  return [
    {
      table: 'raw',
      name: `${name}-RAW`,
      jumps: [['PREROUTING', `-i ${link}`]],
      rules: ['-d 127.0.0.0/8 -j DROP', '-s 127.0.0.0/8 -j DROP'],
    },
    {
      table: 'nat',
      name: `${name}-DNAT`,
      jumps: [
        ['PREROUTING', '-m addrtype --dst-type LOCAL'],
        ['OUTPUT', '-m addrtype --dst-type LOCAL'],
      ],
      rules: [
        ...m.allowHostPorts.flatMap((p) =>
          both.map(
            (proto) =>
              `-i ${link} -d ${hostAddress}/32 -p ${proto} --dport ${p} -j DNAT --to-destination 127.0.0.1:${p}`,
          ),
        ),
        ...m.publishes.map((p) => {
          const at = p.hostAddress === '0.0.0.0' ? '' : `-d ${p.hostAddress}/32 `
          return `${at}-p ${p.proto} --dport ${p.hostPort} -j DNAT --to-destination ${p.guestAddress}:${p.guestPort}`
        }),
      ],
    },
    {
      table: 'nat',
      name: `${name}-SNAT`,
      jumps: [
        ['POSTROUTING', `-s ${subnet}`],
        ['POSTROUTING', `-s 127.0.0.0/8 -o ${link}`],
      ],
      rules: [
        `-s 127.0.0.0/8 -o ${link} -j MASQUERADE`,
        // To a published port of a VM of the same network: the answer must come back by the host.
        `-o ${link} ${translated} -j MASQUERADE`,
        `! -o ${NOID} ! -d 224.0.0.0/4 -j MASQUERADE`,
      ],
    },
    {
      table: 'mangle',
      name: `${name}-MSS`,
      jumps: [
        ['FORWARD', `-i ${link}`],
        ['FORWARD', `-o ${link}`],
      ],
      rules: [
        ...(isolated ? [`-i ${link} -m conntrack --ctstate DNAT --ctdir ORIGINAL -j DROP`] : []),
        '-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu',
      ],
    },
    {
      table: 'filter',
      name: `${name}-FWD`,
      jumps: [
        ['FORWARD', `-i ${link}`],
        ['FORWARD', `-o ${link}`],
      ],
      rules: [
        // Bridged frames come by here too where bridge-nf-call-iptables is 1.
        ...(isolated
          ? [
              ...['-d', '-s'].map((way) => `-i ${link} -o ${link} ${way} ${m.services}/32 -j ACCEPT`),
              `-i ${link} -o ${link} -p udp --dport 67:68 -j ACCEPT`,
              `-i ${link} -o ${link} -j DROP`,
            ]
          : [`-i ${link} -o ${link} -j ACCEPT`]),
        `${established} -j ACCEPT`,
        ...(isolated ? refuse(`-i ${link} ${translated}`) : [`-i ${link} -o ${NOID} ${translated} -j RETURN`]),
        ...refuse(`-i ${link} -o ${NOID}`),
        ...refuse(`-i ${link} ${linkLocal}`),
        `-i ${link} ! -s ${subnet} -j DROP`,
        `-i ${link} -j ACCEPT`,
        `-o ${link} ${translated} -j ACCEPT`,
        ...refuse(`-o ${link}`),
      ],
    },
    {
      table: 'filter',
      name: `${name}-IN`,
      jumps: [['INPUT', `-i ${NOID}`]],
      rules: [
        `${established} -j RETURN`,
        ...[gateway, hostAddress].flatMap((a) => refuse(`! -i ${link} -d ${a}/32`)),
        ...refuse(`-i ${link} ${linkLocal}`),
        ...(m.allowHostPorts.length > 0 ? [`-i ${link} -d 127.0.0.1/32 ${translated} -j ACCEPT`] : []),
        `-i ${link} -d ${gateway}/32 -p icmp --icmp-type echo-request -j ACCEPT`,
        ...(isolated
          ? []
          : [
              ...[gateway, hostAddress, ...m.hostAddresses].map((a) => `-i ${link} -d ${a}/32 -j RETURN`),
              // Groups and broadcasts of the VM's own link.
              `-i ${link} -m addrtype ! --dst-type LOCAL -j RETURN`,
            ]),
        ...refuse(`-i ${link}`),
      ],
    },
    ...(isolated
      ? [
          {
            table: 'filter' as const,
            name: `${name}-OUT`,
            jumps: [['OUTPUT', `-o ${link}`]] as const,
            rules: [`${established} -j RETURN`, `${translated} -j RETURN`, ...refuse('')],
          },
        ]
      : []),
  ]
}

/** What ip6tables holds of a network: it carries no IPv6, whoever switches it on for the link. */
export function chains6(link: string): readonly Chain[] {
  return [
    {
      table: 'filter',
      name: `${upper(link)}-V6`,
      jumps: [
        ['FORWARD', `-i ${link}`],
        ['FORWARD', `-o ${link}`],
        ['INPUT', `-i ${link}`],
      ],
      rules: ['-j DROP'],
    },
  ]
}

const MARK = 'noid'
const TABLES = ['raw', 'nat', 'mangle', 'filter'] as const
const jump = (c: Chain, builtIn: string, match: string): string =>
  `${builtIn} ${match} -m comment --comment ${MARK} -j ${c.name}`

/** Is everything of `all` there, and entered? Rules are counted, not read: a chain is always written as a whole. */
export function whole(all: readonly Chain[], present: string): boolean {
  return all.every((c) => {
    const lines = section(present, c.table)
    const own = lines.filter((l) => l.startsWith(`-A ${c.name} `)).length
    return own === c.rules.length && lines.filter((l) => jumpsTo(l, c.name)).length === c.jumps.length
  })
}

/**
 * The text that makes a network's chains what the model says.
 * @param present what iptables-save shows now: jumps that are there are not set again
 */
export function restoreText(all: readonly Chain[], present: string): string {
  const out: string[] = []
  for (const table of TABLES) {
    const own = all.filter((c) => c.table === table)
    if (own.length === 0) continue
    out.push(`*${table}`, ...own.map((c) => `:${c.name} - [0:0]`))
    const lines = section(present, table)
    for (const c of own) {
      out.push(...c.rules.map((r) => `-A ${c.name} ${r}`))
      const there = lines.filter((l) => jumpsTo(l, c.name)).length
      // Some of them gone means somebody meddled: all are set again, in order.
      if (there === c.jumps.length) continue
      out.push(...lines.filter((l) => jumpsTo(l, c.name)).map((l) => l.replace(/^-A/, '-D')))
      out.push(...[...c.jumps].reverse().map(([builtIn, match]) => `-I ${jump(c, builtIn, match)}`))
    }
    out.push('COMMIT')
  }
  return `${out.join('\n')}\n`
}

/** The text that removes whatever iptables-save shows of a link's chains; empty when there is nothing. */
export function removeText(link: string, present: string): string {
  const out: string[] = []
  for (const table of TABLES) {
    const lines = section(present, table)
    const own = lines.flatMap((l) => l.match(`^:(${upper(link)}-\\S+) `)?.[1] ?? [])
    if (own.length === 0) continue
    out.push(
      `*${table}`,
      ...lines.filter((l) => own.some((c) => jumpsTo(l, c))).map((l) => l.replace(/^-A/, '-D')),
      ...own.flatMap((c) => [`-F ${c}`, `-X ${c}`]),
      'COMMIT',
    )
  }
  return out.length === 0 ? '' : `${out.join('\n')}\n`
}

/** Who takes a host port away by a rule: a network of noid, of this daemon or another, or the chain of somebody else. */
export function takenBy(
  present: string,
  p: { readonly proto: string; readonly hostAddress: string; readonly hostPort: number },
): string | undefined {
  for (const l of section(present, 'nat')) {
    const m = l.match(/^-A (\S+) (.*)-j (?:DNAT|REDIRECT)\b/)
    if (m === null) continue
    const [, chain = '', match = ''] = m
    const [, from, to = from] = match.match(/--dports? (\d+)(?::(\d+))? /) ?? []
    if (from === undefined || p.hostPort < Number(from) || p.hostPort > Number(to)) continue
    // Rules for one link (--allow-host, hairpins) take nothing from the host.
    if (!match.includes(`-p ${p.proto} `) || /(?:^|(?<!!) )-i /.test(match)) continue
    const address = match.match(/(?:^| )-d (\S+)\/32 /)?.[1] ?? '0.0.0.0'
    if (address !== p.hostAddress && address !== '0.0.0.0' && p.hostAddress !== '0.0.0.0') continue
    const link = chain.match(/^(NOID\d+)-DNAT$/)?.[1]
    return link === undefined ? `a rule in the chain ${chain} of iptables` : `a VM on ${link.toLowerCase()}`
  }
  return undefined
}

const jumpsTo = (line: string, chain: string): boolean => line.startsWith('-A ') && line.endsWith(` -j ${chain}`)

/** The lines of one table of iptables-save. */
function section(saved: string, table: Table): string[] {
  const lines = saved.split('\n')
  const from = lines.indexOf(`*${table}`)
  if (from < 0) return []
  return lines.slice(from + 1, lines.indexOf('COMMIT', from))
}
