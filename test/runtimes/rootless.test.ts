/**
 * The tests of sandboxes once more, as ordinary users: one with a range of subordinate ids, one without.
 *
 * Root's test run cannot become somebody else for good, so each is a test process of its own whose result is told here. The user with a
 * range is made for it and gone afterwards; the one without has no name, as numbers suffice.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { chownSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import { runsAs } from '../users.ts'

/** Nobody's number, and another one in each run: what is left of it is ended. */
const NAMELESS = 61_000 + Math.floor(Math.random() * 3000)
const LIMIT_MS = 840_000
const root = process.getuid?.() === 0
const files = ['./sandbox.test.ts', './limits.test.ts', './mounts.test.ts'].map((f) =>
  fileURLToPath(new URL(f, import.meta.url)),
)
const undo: (() => void)[] = []

/** A user whom useradd gave a range, or why there is none. */
function withRange(): number | string {
  if (!existsSync('/usr/bin/newuidmap')) return 'needs the program newuidmap'
  const name = `nt${Math.random().toString(36).slice(2, 8)}`
  const made = spawnSync('useradd', ['--no-create-home', '--user-group', '--shell', '/bin/sh', name])
  if (made.status !== 0) return `useradd: ${made.error?.message ?? made.stderr}`
  undo.push(() => spawnSync('userdel', ['--force', name]))
  if (!readFileSync('/etc/subuid', 'utf8').includes(`${name}:`)) return 'useradd gives no subordinate ids here'
  return Number(spawnSync('id', ['-u', name], { encoding: 'utf8' }).stdout)
}

/** All tests as this user: their exit code and text. */
async function testsAs(id: number): Promise<{ code: number | null; out: string; err: string }> {
  const home = mkdtempSync(join(tmpdir(), 'nt-home-'))
  chownSync(home, id, id)
  const env: NodeJS.ProcessEnv = { ...process.env, HOME: home, TMPDIR: home }
  delete env.NODE_TEST_CONTEXT
  const become = ['--reuid', String(id), '--regid', String(id), '--clear-groups', '--inh-caps=-all']
  const node = [process.execPath, '--test', '--test-reporter=tap', ...files]
  const child = spawn('setpriv', [...become, ...node], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  const text = { out: '', err: '' }
  child.stdout.on('data', (d) => (text.out += d))
  child.stderr.on('data', (d) => (text.err += d))
  const bound = setTimeout(() => child.kill('SIGKILL'), LIMIT_MS)
  try {
    const code = await new Promise<number | null>((resolve) => child.on('exit', resolve))
    return { code, ...text }
  } finally {
    clearTimeout(bound)
    for (const pid of readdirSync('/proc').filter((p) => /^\d+$/.test(p)))
      try {
        if (statSync(`/proc/${pid}`).uid === id) process.kill(Number(pid), 'SIGKILL')
      } catch {
        // It has ended.
      }
    rmSync(home, { recursive: true, force: true })
  }
}

describe('rootless', { skip: root ? runsAs(NAMELESS) : 'these files run as this user already' }, () => {
  after(() => {
    for (const u of undo) u()
  })
  const ranged = root ? withRange() : ''
  for (const [who, id] of [
    ['a user with subordinate ids', ranged],
    ['a user without any', NAMELESS],
  ] as const)
    it(`sandboxes of ${who}`, { skip: typeof id === 'string' ? id : false, timeout: LIMIT_MS + 60_000 }, async () => {
      const { code, out, err } = await testsAs(id as number)
      const failures = out.split('\n').filter((line) => /^\s*(not ok|error:|actual:|expected:|message:)/.test(line))
      assert.equal(code, 0, `${failures.join('\n')}\n${err}`)
      assert.match(out, /^# pass [1-9]/m)
    })
})
