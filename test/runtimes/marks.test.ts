/** Whose processes are a VM's: its mark is public, and anybody may put it on a process of their own. */
import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { after, describe, it } from 'node:test'
import { promisify } from 'node:util'
import { endAll, markOf as nameOf } from '../../src/runtimes/qemu/process.ts'
import { rootBase } from '../../src/runtimes/sandbox/identity.ts'
import { markedProcesses, markOf } from '../../src/runtimes/sandbox/mark.ts'
import { processStat } from '../../src/sys/process.ts'
import { eventually } from '../eventually.ts'
import { runsAs } from '../users.ts'
import { lab, privileged } from './lab.ts'

const ALICE = 61234
const BOB = 61235
const file = (path: string) => JSON.stringify(new URL(`../../src/runtimes/${path}`, import.meta.url))

describe('the mark of a VM', { skip: privileged ? false : 'only root can be several users', timeout: 200_000 }, () => {
  const made: ChildProcess[] = []
  after(() => {
    for (const p of made) p.kill('SIGKILL')
  })
  /** A process of that user that carries the word, from here on. */
  const carrying = (word: string, uid: number): ChildProcess => {
    const p = spawn('sleep', ['1d'], { argv0: word, uid, gid: uid, stdio: 'ignore' })
    made.push(p)
    return p
  }
  const lives = (p: ChildProcess) => /[^ZX]/.test(processStat(p.pid as number)?.state ?? 'X')
  const newId = () => `v${randomBytes(8).toString('hex')}`

  it('is no reason to end what somebody else runs: a VM is stopped and destroyed beside it', async () => {
    await using l = await lab()
    const bobs = carrying(markOf(l.vm.id), BOB)
    const own = carrying(markOf(l.vm.id), 0)
    await l.runtime.stop(l.vm, undefined, 0)
    await l.runtime.destroy(l.vm)
    await eventually('root’s has ended', () => !lives(own))
    assert.ok(lives(bobs))
  })

  it('counts on processes of the daemon’s user and of this VM’s users alone', () => {
    const [id, other] = [newId(), newId()]
    const ours = [0, rootBase(id), rootBase(id) + 65535].map((uid) => carrying(markOf(id), uid).pid)
    for (const uid of [BOB, rootBase(other), rootBase(id) + 65536, rootBase(id) - 1]) carrying(markOf(id), uid)
    assert.deepEqual(
      markedProcesses(id)
        .map((p) => p.pid)
        .sort(),
      ours.sort(),
    )
  })

  it('holds up no user who may not end it', { skip: runsAs(ALICE) }, async () => {
    const id = newId()
    const bobs = [carrying(nameOf(id), BOB), carrying(markOf(id), BOB)]
    const alices = carrying(nameOf(id), ALICE)
    const script = `
      const { endAll } = await import(${file('qemu/process.ts')})
      const { markedProcesses } = await import(${file('sandbox/mark.ts')})
      await endAll('${id}')
      console.log(markedProcesses('${id}').length)`
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], {
      uid: ALICE,
      gid: ALICE,
      cwd: '/',
    })
    assert.equal(stdout.trim(), '0')
    await eventually('hers has ended', () => !lives(alices))
    await endAll(id)
    assert.ok(bobs.every(lives))
  })
})
