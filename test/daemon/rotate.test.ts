/** Logs: kept small under writers that never close them, and read across it without a line lost or told twice. */
import assert from 'node:assert/strict'
import {
  appendFileSync,
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileLog } from '../../src/daemon/log.ts'
import { LOG_BYTES, rotate } from '../../src/daemon/rotate.ts'
import { tail } from '../../src/logs.ts'
import { eventually } from '../eventually.ts'
import { Lab } from './harness.ts'

const scratch = (t: TestContext): string => {
  const dir = mkdtempSync(join(tmpdir(), 'noid-rotate-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}
const never = new AbortController().signal
async function last(file: string, n: number): Promise<string> {
  const chunks: Buffer[] = []
  for await (const c of tail(file, n, false, never)) chunks.push(c)
  return Buffer.concat(chunks).toString()
}

/** Collects what a follower sees until it is stopped. */
function following(file: string, n: number): { text: () => string; stop: () => Promise<void> } {
  const stop = new AbortController()
  let text = ''
  const done = (async () => {
    for await (const c of tail(file, n, true, stop.signal)) text += c
  })()
  return {
    text: () => text,
    stop: async () => {
      stop.abort()
      await done
    },
  }
}

test('a file that is held open is copied and cut; three are kept; the last lines are found in all of them', async (t) => {
  const file = join(scratch(t), 'x.log')
  const fd = openSync(file, 'a')
  t.after(() => closeSync(fd))
  let line = 0
  const print = (n: number): void => {
    for (let i = 0; i < n; i++) writeSync(fd, `line ${line++}\n`)
  }
  for (let round = 0; round < 5; round++) {
    print(100)
    assert.equal(rotate(file, 600), true)
    assert.equal(statSync(file).size, 0)
  }
  print(10)
  assert.equal(rotate(file, 600), false)
  assert.deepEqual(readdirSync(join(file, '..')).sort(), ['x.log', 'x.log.1', 'x.log.2'])
  const lines = (from: number, to: number): string =>
    Array.from({ length: to - from }, (_, i) => `line ${from + i}\n`).join('')
  assert.equal(readFileSync(`${file}.1`, 'utf8'), lines(400, 500))
  assert.equal(await last(file, 5), lines(505, 510))
  assert.equal(await last(file, 60), lines(450, 510))
  assert.equal(await last(file, 150), lines(360, 510))
  assert.equal(await last(file, 10_000), lines(300, 510))
  assert.equal(await last(file, 0), '')
})

test('what grew beyond all measure is kept at its end, and said; a link or a device is left alone', (t) => {
  const dir = scratch(t)
  const file = join(dir, 'x.log')
  writeFileSync(file, `${'a'.repeat(9_000)}\n${'b'.repeat(999)}\n`)
  assert.equal(rotate(file, 1_000), true)
  const kept = readFileSync(`${file}.1`, 'utf8')
  assert.match(kept, /^noid: \d+ bytes were printed too fast and are left out\n/)
  assert.ok(kept.endsWith(`${'b'.repeat(999)}\n`) && kept.length < 1_200)
  writeFileSync(join(dir, 'precious'), 'x'.repeat(5_000))
  symlinkSync('precious', join(dir, 'y.log'))
  assert.throws(() => rotate(join(dir, 'y.log'), 1_000), /ELOOP/)
  assert.equal(statSync(join(dir, 'precious')).size, 5_000)
})

for (const [kind, writer] of [
  [
    'copied and cut',
    (file: string) => (text: string) => {
      appendFileSync(file, text)
      rotate(file, 3_000)
    },
  ],
  [
    'renamed',
    (file: string) => {
      const log = fileLog(file, false, 12_000)
      return (text: string) => log('info', text.trimEnd())
    },
  ],
] as const)
  test(`a follower loses nothing and sees nothing twice while the file is ${kind}`, async (t) => {
    const file = join(scratch(t), 'x.log')
    const print = writer(file)
    const f = following(file, 1_000)
    // A rotation for some of its looks, never two between two of them.
    for (let i = 0; i < 400; i++) {
      print(`number ${i}.\n`)
      if (i % 20 === 0) await sleep(60)
    }
    await eventually('the last line is seen', () => f.text().includes('number 399.'))
    await f.stop()
    const seen = [...f.text().matchAll(/number (\d+)\./g)].map((m) => Number(m[1]))
    assert.deepEqual(
      seen,
      Array.from({ length: 400 }, (_, i) => i),
    )
    assert.ok(readdirSync(join(file, '..')).includes('x.log.1'), 'it was rotated')
  })

test("the daemon keeps VMs' and networks' logs small, and noid logs goes on", async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const vm = await lab.create('a')
  const log = join(lab.paths.stateDir, 'vms', vm.id, 'init.log')
  const other = join(lab.paths.runDir, 'userspace', 'n1', 'some.log')
  const { mkdirSync } = await import('node:fs')
  mkdirSync(join(other, '..'), { recursive: true })
  for (const f of [log, other]) writeFileSync(f, `${'x'.repeat(99)}\n`.repeat(LOG_BYTES / 100 + 1))
  await eventually('they are cut', () => [log, other].every((f) => statSync(f).size === 0))
  for (const f of [log, other]) assert.equal(statSync(`${f}.1`).size, 100 * Math.floor(LOG_BYTES / 100 + 1))
})
