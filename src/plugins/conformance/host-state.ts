/**
 * What of the host a backend could leave behind, as sorted lines: links, addresses, routes, rules, switches, mounts, listening ports.
 *
 * Never does: judging; `compareHost` throws with what came and what went, `asBefore` when it is so for longer than a while.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { patiently } from './patience.ts'

export type HostState = Readonly<Record<string, readonly string[]>>

const lines = (text: string): string[] => text.split('\n').filter((l) => l.trim() !== '')

function output(tool: string, ...argv: string[]): string[] {
  try {
    return lines(execFileSync(tool, argv, { stdio: ['ignore', 'pipe', 'ignore'], timeout: 10_000 }).toString())
  } catch {
    return []
  }
}

/** Local address and port of everything that listens (TCP state 0A, UDP unconnected 07). */
function listeners(file: string, state: string): string[] {
  try {
    return lines(readFileSync(`/proc/self/net/${file}`, 'utf8'))
      .map((l) => l.trim().split(/\s+/))
      .filter((f) => f[3] === state)
      .map((f) => `${file} ${f[1]}`)
  } catch {
    return []
  }
}

/** Switches of the links that a backend may have reason to touch. */
function switches(): string[] {
  const kept = {
    ipv4: ['forwarding', 'route_localnet', 'rp_filter', 'proxy_arp'],
    ipv6: ['forwarding', 'accept_ra', 'disable_ipv6', 'proxy_ndp'],
  }
  return Object.entries(kept).flatMap(([family, keys]) => {
    const conf = `/proc/sys/net/${family}/conf`
    if (!existsSync(conf)) return []
    return readdirSync(conf).flatMap((link) =>
      keys.flatMap((key) => {
        try {
          return [`${family} ${link}.${key} = ${readFileSync(`${conf}/${link}/${key}`, 'utf8').trim()}`]
        } catch {
          return []
        }
      }),
    )
  })
}

export function hostState(): HostState {
  // Rules, and chains that somebody made (policy "-"); a table that was only looked at shows its built-in chains.
  const rules = (tool: string) =>
    output(tool)
      .filter((l) => l.startsWith('-') || /^:\S+ - /.test(l))
      .map((l) => l.replace(/\[\d+:\d+\]/, ''))
  return {
    links: output('ip', '-o', 'link', 'show').map((l) => l.replace(/^\d+: /, '').split(' ')[0] as string),
    // What ends by itself in these: lifetimes, and the probe for a duplicate.
    addresses: output('ip', '-o', 'addr', 'show').map((l) =>
      l.replace(/^\d+: /, '').replace(/ (valid_lft|preferred_lft) \S+| tentative| optimistic/g, ''),
    ),
    routes: output('ip', 'route', 'show', 'table', 'all').map((l) => l.replace(/ expires \S+/, '')),
    'routing rules': output('ip', 'rule', 'show'),
    'iptables rules': rules('iptables-save'),
    'ip6tables rules': rules('ip6tables-save'),
    'ebtables rules': output('ebtables-save').filter(
      (l) =>
        l.startsWith('-') ||
        (l.startsWith(':') && !/^:(BROUTING|PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) /.test(l)),
    ),
    switches: switches(),
    mounts: lines(readFileSync('/proc/self/mountinfo', 'utf8')).map((l) => l.split(' ').slice(3, 6).join(' ')),
    'listening ports': [
      ...listeners('tcp', '0A'),
      ...listeners('tcp6', '0A'),
      ...listeners('udp', '07'),
      ...listeners('udp6', '07'),
    ],
  }
}

export function compareHost(before: HostState, after: HostState): void {
  const said: string[] = []
  for (const [kind, was] of Object.entries(before)) {
    const is = after[kind] as readonly string[]
    const left = is.filter((l) => !was.includes(l))
    const gone = was.filter((l) => !is.includes(l))
    if (left.length > 0) said.push(`${kind} left behind: ${left.join('; ')}`)
    // A mount can go by itself: whoever removes a mount point anywhere detaches it everywhere.
    if (gone.length > 0 && kind !== 'mounts') said.push(`${kind} that are gone: ${gone.join('; ')}`)
  }
  if (said.length > 0) throw new Error(`the host is not as it was before: ${said.join(' | ')}`)
}

/** The host is as it was. What goes with the last thread of a process that was ended goes a moment later. */
export const asBefore = (before: HostState): Promise<void> => patiently(() => compareHost(before, hostState()))
