import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { test } from 'node:test'
import { fileLog } from '../../src/daemon/log.ts'
import { KeyedMutex } from '../../src/daemon/mutex.ts'
import { type NetworkRecord, SCHEMA_VERSION, Store, type VmRecord } from '../../src/daemon/store.ts'
import { Lock } from '../../src/lock.ts'

const network: NetworkRecord = {
  id: 'n1',
  name: 'default',
  backend: 'userspace',
  phase: 'ready',
  subnet: '192.168.100.0/24',
  subnet6: 'fd12:3456:789a:1::/64',
  ipv4: true,
  domain: 'noid.internal',
  mtu: 1500,
  isolated: false,
  onDemand: true,
  allowHost: [5432],
  config: { a: [1, { b: null }] },
  notes: ['a note'],
  createdAt: '2026-01-01T00:00:00.000Z',
}
const vm: VmRecord = {
  id: 'v1',
  name: 'web',
  phase: 'creating',
  problem: null,
  runtime: 'sandbox',
  network: 'n1',
  address: '192.168.100.100',
  address6: 'fd12:3456:789a:1::100',
  mac: '02:00:00:00:00:01',
  cpus: 1,
  memMib: 512,
  image: null,
  netns: null,
  ifname: null,
  attachedAs: null,
  handle: null,
  bootId: null,
  createdAt: '2026-01-01T00:00:00.000Z',
  startedAt: null,
  mounts: [{ source: '/srv', target: '/data', readonly: true }],
  restart: 'on-failure:3',
  restarts: 0,
  restartAt: null,
}

/** As it was released. */
const SCHEMA_OF_0_1_0 = `CREATE TABLE networks (
     id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, backend TEXT NOT NULL, phase TEXT NOT NULL, subnet TEXT NOT NULL,
     domain TEXT NOT NULL, mtu INTEGER NOT NULL, isolated INTEGER NOT NULL, on_demand INTEGER NOT NULL,
     allow_host TEXT NOT NULL, config TEXT NOT NULL, notes TEXT NOT NULL, created_at TEXT NOT NULL) STRICT;
   CREATE TABLE vms (
     id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, phase TEXT NOT NULL, problem TEXT, runtime TEXT NOT NULL,
     network TEXT NOT NULL REFERENCES networks(id), address TEXT, mac TEXT NOT NULL UNIQUE, cpus INTEGER NOT NULL,
     mem_mib INTEGER NOT NULL, image TEXT, handle TEXT, boot_id TEXT, created_at TEXT NOT NULL, started_at TEXT, netns TEXT,
     ifname TEXT, attached_as TEXT) STRICT;
   CREATE UNIQUE INDEX vm_address ON vms(network, address);
   CREATE UNIQUE INDEX vm_attached ON vms(attached_as);
   CREATE TABLE attachments (
     id TEXT PRIMARY KEY, vm TEXT NOT NULL UNIQUE REFERENCES vms(id) ON DELETE CASCADE, body TEXT) STRICT;
   CREATE TABLE publishes (
     id TEXT PRIMARY KEY, vm TEXT NOT NULL REFERENCES vms(id) ON DELETE CASCADE, proto TEXT NOT NULL,
     host_address TEXT NOT NULL, host_port INTEGER NOT NULL, picked INTEGER NOT NULL, guest_port INTEGER NOT NULL) STRICT;
   CREATE INDEX publish_port ON publishes(proto, host_port);
   CREATE TABLE leases (
     attachment TEXT PRIMARY KEY REFERENCES attachments(id) ON DELETE CASCADE, address TEXT NOT NULL, state TEXT NOT NULL,
     expires_at INTEGER)STRICT;
   PRAGMA user_version = 1`

const scratch = (t: { after(fn: () => void): void }): string => {
  const dir = mkdtempSync(join(tmpdir(), 'noid-store-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}
const plain = (x: unknown): unknown => JSON.parse(JSON.stringify(x))

test('records are the same after a restart, opaque JSON included', (t) => {
  const file = join(scratch(t), 'deep', 'noid.db')
  const s = new Store(file)
  const handle = { pid: 7, startTime: '99', state: { deep: ['x'] } }
  const attachment = {
    id: 'v1',
    network: 'n1',
    nic: { kind: 'netdev', ifname: 'e', netns: '/n' },
    mac: vm.mac,
    mtu: 1500,
  } as const
  const full = { ...attachment, addresses: [], routes: [], configuredBy: 'dhcp' as const, state: { fd: [1, 2] } }
  s.addNetwork(network)
  s.addVm(vm)
  s.updateVm('v1', { handle, phase: 'running' })
  s.setAttachment('v1', full)
  s.addPublish({ id: 'p1', vm: 'v1', proto: 'udp', hostAddress: '0.0.0.0', hostPort: 0, picked: true, guestPort: 53 })
  s.setLease({ attachment: 'v1', address: '192.168.100.100', state: 'bound', expiresAt: 1_900_000_000_000 })
  s.setLease({ attachment: 'v1', address: 'fd12:3456:789a:1::100', state: 'bound', expiresAt: null })
  s.close()

  const again = new Store(file)
  assert.deepEqual(plain(again.networks()), [plain(network)])
  assert.deepEqual(plain(again.vmNamed('web')), plain({ ...vm, handle, phase: 'running' }))
  assert.deepEqual(again.attachment('v1'), full)
  assert.equal(again.publishesOf('v1')[0]?.picked, true)
  assert.equal(again.lease('v1')?.expiresAt, 1_900_000_000_000)
  assert.equal(again.lease('v1', 6)?.address, 'fd12:3456:789a:1::100')
  again.removeVm('v1')
  assert.deepEqual([again.publishesAt('udp', 0), again.lease('v1'), again.attachment('v1')], [[], undefined, undefined])
  again.setLease({ attachment: 'v1', address: '1.1.1.1', state: 'bound', expiresAt: null })
  assert.equal(again.lease('v1'), undefined)
  again.close()
})

test('one name, one MAC, one address on a network; a transaction that fails leaves nothing', () => {
  const s = new Store(':memory:')
  s.addNetwork(network)
  s.addVm(vm)
  const other = { ...vm, id: 'v2', name: 'db', mac: '02:00:00:00:00:02', address: '192.168.100.101', address6: null }
  for (const clash of [{ name: 'web' }, { mac: vm.mac }, { address: vm.address }, { address6: vm.address6 }])
    assert.throws(() => s.transaction(() => s.addVm({ ...other, ...clash })), /UNIQUE/)
  assert.throws(() => s.addVm({ ...other, network: 'n9' }), /FOREIGN KEY/)
  assert.equal(s.countVms(), 1)
  s.addVm({ ...other, address: null })
  s.addVm({ ...other, id: 'v3', name: 'c', mac: '02:00:00:00:00:03', address: null })
  s.close()
})

test('a store of 0.1.0 is brought to this schema: its networks are IPv4-only, its leases are kept', (t) => {
  const file = join(scratch(t), 'noid.db')
  const db = new DatabaseSync(file)
  db.exec(SCHEMA_OF_0_1_0)
  db.exec(`INSERT INTO networks VALUES ('n1', 'default', 'userspace', 'ready', '192.168.100.0/24', 'noid.internal', 1500, 0, 1,
             '[]', '{}', '[]', '2026-01-01');
           INSERT INTO vms VALUES ('v1', 'web', 'running', NULL, 'sandbox', 'n1', '192.168.100.10', '02:00:00:00:00:01', 1, 512,
             NULL, NULL, NULL, '2026-01-01', NULL, NULL, NULL, NULL);
           INSERT INTO attachments VALUES ('v1', 'v1', NULL);
           INSERT INTO publishes VALUES ('p1', 'v1', 'tcp', '0.0.0.0', 8080, 0, 80);
           INSERT INTO leases VALUES ('v1', '192.168.100.10', 'bound', 7)`)
  db.close()
  const s = new Store(file)
  const n = s.network('n1')
  assert.deepEqual([n.subnet, n.subnet6, n.ipv4], ['192.168.100.0/24', null, true])
  assert.deepEqual([s.vm('v1')?.address, s.vm('v1')?.address6], ['192.168.100.10', null])
  assert.equal(s.lease('v1')?.expiresAt, 7)
  assert.equal(s.publishesOf('v1')[0]?.hostAddress, '0.0.0.0')
  s.removeVm('v1')
  assert.equal(s.lease('v1'), undefined)
  s.close()
})

test('what an installation has of its own is made once', (t) => {
  const file = join(scratch(t), 'noid.db')
  const s = new Store(file)
  assert.equal(
    s.installation('ula', () => 'fd00::/48'),
    'fd00::/48',
  )
  s.close()
  const again = new Store(file)
  assert.equal(
    again.installation('ula', () => 'fd01::/48'),
    'fd00::/48',
  )
  again.close()
})

test('an empty file is brought to this schema; a newer one is refused and left alone', (t) => {
  const file = join(scratch(t), 'noid.db')
  new Store(file).close()
  const db = new DatabaseSync(file)
  assert.deepEqual({ ...db.prepare('PRAGMA user_version').get() }, { user_version: SCHEMA_VERSION })
  db.exec(`PRAGMA user_version = ${SCHEMA_VERSION + 1}`)
  db.close()
  assert.throws(() => new Store(file), /noid\.db was written by a newer noid/)
  const odd = `${file}.odd`
  writeFileSync(odd, 'anything else. '.repeat(100))
  assert.throws(() => new Store(odd), /\.odd cannot be used: file is not a database/)
})

test('a keyed mutex: one at a time for a key, in order, side by side for two, and on after a fault', async () => {
  const m = new KeyedMutex()
  const seen: string[] = []
  const gate = Promise.withResolvers<void>()
  const a = m.run('x', async () => {
    await gate.promise
    seen.push('a')
  })
  const b = m.run('x', async () => {
    seen.push('b')
    throw new Error('b fails')
  })
  const c = m.run('x', async () => void seen.push('c'))
  await m.run('y', async () => void seen.push('y'))
  gate.resolve()
  await assert.rejects(b, /b fails/)
  await Promise.all([a, c, m.idle()])
  assert.deepEqual(seen, ['y', 'a', 'b', 'c'])
})

test('the log keeps three files of a bounded size', async (t) => {
  const { readFileSync, readdirSync } = await import('node:fs')
  const dir = scratch(t)
  const log = fileLog(join(dir, 'daemon.log'), false, 1000)
  for (let i = 0; i < 100; i++) log('info', `line ${i} with some text`)
  log('debug', 'not shown')
  assert.deepEqual(readdirSync(dir).sort(), ['daemon.log', 'daemon.log.1', 'daemon.log.2'])
  for (const f of readdirSync(dir)) assert.ok(readFileSync(join(dir, f)).length <= 1000)
  assert.match(readFileSync(join(dir, 'daemon.log'), 'utf8'), /info {2}line 99 with some text\n$/)
})

test('a lock is held by one, given back, and not mistaken for one that cannot be made', (t) => {
  const file = join(scratch(t), 'x.lock')
  const first = Lock.take(file)
  assert.ok(first !== undefined)
  assert.equal(Lock.take(file), undefined)
  first.release()
  const second = Lock.take(file)
  assert.ok(second !== undefined)
  second.release()
  assert.throws(() => Lock.take('/proc/nowhere/x.lock'))
})
