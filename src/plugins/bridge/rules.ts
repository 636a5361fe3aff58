/**
 * The rules of one bridged network, as text for iptables-restore and ip6tables-restore. Pure: a model in, text out. What a port may send is guard.ts.
 *
 * Theory. Each network has chains of its own, named after its link, that are written anew as a whole on every change, in one
 * transaction (`--noflush`: nothing else is touched); a jump into each stands first in the built-in chains. So the rules always are a function of
 * the model, and repeating is harmless. What each network says of itself is enough: no rule lists other networks, so none can be stale. The one
 * list there is, the host's addresses on links that are not noid's, says what is allowed: an address that is new is refused until it is listed.
 *
 *   raw     PREROUTING   what comes from the network for or from the loopback is a martian, also while route_localnet is on (CVE-2020-8558);
 *                        it is on only for a network with a rule that leads to or from there (`leadsLoopback`)
 *   nat     PREROUTING, OUTPUT   published ports → the VM; the host's address with --allow-host → the host's loopback (IPv4)
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
 *
 * Both families have the same chains, from the same function (`side`). Three things differ. IPv6 has no route_localnet: what is for ::1 cannot be led
 * elsewhere by a rule, nor the other way round, so clients of a published port at ::1 are relayed by the services (bridge.ts), and --allow-host is IPv4's.
 * Neighbour discovery is ICMPv6, which iptables sees: it passes. A family that a network does not have is dropped.
 */

export interface PortRule {
  readonly proto: 'tcp' | 'udp'
  /** 0.0.0.0 or :: for all of a family, * for all of both. */
  readonly hostAddress: string
  readonly hostPort: number
  /** Empty: the VM has none of this family. */
  readonly guestAddress: string
  readonly guestAddress6?: string
  readonly guestPort: number
}

/** What a network is in one family. */
export interface Side {
  readonly subnet: string
  readonly gateway: string
  readonly services: string
  readonly hostAddress: string
  /** What the host is called on links that are not noid's. */
  readonly hostAddresses: readonly string[]
}

export interface RuleModel {
  /** noid<N>. */
  readonly link: string
  readonly isolated: boolean
  readonly allowHostPorts: readonly number[]
  readonly publishes: readonly PortRule[]
  /** Absent: an IPv6-only network. */
  readonly four?: Side
  /** Absent: an IPv4-only network. */
  readonly six?: Side
}

/** Every noid link. */
const NOID = 'noid+'

export type Table = 'raw' | 'nat' | 'mangle' | 'filter'

export interface Chain {
  readonly table: Table
  readonly name: string
  /** Built-in chain and match under which it is entered. */
  readonly jumps: readonly (readonly [builtIn: string, match: string])[]
  readonly rules: readonly string[]
}

/** What differs between the families in what is written. */
interface Family {
  readonly bits: 32 | 128
  readonly loopback: string
  /** Match of what the kernel cannot lead elsewhere. */
  readonly notLed: string
  /** Link-local and metadata services: never anybody's to reach. */
  readonly never: readonly string[]
  readonly groups: string
  readonly prohibited: string
  readonly echo: string
  /** Neighbour discovery. */
  readonly discovery: readonly string[]
  readonly dhcp: string
  readonly guestOf: (p: PortRule) => string
  readonly to: (address: string, port: number) => string
}

const FOUR: Family = {
  bits: 32,
  loopback: '127.0.0.0/8',
  notLed: '',
  never: ['169.254.0.0/16'],
  groups: '224.0.0.0/4',
  prohibited: 'icmp-admin-prohibited',
  echo: '-p icmp --icmp-type echo-request',
  discovery: [],
  dhcp: '67:68',
  guestOf: (p) => (p.hostAddress.includes(':') ? '' : p.guestAddress),
  to: (address, port) => `${address}:${port}`,
}
const SIX: Family = {
  bits: 128,
  loopback: '::1/128',
  notLed: '! -d ::1/128 ',
  never: ['fe80::/10', 'fd00:ec2::254/128'],
  groups: 'ff00::/8',
  prohibited: 'icmp6-adm-prohibited',
  echo: '-p ipv6-icmp --icmpv6-type echo-request',
  discovery: [133, 135, 136].map((type) => `-p ipv6-icmp -m icmp6 --icmpv6-type ${type}`),
  dhcp: '546:547',
  guestOf: (p) =>
    p.hostAddress === '*' || (p.hostAddress.includes(':') && p.hostAddress !== '::1') ? (p.guestAddress6 ?? '') : '',
  to: (address, port) => `[${address}]:${port}`,
}

const upper = (link: string): string => link.toUpperCase()
/** All addresses of a family, or of both. */
export const everywhere = (address: string): boolean => address === '*' || address === '0.0.0.0' || address === '::'

/** What iptables holds of a network. */
export const chains = (m: RuleModel): readonly Chain[] => (m.four === undefined ? none(m, 'V4') : side(m, m.four, FOUR))

/**
 * Does a rule lead packets to or from the host's loopback? Then `route_localnet` must be on for the link, and only then may it be: while it is, the chain
 * in table raw alone keeps VMs away from 127/8, and somebody may flush that.
 */
export const leadsLoopback = (m: RuleModel): boolean =>
  m.four !== undefined &&
  (m.allowHostPorts.length > 0 ||
    m.publishes.some((p) => FOUR.guestOf(p) !== '' && (everywhere(p.hostAddress) || p.hostAddress.startsWith('127.'))))

/** What ip6tables holds of a network. */
export const chains6 = (m: RuleModel): readonly Chain[] => (m.six === undefined ? none(m, 'V6') : side(m, m.six, SIX))

/** A network carries nothing of a family, whoever switches it on for the link. */
function none({ link }: RuleModel, suffix: string): readonly Chain[] {
  return [
    {
      table: 'filter',
      name: `${upper(link)}-${suffix}`,
      jumps: [
        ['FORWARD', `-i ${link}`],
        ['FORWARD', `-o ${link}`],
        ['INPUT', `-i ${link}`],
      ],
      rules: ['-j DROP'],
    },
  ]
}

function side(m: RuleModel, s: Side, f: Family): readonly Chain[] {
  const { link, isolated } = m
  const { subnet, gateway, services, hostAddress } = s
  const name = upper(link)
  const at = (address: string): string => `${address}/${f.bits}`
  const refuse = (match: string): string[] => [
    `${match} -p tcp -j REJECT --reject-with tcp-reset`.trim(),
    `${match} -j REJECT --reject-with ${f.prohibited}`.trim(),
  ]
  const established = '-m conntrack --ctstate RELATED,ESTABLISHED'
  const translated = '-m conntrack --ctstate DNAT'
  // As the VM wrote it, whatever somebody else's rules have made of it.
  const never = f.never.map((net) => `-i ${link} -m conntrack --ctorigdst ${net}`)
  const published = m.publishes.filter((p) => f.guestOf(p) !== '')
  const allowed = f === FOUR ? m.allowHostPorts : []
  return [
    {
      table: 'raw',
      name: `${name}-RAW`,
      jumps: [['PREROUTING', `-i ${link}`]],
      rules: [`-d ${f.loopback} -j DROP`, `-s ${f.loopback} -j DROP`],
    },
    {
      table: 'nat',
      name: `${name}-DNAT`,
      jumps: [
        ['PREROUTING', '-m addrtype --dst-type LOCAL'],
        ['OUTPUT', `${f.notLed}-m addrtype --dst-type LOCAL`],
      ],
      rules: [
        ...allowed.flatMap((p) =>
          ['tcp', 'udp'].map(
            (proto) =>
              `-i ${link} -d ${at(hostAddress)} -p ${proto} --dport ${p} -j DNAT --to-destination 127.0.0.1:${p}`,
          ),
        ),
        ...published.map((p) => {
          const where = everywhere(p.hostAddress) ? '' : `-d ${at(p.hostAddress)} `
          return `${where}-p ${p.proto} --dport ${p.hostPort} -j DNAT --to-destination ${f.to(f.guestOf(p), p.guestPort)}`
        }),
      ],
    },
    {
      table: 'nat',
      name: `${name}-SNAT`,
      jumps: [
        ['POSTROUTING', `-s ${subnet}`],
        ['POSTROUTING', `-s ${f.loopback} -o ${link}`],
      ],
      rules: [
        `-s ${f.loopback} -o ${link} -j MASQUERADE`,
        // To a published port of a VM of the same network: the answer must come back by the host.
        `-o ${link} ${translated} -j MASQUERADE`,
        `! -o ${NOID} ! -d ${f.groups} -j MASQUERADE`,
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
              ...f.discovery.map((type) => `-i ${link} -o ${link} ${type} -j ACCEPT`),
              ...['-d', '-s'].map((way) => `-i ${link} -o ${link} ${way} ${at(services)} -j ACCEPT`),
              `-i ${link} -o ${link} -p udp --dport ${f.dhcp} -j ACCEPT`,
              `-i ${link} -o ${link} -j DROP`,
            ]
          : [`-i ${link} -o ${link} -j ACCEPT`]),
        `${established} -j ACCEPT`,
        ...(isolated ? refuse(`-i ${link} ${translated}`) : [`-i ${link} -o ${NOID} ${translated} -j RETURN`]),
        ...refuse(`-i ${link} -o ${NOID}`),
        ...never.flatMap(refuse),
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
        ...f.discovery.map((type) => `-i ${link} ${type} -j RETURN`),
        ...[gateway, hostAddress].flatMap((a) => refuse(`! -i ${link} -d ${at(a)}`)),
        ...never.flatMap(refuse),
        ...(allowed.length > 0 ? [`-i ${link} -d 127.0.0.1/32 ${translated} -j ACCEPT`] : []),
        `-i ${link} -d ${at(gateway)} ${f.echo} -j ACCEPT`,
        ...(isolated
          ? []
          : [
              ...[gateway, hostAddress, ...s.hostAddresses].map((a) => `-i ${link} -d ${at(a)} -j RETURN`),
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
            rules: [
              ...f.discovery.map((type) => `${type} -j RETURN`),
              `${established} -j RETURN`,
              `${translated} -j RETURN`,
              ...refuse(''),
            ],
          },
        ]
      : []),
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
    const address = match.match(/(?:^| )-d (\S+)\/(?:32|128) /)?.[1]
    if (address !== undefined && address !== p.hostAddress && !everywhere(p.hostAddress)) continue
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
