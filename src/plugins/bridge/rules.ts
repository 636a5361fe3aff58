/**
 * The rules of one bridged network, as text for iptables-restore and ebtables-restore. Pure: a model in, text out.
 *
 * Theory. Each network has chains of its own, named after its link, that are written anew as a whole on every change, in one
 * transaction (`--noflush`: nothing else is touched); a jump into each stands first in the built-in chains. So the rules always are a function of
 * the model, and repeating is harmless. What each network says of itself is enough: no rule lists other networks, so none can be stale.
 *
 *   raw     PREROUTING   what comes from the network for 127/8 is a martian, also while route_localnet is on (CVE-2020-8558)
 *   nat     PREROUTING, OUTPUT   published ports → the VM; the host's address with --allow-host → the host's loopback
 *           POSTROUTING  out of the network by masquerade; what was published and comes from the subnet or loopback as well
 *   mangle  FORWARD      MSS clamp, both ways
 *   filter  FORWARD      who may reach whom (below)
 *           INPUT        an isolated VM reaches nothing of the host; nobody of another noid network reaches this one's gateway
 *   bridge  FORWARD, INPUT (ebtables)  the guard of each port: MAC, IPv4 and ARP sender, no DHCP answers, no other protocols
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

export interface GuardRule {
  readonly ifname: string
  readonly mac: string
  readonly address: string
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
  readonly guards: readonly GuardRule[]
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
    `${match} -p tcp -j REJECT --reject-with tcp-reset`,
    `${match} -j REJECT --reject-with icmp-admin-prohibited`,
  ]
  const established = '-m conntrack --ctstate RELATED,ESTABLISHED'
  const translated = '-m conntrack --ctstate DNAT'
  const both = ['tcp', 'udp']
  return [
    {
      table: 'raw',
      name: `${name}-RAW`,
      jumps: [['PREROUTING', `-i ${link}`]],
      rules: ['-d 127.0.0.0/8 -j DROP'],
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
      rules: ['-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu'],
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
        ...refuse(`-i ${link} -d ${LINK_LOCAL}`),
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
        ...(m.allowHostPorts.length > 0 ? [`-i ${link} -d 127.0.0.1/32 ${translated} -j ACCEPT`] : []),
        `-i ${link} -d ${gateway}/32 -p icmp --icmp-type echo-request -j ACCEPT`,
        ...(isolated ? refuse(`-i ${link}`) : []),
      ],
    },
  ]
}

/** The ebtables chain of a network and its rules. */
export function guardChain(m: RuleModel): { readonly name: string; readonly rules: readonly string[] } {
  return {
    name: upper(m.link),
    rules: m.guards.flatMap(({ ifname: i, mac, address }) => [
      `-i ${i} -s ! ${mac} -j DROP`,
      // A probe (RFC 5227) speaks for nobody yet.
      `-i ${i} -p ARP --arp-ip-src 0.0.0.0 -j RETURN`,
      `-i ${i} -p ARP --arp-ip-src ! ${address} -j DROP`,
      `-i ${i} -p ARP --arp-mac-src ! ${mac} -j DROP`,
      `-i ${i} -p ARP -j RETURN`,
      `-i ${i} -p IPv4 --ip-src 0.0.0.0 --ip-proto udp --ip-sport 68 --ip-dport 67 -j RETURN`,
      `-i ${i} -p IPv4 --ip-proto udp --ip-dport 68 -j DROP`,
      `-i ${i} -p IPv4 --ip-src ! ${address} -j DROP`,
      `-i ${i} -p IPv4 -j RETURN`,
      `-i ${i} -j DROP`,
    ]),
  }
}

const MARK = 'noid'
const jump = (c: Chain, builtIn: string, match: string): string =>
  `${builtIn} ${match} -m comment --comment ${MARK} -j ${c.name}`

/**
 * The text that makes a network's chains what the model says.
 * @param present what iptables-save shows now: jumps that are there are not set again
 */
export function restoreText(all: readonly Chain[], present: string): string {
  const out: string[] = []
  for (const table of ['raw', 'nat', 'mangle', 'filter'] as const) {
    const own = all.filter((c) => c.table === table)
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
  for (const table of ['raw', 'nat', 'mangle', 'filter'] as const) {
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

/** Host ports that iptables sends to a VM of noid: rules of any network, of this daemon or another. */
export function publishedIn(
  present: string,
): readonly { readonly link: string; readonly proto: string; readonly address: string; readonly port: number }[] {
  return section(present, 'nat').flatMap((l) => {
    const m = l.match(
      /^-A (NOID\d+)-DNAT (?:-d (\S+)\/32 )?-p (tcp|udp) .*--dport (\d+) .*-j DNAT --to-destination (?!127\.)/,
    )
    return m
      ? [
          {
            link: (m[1] as string).toLowerCase(),
            address: m[2] ?? '0.0.0.0',
            proto: m[3] as string,
            port: Number(m[4]),
          },
        ]
      : []
  })
}

const jumpsTo = (line: string, chain: string): boolean => line.startsWith('-A ') && line.endsWith(` -j ${chain}`)

/** The lines of one table of iptables-save. */
function section(saved: string, table: Table): string[] {
  const lines = saved.split('\n')
  const from = lines.indexOf(`*${table}`)
  if (from < 0) return []
  return lines.slice(from + 1, lines.indexOf('COMMIT', from))
}
