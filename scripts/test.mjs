/**
 * `npm test [-- FILE...]`: installs what is missing, then style, types and every test.
 *
 * Two rounds. Files that only compute run side by side; those that make namespaces, devices and daemons, or measure,
 * run one after another. NOID_TEST_ONLY=unit|system picks a round. Each file is a process group with a bound of its own:
 * one that hangs is ended, named and counted as failed, so this always ends. A last block in node's own words adds up.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { ensureModules, ensureTools, environment, node, root } from './setup.mjs'

/** Rooms whose tests only compute; every other one touches the machine. */
const COMPUTES = ['netstack', 'sim', 'dhcp-packet', 'walls.test.ts']
/** No file takes a third of this when it is well, also on a busy machine. */
const FILE_MS = 30 * 60_000
/** From asking a file to end (its labs are removed then) to ending it. */
const GRACE_MS = 10_000
/** Node's closing block of one file: one is printed for all of them. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: colours
const CLOSING = /^(?:\x1b\[\d+m)*ℹ (tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+(?:\x1b\[\d+m)*$/
const SLOWEST = 10

const started = Date.now()
const say = (text) => process.stdout.write(`${text}\n`)
const running = new Set()
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'])
  process.on(signal, () => {
    for (const child of running) end(child, 'SIGTERM')
    process.exit(130)
  })

ensureModules()
ensureTools('test')

const failed = []
const files = []
const named = process.argv.slice(2)
if (named.length === 0) {
  await step('style', [join(root, 'node_modules', '@biomejs', 'biome', 'bin', 'biome'), 'check', '.'])
  await step('types', [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '--noEmit'])
}

const all = named.length > 0 ? named : testFiles(join(root, 'test')).map((f) => relative(root, f))
const computes = (f) => COMPUTES.includes(f.split('/')[1])
const only = process.env.NOID_TEST_ONLY
const scratch = mkdtempSync(join(tmpdir(), 'noid-test-'))
for (const [round, list, jobs] of [
  ['unit', all.filter(computes), Math.max(2, availableParallelism())],
  ['system', all.filter((f) => !computes(f)), 1],
]) {
  if (list.length === 0 || (only !== undefined && only !== round)) continue
  say(`\n== ${round} tests: ${list.length} files${jobs > 1 ? `, ${jobs} at a time` : ''}`)
  const queue = list.map((file, i) => ({ file, at: `${i + 1}/${list.length}` }))
  const worker = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) files.push(await testFile(next.file, next.at, jobs > 1))
  }
  await Promise.all(Array.from({ length: jobs }, worker))
}
rmSync(scratch, { recursive: true, force: true })
close()
process.exit(failed.length > 0 ? 1 : 0)

/** A program of this step, its output as it comes. */
async function step(name, args) {
  say(`\n== ${name}`)
  const { code, why } = await run(args, (text) => process.stdout.write(text))
  if (code !== 0) failed.push(`${name}${why}`)
}

/** One file in a process of its own. With `quiet` its text comes at once when it has ended: others run beside it. */
async function testFile(file, at, quiet) {
  const began = Date.now()
  const json = join(scratch, `${file.replaceAll('/', '-')}.json`)
  const args = [
    '--disable-warning=ExperimentalWarning',
    '--test',
    // The file's process is this one: between two, an early exit loses results on a busy machine.
    '--test-isolation=none',
    '--test-force-exit',
    `--test-timeout=${FILE_MS}`,
    '--test-reporter=spec',
    '--test-reporter-destination=stdout',
    `--test-reporter=${join(root, 'scripts', 'count-reporter.mjs')}`,
    `--test-reporter-destination=${json}`,
    file,
  ]
  if (!quiet) say(`\n-- ${file} (${at})`)
  let text = ''
  let line = ''
  const { code, why } = await run(args, (chunk) => {
    const lines = (line + chunk).split('\n')
    line = lines.pop()
    const shown = lines.filter((l) => !CLOSING.test(l)).map((l) => `${l}\n`)
    if (quiet) text += shown.join('')
    else process.stdout.write(shown.join(''))
  })
  const seconds = (Date.now() - began) / 1000
  if (quiet) process.stdout.write(`\n-- ${file} (${at}), ${seconds.toFixed(1)} s\n${text}`)
  if (line !== '' && !CLOSING.test(line)) say(line)
  let counted
  try {
    counted = JSON.parse(readFileSync(json, 'utf8'))
  } catch {
    // It was ended, or ended itself, before it could count.
    counted = { counts: { tests: 1, failed: 1 }, failures: [`no result${why}`], skips: [] }
  }
  if (code !== 0) {
    const names = counted.failures.length > 0 ? counted.failures : [`exit code ${code}${why}`]
    failed.push(...names.map((n) => `${file}: ${n}`))
  }
  return { file, seconds, ...counted }
}

/** Run node to its end, or to the bound's. What it started and left must not hold us up: its exit is the end, not its pipes'. */
function run(args, onText) {
  return new Promise((resolve) => {
    const child = spawn(node, args, {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...(process.stdout.isTTY ? { FORCE_COLOR: '1' } : {}), ...environment() },
      detached: true,
    })
    running.add(child)
    let why = ''
    let hard
    const bound = setTimeout(() => {
      why = `: it took longer than ${FILE_MS / 60_000} minutes and was ended`
      onText(`${args.at(-1)}${why}\n`)
      end(child, 'SIGTERM')
      hard = setTimeout(() => end(child, 'SIGKILL'), GRACE_MS)
    }, FILE_MS)
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', onText)
    child.on('error', (e) => {
      why = `: ${e.message}`
    })
    child.on('exit', (code, signal) => {
      clearTimeout(bound)
      clearTimeout(hard)
      // What its tests left running in its group.
      end(child, 'SIGKILL')
      running.delete(child)
      const last = setTimeout(done, 1000)
      child.on('close', done)
      function done() {
        clearTimeout(last)
        for (const stream of [child.stdout, child.stderr]) stream.destroy()
        resolve({ code: code ?? signal, why })
      }
    })
  })
}

/** A signal to a process and all of its group. */
function end(child, signal) {
  try {
    process.kill(-child.pid, signal)
  } catch {
    // Nobody is left.
  }
}

function close() {
  const slow = files.toSorted((a, b) => b.seconds - a.seconds).slice(0, SLOWEST)
  say(`\n== slowest files\n${slow.map((f) => `${f.seconds.toFixed(1).padStart(7)} s  ${f.file}`).join('\n')}`)
  const reasons = new Map()
  for (const s of files.flatMap((f) => f.skips)) reasons.set(s, (reasons.get(s) ?? 0) + 1)
  if (reasons.size > 0)
    say(`\n== skipped\n${[...reasons].map(([why, n]) => `${`${n}`.padStart(4)}  ${why}`).join('\n')}`)
  if (failed.length > 0) say(`\n== failed\n${failed.map((f) => `  ✖ ${f}`).join('\n')}`)
  const sum = (key) => files.reduce((n, f) => n + (f.counts[key] ?? 0), 0)
  say(
    [
      '',
      `ℹ tests ${sum('tests')}`,
      `ℹ suites ${sum('suites')}`,
      `ℹ pass ${sum('passed')}`,
      `ℹ fail ${sum('failed')}`,
      `ℹ cancelled ${sum('cancelled')}`,
      `ℹ skipped ${sum('skipped')}`,
      `ℹ todo ${sum('todo')}`,
      `ℹ duration_ms ${Date.now() - started}`,
    ].join('\n'),
  )
}

function testFiles(dir) {
  return readdirSync(dir, { withFileTypes: true })
    .flatMap((e) =>
      e.isDirectory() ? testFiles(join(dir, e.name)) : e.name.endsWith('.test.ts') ? [join(dir, e.name)] : [],
    )
    .sort()
}
