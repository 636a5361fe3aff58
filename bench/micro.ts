/**
 * Every micro-benchmark against the stored baseline: `npm run bench:micro [-- --update] [--rounds N] [NAME...]`.
 *
 * Each suite runs in a process of its own, in alternating rounds. Ends with 1 when a case has regressed beyond noise (lib/baseline.ts); `--update`
 * stores what was measured instead, as this processor's. NAME chooses suites: `tcp` is tcp.bench.ts.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { processor } from '../src/bench/processor.ts'
import {
  type Baseline,
  compare,
  condense,
  figuresOf,
  type Machine,
  type Stored,
  sameNode,
  stored,
} from './lib/baseline.ts'
import { JSON_ENV, type Result } from './lib/suite.ts'

const ROUNDS = 5
const SUITE_MS = 120_000
const here = fileURLToPath(new URL('.', import.meta.url))
const file = `${here}baseline.json`

const { values: o, positionals: names } = parseArgs({
  allowPositionals: true,
  options: { update: { type: 'boolean', default: false }, rounds: { type: 'string', default: String(ROUNDS) } },
})
const suites = readdirSync(here)
  .filter((f) => f.endsWith('.bench.ts'))
  .filter((f) => names.length === 0 || names.includes(f.replace('.bench.ts', '')))
const machine: Machine = {
  cpu: processor(),
  cpus: cpus().length,
  kernel: release(),
  node: process.version,
}

function runSuite(name: string): Record<string, Result> {
  const argv = ['--expose-gc', '--disable-warning=ExperimentalWarning', `${here}${name}`]
  const env = { ...process.env, [JSON_ENV]: '1', NODE_OPTIONS: '' }
  const r = spawnSync(process.execPath, argv, { encoding: 'utf8', timeout: SUITE_MS, env })
  if (r.status !== 0) throw new Error(`${name}: ${r.stderr || r.error?.message || `exit code ${r.status}`}`)
  return JSON.parse(r.stdout.trim().split('\n').at(-1) as string) as Record<string, Result>
}

const results = new Map<string, Result[]>()
for (let round = 0; round < Number(o.rounds); round++)
  for (const name of suites) {
    process.stderr.write(`round ${round + 1} of ${o.rounds}: ${name}\n`)
    for (const [key, r] of Object.entries(runSuite(name))) results.set(key, [...(results.get(key) ?? []), r])
  }
const now: Record<string, Stored> = Object.fromEntries([...results].map(([key, list]) => [key, condense(list)]))
const baseline = existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as Baseline) : []
const own = figuresOf(baseline, machine)

const number = (n: number | null | undefined, digits: number): string =>
  n === null || n === undefined || !Number.isFinite(n) ? '-' : n.toFixed(digits)
const verdicts = compare(baseline, machine, now)
if (own === undefined)
  console.log(
    `${machine.cpu} has no figures in the baseline: only bytes are compared (\`-- --update\` stores what it needs)`,
  )
else if (!sameNode(own.machine, machine)) console.log(`the baseline is of Node ${own.machine.node}: wider tolerance`)
console.log(
  `${'CASE'.padEnd(52)} ${'NS'.padStart(9)} ${'BYTES'.padStart(8)} ${'COST'.padStart(8)} ${'WAS'.padStart(8)}  RATIO`,
)
for (const v of verdicts) {
  const columns = [
    number(v.now.ns, 1).padStart(9),
    number(v.now.bytes, 1).padStart(8),
    number(v.now.cost, 4).padStart(8),
  ]
  const before = number(v.before?.cost, 4).padStart(8)
  console.log(
    `${v.name.padEnd(52)} ${columns.join(' ')} ${before}  ${number(v.ratio, 2)} ${v.regressed ? `REGRESSED: ${v.why}` : v.why}`,
  )
}
if (o.update) {
  const round = (n: number | null): number | null => (n === null ? null : Number(n.toPrecision(4)))
  const tidy = Object.entries(now).map(([name, c]) => [
    name,
    Object.fromEntries(Object.entries(c).map(([k, v]) => [k, typeof v === 'boolean' ? v : round(v)])),
  ])
  const whole = names.length === 0
  writeFileSync(
    file,
    `${JSON.stringify(stored(baseline, { machine, cases: Object.fromEntries(tidy) }, whole), null, 2)}\n`,
  )
  console.log(`stored in bench/baseline.json`)
} else if (verdicts.some((v) => v.regressed)) process.exitCode = 1
