// VMs on a cni network through the whole daemon: addresses of the plugins, ports through portmap, a daemon that is killed, nothing left.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { exited, kill9, Lab } from '../daemon/harness.ts'
import { eventually } from '../eventually.ts'
import { ownHost } from '../plugins/own-host.ts'
import { needsPlugins, PLUGINS } from './needs.ts'

const skip = needsPlugins('bridge', 'host-local', 'portmap', 'firewall') || ownHost()

const PORT = 21_876
const config = (name: string, ...more: object[]) => ({
  binDirs: [PLUGINS],
  conflist: {
    cniVersion: '1.0.0',
    name,
    plugins: [
      {
        type: 'bridge',
        bridge: 'ntcni2',
        isGateway: true,
        ipMasq: true,
        hairpinMode: true,
        ipam: { type: 'host-local', subnet: '10.209.11.0/24', routes: [{ dst: '0.0.0.0/0' }] },
      },
      ...more,
    ],
  },
})
const portmap = { type: 'portmap', capabilities: { portMappings: true } }
const rules = () =>
  execFileSync('iptables-save')
    .toString()
    .match(/CNI-\S+/g) ?? []
const bridges = () =>
  execFileSync('ip', ['-br', 'link'])
    .toString()
    .match(/ntcni\S*/g) ?? []
const has = (netns: string) =>
  execFileSync('nsenter', [`--net=${netns}`, 'ip', '-br', '-4', 'addr', 'show', 'eth0']).toString()

test('create, publish, kill -9, adopt, a nic removed by hand, destroy', { skip, timeout: 300_000 }, async (t) => {
  const lab = new Lab(t, 'real-main.ts')
  const first = await lab.up()
  const name = `ntd${process.pid}`
  const n = await lab.client.createNetwork({
    name: 'lab',
    backend: 'cni',
    config: config(name, portmap, { type: 'firewall' }),
  })
  assert.equal(n.addressing, 'external')
  const web = await lab.create('web', { network: 'lab', ports: [`${PORT}:80`] })
  assert.match(web.address ?? '', /^10\.209\.11\.\d+$/)
  const netns = `/proc/${web.pid}/ns/net`
  assert.match(has(netns), new RegExp(`${web.address}/24`))
  await assert.rejects(lab.create('two', { network: 'lab', ports: [`${PORT}:80`] }), /in use by the VM "web"/)
  await assert.rejects(lab.create('two', { network: 'lab', ip: '10.209.11.9' }), /fixed address/)

  await kill9(first)
  const second = await lab.up()
  assert.deepEqual(
    (await lab.client.vms()).map((v) => [v.name, v.state, v.address, v.problem]),
    [['web', 'running', web.address, null]],
  )
  await kill9(second)
  execFileSync('nsenter', [`--net=${netns}`, 'ip', 'link', 'delete', 'eth0'])
  const third = await lab.up()
  const mended = await lab.client.vm('web')
  assert.deepEqual([mended.state, mended.problem], ['running', null])
  assert.match(has(netns), new RegExp(`${mended.address}/24`))
  assert.match(rules().join(' '), /CNI-DN-/)

  await lab.client.stop('web')
  await lab.client.start('web', () => {})
  await lab.client.destroy('web')
  await lab.client.removeNetwork('lab')
  assert.deepEqual([rules(), bridges()], [[], []])
  third.kill()
  await exited(third)
})

for (const point of ['network-made', 'published', 'prepared', 'attached', 'started'])
  test(`killed at "${point}" of create: nothing is left, or a VM that runs`, { skip, timeout: 240_000 }, async (t) => {
    const lab = new Lab(t, 'real-main.ts')
    const before = await lab.up()
    await lab.client.createNetwork({ name: 'lab', backend: 'cni', config: config(`ntk${process.pid}`, portmap) })
    await kill9(before)
    const p = await lab.up({ CRASH_AT: point })
    await assert.rejects(lab.create('web', { network: 'lab', ports: [`${PORT}:80`] }))
    await exited(p)
    await lab.up()
    for (const v of await lab.client.vms()) await lab.client.destroy(v.name)
    await lab.client.removeNetwork('lab')
    await eventually('nothing is left', () => rules().length + bridges().length === 0).catch(() => {})
    assert.deepEqual([rules(), bridges()], [[], []])
  })

test('refused before anything is made: no portmap, no plugin, no conflist', { skip, timeout: 240_000 }, async (t) => {
  const lab = new Lab(t, 'real-main.ts')
  await lab.up()
  const make = (config: Record<string, unknown>) => lab.client.createNetwork({ name: 'lab', backend: 'cni', config })
  await assert.rejects(make(config('x', { type: 'no-such-plugin' })), /there is no CNI plugin no-such-plugin/)
  await assert.rejects(make({ conflist: '/nowhere.conflist' }), /cannot be read/)
  assert.deepEqual(await lab.client.networks(), [])
  await make(config(`ntr${process.pid}`))
  await assert.rejects(lab.create('web', { network: 'lab', ports: ['0:80'] }), /maps ports/)
  assert.deepEqual(await lab.client.vms(), [])
  await lab.client.removeNetwork('lab')
  assert.deepEqual([rules(), bridges()], [[], []])
})
