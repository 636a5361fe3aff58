/** `noid bench` itself, short, in its namespaces: its shape, that it leaves nothing, that it can be interrupted. Never its speed. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { Report } from '../../src/bench/contract.ts'
import { eventually } from '../eventually.ts'
import { missing } from '../plugins/needs.ts'
import { ownHost } from '../plugins/own-host.ts'

const NOID = fileURLToPath(new URL('../../bin/noid.mjs', import.meta.url))
// Links of a host of its own: nobody else's come and go meanwhile. Processes of this checkout: somebody may measure with another.
const skip = missing() || ownHost()
const HERE = fileURLToPath(new URL('../../src/bench/', import.meta.url))
const LIMIT_MS = 600_000
/** Everything is measured, however slow the machine. */
const QUICK_S = 480

/** Links of this host, and processes of a bench that were not there before. */
function traces(before: ReadonlySet<string> = new Set()): { links: string; processes: string[] } {
  const links = execFileSync('ip', ['-o', 'link'], { encoding: 'utf8' }).replace(/ state .*/g, '')
  const processes = readdirSync('/proc')
    .filter((p) => /^\d+$/.test(p) && !before.has(p))
    .flatMap((p) => {
      try {
        const argv = readFileSync(`/proc/${p}/cmdline`, 'latin1').replaceAll('\0', ' ')
        return argv.includes(HERE) ? [argv] : []
      } catch {
        return []
      }
    })
  return { links, processes }
}

test('bench --quick: figures of userspace and the kernel, a page, nothing left behind', {
  skip,
  timeout: LIMIT_MS,
}, async () => {
  const others = new Set(readdirSync('/proc'))
  const before = traces(others)
  const dir = mkdtempSync(join(tmpdir(), 'noid-bench-'))
  try {
    const page = join(dir, 'report.html')
    const only = ['userspace', 'kernel', 'tcp-out', 'tcp-vm', 'udp-64', 'rr', 'dns', 'rss'].flatMap((o) => [
      '--only',
      o,
    ])
    const argv = [NOID, 'bench', '--quick', '--json', '--report', page, ...only]
    const text = execFileSync(process.execPath, argv, {
      encoding: 'utf8',
      timeout: LIMIT_MS,
      env: { ...process.env, NOID_BENCH_QUICK_S: String(QUICK_S) },
    })
    const r = JSON.parse(text) as Report
    assert.deepEqual(r.subjects.map((s) => s.name).sort(), ['kernel-nf1', 'userspace'])
    assert.ok(r.subjects.every((s) => s.mtu === 1500))
    assert.ok(r.facts.some(([k]) => k === 'kernel'))
    for (const part of ['tcp-out-1', 'tcp-vm-1', 'udp-64-vm', 'rr-out', 'rr-out-p99'])
      for (const s of r.subjects) {
        const f = r.figures.find((x) => x.part === part && x.subject === s.name)
        assert.equal(f?.failed, undefined, `${part} of ${s.name}: ${f?.failed}`)
        assert.ok((f?.samples[0]?.value ?? 0) > 0, `${part} of ${s.name}`)
      }
    assert.match(readFileSync(page, 'utf8'), /<svg/)
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
  await eventually('its processes are gone', () => traces(others).processes.length === 0)
  assert.deepEqual(traces(others), before)
})

test('bench of cni reserves no address in a network of the machine', { skip, timeout: LIMIT_MS }, () => {
  const NETWORKS = '/var/lib/cni/networks'
  const reserved = () => (existsSync(NETWORKS) ? readdirSync(NETWORKS, { recursive: true }).map(String).sort() : [])
  const before = reserved()
  const argv = [NOID, 'bench', '--json', '--rounds', '1', '--seconds', '1', '--only', 'cni', '--only', 'tcp-out-1']
  const r = JSON.parse(execFileSync(process.execPath, argv, { encoding: 'utf8', timeout: LIMIT_MS })) as Report
  assert.deepEqual(
    r.subjects.map((s) => s.name),
    ['cni'],
  )
  assert.deepEqual(reserved(), before)
})

test('bench: an interrupt in the middle leaves nothing', { skip, timeout: LIMIT_MS }, async () => {
  const others = new Set(readdirSync('/proc'))
  const before = traces(others)
  const child = spawn(process.execPath, [NOID, 'bench', '--only', 'userspace', '--only', 'tcp'], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  let said = ''
  let asked = false
  child.stderr.on('data', (d: Buffer) => {
    said += d
    if (!asked && said.includes('TCP guest→host')) asked = child.kill('SIGINT')
  })
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve))
  assert.equal(code, 1)
  assert.match(said, /interrupted/)
  await eventually('its processes are gone', () => traces(others).processes.length === 0)
  assert.deepEqual(traces(others), before)
})
