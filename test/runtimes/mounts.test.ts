/** `--mount` on sandboxes, for whoever runs this (rootless.test.ts runs it again as a user). */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { checkMachine } from '../../src/runtimes/sandbox/doctor.ts'
import { type Lab, lab, never, privileged } from './lab.ts'

const missing = (await checkMachine()).filter((c) => !c.ok && c.required)
const skip = missing.length > 0 ? missing.map((c) => `${c.name}: ${c.detail}`).join('; ') : false
const dir = mkdtempSync(join(tmpdir(), 'nt-mount-'))
after(() => rmSync(dir, { recursive: true, force: true }))
const me = process.getuid?.() ?? 0

function source(name: string): string {
  const path = join(dir, name)
  mkdirSync(join(path, 'sub'), { recursive: true })
  chmodSync(dir, 0o755)
  writeFileSync(join(path, 'file'), `${name}\n`)
  return path
}

describe('directories of the host in a sandbox', { skip, timeout: 400_000 }, () => {
  it('are read and written as their owner’s, also after a restart', async () => {
    const shared = source('shared')
    const fixed = source('fixed')
    await using l = await lab({
      mounts: [
        { source: shared, target: '/srv/shared', readonly: false },
        { source: fixed, target: '/srv/shared/sub/fixed', readonly: true },
        { source: fixed, target: '/opt/deep/er', readonly: true },
      ],
    })
    let h = await l.runtime.prepare(l.vm, never)
    const sh = async (script: string) => l.run(h, ['sh', '-c', script])
    assert.equal((await sh('cat /srv/shared/file; stat -c %u:%g /srv/shared/file')).out, 'shared\n0:0\n')
    assert.equal((await sh('echo new > /srv/shared/new; mkdir /srv/shared/d')).code, 0)
    assert.equal(readFileSync(join(shared, 'new'), 'utf8'), 'new\n')
    assert.equal(statSync(join(shared, 'new')).uid, me)
    // Read-only is kept against the VM's root.
    for (const at of ['/srv/shared/sub/fixed', '/opt/deep/er']) {
      assert.equal((await sh(`cat ${at}/file`)).out, 'fixed\n')
      assert.notEqual((await sh(`echo x > ${at}/file`)).code, 0, at)
      assert.notEqual((await sh(`mount -o remount,bind,rw ${at} && echo x > ${at}/file`)).code, 0, at)
    }
    assert.equal(readFileSync(join(fixed, 'file'), 'utf8'), 'fixed\n')
    // A VM whose mounts are locked is on the network as any other.
    const a = await l.plug(h)
    const { nic } = await l.runtime.start(l.vm, h, a, undefined, never)
    assert.match(nic.address as string, /^\d+\.\d+\.\d+\.\d+$/)
    assert.match((await sh('ip -4 addr show eth0')).out, new RegExp(`inet ${nic.address}/`))
    await l.runtime.stop(l.vm, h, 0)
    h = await l.runtime.prepare(l.vm, never)
    assert.equal((await sh('cat /srv/shared/new')).out, 'new\n')
    await l.runtime.stop(l.vm, h, 0)
    await l.runtime.destroy(l.vm)
    // What goes with a VM are its mounts, not what was mounted.
    assert.ok(existsSync(join(shared, 'new')) && existsSync(join(fixed, 'file')))
  })

  it('are refused at a link that a guest left, with a reason', async () => {
    const shared = source('again')
    await using first: Lab = await lab()
    const h = await first.runtime.prepare(first.vm, never)
    assert.equal((await first.run(h, ['sh', '-c', `ln -s ${dir} /srv/way; mkdir /srv/there`])).code, 0)
    await first.runtime.stop(first.vm, h, 0)
    const tried = { ...first.vm, mounts: [{ source: shared, target: '/srv/way/in', readonly: false }] }
    await assert.rejects(first.runtime.prepare(tried, never), /symbolic link/)
    assert.equal(existsSync(join(dir, 'in')), false)
    await assert.rejects(
      first.runtime.prepare(
        { ...first.vm, mounts: [{ source: join(dir, 'gone'), target: '/srv/there', readonly: false }] },
        never,
      ),
      /not a directory any more/,
    )
  })

  it('give no set-id program and no device to the VM', { skip: privileged ? false : 'of root' }, async () => {
    const shared = source('programs')
    execFileSync('cp', ['/usr/bin/id', join(shared, 'id')])
    chmodSync(join(shared, 'id'), 0o6755)
    execFileSync('mknod', [join(shared, 'null'), 'c', '1', '3'])
    await using l = await lab({ mounts: [{ source: shared, target: '/mnt', readonly: false }] })
    const h = await l.runtime.prepare(l.vm, never)
    assert.equal((await l.run(h, ['/mnt/id', '-u'], { user: 'nobody' })).out, '65534\n')
    assert.notEqual((await l.run(h, ['sh', '-c', 'echo x > /mnt/null'])).code, 0)
  })
})
