/**
 * What the reference plugins leave on the host when their last attachment is gone: a bridge without ports, an address pool's
 * directory without addresses, chains of iptables that lead nowhere, and the host's forwarding (forwarding.ts). Plugins make them again
 * when they need them.
 *
 * Only what was not there before noid's first ADD is taken away, and only while it holds nothing of anybody's: another
 * engine that came to use the same bridge or the same chains keeps them.
 * Owns: <stateDir>/made.json.
 */
import { execFile, execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { readState, writeState } from '../../state-file.ts'
import { linkIndex } from '../../sys/netdev.ts'
import type { Chain } from './chain.ts'
import type { PluginConf } from './config.ts'
import { putBack, type Witness, witness } from './forwarding.ts'

const run = promisify(execFile)
const TOOL_MS = 15_000
const TABLES = [
  ['iptables-save', 'iptables-restore'],
  ['ip6tables-save', 'ip6tables-restore'],
] as const
const POOLS = '/var/lib/cni/networks'
/** What portmap and firewall make for all attachments together. */
const COMMON = /^CNI-(HOSTPORT-(DNAT|MASQ|SETMARK)|FORWARD|ADMIN|ISOLATION-STAGE-[12])$/

interface Made {
  readonly bootId: string
  readonly bridges: readonly string[]
  readonly pools: readonly string[]
  /** "iptables-save:nat:CNI-HOSTPORT-DNAT" */
  readonly chains: readonly string[]
  /** Switches that the plugins may turn on. */
  readonly switches: readonly Witness[]
}

export class Traces {
  readonly #file: string
  readonly #bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
  #made: Made

  constructor(stateDir: string) {
    this.#file = join(stateDir, 'made.json')
    const kept = readState<Made>(this.#file)
    // Bridges and chains of another boot are gone; those of their name may be anybody's.
    const now = kept?.bootId === this.#bootId
    this.#made = {
      bootId: this.#bootId,
      bridges: now ? kept.bridges : [],
      pools: kept?.pools ?? [],
      chains: now ? kept.chains : [],
      switches: now ? (kept.switches ?? []) : [],
    }
  }

  /** Before an ADD: what is not there yet will be of noid's making. */
  async note(c: Chain): Promise<void> {
    const bridges = bridgesOf(c).filter((name) => linkIndex(name) < 0)
    const pools = poolsOf(c).filter((dir) => !existsSync(dir))
    const chains = [...candidates(c)]
    const absent: string[] = []
    if (chains.some((k) => !this.#made.chains.includes(k))) {
      const there = new Set((await Promise.all(TABLES.map(([tool]) => commonChains(tool)))).flat().map((x) => x.key))
      absent.push(...chains.filter((k) => !there.has(k)))
    }
    this.#save({
      ...this.#made,
      bridges: [...new Set([...this.#made.bridges, ...bridges])],
      pools: [...new Set([...this.#made.pools, ...pools])],
      chains: [...new Set([...this.#made.chains, ...absent])],
      switches: [...this.#made.switches, ...(await witness(this.#made.switches))],
    })
  }

  /** Take away what holds nothing any more. Never throws: what stays is tried again with the next network. */
  async sweep(log: (message: string) => void): Promise<void> {
    const bridges: string[] = []
    for (const name of this.#made.bridges) {
      const gone = await removeBridge(name).catch((e: Error) => log(`the bridge ${name} stays: ${e.message}`))
      if (gone !== true) bridges.push(name)
    }
    const pools = this.#made.pools.filter((dir) => !removePool(dir))
    for (const [save, restore] of TABLES)
      await removeChains(save, restore, new Set(this.#made.chains)).catch((e: Error) =>
        log(`chains of ${save} stay: ${e.message}`),
      )
    const left = new Set((await Promise.all(TABLES.map(([tool]) => commonChains(tool)))).flat().map((x) => x.key))
    const switches: Witness[] = []
    for (const w of this.#made.switches) if (!(await putBack(w))) switches.push(w)
    this.#save({ ...this.#made, bridges, pools, chains: this.#made.chains.filter((k) => left.has(k)), switches })
  }

  #save(m: Made): void {
    this.#made = m
    writeState(this.#file, m)
  }
}

const text = (p: PluginConf, key: string): string | undefined =>
  typeof p[key] === 'string' && p[key] !== '' ? (p[key] as string) : undefined

const bridgesOf = (c: Chain): string[] =>
  c.plugins.filter((p) => p.type === 'bridge').map((p) => text(p, 'bridge') ?? 'cni0')

/** host-local's directories. */
const poolsOf = (c: Chain): string[] =>
  c.plugins.flatMap((p) => {
    const ipam = p.ipam as PluginConf | undefined
    return ipam?.type === 'host-local' ? [join(text(ipam, 'dataDir') ?? POOLS, c.name)] : []
  })

function* candidates(c: Chain): Generator<string> {
  const wants = (type: string): boolean => c.plugins.some((p) => p.type === type)
  for (const [tool] of TABLES) {
    if (wants('portmap')) for (const name of ['DNAT', 'MASQ', 'SETMARK']) yield `${tool}:nat:CNI-HOSTPORT-${name}`
    if (wants('firewall'))
      for (const name of ['FORWARD', 'ADMIN', 'ISOLATION-STAGE-1', 'ISOLATION-STAGE-2'])
        yield `${tool}:filter:CNI-${name}`
  }
}

/** True when it is gone. */
async function removeBridge(name: string): Promise<boolean> {
  if (linkIndex(name) < 0) return true
  const { stdout } = await run('ip', ['-j', 'link', 'show', 'master', name], { timeout: TOOL_MS })
  if ((JSON.parse(stdout.trim() || '[]') as unknown[]).length > 0) return false
  await run('ip', ['link', 'delete', name, 'type', 'bridge'], { timeout: TOOL_MS })
  return true
}

/** True when it is gone: it held no address. */
function removePool(dir: string): boolean {
  if (!existsSync(dir)) return true
  if (readdirSync(dir).some((f) => f !== 'lock' && !f.startsWith('last_reserved_ip.'))) return false
  rmSync(dir, { recursive: true, force: true })
  return true
}

/**
 * What DEL of the plugins with `ipMasq` leaves when the device was gone before: the rules that lead to the attachment's own
 * chain, by the comment that libcni's helpers put on each, and the chain. (They learn the addresses from the device.)
 */
export async function removeMasquerade(c: Chain, containerId: string): Promise<void> {
  if (!c.plugins.some((p) => p.ipMasq === true)) return
  for (const [save, restore] of TABLES) {
    const { stdout } = await run(save, ['-t', 'nat'], { timeout: TOOL_MS, maxBuffer: 64 << 20 }).catch(() => ({
      stdout: '',
    }))
    const text = withoutMasquerade(stdout, c.name, containerId)
    if (text !== undefined) feed(restore, text)
  }
}

/** Pure, for tests: what iptables-restore is told, or undefined when there is nothing to remove. */
export function withoutMasquerade(saved: string, name: string, containerId: string): string | undefined {
  const mark = `--comment "name: \\"${name}\\" id: \\"${containerId}\\""`
  const jumps = saved.split('\n').filter((l) => l.startsWith('-A POSTROUTING ') && l.includes(mark))
  const chains = [...new Set(jumps.map(target))].filter((t) => t.startsWith('CNI-'))
  if (chains.length === 0) return undefined
  const lines = [
    ...jumps.map((j) => j.replace(/^-A/, '-D')),
    ...chains.map((x) => `-F ${x}`),
    ...chains.map((x) => `-X ${x}`),
  ]
  return `*nat\n${lines.join('\n')}\nCOMMIT\n`
}

interface CommonChain {
  readonly key: string
  readonly table: string
  readonly name: string
  /** Rules in it that lead to an attachment's own chain or name an address: somebody uses it. */
  readonly used: boolean
  /** Rules elsewhere that lead into it. */
  readonly jumps: readonly string[]
}

async function commonChains(tool: string): Promise<CommonChain[]> {
  const saved = await run(tool, [], { timeout: TOOL_MS, maxBuffer: 64 << 20 }).then(
    (r) => r.stdout,
    () => '',
  )
  return parseChains(tool, saved)
}

/** Pure, for tests. `saved` is what iptables-save prints. */
export function parseChains(tool: string, saved: string): CommonChain[] {
  const found: CommonChain[] = []
  for (const part of saved.split(/^\*/m).slice(1)) {
    const lines = part.split('\n')
    const table = lines[0] as string
    const names = lines.flatMap((l) => /^:(\S+) - /.exec(l)?.[1] ?? []).filter((n) => COMMON.test(n))
    for (const name of names) {
      const rules = lines.filter((l) => l.startsWith(`-A ${name} `))
      found.push({
        key: `${tool}:${table}:${name}`,
        table,
        name,
        used: rules.some((l) => !COMMON.test(target(l)) && !/ -j (MASQUERADE|MARK|RETURN)\b/.test(l)),
        jumps: lines.filter((l) => l.startsWith('-A ') && target(l) === name),
      })
    }
  }
  return found
}

const target = (rule: string): string => / -j (\S+)/.exec(rule)?.[1] ?? ''

/** In one transaction: jumps into the chains, their rules, the chains. A chain that one in use leads to stays as well. */
async function removeChains(save: string, restore: string, made: ReadonlySet<string>): Promise<void> {
  const all = await commonChains(save)
  const busy = new Set(all.filter((x) => x.used || !made.has(x.key)).map((x) => x.table))
  // Tables are taken or left as a whole: their chains belong together.
  const going = all.filter((x) => !busy.has(x.table))
  if (going.length === 0) return
  const lines: string[] = []
  for (const table of new Set(going.map((x) => x.table))) {
    const chains = going.filter((x) => x.table === table)
    lines.push(`*${table}`)
    lines.push(...chains.flatMap((x) => x.jumps.map((j) => j.replace(/^-A/, '-D'))))
    lines.push(...chains.map((x) => `-F ${x.name}`), ...chains.map((x) => `-X ${x.name}`), 'COMMIT')
  }
  feed(restore, `${lines.join('\n')}\n`)
}

function feed(restore: string, text: string): void {
  execFileSync(restore, ['--noflush', '--wait', '10'], {
    input: text,
    timeout: TOOL_MS,
    stdio: ['pipe', 'ignore', 'pipe'],
  })
}
