/** noid prune: what is left over goes, what somebody may want stays until it is asked for, and a dry run touches nothing. */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { test } from 'node:test'
import { kill9, Lab } from './harness.ts'

const said = (r: { removed: readonly { kind: string; name: string }[] }): string[] =>
  r.removed.map((x) => `${x.kind} ${x.name}`)

test('strays and empty networks go; VMs and images only when asked for; what is in use never', async (t) => {
  const lab = new Lab(t)
  const daemon = await lab.up()
  await lab.create('on', { network: 'used' })
  await lab.create('off', { network: 'lonely' })
  await lab.create('new', { start: false })
  await lab.client.stop('off', 0)
  await lab.client.createNetwork({ name: 'made' })
  assert.deepEqual(await lab.client.prune({}), { removed: [], failed: [], bytes: 0, dryRun: false })

  // What a person or another noid may have left behind.
  const stray = join(lab.paths.stateDir, 'vms', 'v0123456789')
  const strayNet = join(lab.paths.runDir, 'userspace', 'n0123456789')
  const foreign = [join(lab.paths.stateDir, 'vms', 'notes'), join(lab.paths.runDir, 'userspace', 'compiled')]
  for (const dir of [stray, strayNet, ...foreign]) {
    mkdirSync(dir, { recursive: true })
    writeFileSync(join(dir, 'x'), Buffer.alloc(100_000))
  }
  lab.world.put('net-n0123456789')
  await kill9(daemon)
  const db = new DatabaseSync(lab.paths.store)
  db.exec(`INSERT INTO networks (id, name, backend, phase, subnet, domain, mtu, isolated, on_demand, allow_host, config, notes, created_at, subnet6, ipv4)
    SELECT 'n9999999999', 'forgotten', backend, phase, '192.168.199.0/24', domain, mtu, isolated, 1, allow_host, config,
    notes, created_at, subnet6, ipv4 FROM networks WHERE name = 'made'`)
  db.close()
  await lab.up()
  // The reconciler has removed the network already; the daemon that runs for long is who needs prune for it.
  const strays = ['vm-directory v0123456789', 'network-directory userspace/n0123456789']
  const would = await lab.client.prune({ dryRun: true })
  assert.deepEqual(said(would), strays)
  assert.ok(would.bytes >= 200_000)
  assert.ok(existsSync(stray) && existsSync(strayNet))
  assert.deepEqual(said(await lab.client.prune({ vms: true, dryRun: true })), ['vm off', 'network lonely', ...strays])
  assert.equal((await lab.client.vms()).length, 3)

  const done = await lab.client.prune({})
  assert.deepEqual(said(done), strays)
  assert.equal(done.bytes, would.bytes)
  assert.deepEqual([existsSync(stray), existsSync(strayNet)], [false, false])
  assert.ok(!lab.world.has('net-n0123456789'), 'the backend was asked to remove what it had')
  for (const dir of foreign) assert.ok(existsSync(dir), dir)

  // The network goes with its VM, so that it is not told again.
  const last = await lab.client.prune({ vms: true })
  assert.deepEqual(said(last), ['vm off'])
  assert.deepEqual((await lab.client.vms()).map((v) => v.name).sort(), ['new', 'on'])
  assert.deepEqual((await lab.client.networks()).map((n) => n.name).sort(), ['default', 'made', 'used'])
  assert.deepEqual(said(await lab.client.prune({ vms: true, images: true })), [])
})

test('what a runtime keeps for nobody goes; what cannot go is told, and the rest goes all the same', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('a', { image: 'one' })
  for (const f of ['.kept-template-t1', '.kept-image-one', '.kept-image-two', '.kept-image-stuck'])
    lab.world.put(f, 'x')
  assert.deepEqual(said(await lab.client.prune({ dryRun: true })), ['template t1'])
  const all = await lab.client.prune({ images: true })
  assert.deepEqual(said(all).sort(), ['image two', 'template t1'])
  assert.deepEqual(all.failed, [{ name: 'stuck', why: 'the fake keeps it' }])
  assert.ok(lab.world.has('.kept-image-one'))
})
