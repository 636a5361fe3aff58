/** Which directories may be shared, and that what was asked for reaches the runtime, the store and people. */
import assert from 'node:assert/strict'
import { chmodSync, mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it, test } from 'node:test'
import { parseMount } from '../../src/cli/mount-args.ts'
import { checkMounts } from '../../src/daemon/mounts.ts'
import { Lab } from './harness.ts'

const dir = realpathSync(mkdtempSync(join(tmpdir(), 'nt-mounts-')))
after(() => rmSync(dir, { recursive: true, force: true }))
for (const name of ['a', 'b']) mkdirSync(join(dir, name))
const mount = (source: string, target: string, readonly = false) => ({ source, target, readonly })

describe('--mount', () => {
  it('is read as it is typed', () => {
    assert.deepEqual(parseMount('/a:/b'), mount('/a', '/b'))
    assert.deepEqual(parseMount('/a:/b:ro'), mount('/a', '/b', true))
    assert.deepEqual(parseMount('x:/b'), mount(join(process.cwd(), 'x'), '/b'))
    for (const wrong of ['', '/a', '/a:b', ':/b', '/a:/b:rx', '/a:/b:ro:x'])
      assert.throws(() => parseMount(wrong), { code: 'INVALID_INPUT' }, wrong)
  })

  it('names a directory that is there, and a target that is free', () => {
    writeFileSync(join(dir, 'file'), '')
    symlinkSync('a', join(dir, 'link'))
    assert.deepEqual(checkMounts([mount(join(dir, 'link'), '/srv//x/../y/', true)]), [
      mount(join(dir, 'a'), '/srv/y', true),
    ])
    // An outer target comes before what lies in it.
    assert.deepEqual(
      checkMounts([mount(join(dir, 'a'), '/srv/in'), mount(join(dir, 'b'), '/srv')]).map((m) => m.target),
      ['/srv', '/srv/in'],
    )
    const refused: [string, string, RegExp][] = [
      [join(dir, 'none'), '/x', /does not exist/],
      [join(dir, 'file'), '/x', /not a directory/],
      ['/', '/x', /whole of the host/],
      ['a', '/x', /absolute/],
      [join(dir, 'a'), 'x', /absolute/],
      [join(dir, 'a'), '/', /not free/],
      [join(dir, 'a'), '/srv/../', /not free/],
      [join(dir, 'a'), '/proc/x', /not free/],
      [join(dir, 'a'), '/run', /not free/],
      [join(dir, 'a'), '/x\ny', /control character/],
    ]
    for (const [source, target, why] of refused)
      assert.throws(
        () => checkMounts([mount(source, target)]),
        (e: Error & { code?: string }) => e.code === 'MOUNT_INVALID' && why.test(e.message),
        `${source} ${target}`,
      )
    assert.throws(() => checkMounts([mount(join(dir, 'a'), '/x'), mount(join(dir, 'b'), '/x/')]), /two mounts/)
    assert.throws(
      () => checkMounts(Array.from({ length: 17 }, (_, i) => mount(join(dir, 'a'), `/x${i}`))),
      /16 mounts at most/,
    )
  })

  it('needs what its user may read', { skip: process.getuid?.() === 0 ? 'root reads all' : false }, () => {
    mkdirSync(join(dir, 'closed'))
    chmodSync(join(dir, 'closed'), 0)
    assert.throws(() => checkMounts([mount(join(dir, 'closed'), '/x')]), /you may not read it/)
  })
})

test('a VM keeps its mounts: in its view, its record and over a restart of the daemon', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const mounts = [mount(join(dir, 'a'), '/srv/a'), mount(join(dir, 'b'), '/srv/b', true)]
  await lab.create('web', { mounts })
  assert.deepEqual((await lab.client.vm('web')).mounts, mounts)
  await assert.rejects(lab.create('other', { mounts: [mount(join(dir, 'none'), '/x')] }), { code: 'MOUNT_INVALID' })
  assert.deepEqual(
    (await lab.client.vms()).map((v) => v.name),
    ['web'],
  )
  await lab.client.stopDaemon()
  await lab.up()
  assert.deepEqual((await lab.client.vm('web')).mounts, mounts)
})

test('a runtime without a serial line says what to use instead', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  await assert.rejects(lab.client.console('web'), { code: 'NO_CONSOLE', hint: /noid exec web opens a shell/ })
  await assert.rejects(lab.client.console('nobody'), { code: 'VM_UNKNOWN' })
})
