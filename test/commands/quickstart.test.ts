/**
 * The main job as `npm start` does it: quickstart with everything real, as root and as an ordinary user, and nothing left.
 */
import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { chownSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import type { Report } from '../../src/cli/quickstart/run.ts'
import { freeNames } from '../../src/cli/quickstart/run.ts'
import { eventually } from '../eventually.ts'
import { BIN } from './fake.ts'

const NOBODY = 65_534
const root = process.getuid?.() === 0
const setpriv = ['setpriv', '--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups', '--']

/** Whether an ordinary user may read this checkout and make namespaces; a home below /root may not be entered. */
function userSkip(): string | false {
  if (!root) return false
  const readable = spawnSync(setpriv[0] as string, [
    ...setpriv.slice(1),
    process.execPath,
    '-e',
    `import('${BIN}')`,
    'x',
    '--version',
  ])
  if (readable.status !== 0) return 'an ordinary user cannot read this checkout'
  const namespaces = spawnSync(setpriv[0] as string, [
    ...setpriv.slice(1),
    'unshare',
    '--user',
    '--map-root-user',
    'true',
  ])
  return namespaces.status === 0 ? false : 'ordinary users may not make namespaces here'
}

const kinds = [
  { who: 'root', uid: 0, as: [] as string[], skip: root ? (false as const) : 'needs root' },
  { who: 'an ordinary user', uid: NOBODY, as: root ? setpriv : [], skip: userSkip() },
]

for (const { who, uid, as, skip } of kinds) {
  describe(`quickstart as ${who}`, { skip }, () => {
    test('everything works, nothing is left', { timeout: 600_000 }, async () => {
      const home = mkdtempSync(join(tmpdir(), 'noid-quick-'))
      if (root) chownSync(home, uid, uid)
      const env = { ...process.env, NOID_HOME: home, HOME: home, NOID_HOST: '', NODE_TEST_CONTEXT: undefined }
      const noid = (...args: string[]) =>
        new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
          const [file = '', ...rest] = [...as, process.execPath, BIN, ...args]
          execFile(file, rest, { env, cwd: home, timeout: 580_000 }, (e, stdout, stderr) =>
            resolve({ code: e === null ? 0 : Number(e.code ?? 1), stdout, stderr }),
          )
        })
      try {
        const r = await noid('quickstart', '--json')
        assert.equal(r.code, 0, r.stdout + r.stderr)
        const report = JSON.parse(r.stdout) as Report
        assert.equal(report.ok, true)
        assert.equal(report.vms.length, 2)
        // Without the internet one step says so; nothing else may be skipped.
        const other = report.steps.filter((s) => s.step !== 'DNS of the outside')
        assert.deepEqual(
          other.filter((s) => s.result !== 'works'),
          [],
        )
        assert.deepEqual(JSON.parse((await noid('list', '--json')).stdout), [])
        assert.deepEqual(JSON.parse((await noid('network', 'list', '--json')).stdout), [])
        assert.equal((await noid('daemon', 'stop')).code, 0)
        assert.deepEqual(mounts(home), [])
        await eventually('its processes are gone', () => processes(home).length === 0)
        assert.deepEqual(readdirSync(join(home, 'state', 'vms')), [])
        assert.equal(existsSync(join(home, 'run', 'noid.sock')), false)
      } finally {
        await noid('destroy', '--all')
        await noid('daemon', 'stop')
        rmSync(home, { recursive: true, force: true })
      }
    })
  })
}

test('names that are taken are not used', () => {
  assert.deepEqual(freeNames(new Set()), ['quick-1', 'quick-2'])
  assert.deepEqual(freeNames(new Set(['quick-1', 'quick-3'])), ['quick-2', 'quick-4'])
})

const mounts = (home: string): string[] =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((l) => l.includes(home))

/** Processes that were started for this home: its path is in their arguments or environment. */
function processes(home: string): string[] {
  return readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid) && Number(pid) !== process.pid)
    .flatMap((pid) => {
      try {
        const text = readFileSync(`/proc/${pid}/cmdline`, 'latin1') + readFileSync(`/proc/${pid}/environ`, 'latin1')
        return text.includes(home) ? [text.replaceAll('\0', ' ')] : []
      } catch {
        return []
      }
    })
}
