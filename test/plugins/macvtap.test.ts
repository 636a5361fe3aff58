// macvtap on a LAN made of a veth: the kit on a segment that noid serves and on a LAN with a DHCP server of its own; the modes; what is refused.
import assert from 'node:assert/strict'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Guest } from '../../src/plugins/conformance/guest.ts'
import { conformance } from '../../src/plugins/conformance/index.ts'
import type { BackendContext, NetworkBackend, NetworkSpec } from '../../src/plugins/contract.ts'
import { MacvtapBackend } from '../../src/plugins/macvtap/backend.ts'
import { descriptor } from '../../src/plugins/macvtap/index.ts'
import type { ClientAnswer, ClientRequest } from '../../src/runtimes/dhcp-client/lease.ts'
import { eventually } from '../e2e/lab.ts'
import { missing } from './needs.ts'
import { ownHost } from './own-host.ts'

/** noid's own DHCP client. */
const CLIENT = [
  process.execPath,
  '--disable-warning=ExperimentalWarning',
  fileURLToPath(new URL('../../src/runtimes/dhcp-client/main.ts', import.meta.url)),
]
const dnsmasq = spawnSync('sh', ['-c', 'command -v dnsmasq']).status === 0
const skip = missing() || ownHost()

const dir = mkdtempSync(join(tmpdir(), 'noid-macvtap-'))
after(() => rmSync(dir, { recursive: true, force: true }))

if (skip === false) {
  // /sys/class/net of this namespace: numbers of macvtap's character devices are read there.
  execFileSync('mount', ['-t', 'sysfs', 'sysfs', '/sys'])
  if (dnsmasq) {
    // The far end of the LAN, with a DHCP server.
    const lan = spawn('unshare', ['--net', 'sh', '-c', 'echo ready; exec sleep 3600'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    await new Promise((resolve) => lan.stdout.once('data', resolve))
    const there = (...argv: string[]) => execFileSync('nsenter', [`--net=/proc/${lan.pid}/ns/net`, ...argv])
    execFileSync('ip', ['link', 'set', 'up1', 'netns', String(lan.pid)])
    there('ip', 'addr', 'add', '203.0.113.1/24', 'dev', 'up1')
    there('ip', 'link', 'set', 'up1', 'up')
    const options = [
      '--keep-in-foreground',
      '--port=0',
      '--dhcp-range=203.0.113.100,203.0.113.200',
      '--interface=up1',
      `--dhcp-leasefile=${dir}/leases`,
      '--user=root',
      '--pid-file=',
      '--conf-file=/dev/null',
    ]
    const server = spawn('nsenter', [`--net=/proc/${lan.pid}/ns/net`, 'dnsmasq', ...options], { stdio: 'ignore' })
    after(() => {
      server.kill('SIGKILL')
      lan.kill('SIGKILL')
    })
    conformance(test as never, descriptor, { label: 'macvtap, on a LAN', config: { parent: 'up0' } })
  }
  conformance(test as never, descriptor, {
    label: 'macvtap, served by noid',
    config: { parent: 'up0', addresses: 'noid' },
  })
} else test('the macvtap backend passes the kit', { skip }, () => {})

const context: BackendContext = { runDir: dir, stateDir: dir, privileged: true, log: () => {}, notify: () => {} }
const soon = () => AbortSignal.timeout(60_000)
let serial = 0
function spec(backend: NetworkBackend, config: object, over: Partial<NetworkSpec> = {}): NetworkSpec {
  const id = `m${serial++}`
  const net = `10.214.${serial}`
  return {
    id,
    name: id,
    subnet: `${net}.0/24`,
    gateway: `${net}.1`,
    services: `${net}.2`,
    hostAddress: `${net}.254`,
    domain: 'noid.internal',
    mtu: 1500,
    isolated: false,
    allowHostPorts: [],
    config: backend.parseConfig(config),
    ...over,
  }
}
const request = (n: NetworkSpec, name: string, g: Guest | undefined) => ({
  id: `${n.id}-${name}`,
  network: n.id,
  name,
  mac: `02:6d:00:00:${String(serial).padStart(2, '0')}:${name === 'a' ? '0a' : '0b'}`,
  addresses: [],
  accepts: [g === undefined ? ('tap-device' as const) : ('netdev' as const)],
  netns: g?.netns,
})

test('private mode keeps VMs apart, bridge mode does not', { skip, timeout: 180_000 }, async () => {
  const backend = new MacvtapBackend(context)
  for (const [mode, reached] of [
    ['bridge', true],
    ['private', false],
  ] as const) {
    const n = spec(backend, { parent: 'up0', mode })
    await backend.createNetwork(n, soon())
    const guests = [await Guest.open(), await Guest.open()] as const
    try {
      for (const [k, g] of guests.entries()) {
        await backend.attach(request(n, k === 0 ? 'a' : 'b', g), soon())
        await g.run('ip', 'addr', 'add', `192.0.2.${k + 1}/24`, 'dev', 'eth0')
        await g.run('ip', 'link', 'set', 'eth0', 'up')
      }
      const patience = reached ? ['-c', '1', '-w', '20'] : ['-c', '2', '-i', '0.3', '-W', '2']
      const ping = guests[0].run('ping', '-n', ...patience, '192.0.2.2')
      assert.equal(
        await ping.then(
          () => true,
          () => false,
        ),
        reached,
        `in mode ${mode}`,
      )
    } finally {
      await backend.deleteNetwork(n.id, soon())
      for (const g of guests) await g.close()
    }
  }
  await backend.close()
})

test('passthru: one VM with its own MAC; the second is refused with the reason, and leaves nothing', {
  skip,
  timeout: 180_000,
}, async () => {
  const backend = new MacvtapBackend(context)
  const n = spec(backend, { parent: 'up0', mode: 'passthru' })
  await backend.createNetwork(n, soon())
  const guests = [await Guest.open(), await Guest.open()] as const
  try {
    const first = await backend.attach(request(n, 'a', guests[0]), soon())
    await backend.check(first, soon())
    await assert.rejects(backend.attach(request(n, 'b', guests[1]), soon()), /one VM has up0 to itself/)
    assert.ok(!(await guests[1].hasLink('eth0')))
    assert.deepEqual((await backend.gc(n.id, [`${n.id}-a`])).removed, [])
  } finally {
    await backend.deleteNetwork(n.id, soon())
    for (const g of guests) await g.close()
    await backend.close()
  }
})

test('a runtime that takes a descriptor gets the numbers of the character device', {
  skip,
  timeout: 180_000,
}, async () => {
  const backend = new MacvtapBackend(context)
  const n = spec(backend, { parent: 'up0' })
  await backend.createNetwork(n, soon())
  try {
    const { nic } = await backend.attach(request(n, 'a', undefined), soon())
    assert.equal(nic.kind, 'tap-device')
    if (nic.kind !== 'tap-device') return
    const node = join(dir, 'node')
    execFileSync('mknod', [node, 'c', String(nic.major), String(nic.minor)])
    closeSync(openSync(node, constants.O_RDWR))
    rmSync(node)
  } finally {
    await backend.deleteNetwork(n.id, soon())
    await backend.close()
  }
})

test('a segment that noid serves, smaller than a /24: its VMs have addresses of it, as the daemon cuts it up; also one that had another', {
  skip,
  timeout: 180_000,
}, async () => {
  const backend = new MacvtapBackend(context)
  const small = { subnet: '10.9.0.16/28', gateway: '10.9.0.17', services: '10.9.0.18', hostAddress: '10.9.0.30' }
  const n = spec(backend, { parent: 'up0', addresses: 'noid' }, { ...small, pool: ['10.9.0.22', '10.9.0.23'] })
  await backend.createNetwork(n, soon())
  try {
    const given = async (name: string, addresses: readonly string[] = []) => {
      const r = { ...request(n, name, undefined), mac: `02:6d:00:00:28:0${name}`, addresses }
      return (await backend.attach(r, soon())).addresses
    }
    assert.deepEqual(await given('1'), ['10.9.0.22/28'])
    assert.deepEqual(await given('2', ['10.9.0.100/28']), ['10.9.0.23/28'])
    assert.deepEqual(await given('3', ['10.9.0.29/28']), ['10.9.0.29/28'])
    await assert.rejects(given('4'), { code: 'POOL_EXHAUSTED', message: /10\.9\.0\.22-10\.9\.0\.23/ })
    await backend.createNetwork({ ...n, pool: undefined }, soon())
    assert.deepEqual(await given('4'), ['10.9.0.19/28'])
  } finally {
    await backend.deleteNetwork(n.id, soon())
    await backend.close()
  }
})

test('what it cannot do is refused before anything is made', { skip, timeout: 180_000 }, async () => {
  const backend = new MacvtapBackend(context)
  const before = execFileSync('ip', ['-o', 'link']).toString()
  await assert.rejects(backend.createNetwork(spec(backend, {}), soon()), /parent is missing/)
  await assert.rejects(backend.createNetwork(spec(backend, { parent: 'nosuch' }), soon()), /no link named nosuch/)
  await assert.rejects(backend.createNetwork(spec(backend, { parent: 'up0' }, { allowHostPorts: [80] }), soon()), {
    code: 'CAPABILITY_MISSING',
  })
  assert.throws(() => backend.parseConfig({ parent: 'up0', mode: 'private', addresses: 'noid' }), /mode bridge/)
  assert.throws(() => backend.parseConfig({ parent: 'up0', speed: 9 }), /speed/)
  assert.equal(execFileSync('ip', ['-o', 'link']).toString(), before)
  await backend.close()
})

test('the services of a segment come back when they are killed, also when they cannot at first; leases are told', {
  skip,
  timeout: 180_000,
}, async () => {
  const said: string[] = []
  const bound: string[] = []
  const backend = new MacvtapBackend({
    ...context,
    log: (level, text) => said.push(`${level}: ${text}`),
    notify: (e) => e.type === 'lease' && e.state === 'bound' && bound.push(e.attachment),
  })
  const n = spec(backend, { parent: 'up0', addresses: 'noid' })
  await backend.createNetwork(n, soon())
  const guest = await Guest.open()
  try {
    const r = request(n, 'a', guest)
    await backend.attach(r, soon())
    execFileSync('ip', ['link', 'set', 'up0', 'down'])
    const { pid } = JSON.parse(readFileSync(join(dir, n.id, 'pid'), 'utf8')) as { pid: number }
    process.kill(pid, 'SIGKILL')
    await eventually('its way back fails', () => said.some((l) => /^error: could not bring back.*up0 is down/.test(l)))
    execFileSync('ip', ['link', 'set', 'up0', 'up'])
    await eventually('they are there', async () => (await backend.stats(n.id)).ports.length > 0)
    const asking: ClientRequest = {
      mode: 'acquire',
      ifname: 'eth0',
      mac: r.mac,
      hostname: r.name,
      mtu: 1500,
      ipv4: true,
      budgetMs: 60_000,
    }
    const answer = JSON.parse(await guest.run(...CLIENT, JSON.stringify(asking))) as ClientAnswer
    assert.ok(answer.ok && answer.lease?.address.startsWith('10.214.'), JSON.stringify(answer))
    await eventually('the daemon is told', () => bound.includes(r.id))
    // The lease is its client's also after another accident.
    const again = JSON.parse(readFileSync(join(dir, n.id, 'pid'), 'utf8')) as { pid: number }
    process.kill(again.pid, 'SIGKILL')
    await eventually('it is still bound', async () => (await backend.stats(n.id)).leases[0]?.state === 'bound')
  } finally {
    execFileSync('ip', ['link', 'set', 'up0', 'up'])
    await backend.deleteNetwork(n.id, soon())
    await guest.close()
    await backend.close()
  }
})
