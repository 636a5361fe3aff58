/** A file system that VMs have filled to the last byte: they are stopped and destroyed all the same. The daemon is real; its VMs are `sleep`, but for one. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, openSync, rmSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { Reserve } from '../../src/daemon/reserve.ts'
import { eventually } from '../eventually.ts'
import { exited, kill9, Lab } from './harness.ts'

const skip = process.getuid?.() !== 0 && 'needs root, to mount'

const filled: string[] = []

/** What a guest does to the file system that its disk is on: writes until there is no room for another page. */
function fill(dir: string): string {
  const file = join(dir, `filled-${process.hrtime.bigint()}`)
  filled.push(file)
  const fd = openSync(file, 'w')
  for (const size of [1 << 16, 4096, 1]) {
    try {
      for (;;) writeSync(fd, Buffer.alloc(size, 1))
    } catch (e) {
      assert.equal((e as NodeJS.ErrnoException).code, 'ENOSPC')
    }
  }
  closeSync(fd)
  return file
}

/** A lab whose state is on a small file system of its own. */
async function onSmallDisk(
  t: TestContext,
  fn: (lab: Lab, reserve: string) => Promise<void>,
  main?: string,
): Promise<void> {
  const lab = new Lab(t, main)
  const { stateDir } = lab.paths
  mkdirSync(stateDir, { recursive: true })
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', stateDir])
  try {
    await fn(lab, join(stateDir, 'reserve'))
  } finally {
    // A test that failed may have left real VMs, and with the store goes the knowledge of them.
    for (const file of filled.splice(0)) rmSync(file, { force: true })
    if (main !== undefined)
      for (const v of await lab.client.vms().catch(() => [])) await lab.client.destroy(v.name).catch(() => {})
    execFileSync('umount', ['-l', stateDir])
  }
}
const filesOf = (lab: Lab, id: string): string => join(lab.paths.stateDir, 'vms', id)

test('a VM that has filled the disk is stopped, and destroyed; there is a reserve again', { skip }, (t) =>
  onSmallDisk(t, async (lab, reserve) => {
    await lab.up()
    const web = await lab.create('web', { ports: ['8080:80'] })
    const db = await lab.create('db')
    fill(filesOf(lab, web.id))
    const stopped = await lab.client.stop('web', 0)
    assert.deepEqual([stopped.state, stopped.problem], ['stopped', null])
    // What the reserve gave may be taken, too.
    fill(filesOf(lab, db.id))
    assert.ok(!existsSync(reserve))
    await lab.client.destroy('db')
    await lab.client.destroy('web')
    assert.deepEqual([await lab.client.vms(), await lab.client.networks()], [[], []])
    assert.deepEqual(lab.world.list(), [])
    await eventually('there is a reserve again', () => statSync(reserve).size > 0)
  }),
)

test('without a reserve it ends as well, and what could not be written is told', { skip }, (t) =>
  onSmallDisk(t, async (lab, reserve) => {
    await lab.up()
    const web = await lab.create('web')
    rmSync(reserve)
    fill(filesOf(lab, web.id))
    await assert.rejects(lab.client.stop('web', 0), { code: 'DISK_FULL', hint: /noid destroy/ })
    assert.ok(!lab.world.has(`vm-${web.id}`), 'its process is there')
    await assert.rejects(lab.client.createNetwork({ name: 'lab' }), { code: 'DISK_FULL' })
    await lab.client.destroy('web')
    assert.deepEqual([await lab.client.vms(), await lab.client.networks()], [[], []])
    assert.equal((await lab.create('web')).state, 'running')
  }),
)

test(
  'so is a real sandbox, whose backend and runtime have words of their own to write',
  {
    skip: skip || (!existsSync('/dev/net/tun') && 'needs /dev/net/tun'),
  },
  (t) =>
    onSmallDisk(
      t,
      async (lab) => {
        await lab.up()
        const web = await lab.create('web', { ports: ['21874:80'] })
        fill(filesOf(lab, web.id))
        assert.equal((await lab.client.stop('web')).state, 'stopped')
        fill(filesOf(lab, web.id))
        await lab.client.destroy('web')
        assert.deepEqual([await lab.client.vms(), await lab.client.networks()], [[], []])
      },
      'real-main.ts',
    ),
)

test('a daemon that is started on a full disk serves, and takes VMs down', { skip }, (t) =>
  onSmallDisk(t, async (lab) => {
    const first = await lab.up()
    const web = await lab.create('web')
    // It takes its log of changes with it, which the next one must make anew.
    await lab.client.stopDaemon()
    await exited(first)
    fill(filesOf(lab, web.id))
    await kill9(await lab.up())
    await lab.up()
    assert.equal((await lab.client.vm('web')).state, 'running')
    await lab.client.destroy('web')
    assert.deepEqual(await lab.client.vms(), [])
  }),
)

test(
  'the reserve is kept where there is room for it and as much again, and lent where there is little else',
  {
    skip,
  },
  (t) =>
    onSmallDisk(t, async (lab, file) => {
      const r = new Reserve(file)
      r.keep()
      const { size } = statSync(file)
      r.lend()
      assert.equal(statSync(file).size, size)
      const filled = fill(lab.paths.stateDir)
      r.lend()
      assert.ok(!existsSync(file))
      r.keep()
      assert.ok(!existsSync(file), 'it took what it had given')
      assert.equal(r.spend(), false)
      rmSync(filled)
      r.keep()
      assert.equal(statSync(file).size, size)
      assert.equal(r.spend(), true)
    }),
)
