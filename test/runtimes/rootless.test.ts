/**
 * The tests of sandboxes once more, as ordinary users: one with a range of subordinate ids, one without.
 *
 * Root's test run cannot become somebody else for good, so each is a test process of its own whose result is told here.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { chownSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'

const root = process.getuid?.() === 0
const files = ['./sandbox.test.ts', './limits.test.ts'].map((f) => fileURLToPath(new URL(f, import.meta.url)))

interface Account {
  readonly name: string
  readonly uid: number
  readonly gid: number
}

/** A user of this machine who has a range, if there is one. */
function withRange(): Account | undefined {
  if (!existsSync('/etc/subuid') || !existsSync('/usr/bin/newuidmap')) return undefined
  const named = new Set(
    readFileSync('/etc/subuid', 'utf8')
      .split('\n')
      .map((l) => l.split(':')[0]),
  )
  const rows = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((l) => l.split(':'))
  const row = rows.find((r) => named.has(r[0]) && Number(r[2]) >= 1000)
  return row === undefined ? undefined : { name: row[0]!, uid: Number(row[2]), gid: Number(row[3]) }
}

const ranged = withRange()
const users: readonly { readonly title: string; readonly account: Account | undefined; readonly why: string }[] = [
  {
    title: 'a user with subordinate ids',
    account: ranged,
    why: 'no user has a range in /etc/subuid, or newuidmap is missing',
  },
  { title: 'a user without any', account: { name: 'nobody', uid: 64321, gid: 64321 }, why: '' },
]

describe('rootless', { skip: root ? false : 'these files run as this user already' }, () => {
  for (const u of users)
    it(`sandboxes of ${u.title}`, { skip: u.account === undefined ? u.why : false, timeout: 200_000 }, () => {
      const { uid, gid } = u.account as Account
      const home = mkdtempSync(join(tmpdir(), 'nt-home-'))
      chownSync(home, uid, gid)
      try {
        const env: NodeJS.ProcessEnv = { ...process.env, HOME: home, TMPDIR: home }
        delete env.NODE_TEST_CONTEXT
        const become = ['--reuid', String(uid), '--regid', String(gid), '--clear-groups', '--inh-caps=-all']
        const r = spawnSync('setpriv', [...become, process.execPath, '--test', '--test-reporter=tap', ...files], {
          env,
          encoding: 'utf8',
          timeout: 190_000,
        })
        const failures = r.stdout
          .split('\n')
          .filter((line) => /^\s*(not ok|error:|actual:|expected:|message:)/.test(line))
        assert.equal(r.status, 0, `${failures.join('\n')}\n${r.stderr}`)
        assert.match(r.stdout, /^# pass [1-9]/m)
      } finally {
        rmSync(home, { recursive: true, force: true })
      }
    })
})
