/**
 * `npm test [-- FILE...]`: installs what is missing, then style, types and every test.
 *
 * Two rounds. Tests that only compute run side by side; those that make namespaces, devices and daemons, or measure,
 * run one after another. A last block in node's own words adds the rounds up. NOID_TEST_ONLY=unit|system picks a round.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { ensureModules, ensureTools, environment, node, root } from './setup.mjs'

/** Rooms whose tests only compute; every other one touches the machine. */
const COMPUTES = ['netstack', 'sim', 'dhcp-packet', 'walls.test.ts']
/** No file takes longer when it is well; this ends one that hangs. */
const FILE_TIMEOUT_MS = 10 * 60_000

const started = Date.now()
ensureModules()
ensureTools('test')

const failed = []
const named = process.argv.slice(2)
if (named.length === 0) {
  step('style', [join(root, 'node_modules', '@biomejs', 'biome', 'bin', 'biome'), 'check', '.'])
  step('types', [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '--noEmit'])
}

const files = named.length > 0 ? named : testFiles(join(root, 'test')).map((f) => relative(root, f))
const room = (f) => f.split('/')[1]
const only = process.env.NOID_TEST_ONLY
const rounds = [
  { name: 'unit', files: files.filter((f) => COMPUTES.includes(room(f))), jobs: Math.max(2, availableParallelism()) },
  { name: 'system', files: files.filter((f) => !COMPUTES.includes(room(f))), jobs: 1 },
].filter((r) => r.files.length > 0 && (only === undefined || only === r.name))

const scratch = mkdtempSync(join(tmpdir(), 'noid-test-'))
const totals = { tests: 0, suites: 0, passed: 0, failed: 0, cancelled: 0, skipped: 0, todo: 0 }
for (const r of rounds) {
  const counts = join(scratch, `${r.name}.json`)
  step(`${r.name} tests`, [
    '--disable-warning=ExperimentalWarning',
    '--test',
    '--test-force-exit',
    `--test-concurrency=${r.jobs}`,
    `--test-timeout=${FILE_TIMEOUT_MS}`,
    '--test-reporter=spec',
    '--test-reporter-destination=stdout',
    `--test-reporter=${join(root, 'scripts', 'count-reporter.mjs')}`,
    `--test-reporter-destination=${counts}`,
    ...r.files,
  ])
  add(counts, r.name)
}
rmSync(scratch, { recursive: true, force: true })

if (failed.length > 0) process.stdout.write(`\nfailed: ${failed.join(', ')}\n`)
process.stdout.write(
  [
    '',
    `ℹ tests ${totals.tests}`,
    `ℹ suites ${totals.suites}`,
    `ℹ pass ${totals.passed}`,
    `ℹ fail ${totals.failed}`,
    `ℹ cancelled ${totals.cancelled}`,
    `ℹ skipped ${totals.skipped}`,
    `ℹ todo ${totals.todo}`,
    `ℹ duration_ms ${Date.now() - started}`,
    '',
  ].join('\n'),
)
process.exit(failed.length > 0 ? 1 : 0)

function step(name, args) {
  process.stdout.write(`\n== ${name}\n`)
  const r = spawnSync(node, args, { cwd: root, stdio: 'inherit', env: environment() })
  if (r.status !== 0) failed.push(name)
}

function add(file, name) {
  try {
    const counts = JSON.parse(readFileSync(file, 'utf8'))
    for (const key of Object.keys(totals)) totals[key] += counts[key] ?? 0
  } catch {
    if (!failed.includes(`${name} tests`)) failed.push(`${name} tests`)
  }
}

function testFiles(dir) {
  return readdirSync(dir, { withFileTypes: true })
    .flatMap((e) =>
      e.isDirectory() ? testFiles(join(dir, e.name)) : e.name.endsWith('.test.ts') ? [join(dir, e.name)] : [],
    )
    .sort()
}
