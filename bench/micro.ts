/**
 * Every micro-benchmark against the stored baseline: `npm run bench:micro [-- --update] [--rounds N] [NAME...]`.
 *
 * Each suite runs in a process of its own, in alternating rounds. Ends with 1 when a case has regressed beyond noise (lib/baseline.ts); `--update`
 * stores what was measured instead. NAME chooses suites: `tcp` is tcp.bench.ts.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type Baseline, compare, condense, type Stored, sameMachine } from './lib/baseline.ts'
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
const machine: Baseline['machine'] = {
  cpu: cpus()[0]?.model ?? 'unknown',
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
const stored = existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as Baseline) : undefined

const number = (n: number | null | undefined, digits: number): string =>
  n === null || n === undefined || !Number.isFinite(n) ? '-' : n.toFixed(digits)
const verdicts = compare(stored ?? { machine, cases: {} }, machine, now)
if (stored !== undefined && !sameMachine(stored.machine, machine))
  console.log(
    `the baseline is of another machine (${stored.machine.cpu}, Node ${stored.machine.node}): wider tolerance`,
  )
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
  // What was not run stays as it is, if it is of this machine.
  const kept = stored !== undefined && names.length > 0 && sameMachine(stored.machine, machine) ? stored.cases : {}
  const cases = Object.fromEntries(Object.entries({ ...kept, ...now }).sort(([a], [b]) => (a < b ? -1 : 1)))
  const round = (n: number | null): number | null => (n === null ? null : Number(n.toPrecision(4)))
  const tidy = Object.fromEntries(
    Object.entries(cases).map(([k, c]) => [
      k,
      {
        cost: round(c.cost),
        least: round(c.least),
        spread: round(c.spread),
        bytes: round(c.bytes),
        ns: round(c.ns),
        kernel: c.kernel,
      },
    ]),
  )
  writeFileSync(file, `${JSON.stringify({ machine, cases: tidy }, null, 2)}\n`)
  console.log(`stored in bench/baseline.json`)
} else if (verdicts.some((v) => v.regressed)) process.exitCode = 1
