/**
 * What root's sandboxes see of the host: file systems of their own below the system's directories, and what becomes secret after a VM was made.
 *
 * This process has mounts of its own, and so have the VMs it makes: /var/opt and what lies below are theirs alone.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import type { VmHandle } from '../../src/runtimes/contract.ts'
import { checkMachine } from '../../src/runtimes/sandbox/doctor.ts'
import { must } from '../../src/sys/errno.ts'
import { detachMount, MS_BIND, MS_PRIVATE, MS_REC, mount } from '../../src/sys/mount.ts'
import { CLONE_NEWNS, unshare } from '../../src/sys/process.ts'
import { type Lab, lab, never, privileged } from './lab.ts'

const missing = privileged ? (await checkMachine()).filter((c) => !c.ok && c.required) : []
const skip = !privileged ? 'only root can mount' : missing.length > 0 ? missing.map((c) => c.detail).join('; ') : false

describe('what a sandbox of root sees of the host', { skip, timeout: 400_000 }, () => {
  /** On the host's disk, where no VM sees it. */
  let disk: string
  const mounted: string[] = []
  /** A new directory of the disk, as a file system of its own at that place. */
  const part = (name: string, at: string, mode = 0o755): string => {
    const dir = join(disk, name)
    mkdirSync(dir)
    chmodSync(dir, mode)
    must(`mount at ${at}`, mount(dir, at, null, MS_BIND))
    mounted.unshift(at)
    return dir
  }
  const secret = (path: string, mode = 0o600) => writeFileSync(path, 'secret', { mode })

  const opt = '/var/opt'

  before(() => {
    must('unshare of mounts', unshare(CLONE_NEWNS))
    must('private mounts', mount('none', '/', null, MS_REC | MS_PRIVATE))
    disk = mkdtempSync('/srv/nt-view-')
    chmodSync(disk, 0o755)
    // A device of its own where this machine can make one: what only looks at devices is told apart by that.
    const image = join(disk, 'image')
    writeFileSync(image, '')
    truncateSync(image, 16 << 20)
    const made = spawnSync('mkfs.ext4', ['-q', '-F', image]).status === 0
    if (made && spawnSync('mount', ['-o', 'loop', image, opt]).status === 0) {
      rmSync(join(opt, 'lost+found'), { recursive: true })
      mounted.unshift(opt)
    } else part('opt', opt)
  })
  after(() => {
    for (const at of mounted) detachMount(at)
    rmSync(disk, { recursive: true, force: true })
  })

  const says = async (l: Lab, h: VmHandle, script: string) => (await l.run(h, ['sh', '-c', script])).out.trim()
  const again = async (l: Lab, h: VmHandle): Promise<VmHandle> => {
    await l.runtime.stop(l.vm, h, 0)
    return l.runtime.prepare(l.vm, never)
  }

  it('shows no secret of a file system that is mounted there', async () => {
    writeFileSync(join(opt, 'public'), 'public')
    secret(join(opt, 'of-root'))
    secret(join(opt, 'of-999'))
    chownSync(join(opt, 'of-999'), 999, 999)
    mkdirSync(join(opt, 'private'), { mode: 0o700 })
    secret(join(opt, 'private/readable'), 0o644)
    for (const at of ['closed', 'private/part']) mkdirSync(join(opt, at))
    // Its root is what hides it; the next lies below what is hidden; the last is emptied whoever may read it.
    secret(join(part('closed', '/var/opt/closed', 0o700), 'readable'), 0o644)
    secret(join(part('part', '/var/opt/private/part'), 'readable'), 0o644)
    secret(join(part('tmp', '/var/tmp', 0o1777), 'readable'), 0o644)

    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    assert.equal(await says(l, h, 'ls -A /var/opt'), 'closed\nprivate\npublic')
    assert.equal(
      await says(l, h, 'ls -A /var/opt/closed /var/opt/private /var/tmp'),
      '/var/opt/closed:\n\n/var/opt/private:\n\n/var/tmp:',
    )
    assert.equal(
      await says(
        l,
        h,
        'cd /var/opt; cat public; for d in . closed private ../tmp; do echo mine > $d/mine || exit; done; cat */mine',
      ),
      'publicmine\nmine',
    )
    assert.deepEqual(readdirSync(opt).sort(), ['closed', 'of-999', 'of-root', 'private', 'public'])
    assert.equal(
      await says(l, await again(l, h), 'cat /var/opt/mine /var/opt/*/mine /var/tmp/mine'),
      'mine\nmine\nmine\nmine',
    )
  })

  it('hides what became secret, when it starts again, and keeps what the VM made', async () => {
    const top = `/nt-top-${process.pid}`
    const late = `/opt/nt-late-${process.pid}`
    mkdirSync(join(opt, 'shared'))
    secret(join(opt, 'shared/was-public'), 0o644)
    try {
      await using l = await lab()
      let h = await l.runtime.prepare(l.vm, never)
      assert.equal(
        await says(l, h, 'cat /var/opt/shared/was-public; echo mine | tee /var/opt/shared/mine > /var/opt/both'),
        'secret',
      )
      for (const path of [late, join(opt, 'late'), join(opt, 'both')]) secret(path)
      mkdirSync(top)
      chmodSync(join(opt, 'shared'), 0o700)
      h = await again(l, h)
      assert.equal(await says(l, h, `ls -d ${top} ${late} /var/opt/late 2>/dev/null`), '')
      assert.equal(await says(l, h, 'cd /var/opt; cat both; ls shared; cat shared/mine'), 'mine\nmine\nmine')
      assert.equal(await says(l, await again(l, h), 'ls /var/opt/shared; ls /var/opt/late 2>/dev/null'), 'mine')
    } finally {
      rmSync(top, { recursive: true, force: true })
      rmSync(late, { force: true })
    }
  })

  it('is never led out of its own files by what the VM made of them', async () => {
    const outside = join(disk, 'outside')
    mkdirSync(outside)
    mkdirSync(join(opt, 'way/part'), { recursive: true })
    mkdirSync(join(opt, 'dir'))
    await using l = await lab()
    let h = await l.runtime.prepare(l.vm, never)
    const lead = `cd /var/opt && rm -r way dir && ln -s ${outside} way && ln -s ${outside} dir`
    assert.equal((await l.run(h, ['sh', '-c', lead])).err, '')
    secret(join(opt, 'dir/late'))
    part('wide', '/var/opt/way/part')
    h = await again(l, h)
    assert.equal(await says(l, h, 'readlink /var/opt/way; readlink /var/opt/dir'), `${outside}\n${outside}`)
    assert.deepEqual(readdirSync(outside), [])
    assert.equal(existsSync(join(opt, 'dir/late')), true)
  })
  it('takes an image from where it would assemble the root', async () => {
    const image = `/mnt/nt-image-${process.pid}`
    mkdirSync(image)
    try {
      must('mount of the image', mount('/', image, null, MS_BIND))
      await using l = await lab({ image })
      const h = await l.runtime.prepare(l.vm, never)
      assert.equal(await says(l, h, 'cat /etc/hostname'), 'web')
    } finally {
      detachMount(image)
      rmdirSync(image)
    }
  })
})
