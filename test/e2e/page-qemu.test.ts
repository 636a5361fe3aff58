/**
 * The product page against VMs with a kernel of their own: the steps of page.ts in the laboratory, and apt-get through the NAT where this machine has a package
 * source. Afterwards nothing is left. The image is Debian's, built once and kept for all tests that name the same directory.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { Network, Vm } from '../../src/api/contract.ts'
import { Images } from '../../src/images/index.ts'
import { debianSkip, sharedImages } from '../images/shared.ts'
import { Cli } from './command-line.ts'
import { becomes, eventually, Lab, missing, repository } from './lab.ts'
import { thePage } from './page.ts'

const skip = missing('curl', 'qemu-system-x86_64', 'qemu-img') || debianSkip()

describe('the page on QEMU', { skip }, () => {
  let lab: Lab
  let cli: Cli
  let clean: Record<string, string[]>

  before(async () => {
    const images = sharedImages()
    // Here, where the package source is; the laboratory has none.
    await new Images(images, () => {}).resolve('debian')
    lab = await Lab.create()
    const home = join(lab.dir, 'root')
    mkdirSync(home)
    cli = new Cli(lab.host, home, [], { NOID_RUNTIME: 'qemu', NOID_IMAGES_DIR: images })
    await lab.host.sh('echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range')
    clean = await lab.snapshot()
  })
  after(async () => {
    await cli?.run('destroy', '--all').catch(() => {})
    await cli?.run('daemon', 'stop').catch(() => {})
    await lab?.remove()
  })

  thePage(() => ({ lab, cli, root: true }))

  test('it is a kernel of its own; the daemon is killed, and nobody notices', async () => {
    const vm = await cli.json<Vm>('info', 'vm-1')
    assert.equal(vm.runtime, 'qemu')
    const guest = (await cli.noid('exec', 'vm-1', '--', 'uname', '-r')).trim()
    assert.notEqual(guest, execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim())
    const { version } = await cli.json<{ version: { pid: number } }>('daemon', 'status')
    process.kill(version.pid, 'SIGKILL')
    assert.match(
      await cli.noid('exec', 'vm-1', '--', 'curl', '-sS', '--max-time', '30', 'http://example.com/'),
      /hello/,
    )
    assert.equal((await cli.json<Vm>('info', 'vm-1')).pid, vm.pid)
    assert.equal((await lab.host.run(['curl', '-sS', '-o', '/dev/null', 'http://localhost:8080/'])).code, 0)
  })

  test('a QEMU that is killed is told with its last words; --restart always brings it back with its address', async () => {
    // Its log has an orderly end in it by then, of the life before.
    await cli.noid('restart', 'vm-2')
    const vm = await cli.json<Vm>('info', 'vm-2')
    process.kill(vm.pid as number, 'SIGKILL')
    const dead = await eventually('it is seen', async () => {
      const now = await cli.json<Vm>('info', 'vm-2')
      return now.state === 'failed' ? now.problem : undefined
    })
    assert.match(dead as string, /ended unexpectedly/)
    await cli.noid('start', 'vm-2')
    await cli.run('exec', 'vm-2', '--', 'poweroff')
    await eventually(
      'it is seen',
      async () => (await cli.json<Vm>('info', 'vm-2')).problem === 'it shut itself down',
      240_000,
    )
    await cli.noid('destroy', 'vm-2')
    const always = await cli.json<Vm>('create', 'vm-2', '--restart', 'always')
    process.kill(always.pid as number, 'SIGKILL')
    await eventually(
      'it runs again',
      async () => {
        const now = await cli.json<Vm>('info', 'vm-2')
        return now.state === 'running' && now.pid !== always.pid && now.address === always.address
      },
      240_000,
    )
    assert.equal((await cli.run('exec', 'vm-1', '--', 'ping', '-c1', '-w20', 'vm-2')).code, 0)
  })

  test('destroy leaves nothing', async () => {
    await cli.noid('destroy', '--all')
    for (const n of await cli.json<Network[]>('network', 'list')) await cli.noid('network', 'remove', n.name)
    await cli.noid('daemon', 'stop')
    await becomes('as before', () => lab.snapshot(), clean)
  })
})

describe('apt-get in a QEMU VM, through the NAT', { skip }, () => {
  test('apt-get install -y iptables and iperf3', { timeout: 600_000 }, async (t) => {
    const home = mkdtempSync(join(tmpdir(), 'noid-apt-'))
    const env = {
      ...process.env,
      NOID_HOME: home,
      NOID_RUNTIME: 'qemu',
      NOID_IMAGES_DIR: sharedImages(),
      NODE_TEST_CONTEXT: undefined,
    }
    const noid = (...args: string[]) => {
      const argv = [join(repository, 'bin/noid.mjs'), ...args]
      const r = spawnSync(process.execPath, argv, { env, encoding: 'utf8', timeout: 300_000, killSignal: 'SIGKILL' })
      return { code: r.status ?? 124, text: `${r.stdout}${r.stderr}` }
    }
    try {
      const made = noid('create', 'my-vm')
      assert.equal(made.code, 0, made.text)
      const updated = noid('exec', 'my-vm', '--', 'apt-get', 'update')
      // What this machine itself reaches is known: the image was built from it.
      assert.equal(updated.code, 0, updated.text)
      assert.doesNotMatch(updated.text, /^(Err|W: Failed)/m)
      for (const name of ['iptables', 'iperf3']) {
        const r = noid('exec', 'my-vm', '--', 'apt-get', 'install', '-y', name)
        assert.equal(r.code, 0, r.text)
      }
      // They are in the image already: this one travels in any case.
      const fresh = noid('exec', 'my-vm', '--', 'apt-get', 'install', '-y', '--no-install-recommends', 'netcat-openbsd')
      assert.equal(fresh.code, 0, fresh.text)
      assert.match(fresh.text, /Setting up netcat-openbsd/)
      assert.equal(noid('exec', 'my-vm', '--', 'nc', '-h').code, 0)
      t.diagnostic(noid('exec', 'my-vm', '--', 'uname', '-a').text.trim())
    } finally {
      noid('destroy', '--all')
      noid('daemon', 'stop')
      rmSync(home, { recursive: true, force: true })
    }
  })
})
