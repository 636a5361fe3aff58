/**
 * iptables and ebtables as programs: reading what is there, putting a network's chains in place in one transaction, taking them away.
 *
 * Works with iptables-nft and iptables-legacy: whichever `iptables-restore` is. Never does: knowing what a rule means (rules.ts).
 */
import { execFile, spawn } from 'node:child_process'
import { promisify } from 'node:util'
import { NoidError } from '../../errors.ts'
import { PORT_PREFIX } from './links.ts'
import { chains, guardChain, type RuleModel, removeText, restoreText } from './rules.ts'

const run = promisify(execFile)
const TOOL_MS = 15_000
/** Seconds to wait for another program's lock on the tables. */
const LOCK_WAIT = '10'

/** Which packages the programs come from, for hints. */
export const PROGRAMS = {
  'iptables-restore': 'iptables',
  'ebtables-restore': 'iptables',
  conntrack: 'conntrack',
  ip: 'iproute2',
  bridge: 'iproute2',
}

async function feed(tool: string, argv: readonly string[], text: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const child = spawn(tool, argv, { stdio: ['pipe', 'ignore', 'pipe'], timeout: TOOL_MS })
    let said = ''
    child.stderr.on('data', (d: Buffer) => {
      said = (said + d).slice(-2000)
    })
    child.on('error', (e: NodeJS.ErrnoException) =>
      reject(
        e.code === 'ENOENT'
          ? new NoidError('TOOL_MISSING', { tool, package: PROGRAMS[tool as keyof typeof PROGRAMS] })
          : e,
      ),
    )
    child.on('close', (code) =>
      code === 0
        ? resolve()
        : reject(new NoidError('INTERNAL', { why: `${tool} refused the rules: ${said.trim() || code}` })),
    )
    child.stdin.on('error', () => {})
    child.stdin.end(text)
  })
}

/** What iptables-save shows: all tables. */
export async function saved(): Promise<string> {
  try {
    return (await run('iptables-save', [], { timeout: TOOL_MS, maxBuffer: 64 << 20 })).stdout
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code === 'ENOENT')
      throw new NoidError('TOOL_MISSING', { tool: 'iptables-save', package: 'iptables' })
    throw e
  }
}

/** Every port of a bridge of noid's. (`--logical-in`, the bridge itself, is not to be had on every kernel.) */
const FROM_PORTS = `-i ${PORT_PREFIX}+`
const GUARD_JUMPS = ['FORWARD', 'INPUT'] as const

async function savedGuards(): Promise<string> {
  return (await run('ebtables-save', [], { timeout: TOOL_MS, maxBuffer: 64 << 20 })).stdout
}

/** Make iptables' chains of a network what the model says. */
export async function applyRules(m: RuleModel): Promise<void> {
  await feed('iptables-restore', ['--noflush', '--wait', LOCK_WAIT], restoreText(chains(m), await saved()))
}

/** Make the guards of a network's ports what the model says. */
export async function applyGuards(m: RuleModel): Promise<void> {
  const { name, rules } = guardChain(m)
  const present = await savedGuards()
  const jumps = GUARD_JUMPS.filter((b) => !present.includes(`-A ${b} ${FROM_PORTS} -j ${name}`))
  const text = [
    '*filter',
    `:${name} ACCEPT`,
    `-F ${name}`,
    `-P ${name} RETURN`,
    ...rules.map((r) => `-A ${name} ${r}`),
    ...jumps.map((b) => `-A ${b} ${FROM_PORTS} -j ${name}`),
  ]
  await feed('ebtables-restore', ['--noflush'], `${text.join('\n')}\n`)
}

/** Remove every rule of a link. Idempotent. */
export async function removeRules(link: string): Promise<void> {
  const text = removeText(link, await saved())
  if (text !== '') await feed('iptables-restore', ['--noflush', '--wait', LOCK_WAIT], text)
  const name = link.toUpperCase()
  const present = await savedGuards()
  if (!present.includes(`:${name} `)) return
  const jumps = GUARD_JUMPS.filter((b) => present.includes(`-A ${b} ${FROM_PORTS} -j ${name}`))
  await feed(
    'ebtables-restore',
    ['--noflush'],
    `${['*filter', ...jumps.map((b) => `-D ${b} ${FROM_PORTS} -j ${name}`), `-F ${name}`, `-X ${name}`].join('\n')}\n`,
  )
}

/** Frames each port's guard has refused: ifname → count. */
export async function guardCounts(link: string): Promise<Map<string, number>> {
  const counts = new Map<string, number>()
  const { stdout } = await run('ebtables', ['-L', link.toUpperCase(), '--Lc'], { timeout: TOOL_MS })
  for (const line of stdout.split('\n')) {
    const m = line.match(/-i (\S+) .*-j DROP , pcnt = (\d+)/)
    if (m) counts.set(m[1] as string, (counts.get(m[1] as string) ?? 0) + Number(m[2]))
  }
  return counts
}

/** Forget connections to a host port: they were made under a rule that is no more, or before there was one. */
export async function forgetConnections(proto: 'tcp' | 'udp', hostPort: number): Promise<void> {
  // Exit code 1: there were none.
  await run('conntrack', ['-D', '-p', proto, '--orig-port-dst', String(hostPort)], { timeout: TOOL_MS }).catch(() => {})
}
