/**
 * VMs with a kernel of their own on networks of both families and of IPv6 alone, by the command line: on noid's switch and on a bridge of the kernel. A sandbox
 * beside them is the neighbour. The image is tiny's, built once and kept for all tests that name the same directory.
 */
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { Network, Vm } from '../../src/api/contract.ts'
import { Images } from '../../src/images/index.ts'
import { sharedImages } from '../images/shared.ts'
import { qemuSkip } from '../runtimes/qemu-lab.ts'
import { Cli } from './command-line.ts'
import { EXAMPLE6, eventually, Lab, missing } from './lab.ts'

const skip = missing('curl', 'dig', 'ping') || qemuSkip()

for (const backend of ['userspace', 'bridge'] as const)
  describe(`IPv6 of QEMU's VMs on ${backend}`, { skip }, () => {
    let lab: Lab
    let cli: Cli
    let q: Vm
    let s: Vm
    let six: Network

    before(async () => {
      const images = sharedImages()
      // Here, where the package source is; the laboratory has none.
      await new Images(images, () => {}).resolve('tiny')
      lab = await Lab.create()
      const home = join(lab.dir, 'root')
      mkdirSync(home)
      cli = new Cli(lab.host, home, [], { NOID_IMAGES_DIR: images, NOID_TEMPLATES: '0', NOID_NETWORK_BACKEND: backend })
      await lab.host.sh('echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range')
      await cli.noid('network', 'create', 'both')
      await cli.noid('network', 'create', 'six', '--ipv6-only')
      six = await cli.json<Network>('network', 'info', 'six')
    })
    after(async () => {
      await cli?.run('destroy', '--all').catch(() => {})
      await cli?.run('daemon', 'stop').catch(() => {})
      await lab?.remove()
    })
    const exec = (vm: string, ...argv: string[]) => cli.run('exec', vm, '--', ...argv)
    // busybox's wget of Debian 12 ends by SIGSEGV when it is given -T.
    const fetch = async (vm: string, host: string) =>
      assert.match((await exec(vm, 'timeout', '30', 'wget', '-q', '-O', '-', `http://${host}/`)).all, /hello/)
    const out = async (vm: string, ...argv: string[]) => (await exec(vm, ...argv)).stdout.trim()
    const create = (name: string, network: string, ...more: string[]) =>
      cli.json<Vm>('create', name, '--network', network, ...more)
    const answers = async (vm: string, address: string) =>
      assert.equal((await exec(vm, 'ping', '-6', '-c1', '-w20', address)).code, 0, `${vm} → ${address}`)
    const files = (vm: string) =>
      out(vm, 'sh', '-c', 'cat /etc/resolv.conf; cat /etc/hosts; cat /etc/network/interfaces')

    test('both families: the reserved address when create says so, one by SLAAC, files that say it', async () => {
      q = await create('q', 'both', '--runtime', 'qemu', '--image', 'tiny', '--mem', '256')
      s = await create('s', 'both', '--runtime', 'sandbox')
      assert.ok(q.address !== null && q.address6 !== null)
      const inside = await out('q', 'ip', 'addr', 'show', 'dev', 'eth0')
      assert.ok(inside.includes(`inet ${q.address}/24`), inside)
      assert.match(inside, new RegExp(`inet6 ${q.address6}/64 scope global(?! tentative)`))
      assert.match(await out('q', 'ip', '-6', 'route'), /default via fe80::/)
      const n = await cli.json<Network>('network', 'info', 'both')
      const said = await files('q')
      assert.match(said, new RegExp(`nameserver ${n.services}\nnameserver ${n.services6}\nsearch noid.internal`))
      for (const address of [q.address, q.address6])
        assert.match(said, new RegExp(`^${address}\tq.noid.internal q$`, 'm'))
      assert.match(said, /iface eth0 inet dhcp\niface eth0 inet6 dhcp/)
      await eventually('SLAAC', async () => /inet6 fd\S+ff:fe\S+\/64/.test(await out('q', 'ip', '-6', 'addr')))
    })

    test('a sandbox and it, both ways, by address and by name; the outside', async () => {
      await answers('q', s.address6 as string)
      await answers('s', q.address6 as string)
      await answers('q', 's')
      assert.equal(await out('s', 'dig', '+short', 'AAAA', 'q.noid.internal'), q.address6)
      await answers('q', EXAMPLE6)
      await fetch('q', `[${EXAMPLE6}]`)
      await fetch('q', 'v6.example.com')
    })

    test('IPv6 alone: nobody waits for a lease, nobody asks for one', async () => {
      const o = await create('o', 'six', '--runtime', 'qemu', '--image', 'tiny', '--mem', '256')
      assert.equal(o.address, null)
      const inside = await out('o', 'ip', 'addr', 'show', 'dev', 'eth0')
      assert.match(inside, new RegExp(`inet6 ${o.address6}/64 scope global(?! tentative)`))
      assert.doesNotMatch(inside, /inet /)
      const said = await files('o')
      assert.match(said, new RegExp(`^nameserver ${six.services6}\nsearch noid.internal$`, 'm'))
      assert.match(said, new RegExp(`^${o.address6}\to.noid.internal o$`, 'm'))
      assert.match(said, /auto eth0\niface eth0 inet6 dhcp/)
      assert.equal(await out('o', 'sh', '-c', 'ps | grep [u]dhcpc'), '')
      await answers('o', 'v6.example.com')
      await fetch('o', 'dual.example.com')
    })

    if (backend === 'userspace')
      test('another life, the same address', async () => {
        await cli.noid('restart', 'o')
        const o = await cli.json<Vm>('info', 'o')
        assert.ok((await out('o', 'ip', '-6', 'addr', 'show', 'dev', 'eth0')).includes(`inet6 ${o.address6}/64`))
        await answers('o', EXAMPLE6)
      })
  })
