/** exec's near end: streams without loss, codes, signals, a connection that breaks. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseEnv, splitExec } from '../../src/cli/exec-args.ts'
import { inBackground } from '../../src/client/exec.ts'
import { BIN, type Fake, fakeDaemon, fakeVm, noid } from './fake.ts'

let fake: Fake
before(async () => {
  fake = await fakeDaemon()
  fake.vms.set('web', fakeVm('web'))
})
after(() => fake.close())

test('stdout, stderr and the exit code are the command’s own', async () => {
  const r = await noid(fake, ['exec', 'web', '--', 'sh', '-c', 'echo out; echo err >&2; exit 7'])
  assert.deepEqual(r, { code: 7, stdout: 'out\n', stderr: 'err\n' })
})

test('words after NAME belong to the command, flags too', async () => {
  const r = await noid(fake, ['exec', '-e', 'A=1', 'web', 'sh', '-c', 'echo $A'])
  assert.equal(r.stdout, '1\n')
})

test('--help after -- is the command’s', async () => {
  const r = await noid(fake, ['exec', 'web', '--', 'echo', '--help', '--json'])
  assert.equal(r.stdout, '--help --json\n')
})

test('100 MB through stdin and stdout arrive whole', { timeout: 240_000 }, async () => {
  const size = 100 * 1024 * 1024
  const child = spawn(process.execPath, [BIN, 'exec', 'web', '--', 'cat'], {
    env: { ...process.env, NOID_HOST: fake.socket },
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const sent = createHash('sha256')
  const got = createHash('sha256')
  let bytes = 0
  child.stdout.on('data', (c: Buffer) => {
    bytes += c.length
    got.update(c)
  })
  const block = Buffer.alloc(1 << 20)
  for (let at = 0; at < size; at += block.length) {
    block.fill(at % 251)
    sent.update(block)
    if (!child.stdin.write(Buffer.from(block))) await new Promise((r) => child.stdin.once('drain', r))
  }
  child.stdin.end()
  const code = await new Promise((r) => child.on('close', r))
  assert.equal(code, 0)
  assert.equal(bytes, size)
  assert.equal(got.digest('hex'), sent.digest('hex'))
})

test('a reader that stops early ends the command quietly', { timeout: 120_000 }, async () => {
  const child = spawn('sh', ['-c', `"${process.execPath}" "${BIN}" exec web -- yes | head -n 1`], {
    env: { ...process.env, NOID_HOST: fake.socket },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let text = ''
  for (const s of [child.stdout, child.stderr]) s.on('data', (c) => (text += c))
  await new Promise((r) => child.on('close', r))
  assert.equal(text, 'y\n')
})

test('signals reach the command', { timeout: 120_000 }, async () => {
  const child = spawn(
    process.execPath,
    [BIN, 'exec', 'web', '--', 'sh', '-c', 'trap "exit 9" TERM; echo up; while :; do sleep 0.05; done'],
    {
      env: { ...process.env, NOID_HOST: fake.socket },
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  )
  await new Promise((r) => child.stdout.once('data', r))
  child.kill('SIGTERM')
  assert.equal(await new Promise((r) => child.on('exit', r)), 9)
  assert.deepEqual(fake.signals, ['SIGTERM'])
})

test('a connection lost in the middle is EXEC_INTERRUPTED', { timeout: 120_000 }, async () => {
  const run = noid(fake, ['exec', 'web', '--', 'sleep', '20'])
  while (fake.cut() === 0) await sleep(50)
  const r = await run
  assert.equal(r.code, 1)
  assert.match(r.stderr, /EXEC_INTERRUPTED/)
})

test('exec refuses --json as wrong usage', async () => {
  const r = await noid(fake, ['exec', 'web', '--json', '--', 'true'])
  assert.equal(r.code, 2)
  assert.equal(JSON.parse(r.stdout).error.code, 'INVALID_INPUT')
})

test('splitExec cuts noid’s words from the command’s', () => {
  assert.deepEqual(splitExec(['web', '-t', '--', 'ls', '-l']), { own: ['web', '-t'], command: ['ls', '-l'] })
  assert.deepEqual(splitExec(['web', 'ls', '-l']), { own: ['web'], command: ['ls', '-l'] })
  assert.deepEqual(splitExec(['--', 'ls']), { own: [], command: ['ls'] })
  assert.deepEqual(splitExec(['-e', 'A=b', 'web']), { own: ['-e', 'A=b', 'web'], command: [] })
})

test('parseEnv takes K=V and K', () => {
  assert.deepEqual(parseEnv(['A=1=2', 'HOME', 'NOPE'], { HOME: '/h' }), { A: '1=2', HOME: '/h' })
})

test('a background job is told by its process group', () => {
  assert.equal(inBackground('1 (a b) S 1 50 50 34816 50 0'), false)
  assert.equal(inBackground('1 (a) b) S 1 51 50 34816 50 0'), true)
  assert.equal(inBackground('1 (a) S 1 51 50 0 -1 0'), false)
})
