/** The systemd service: the unit is one that systemd takes, and is put in its place, renewed and removed without harm to others. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { install, uninstall, unitFile, unitText } from '../../src/cli/service.ts'
import { noid } from './fake.ts'

const scratch = (t: TestContext): string => {
  const dir = mkdtempSync(join(tmpdir(), 'noid-service-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}
const analyzer = spawnSync('systemd-analyze', ['--version']).status === 0

test('systemd takes the unit, with awkward paths too', { skip: !analyzer && 'needs systemd-analyze' }, (t) => {
  const dir = scratch(t)
  const odd = join(dir, 'a "b" 100% $HOME \\x')
  // systemd takes no quotes in the program's own path.
  const program = join(dir, 'no id 100%', 'node')
  mkdirSync(odd)
  mkdirSync(dirname(program))
  writeFileSync(program, '#!/bin/sh\n', { mode: 0o755 })
  for (const user of [false, true])
    for (const node of [process.execPath, program]) {
      const file = join(dir, `noid-${user}.service`)
      writeFileSync(file, unitText(user, [node, join(odd, 'main.ts')], { NOID_HOME: odd }))
      // A manager for nobody: units of the machine that are flawed are not what is asked.
      const r = spawnSync('systemd-analyze', ['verify', '--man=no', ...(user ? ['--user'] : []), file], {
        encoding: 'utf8',
        env: { ...process.env, XDG_RUNTIME_DIR: dir },
      })
      const said = r.stderr.split('\n').filter((l) => l.includes('noid-'))
      assert.deepEqual(said, [], r.stderr)
    }
})

test('the unit says what matters: absolute words, VMs outlive it, faults are mended', () => {
  const text = unitText(false, ['/opt/node', '/opt/no id/main.ts'], { NOID_HOME: '/x y', NOID_NETWORK_BACKEND: '' })
  for (const line of [
    'ExecStart="/opt/node" "/opt/no id/main.ts"',
    'Environment="NOID_HOME=/x y"',
    'KillMode=process',
    'Restart=always',
    'WantedBy=multi-user.target',
  ])
    assert.ok(text.split('\n').includes(line), line)
  assert.doesNotMatch(text, /NOID_NETWORK_BACKEND/)
  assert.match(unitText(true, ['/a'], {}), /WantedBy=default\.target/)
})

test('install writes, enables and starts; again changes nothing; another text restarts; uninstall takes all back', async (t) => {
  const file = join(scratch(t), 'deep', 'noid.service')
  const calls: string[] = []
  let pid = 0
  const others: number[] = []
  const systemctl = (args: readonly string[]) => {
    calls.push(args.join(' '))
    if (args[0] === 'show') return { code: 0, text: `${pid}\n` }
    if (args[0] === 'start' || args[0] === 'restart') pid = 42
    return { code: 0, text: '' }
  }
  const put = (text: string) =>
    install({ file, text: unitText(false, [text], {}), systemctl, stopOther: async (p) => void others.push(p) })
  assert.deepEqual(await put('/a'), { file, changed: true, enabled: true })
  const SHOW = 'show --property=MainPID --value noid.service'
  assert.deepEqual(calls.splice(0), ['daemon-reload', SHOW, 'enable noid.service', 'start noid.service'])
  assert.deepEqual(await put('/a'), { file, changed: false, enabled: true })
  assert.deepEqual(calls.splice(0), [SHOW, 'enable noid.service', 'start noid.service'])
  await put('/b')
  assert.equal(calls.at(-1), 'restart noid.service')
  assert.deepEqual(others, [0, 42, 42])
  calls.length = 0
  assert.equal(uninstall(file, systemctl), true)
  assert.deepEqual(calls, ['disable --now noid.service', 'daemon-reload'])
  assert.equal(existsSync(file), false)
  assert.equal(uninstall(file, systemctl), false)

  writeFileSync(file, '[Unit]\n')
  await assert.rejects(put('/a'), /was not written by noid/)
  assert.throws(() => uninstall(file, systemctl), /was not written by noid/)
  assert.equal(readFileSync(file, 'utf8'), '[Unit]\n')
  rmSync(file)
  const refusing = () => ({ code: 1, text: 'no bus\n' })
  await assert.rejects(
    install({ file, text: unitText(false, ['/a'], {}), systemctl: refusing, stopOther: async () => {} }),
    /systemctl daemon-reload: no bus/,
  )
})

test('the command: a dry run shows, a user has its own, without systemd it says what to do', async (t) => {
  const dir = scratch(t)
  const env = { XDG_CONFIG_HOME: dir, HOME: dir, XDG_RUNTIME_DIR: dir, NOID_HOME: join(dir, 'home'), NOID_HOST: '' }
  const file = unitFile(true, env)
  assert.equal(dirname(file), join(dir, 'systemd', 'user'))
  const dry = await noid(undefined, ['daemon', 'install', '--user', '--dry-run'], env)
  assert.equal(dry.code, 0, dry.stderr)
  assert.match(dry.stdout, /^# \S+noid\.service\n# Written by/)
  assert.match(dry.stdout, /ExecStart="\/[^"]+" "--disable-warning=ExperimentalWarning" "\/[^"]+\/daemon\/main\.[tj]s"/)
  assert.equal(existsSync(file), false)
  for (const word of ['is written', 'is as it should be']) {
    const r = await noid(undefined, ['daemon', 'install', '--user'], env)
    assert.equal(r.code, 0, r.stderr)
    assert.ok(r.stdout.includes(word), r.stdout)
    assert.match(r.stdout, /systemctl --user daemon-reload && systemctl --user enable --now noid\.service/)
  }
  const gone = await noid(undefined, ['daemon', 'uninstall', '--user', '--json'], env)
  assert.deepEqual(JSON.parse(gone.stdout), { file, removed: true })
  assert.match((await noid(undefined, ['daemon', 'uninstall', '--user'], env)).stdout, /there is no/)
  assert.equal(existsSync(join(dir, 'home')), false, 'no daemon was started')
})
