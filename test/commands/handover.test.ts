/** bin/noid.mjs under an older Node: it hands over to the one that came along, with streams, signals and the exit code. */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { after, before, describe, test } from 'node:test'
import { BIN, type Fake, fakeDaemon, fakeVm } from './fake.ts'

/** A system Node of 20 to 25, outside node_modules. */
function olderNode(): string | undefined {
  const dirs = (process.env.PATH ?? '').split(':').filter((d) => d !== '' && !d.includes('node_modules'))
  return dirs
    .map((d) => `${d}/node`)
    .find((file) => {
      const major = Number.parseInt(
        spawnSync(file, ['-p', 'process.versions.node'], { encoding: 'utf8' }).stdout ?? '',
        10,
      )
      return major >= 20 && major < 26
    })
}
const old = olderNode()

describe('an older Node hands over', {
  skip: old === undefined ? 'no Node of 20 to 25 on this machine' : false,
}, () => {
  let fake: Fake
  before(async () => {
    fake = await fakeDaemon()
    fake.vms.set('web', fakeVm('web'))
  })
  after(() => fake.close())

  const start = (...args: string[]) =>
    spawn(old as string, [BIN, ...args], {
      env: { ...process.env, NOID_HOST: fake.socket, NODE_TEST_CONTEXT: undefined },
    })
  const text = async (s: NodeJS.ReadableStream): Promise<string> => {
    let all = ''
    for await (const c of s) all += c
    return all
  }

  test('stdin, stdout, stderr and the exit code', { timeout: 120_000 }, async () => {
    const child = start('exec', 'web', '--', 'sh', '-c', 'cat; echo err >&2; exit 9')
    child.stdin.end('through\n')
    const code = new Promise((r) => child.on('close', r))
    const [out, err] = await Promise.all([text(child.stdout), text(child.stderr)])
    assert.equal(out, 'through\n')
    assert.equal(err, 'err\n')
    assert.equal(await code, 9)
  })

  test('wrong usage is still exit code 2', { timeout: 120_000 }, async () => {
    const child = start('lst')
    const code = new Promise((r) => child.on('close', r))
    assert.match(await text(child.stderr), /did you mean: noid list/)
    assert.equal(await code, 2)
  })

  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    test(`${signal} reaches the command`, { timeout: 120_000 }, async () => {
      fake.signals.length = 0
      const child = start(
        'exec',
        'web',
        '--',
        'sh',
        '-c',
        'trap "exit 7" TERM INT HUP; echo up; while :; do sleep 0.05; done',
      )
      child.stdin.end()
      const code = new Promise((r) => child.on('close', r))
      await new Promise((r) => child.stdout.once('data', r))
      child.kill(signal)
      assert.equal(await code, 7)
      assert.deepEqual(fake.signals, [signal])
    })
  }
})
