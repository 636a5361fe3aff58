/**
 * The host's forwarding, which the reference plugins bridge and ptp switch on for good with their first ADD: noted before, put back
 * afterwards, but only while nobody else can have come to rely on it.
 *
 * Nobody says that he relies on forwarding, but whoever does has links or rules that lead somewhere. So what the host had is written down with
 * the switch (`Witness`), and the switch goes back only when the host has nothing beside that. Links of noid's own networks do not
 * count: the bridge backend has forwarding by link, userspace does without.
 */
import { execFile } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { promisify } from 'node:util'

const run = promisify(execFile)
const TOOL_MS = 15_000
const SWITCHES = [
  { path: '/proc/sys/net/ipv4/ip_forward', save: 'iptables-save' },
  { path: '/proc/sys/net/ipv6/conf/all/forwarding', save: 'ip6tables-save' },
] as const
/** The bridge backend's bridges, ports and services, and the userspace backend's host interfaces. */
const NOIDS = /^(noid|nb|nsnoid)/

/** A switch that was off, and what the host had then. */
export interface Witness {
  readonly path: string
  readonly links: readonly string[]
  readonly rules: readonly string[]
}

function off(path: string): boolean {
  try {
    return readFileSync(path, 'latin1').trim() === '0'
  } catch {
    // A kernel without that family.
    return false
  }
}

/** /proc/net/dev names every link of the namespace. */
const links = (): string[] =>
  readFileSync('/proc/thread-self/net/dev', 'latin1')
    .split('\n')
    .flatMap((l) => /^\s*([^\s:]+):/.exec(l)?.[1] ?? [])
    .filter((name) => !NOIDS.test(name))

/** Every rule that is not noid's. */
async function rules(save: string): Promise<string[]> {
  const text = await run(save, [], { timeout: TOOL_MS, maxBuffer: 64 << 20 }).then(
    (r) => r.stdout,
    () => '',
  )
  return text.split('\n').filter((l) => l.startsWith('-A ') && !/^-A NOID\d|--comment noid /.test(l))
}

/** Before an ADD: the switches that are off and not in `known` yet. */
export async function witness(known: readonly Witness[]): Promise<Witness[]> {
  const found: Witness[] = []
  for (const { path, save } of SWITCHES)
    if (off(path) && !known.some((w) => w.path === path)) found.push({ path, links: links(), rules: await rules(save) })
  return found
}

/** Switch it off again; false when somebody else may rely on it, so that it stays as it is. */
export async function putBack(w: Witness): Promise<boolean> {
  if (off(w.path)) return true
  const save = SWITCHES.find((s) => s.path === w.path)?.save
  if (save === undefined) return true
  const more = links().some((l) => !w.links.includes(l)) || (await rules(save)).some((r) => !w.rules.includes(r))
  if (more) return false
  writeFileSync(w.path, '0')
  return true
}
