/** The daemon over its real socket, with a fake backend and runtime: create, list, refuse, destroy. */
import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import { test } from 'node:test'
import { send } from '../../src/client/http.ts'
import { NoidError } from '../../src/errors.ts'
import { eventually } from '../eventually.ts'
import { rangeOf } from './fakes.ts'
import { exited, kill9, Lab } from './harness.ts'

const code =
  (c: string, text = /./) =>
  (e: unknown) =>
    e instanceof NoidError && e.code === c && text.test(e.message)

test('a VM is created, shown, stopped, started with its address, destroyed; nothing is left', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  assert.equal(statSync(lab.paths.socket).mode & 0o777, 0o600)
  const steps: string[] = []
  const web = await lab.client.create({ name: 'web', ports: ['8080:80', '0:81'] }, (l) => steps.push(l.text))
  assert.ok(steps.length >= 4)
  assert.equal(web.state, 'running')
  assert.equal(web.address, '192.168.100.100')
  assert.equal(web.network, 'default')
  assert.deepEqual(
    web.ports.map((p) => p.hostPort),
    [8080, 40000],
  )
  assert.deepEqual(
    (await lab.client.vms()).map((v) => v.name),
    ['web'],
  )
  assert.deepEqual((await lab.client.network('default')).vms, ['web'])

  const stopped = await lab.client.stop('web', 0)
  assert.equal(stopped.state, 'stopped')
  assert.deepEqual(
    lab.world.list().map((f) => f.slice(0, 3)),
    ['net'],
  )
  const again = await lab.client.start('web', () => {})
  assert.equal(again.address, web.address)
  assert.equal(again.mac, web.mac)
  assert.deepEqual(again.ports, web.ports)
  assert.equal((await lab.client.restart('web', () => {})).address, web.address)

  await lab.client.destroy('web')
  assert.deepEqual(lab.world.list(), [])
  assert.deepEqual(await lab.client.networks(), [])
  await assert.rejects(lab.client.vm('web'), code('VM_UNKNOWN'))
})

test('no two VMs are derived the same users from their ids', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const ranges = 16
  lab.world.mood = { ranges }
  const names = Array.from({ length: ranges }, (_, i) => `vm${i}`)
  const made = await Promise.all(names.map((name) => lab.create(name, { start: false })))
  assert.deepEqual(
    made.map((v) => rangeOf(lab.world, v.id)).sort((a, b) => a - b),
    names.map((_, i) => i),
  )
  await assert.rejects(lab.create('more', {}), code('INVALID_INPUT', /no range of users is left/))
  await lab.client.destroy('vm3')
  assert.equal((await lab.create('more', {})).state, 'running')
})

test('what can be refused is refused before anything is made', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web', { ip: '192.168.100.10', ports: ['8080:80'] })
  const before = lab.world.list()
  lab.world.put('pub-tcp-9000', 'somebody')
  const refused: readonly (readonly [string, Parameters<Lab['create']>[1], ReturnType<typeof code>])[] = [
    ['web', {}, code('NAME_TAKEN', /"web" exists already/)],
    ['Web', {}, code('NAME_INVALID')],
    ['host', {}, code('INVALID_INPUT', /this machine/)],
    ['a', { ip: '192.168.100.10' }, code('ADDRESS_TAKEN', /belongs to the VM "web"/)],
    ['a', { ip: '192.168.100.1' }, code('ADDRESS_RESERVED')],
    ['a', { ip: '10.1.1.1' }, code('ADDRESS_OUTSIDE')],
    ['a', { ip: 'x' }, code('ADDRESS_INVALID')],
    ['a', { mac: '01:00:00:00:00:00' }, code('MAC_INVALID')],
    ['a', { ports: ['80:80/sctp'] }, code('PORT_SPEC_INVALID')],
    ['a', { ports: ['127.0.0.1:8080:80'] }, code('PORT_BUSY', /the VM "web"/)],
    ['a', { ports: ['9000:80'] }, code('PORT_BUSY', /nginx \(pid 7\)/)],
    ['a', { networkBackend: 'nonesuch' }, code('BACKEND_UNKNOWN', /nonesuch/)],
    ['a', { runtime: 'nonesuch' }, code('RUNTIME_UNKNOWN')],
    ['a', { network: 'default', networkBackend: 'bare' }, code('NETWORK_BACKEND_MISMATCH')],
    ['a', { networkBackend: 'bare', ports: ['80:80'] }, code('CAPABILITY_MISSING', /publish/)],
    ['a', { networkBackend: 'bare', network: 'isolated' }, code('CAPABILITY_MISSING', /apart/)],
    ['a', { network: 'x'.repeat(64) }, code('NAME_INVALID')],
    ['a', { network: 'other', ip: '192.168.100.11' }, code('ADDRESS_OUTSIDE')],
  ]
  for (const [name, body, expected] of refused) {
    await assert.rejects(lab.create(name, body), expected, JSON.stringify([name, body]))
    assert.deepEqual(lab.world.list(), [...before, 'pub-tcp-9000'].sort(), JSON.stringify([name, body]))
  }
  assert.deepEqual(
    (await lab.client.vms()).map((v) => v.name),
    ['web'],
  )
  assert.deepEqual(
    (await lab.client.networks()).map((n) => n.name),
    ['default'],
  )
})

test('a failure half-way is undone, and told as it was', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  lab.world.mood = { failAttach: true }
  await assert.rejects(lab.create('web', { ports: ['8080:80'] }), code('INTERNAL', /the fake does not attach/))
  assert.deepEqual(lab.world.list(), [])
  lab.world.mood = { failStart: true }
  await assert.rejects(lab.create('web'), code('VM_START_FAILED'))
  assert.deepEqual(lab.world.list(), [])
  assert.deepEqual(await lab.client.vms(), [])
  assert.deepEqual(await lab.client.networks(), [])

  lab.world.mood = {}
  await lab.create('web')
  await lab.client.stop('web')
  lab.world.mood = { failStart: true }
  await assert.rejects(
    lab.client.start('web', () => {}),
    code('VM_START_FAILED'),
  )
  const failed = await lab.client.vm('web')
  assert.equal(failed.state, 'failed')
  assert.match(failed.problem ?? '', /does not start/)
  lab.world.mood = {}
  assert.equal((await lab.client.start('web', () => {})).state, 'running')

  lab.world.mood = { failDetach: true }
  await assert.rejects(lab.client.destroy('web'), /does not detach/)
  assert.match((await lab.client.vm('web')).problem ?? '', /removal did not finish/)
  await assert.rejects(
    lab.client.start('web', () => {}),
    code('VM_START_FAILED'),
  )
  lab.world.mood = {}
  await lab.client.destroy('web')
  assert.deepEqual(lab.world.list(), [])
})

test('sixteen VMs at once have sixteen addresses and MACs; eight of one name are one VM', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  lab.world.mood = { slowMs: 30 }
  const vms = await Promise.all(Array.from({ length: 16 }, (_, i) => lab.create(`vm-${i}`)))
  assert.equal(new Set(vms.map((v) => v.address)).size, 16)
  assert.equal(new Set(vms.map((v) => v.mac)).size, 16)
  const same = await Promise.allSettled(Array.from({ length: 8 }, () => lab.create('same')))
  assert.equal(same.filter((r) => r.status === 'fulfilled').length, 1)
  await Promise.all((await lab.client.vms()).map((v) => lab.client.destroy(v.name)))
  assert.deepEqual(lab.world.list(), [])
})

test('a full pool is said with its range; a freed address is given again', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.client.createNetwork({ name: 'small', subnet: '192.168.7.0/28' })
  const made: string[] = []
  await assert.rejects(
    async () => {
      for (let i = 0; i < 20; i++)
        made.push((await lab.create(`s${i}`, { network: 'small', start: false })).address as string)
    },
    code('POOL_EXHAUSTED', /192\.168\.7\.6-192\.168\.7\.13/),
  )
  assert.equal(made.length, 8)
  await lab.client.destroy('s3')
  assert.equal((await lab.create('t', { network: 'small', start: false })).address, made[3])
  assert.equal((await lab.create('u', { network: 'small', start: false, ip: '192.168.7.3' })).address, '192.168.7.3')
  await assert.rejects(lab.client.removeNetwork('small'), code('NETWORK_IN_USE', /s0, s1/))
})

test('networks: made on first use and said, listed, removed with their last VM; made by name they stay', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const notes: string[] = []
  const a = await lab.client.create({ name: 'a', network: 'blue' }, (l) => l.type === 'note' && notes.push(l.text))
  assert.equal(a.address, '192.168.101.100')
  assert.match(notes.join(), /blue did not exist and is made/)
  const b = await lab.create('b', { network: 'isolated' })
  assert.equal((await lab.client.network('isolated')).isolated, true)
  assert.equal(b.network, 'isolated')
  assert.equal((await lab.create('c', { networkBackend: 'bare' })).network, 'default-bare')
  assert.equal((await lab.create('d', { network: 'default-bare' })).backend, 'bare')
  await lab.client.createNetwork({ name: 'kept', allowHost: [5432], config: { colour: 'red' } })
  await assert.rejects(lab.client.createNetwork({ name: 'kept' }), code('NAME_TAKEN', /network named "kept"/))
  await assert.rejects(
    lab.client.createNetwork({ name: 'bad', config: { color: 1 } }),
    code('INVALID_INPUT', /unknown key color/),
  )
  await assert.rejects(
    lab.client.createNetwork({ name: 'bad', subnet: '192.168.101.0/25' }),
    code('SUBNET_TAKEN', /"blue"/),
  )
  for (const v of await lab.client.vms()) await lab.client.destroy(v.name)
  const left = await lab.client.networks()
  assert.deepEqual(
    left.map((n) => [n.name, n.allowHostPorts]),
    [['kept', [5432]]],
  )
  assert.deepEqual((await lab.client.stats('kept')).flows, [])
  await lab.client.removeNetwork('kept')
  assert.deepEqual(lab.world.list(), [])
  await assert.rejects(lab.client.network('kept'), code('NETWORK_UNKNOWN'))
})

test('networks that are made at once have subnets of their own', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const made = await Promise.all([
    lab.create('a'),
    ...Array.from({ length: 6 }, (_, i) => lab.create(`v${i}`, { network: `n${i}` })),
    lab.client.createNetwork({ name: 'named' }),
  ])
  const subnets = (await lab.client.networks()).map((n) => n.subnet)
  assert.equal(new Set(subnets).size, made.length, subnets.join())
})

test('ports are added and removed while the VM runs, all of a request or none', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web', { ports: ['8080:80'] })
  lab.world.put('pub-udp-9002', 'somebody')
  await assert.rejects(lab.client.addPorts('web', ['9001-9003:1-3/udp']), code('PORT_BUSY'))
  assert.equal((await lab.client.ports('web')).length, 1)
  assert.ok(!lab.world.has('pub-udp-9001'))
  assert.deepEqual(
    (await lab.client.addPorts('web', ['0:22', '9001:1/udp'])).map((p) => p.hostPort),
    [40000, 9001],
  )
  await assert.rejects(lab.client.removePorts('web', ['1234']), code('PORT_UNKNOWN'))
  assert.deepEqual(
    (await lab.client.removePorts('web', ['8080'])).map((p) => p.guestPort),
    [80],
  )
  await lab.client.stop('web')
  await lab.client.addPorts('web', ['7000:7'])
  assert.equal((await lab.client.start('web', () => {})).ports.length, 3)
  assert.ok(lab.world.has('pub-tcp-7000') && lab.world.has('pub-tcp-40000') && lab.world.has('pub-udp-9001'))
})

test('a VM whose init dies is failed and gives back what it held', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const web = await lab.create('web', { ports: ['8080:80'] })
  process.kill(web.pid as number, 'SIGKILL')
  await eventually('the VM is failed', async () => (await lab.client.vm('web')).state === 'failed')
  assert.match((await lab.client.vm('web')).problem ?? '', /init ended/)
  await eventually('nothing is held', () => lab.world.list().every((f) => f.startsWith('net-')))
  assert.equal((await lab.client.start('web', () => {})).address, web.address)
})

test('events of a backend: restored nics are configured again, warnings are shown', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  const n = await lab.client.network('default')
  const v = await lab.client.vm('web')
  const a = {
    id: v.id,
    network: n.id,
    nic: { kind: 'tap', ifname: 'eth0', queues: 1, vnetHdr: true },
    mac: v.mac,
    mtu: 1500,
  }
  const attachment = { ...a, addresses: [`${v.address}/24`], routes: [], configuredBy: 'dhcp', state: {} }
  lab.world.put('.event', JSON.stringify({ type: 'restored', network: n.id, attachments: [attachment] }))
  await eventually('renic', () => lab.world.calls().includes('renic web'))
  lab.world.put('.event', JSON.stringify({ type: 'warning', network: n.id, message: 'two nics with one MAC' }))
  await eventually('the warning', async () =>
    (await lab.client.network('default')).warnings.includes('two nics with one MAC'),
  )
})

test('backends are listed with their state; a plug-in that throws is named; one that hangs is bounded', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const list = await lab.client.backends()
  assert.deepEqual(
    list.map((b) => [b.name, b.ok]),
    [
      ['userspace', true],
      ['bare', true],
      ['dual', true],
      ['broken', false],
    ],
  )
  assert.match(list[3]?.problems[0]?.what ?? '', /it throws/)
})

test('one daemon serves a store; a second ends by itself, and a stale socket is replaced', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  const second = lab.spawn()
  await exited(second)
  assert.equal(second.exitCode, 3)
  assert.equal((await lab.client.version()).pid, first.pid)
  first.kill('SIGKILL')
  await exited(first)
  const third = await lab.up()
  await lab.client.stopDaemon()
  await exited(third)
  assert.equal(third.exitCode, 0)
})

/** The client of this answer goes while the backend attaches; the backend hears of that, and not of its time limit. */
async function leavesDuringAttach(lab: Lab, m: { destroy(): unknown }): Promise<void> {
  await eventually('the backend is attaching', () => lab.world.list().some((f) => f.startsWith('att-')))
  m.destroy()
  const ended = await eventually('the attach ends', () =>
    lab.world.calls().find((c) => c.startsWith('attach web ended')),
  )
  assert.equal(ended, 'attach web ended: cancelled')
}

test('a client that leaves during create has it undone', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  lab.world.mood = { hangAttach: true }
  const m = await send({ socket: lab.paths.socket }, 'POST', '/v1/vms', { name: 'web' })
  await leavesDuringAttach(lab, m)
  await eventually('it is undone', async () => (await lab.client.vms()).length === 0)
  await eventually('nothing is left', () => lab.world.list().length === 0)
})

test('a client that leaves during start leaves the VM stopped', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web', { start: false })
  lab.world.mood = { hangAttach: true }
  const m = await send({ socket: lab.paths.socket }, 'POST', '/v1/vms/web/start', {})
  await leavesDuringAttach(lab, m)
  await eventually('it is stopped', async () => (await lab.client.vm('web')).state === 'stopped')
  assert.equal((await lab.client.vm('web')).problem, null)
  assert.deepEqual(
    lab.world.list().filter((f) => !f.startsWith('net-')),
    [],
  )
})

test('a VM whose backend is not there any more is stopped and destroyed all the same, and its network removed', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  const { id } = await lab.create('web', { networkBackend: 'dual', ports: ['8080:80'] })
  await lab.client.createNetwork({ name: 'lab', backend: 'dual' })
  await kill9(first)
  const second = await lab.up({ GONE: 'dual' })
  assert.equal((await lab.client.vm('web')).state, 'running')
  const stopped = await lab.client.stop('web', 0)
  assert.equal(stopped.state, 'stopped')
  assert.match(stopped.problem ?? '', /backend dual is not there any more: .* the VM web .* may have stayed/)
  assert.ok(!lab.world.has(`vm-${id}`), 'its process is there')
  await assert.rejects(
    lab.client.start('web', () => {}),
    { code: 'BACKEND_UNKNOWN' },
  )
  assert.match((await lab.client.destroy('web')).note ?? '', /the VM web .* may have stayed/)
  assert.match((await lab.client.removeNetwork('lab')).note ?? '', /the network lab .* may have stayed/)
  assert.deepEqual([await lab.client.vms(), await lab.client.networks()], [[], []])
  await kill9(second)
})

test('a VM whose backend cannot be loaded is ended; its removal is finished when it can', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  const { id } = await lab.create('web', { networkBackend: 'dual', ports: ['8080:80'] })
  await kill9(first)
  const second = await lab.up({ FAILS: 'dual' })
  await assert.rejects(lab.client.stop('web', 0), { code: 'BACKEND_UNAVAILABLE' })
  assert.ok(!lab.world.has(`vm-${id}`), 'its process is there')
  assert.equal((await lab.client.vm('web')).state, 'failed')
  await assert.rejects(lab.client.destroy('web'), { code: 'BACKEND_UNAVAILABLE' })
  assert.match((await lab.client.vm('web')).problem ?? '', /its removal did not finish: .*it is torn/)
  await kill9(second)
  await lab.up()
  await eventually('it is gone', async () => (await lab.client.vms()).length === 0)
  assert.deepEqual(lab.world.list(), [])
})
