// noid-cni as engines call it, with a real daemon and real namespaces: the specification's sequences, results and errors; two containers that
// reach each other and the outside.

import assert from 'node:assert/strict'
import { execFile, execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { networkInterfaces } from 'node:os'
import { type TestContext, test } from 'node:test'
import { promisify } from 'node:util'
import { resultOf } from '../../src/cni/result.ts'
import { kill9, Lab } from '../daemon/harness.ts'
import { eventually } from '../eventually.ts'
import { missing } from '../plugins/needs.ts'
import { type Answer, invoke } from './caller.ts'

const skip = missing()
const run = promisify(execFile)
let serial = 0

class Cni {
  readonly lab: Lab
  readonly #t: TestContext

  constructor(t: TestContext) {
    this.#t = t
    // Namespaces go last: the daemon takes its nics from them.
    this.lab = new Lab(t, 'real-main.ts')
  }

  namespace(): string {
    const name = `nt${process.pid}c${serial++}`
    execFileSync('ip', ['netns', 'add', name])
    this.#t.after(() => run('ip', ['netns', 'delete', name]).catch(() => {}))
    return `/run/netns/${name}`
  }

  conf(over: Record<string, unknown> = {}): Record<string, unknown> {
    const host = this.lab.paths.socket
    return { cniVersion: '1.1.0', name: 'cninet', type: 'noid', network: 'pods', host, ...over }
  }

  call(command: string, id: string, netns: string | undefined, conf: unknown = this.conf(), more: object = {}) {
    return invoke({ command, id, netns, ifname: 'eth0', conf, ...more })
  }

  async add(id: string, netns: string, conf?: unknown, more?: object): Promise<Answer> {
    const a = await this.call('ADD', id, netns, conf, more)
    assert.equal(a.exit, 0, JSON.stringify(a.json))
    return a
  }
}

const inside = async (netns: string, ...argv: string[]): Promise<string> =>
  (await run('nsenter', [`--net=${netns}`, ...argv], { timeout: 60_000 })).stdout
const links = async (netns: string): Promise<string[]> =>
  (JSON.parse(await inside(netns, 'ip', '-j', 'link')) as { ifname: string }[]).map((l) => l.ifname)
const dataPlanes = (lab: Lab): number[] =>
  readdirSync('/proc')
    .filter((d) => /^\d+$/.test(d))
    .map(Number)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(`${lab.paths.runDir}/userspace`)
      } catch {
        return false
      }
    })
const addressOf = (a: Answer): string => (a.json.ips[0].address as string).split('/')[0] as string
const hostAddress = (): string | undefined =>
  Object.entries(networkInterfaces())
    .filter(([name]) => !/^noid\d+$/.test(name))
    .flatMap(([, list]) => list ?? [])
    .find((a) => a.family === 'IPv4' && !a.internal)?.address

test('VERSION, and errors before anything is asked of a daemon', { skip }, async () => {
  const conf = { cniVersion: '1.0.0', name: 'n', type: 'noid', host: '/nonexistent/noid.sock' }
  const version = await invoke({ command: 'VERSION', conf: { cniVersion: '1.0.0' } })
  assert.deepEqual(version.json, {
    cniVersion: '1.0.0',
    supportedVersions: ['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0'],
  })
  const told = async (i: Parameters<typeof invoke>[0], code: number, cniVersion = '1.0.0') => {
    const a = await invoke(i)
    assert.equal(a.exit, 1)
    assert.equal(a.json.code, code, a.json.msg)
    assert.equal(a.json.cniVersion, cniVersion)
    assert.equal(typeof a.json.msg, 'string')
  }
  const c = { id: 'c1', netns: '/run/netns/none', ifname: 'eth0' }
  await told({ command: 'ADD', ...c, conf: 'nonsense' }, 6, '1.1.0')
  await told({ command: 'ADD', ...c, conf: { ...conf, cniVersion: '9.9.9' } }, 1, '1.1.0')
  await told({ command: 'STATUS', conf }, 4)
  await told({ command: 'ADD', ...c, conf }, 11)
  await told({ command: 'ADD', conf }, 4, '1.1.0')
})

test('ADD, CHECK, DEL of two containers: they reach each other, by name too, and the outside', {
  skip,
  timeout: 300_000,
}, async (t) => {
  const cni = new Cni(t)
  await cni.lab.up()
  const [x, y] = [cni.namespace(), cni.namespace()]
  await inside(x, 'sh', '-c', 'for i in all default; do echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; done')
  const a = await cni.add('c1', x, undefined, { args: 'IgnoreUnknown=1;K8S_POD_NAME=web' })
  const b = await cni.add('c2', y)
  const shape = { interfaces: a.json.interfaces, routes: a.json.routes, cniVersion: a.json.cniVersion }
  const [gw, gw6] = a.json.ips.map((ip: { gateway: string }) => ip.gateway) as string[]
  assert.deepEqual(shape, {
    cniVersion: '1.1.0',
    interfaces: [{ name: 'eth0', mac: a.json.interfaces[0].mac, mtu: 1500, sandbox: x }],
    routes: [
      { dst: '0.0.0.0/0', gw },
      { dst: '::/0', gw: gw6 },
    ],
  })
  assert.match(await inside(x, 'ip', 'addr', 'show', 'eth0'), new RegExp(`${a.json.ips[0].address}.*`))
  await inside(x, 'ping', '-n', '-c', '1', '-W', '5', addressOf(b))
  await inside(y, 'ping', '-n', '-c', '1', '-W', '5', addressOf(a))
  // The namespace as engines make it has IPv6 switched off, or on: the address is usable in both.
  const six = (b.json.ips[1].address as string).split('/')[0] as string
  assert.match(six, /^fd/)
  await inside(x, 'ping', '-6', '-n', '-c', '1', '-W', '5', six)
  assert.match(await inside(x, 'ip', '-6', 'route', 'show', 'default'), new RegExp(`via ${gw6}`))
  const [server] = a.json.dns.nameservers as string[]
  assert.equal((await inside(y, 'dig', '+short', '+time=3', `@${server}`, 'web.noid.internal')).trim(), addressOf(a))
  const outside = hostAddress()
  if (outside !== undefined) {
    const http = createServer((_q, r) => r.end('outside')).listen(0, '0.0.0.0')
    await once(http, 'listening')
    try {
      const { port } = http.address() as { port: number }
      assert.equal(await inside(x, 'curl', '-sS', '-m', '10', `http://${outside}:${port}/`), 'outside')
    } finally {
      http.close()
    }
  }
  const check = await cni.call('CHECK', 'c1', x, cni.conf({ prevResult: a.json }))
  assert.deepEqual([check.exit, check.json], [0, undefined])
  const wrong = { ...a.json, ips: b.json.ips }
  assert.equal((await cni.call('CHECK', 'c1', x, cni.conf({ prevResult: wrong }))).json.code, 101)
  assert.equal((await cni.call('CHECK', 'c9', x, cni.conf({ prevResult: a.json }))).json.code, 3)
  assert.equal((await cni.call('CHECK', 'c1', x)).json.code, 7)
  await inside(x, 'ip', 'link', 'delete', 'eth0')
  assert.equal((await cni.call('CHECK', 'c1', x, cni.conf({ prevResult: a.json }))).exit, 1)

  for (const [netns, network] of [
    // The configuration was changed since.
    [x, 'another'],
    [x, 'pods'],
    [undefined, 'pods'],
  ] as const) {
    const del = await cni.call('DEL', 'c1', netns, cni.conf({ network, prevResult: a.json }))
    assert.deepEqual([del.exit, del.json], [0, undefined], 'DEL is repeatable')
  }
  assert.equal((await cni.call('DEL', 'never', x)).exit, 0)
  assert.equal((await cni.call('DEL', 'c2', y)).exit, 0)
  assert.deepEqual(await links(y), ['lo'])
  assert.deepEqual(await cni.lab.client.networks(), [], 'the network goes with the last of them')
})

test('what is refused: a namespace twice, one that is not there, the host’s own, a second plugin, a taken address', {
  skip,
  timeout: 300_000,
}, async (t) => {
  const cni = new Cni(t)
  await cni.lab.up()
  const [x, y] = [cni.namespace(), cni.namespace()]
  const a = await cni.add('c1', x)
  assert.deepEqual((await cni.add('c1', x)).json, a.json, 'the same again gives the same')
  const refused = async (answer: Promise<Answer>, code: number, what: RegExp) => {
    const { exit, json } = await answer
    assert.equal(exit, 1)
    assert.equal(json.code, code, json.msg)
    assert.match(`${json.msg} ${json.details}`, what)
  }
  await refused(cni.call('ADD', 'c1', y), 100, /ATTACHED_ALREADY/)
  await refused(cni.call('ADD', 'c2', '/run/netns/none'), 100, /no network namespace/)
  await refused(cni.call('ADD', 'c2', '/etc/passwd'), 100, /no network namespace/)
  await refused(cni.call('ADD', 'c2', '/proc/1/ns/mnt'), 100, /no network namespace|VM_START_FAILED|INTERNAL/)
  await refused(cni.call('ADD', 'c2', '/proc/self/ns/net'), 100, /host's own/)
  await refused(cni.call('ADD', 'c2', y, cni.conf({ prevResult: a.json })), 7, /first plugin/)
  const ips = [addressOf(a)]
  await refused(cni.call('ADD', 'c2', y, cni.conf({ runtimeConfig: { ips } })), 100, /ADDRESS_TAKEN/)
  await refused(cni.call('ADD', 'c2', y, cni.conf({ runtimeConfig: { ips: ['10.9.9.9'] } })), 100, /ADDRESS_OUTSIDE/)
  assert.deepEqual(await links(y), ['lo'], 'and nothing is left of it')
  await assert.rejects(cni.lab.create('vm', { runtime: 'netns' }), /namespaces of other engines/)
  assert.equal((await cni.lab.client.vm('c1')).pid, null)
  assert.equal((await cni.lab.client.vms()).length, 1)
})

test('ports, address, MAC and interface as the engine wants them', { skip, timeout: 300_000 }, async (t) => {
  const cni = new Cni(t)
  await cni.lab.up()
  const x = cni.namespace()
  const subnet = (await cni.lab.client.createNetwork({ name: 'pods' })).subnet
  const ip = subnet.replace(/\.0\/24$/, '.77')
  const port = 21_874
  const runtimeConfig = {
    ips: [`${ip}/24`],
    mac: '02:00:00:00:77:01',
    portMappings: [{ hostPort: port, containerPort: 8000, protocol: 'tcp' }],
  }
  const a = await invoke({ command: 'ADD', id: 'c1', netns: x, ifname: 'net1', conf: cni.conf({ runtimeConfig }) })
  assert.equal(a.exit, 0, JSON.stringify(a.json))
  assert.equal(addressOf(a), ip)
  assert.deepEqual(a.json.interfaces, [{ name: 'net1', mac: '02:00:00:00:77:01', mtu: 1500, sandbox: x }])
  assert.deepEqual(await links(x), ['lo', 'net1'])
  const script = `require('node:http').createServer((q, r) => r.end('inside')).listen(8000, () => console.log('up'))`
  const child = execFile('nsenter', [`--net=${x}`, process.execPath, '-e', script])
  try {
    await new Promise((resolve) => child.stdout?.once('data', resolve))
    assert.equal(await (await fetch(`http://127.0.0.1:${port}/`)).text(), 'inside')
    // A second container on the same port is told who has it.
    const busy = await cni.call(
      'ADD',
      'c2',
      cni.namespace(),
      cni.conf({ runtimeConfig: { portMappings: runtimeConfig.portMappings } }),
    )
    assert.match(busy.json.details, /^PORT_BUSY/)
  } finally {
    child.kill()
  }
  const del = await invoke({ command: 'DEL', id: 'c1', netns: x, ifname: 'net1', conf: cni.conf({ runtimeConfig }) })
  assert.equal(del.exit, 0)
  assert.deepEqual(await links(x), ['lo'])
})

test('GC removes what this CNI network has attached and the engine does not know; STATUS', {
  skip,
  timeout: 300_000,
}, async (t) => {
  const cni = new Cni(t)
  await cni.lab.up()
  const [x, y, z] = [cni.namespace(), cni.namespace(), cni.namespace()]
  await cni.add('keep', x)
  await cni.add('stray', y)
  await cni.add('other', z, cni.conf({ name: 'othernet' }))
  await cni.lab.create('vm', { network: 'pods' })
  const valid = [{ containerID: 'keep', ifname: 'eth0' }]
  const gc = await invoke({ command: 'GC', conf: cni.conf({ 'cni.dev/valid-attachments': valid }) })
  assert.deepEqual([gc.exit, gc.json], [0, undefined])
  assert.deepEqual((await cni.lab.client.vms()).map((v) => v.name).sort(), ['keep', 'other', 'vm'])
  assert.deepEqual(await links(y), ['lo'])
  assert.equal((await invoke({ command: 'GC', conf: cni.conf() })).json.code, 7)
  assert.equal(
    (await invoke({ command: 'GC', conf: cni.conf({ network: 'none', 'cni.dev/attachments': [] }) })).exit,
    0,
  )
  const status = await invoke({ command: 'STATUS', conf: cni.conf() })
  assert.deepEqual([status.exit, status.json], [0, undefined])
})

test('a daemon that is killed and started again knows them; a namespace that went away is given up', {
  skip,
  timeout: 300_000,
}, async (t) => {
  const cni = new Cni(t)
  const first = await cni.lab.up()
  const [x, y] = [cni.namespace(), cni.namespace()]
  const a = await cni.add('c1', x)
  await cni.add('c2', y)
  await kill9(first)
  await cni.lab.up()
  const [one] = await cni.lab.client.attachments('pods')
  assert.deepEqual(resultOf(one!, '1.1.0'), a.json)
  assert.equal((await cni.call('CHECK', 'c1', x, cni.conf({ prevResult: a.json }))).exit, 0)
  await inside(x, 'ping', '-n', '-c', '1', '-W', '5', a.json.ips[0].gateway)
  assert.equal(dataPlanes(cni.lab).length, 1)
  for (const pid of dataPlanes(cni.lab)) process.kill(pid, 'SIGKILL')
  await eventually('a new data plane carries it', async () =>
    inside(x, 'ping', '-n', '-c', '1', '-W', '1', a.json.ips[0].gateway).then(
      () => true,
      () => false,
    ),
  )
  assert.equal((await cni.call('CHECK', 'c1', x, cni.conf({ prevResult: a.json }))).exit, 0)
  execFileSync('ip', ['netns', 'delete', y.split('/').at(-1) as string])
  await eventually('it is given up', async () => (await cni.lab.client.vm('c2')).state === 'failed')
  assert.match((await cni.lab.client.vm('c2')).problem ?? '', /namespace is gone/)
  // The engine may say so late, or use the id again.
  const again = await cni.add('c2', cni.namespace())
  await inside(x, 'ping', '-n', '-c', '1', '-W', '5', addressOf(again))
  for (const id of ['c1', 'c2']) assert.equal((await cni.call('DEL', id, undefined)).exit, 0)
  assert.deepEqual(await cni.lab.client.vms(), [])
})

test('DEL where there never was a daemon starts none', { skip }, async (t) => {
  const { mkdtempSync, readdirSync, rmSync } = await import('node:fs')
  const home = mkdtempSync('/tmp/noid-cni-')
  t.after(() => rmSync(home, { recursive: true, force: true }))
  const conf = { cniVersion: '1.0.0', name: 'n', type: 'noid' }
  const del = await invoke({ command: 'DEL', id: 'c1', netns: '', ifname: 'eth0', conf, env: { NOID_HOME: home } })
  assert.equal(del.exit, 0)
  assert.deepEqual(readdirSync(home), [])
})
