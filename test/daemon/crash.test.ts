/** The daemon is killed (-9) at each of its checkpoints and started again: nothing half-made stays, nobody else notices. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Store } from '../../src/daemon/store.ts'
import { eventually } from '../eventually.ts'
import { exited, kill9, Lab } from './harness.ts'

const settled = async (lab: Lab): Promise<void> => {
  // Any request but the version waits until the daemon has reconciled.
  await lab.client.vms()
}

for (const point of ['reserved', 'network-made', 'published', 'prepared', 'attached']) {
  test(`killed at "${point}" of create: it is as if it had never been asked`, async (t) => {
    const lab = new Lab(t)
    const p = await lab.up({ CRASH_AT: point })
    await assert.rejects(lab.create('web', { ports: ['8080:80'] }))
    await exited(p)
    await lab.up()
    await settled(lab)
    assert.deepEqual(await lab.client.vms(), [])
    assert.deepEqual(await lab.client.networks(), [])
    assert.deepEqual(lab.world.list(), [])
    assert.equal((await lab.create('web', { ports: ['8080:80'] })).state, 'running')
  })
}

test('killed after a VM was started, before anybody was told: it runs on', async (t) => {
  const lab = new Lab(t)
  const p = await lab.up({ CRASH_AT: 'started' })
  await assert.rejects(lab.create('web'))
  await exited(p)
  await lab.up()
  const [web] = await lab.client.vms()
  assert.equal(web?.state, 'running')
})

for (const point of ['destroying', 'unpublished', 'ended', 'detached', 'removed', 'forgotten', 'network-deleting']) {
  test(`killed at "${point}" of destroy: it is finished`, async (t) => {
    const lab = new Lab(t)
    const first = await lab.up()
    await lab.create('web', { ports: ['8080:80'] })
    await kill9(first)
    const p = await lab.up({ CRASH_AT: point })
    await assert.rejects(lab.client.destroy('web'))
    await exited(p)
    await lab.up()
    await settled(lab)
    assert.deepEqual(await lab.client.vms(), [])
    assert.deepEqual(await lab.client.networks(), [])
    assert.deepEqual(lab.world.list(), [])
  })
}

test('killed while stopping or starting a VM: it is stopped, or failed with the reason, and starts again', async (t) => {
  const lab = new Lab(t)
  await kill9(await lab.up())
  for (const [point, state] of [
    ['stopping', 'stopped'],
    ['ended', 'stopped'],
  ] as const) {
    const first = await lab.up()
    const before = (await lab.client.vms())[0] ?? (await lab.create('web', { ports: ['8080:80'] }))
    if (before.state !== 'running') await lab.client.start('web', () => {})
    await kill9(first)
    const p = await lab.up({ CRASH_AT: point })
    await assert.rejects(lab.client.stop('web'))
    await exited(p)
    const next = await lab.up()
    assert.equal((await lab.client.vm('web')).state, state)
    await kill9(next)
  }
  for (const point of ['starting', 'published', 'prepared', 'attached']) {
    const p = await lab.up({ CRASH_AT: point })
    await assert.rejects(lab.client.start('web', () => {}))
    await exited(p)
    const next = await lab.up()
    const web = await lab.client.vm('web')
    assert.equal(web.state, 'failed', point)
    assert.match(web.problem ?? '', /while it was starting/)
    assert.deepEqual(
      lab.world.list().filter((f) => !f.startsWith('net-')),
      [],
      point,
    )
    await kill9(next)
  }
  await lab.up()
  assert.equal((await lab.client.start('web', () => {})).state, 'running')
})

test('running VMs are adopted with their process, address and ports; what was lost is made again', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  const web = await lab.create('web', { ports: ['8080:80', '0:81'] })
  const db = await lab.create('db')
  await kill9(first)
  // While the daemon is away: a nic and a port are lost, a stray appears.
  for (const f of lab.world.list()) {
    if (f === `att-${f.split('-')[1] as string}-${db.id}` || f === 'pub-tcp-8080') lab.world.drop(f)
  }
  const net = lab.world.list().find((f) => f.startsWith('net-')) as string
  lab.world.put(`att-${net.slice(4)}-vstray`)
  await lab.up()
  await settled(lab)
  assert.deepEqual(await lab.client.vm('web'), web)
  assert.deepEqual(await lab.client.vm('db'), db)
  assert.ok(lab.world.has('pub-tcp-8080') && lab.world.has('pub-tcp-40000'))
  assert.ok(lab.world.has(`att-${net.slice(4)}-${db.id}`) && !lab.world.has(`att-${net.slice(4)}-vstray`))
  const calls = lab.world.calls()
  assert.equal(calls.filter((c) => c === 'renic db').length, 1)
  assert.equal(calls.filter((c) => c === 'renic web').length, 0)
})

test('a port that somebody took while the daemon was away is told; the VM and its other ports go on', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  await lab.create('web', { ports: ['8080:80', '8081:81'] })
  await kill9(first)
  lab.world.put('pub-tcp-8080', 'somebody')
  lab.world.drop('pub-tcp-8081')
  const second = await lab.up()
  const web = await lab.client.vm('web')
  assert.equal(web.state, 'running')
  assert.match(web.problem ?? '', /8080.*nginx/)
  assert.ok(lab.world.has('pub-tcp-8081'))
  await kill9(second)
  lab.world.drop('pub-tcp-8080')
  await lab.up()
  assert.equal((await lab.client.vm('web')).problem, null)
})

test('a VM that died while the daemon was away is failed and gives back what it held', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  const web = await lab.create('web', { ports: ['8080:80'] })
  await kill9(first)
  process.kill(web.pid as number, 'SIGKILL')
  await lab.up()
  const now = await lab.client.vm('web')
  assert.equal(now.state, 'failed')
  assert.match(now.problem ?? '', /while the daemon was away/)
  await eventually('ports are free', () => lab.world.list().every((f) => f.startsWith('net-')))
})

test('after the machine was started again, VMs are stopped with the reason, and start with their address', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  const web = await lab.create('web', { ports: ['8080:80'] })
  await kill9(first)
  const store = new Store(lab.paths.store)
  store.updateVm(web.id, { bootId: 'another boot' })
  store.close()
  await lab.up()
  const now = await lab.client.vm('web')
  assert.deepEqual([now.state, now.problem, now.pid], ['stopped', 'the machine was started again', null])
  assert.equal((await lab.client.start('web', () => {})).address, web.address)
})

test('a backend that hangs while the daemon takes up its work keeps nobody from the rest for long', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  await lab.create('web')
  await lab.create('other', { networkBackend: 'bare', start: false })
  await kill9(first)
  lab.world.mood = { hangCheck: true }
  await lab.up()
  assert.equal((await lab.client.vms()).length, 2)
  assert.equal((await lab.client.start('other', () => {})).state, 'running')
})

test('SIGTERM ends the daemon in order; VMs go on and are adopted', async (t) => {
  const lab = new Lab(t)
  const first = await lab.up()
  const web = await lab.create('web')
  first.kill('SIGTERM')
  await exited(first)
  assert.equal(first.exitCode, 0)
  assert.ok(lab.world.has(`vm-${web.id}`))
  await lab.up()
  assert.deepEqual(await lab.client.vm('web'), web)
})
