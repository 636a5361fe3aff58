/**
 * iptables and ebtables as programs: reading what is there, putting a network's chains in place in one transaction, taking them away.
 *
 * Works with iptables-nft and iptables-legacy: whichever `iptables-restore` is. Never does: knowing what a rule means (rules.ts).
 */
import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { promisify } from 'node:util'
import { NoidError } from '../../errors.ts'
import { type Guard, type GuardedNetwork, guarded, guardText, type Refusals, refusals, unguardText } from './guard.ts'
import { type Chain, chains, chains6, type RuleModel, removeText, restoreText, whole } from './rules.ts'

const run = promisify(execFile)
const TOOL_MS = 15_000
/** Seconds to wait for another program's lock on the tables. */
const LOCK_WAIT = '10'
/** Somebody else's rules may change between reading and writing. */
const TRIES = 3

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

/** What iptables-save (or ip6tables-save) shows: all tables. */
export async function saved(tool: 'iptables' | 'ip6tables' | 'ebtables' = 'iptables'): Promise<string> {
  try {
    return (await run(`${tool}-save`, [], { timeout: TOOL_MS, maxBuffer: 64 << 20 })).stdout
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code === 'ENOENT')
      throw new NoidError('TOOL_MISSING', { tool: `${tool}-save`, package: 'iptables' })
    throw e
  }
}

/** Read, and write what `text` makes of it; nothing when that is empty. */
async function change(tool: 'iptables' | 'ip6tables' | 'ebtables', text: (present: string) => string): Promise<void> {
  for (let t = 1; ; t++) {
    const wanted = text(await saved(tool))
    if (wanted === '') return
    try {
      const lock = tool === 'ebtables' ? [] : ['--wait', LOCK_WAIT]
      return await feed(`${tool}-restore`, ['--noflush', ...lock], wanted)
    } catch (e) {
      if (t === TRIES) throw e
    }
  }
}

/** A kernel without IPv6 has no ip6tables either, and needs none; nor must a network without IPv6 fail for them. */
async function change6(needed: boolean, text: (present: string) => string): Promise<void> {
  if (!existsSync('/proc/net/if_inet6')) return
  const done = change('ip6tables', text)
  await (needed ? done : done.catch(() => {}))
}

/** Both families' chains of a network. */
async function changeRules(m: RuleModel, text: (all: readonly Chain[], present: string) => string): Promise<void> {
  await Promise.all([
    change('iptables', (present) => text(chains(m), present)),
    change6(m.six !== undefined, (present) => text(chains6(m), present)),
  ])
}

/** Make iptables' and ip6tables' chains of a network what the model says. */
export const applyRules = (m: RuleModel): Promise<void> => changeRules(m, restoreText)

/** As `applyRules`, for a model that has not changed: writes only when somebody meddled. */
export const keepRules = (m: RuleModel): Promise<void> =>
  changeRules(m, (all, present) => (whole(all, present) ? '' : restoreText(all, present)))

/** Make the guards of a network's ports what they should be. */
export const applyGuards = (n: GuardedNetwork, guards: readonly Guard[]): Promise<void> =>
  change('ebtables', (present) => guardText(n, guards, present))

/** All rules of the host, everybody's, at one moment. */
export interface Installed {
  readonly four: string
  readonly six: string
  readonly bridge: string
}

export async function installed(): Promise<Installed> {
  const [four, six, bridge] = await Promise.all([
    saved(),
    existsSync('/proc/net/if_inet6') ? saved('ip6tables').catch(() => '') : '',
    saved('ebtables'),
  ])
  return { four, six, bridge }
}

/** Is every rule of a network among them? */
export function rulesWhole(m: RuleModel, n: GuardedNetwork, guards: readonly Guard[], i: Installed): boolean {
  return whole(chains(m), i.four) && (m.six === undefined || whole(chains6(m), i.six)) && guarded(n, guards, i.bridge)
}

/** Remove every rule of a link. Idempotent. */
export async function removeRules(link: string): Promise<void> {
  await Promise.all([
    change('iptables', (present) => removeText(link, present)),
    change6(false, (present) => removeText(link, present)),
    change('ebtables', (present) => unguardText(link, present)),
  ])
}

/** What the guards of a network have refused. */
export async function guardRefusals(n: GuardedNetwork, guards: readonly Guard[]): Promise<Refusals> {
  const { stdout } = await run('ebtables', ['-t', 'nat', '-L', '--Lc'], { timeout: TOOL_MS, maxBuffer: 64 << 20 })
  return refusals(n, guards, stdout)
}
