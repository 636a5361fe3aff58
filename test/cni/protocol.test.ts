// What noid-cni is sent and answers, without a daemon: parameters, configurations, error codes, results of each version.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Attached } from '../../src/api/contract.ts'
import { asCniError, CniError, parseConfig, parseEnvironment, parseJson } from '../../src/cni/protocol.ts'
import { mustMatch, resultOf } from '../../src/cni/result.ts'
import { NoidError } from '../../src/errors.ts'

const env = (over: Record<string, string | undefined> = {}) => ({
  CNI_COMMAND: 'ADD',
  CNI_CONTAINERID: 'c1',
  CNI_NETNS: '/run/netns/x',
  CNI_IFNAME: 'eth0',
  ...over,
})
const conf = (over: Record<string, unknown> = {}) => ({ cniVersion: '1.1.0', name: 'net', type: 'noid', ...over })
const config = (over: Record<string, unknown> = {}, e: Record<string, string | undefined> = {}) =>
  parseConfig(conf(over), parseEnvironment(env(e)))
const coded = (code: number, what: RegExp) => (e: unknown) => {
  assert.ok(e instanceof CniError)
  assert.equal(e.code, code, e.message)
  assert.match(e.message, what)
  return true
}

test('parameters: what is missing or unusable is code 4, by its variable', () => {
  const bad = (over: Record<string, string | undefined>, what: RegExp) =>
    assert.throws(() => parseEnvironment(env(over)), coded(4, what))
  bad({ CNI_COMMAND: undefined }, /CNI_COMMAND is not set/)
  bad({ CNI_COMMAND: 'LEAVE' }, /LEAVE/)
  bad({ CNI_CONTAINERID: '' }, /CNI_CONTAINERID/)
  bad({ CNI_CONTAINERID: '-c' }, /CNI_CONTAINERID/)
  bad({ CNI_CONTAINERID: 'a/b' }, /CNI_CONTAINERID/)
  bad({ CNI_NETNS: undefined }, /CNI_NETNS/)
  bad({ CNI_NETNS: 'x' }, /absolute/)
  bad({ CNI_IFNAME: 'a-name-that-is-too-long' }, /CNI_IFNAME/)
  bad({ CNI_IFNAME: '..' }, /CNI_IFNAME/)
  bad({ CNI_ARGS: 'nonsense' }, /KEY=VALUE/)
  assert.equal(parseEnvironment(env({ CNI_COMMAND: 'DEL', CNI_NETNS: undefined })).netns, '')
  for (const CNI_COMMAND of ['VERSION', 'STATUS', 'GC']) parseEnvironment({ CNI_COMMAND })
})

test('configurations: each flaw has its code', () => {
  assert.throws(() => parseJson('{'), coded(6, /not JSON/))
  assert.throws(() => parseJson('[]'), coded(6, /not an object/))
  const bad = (code: number, over: Record<string, unknown>, what: RegExp, e = {}) =>
    assert.throws(() => config(over, e), coded(code, what))
  bad(1, { cniVersion: '2.0.0' }, /2\.0\.0/)
  bad(1, { cniVersion: undefined }, /0\.1\.0/)
  bad(2, { ipam: { type: 'host-local' } }, /host-local/)
  bad(2, { runtimeConfig: { portMappings: [{ hostPort: 1, containerPort: 1, protocol: 'sctp' }] } }, /sctp/)
  bad(7, { name: undefined }, /name/)
  bad(7, { name: 'a b' }, /name/)
  bad(7, { network: 3 }, /network/)
  bad(7, { runtimeConfig: { portMappings: [{ hostPort: 70_000, containerPort: 1 }] } }, /port mapping/)
  bad(4, { cniVersion: '1.0.0' }, /no GC/, { CNI_COMMAND: 'GC' })
  bad(4, { cniVersion: '0.3.1' }, /no CHECK/, { CNI_COMMAND: 'CHECK' })
  assert.equal(config({ ipam: {} }).network, 'default')
})

test('address and MAC from wherever engines put them', () => {
  assert.deepEqual(config({ runtimeConfig: { ips: ['fd00::5/64', '10.1.0.5/16'] } }).ips, ['10.1.0.5', 'fd00::5'])
  assert.deepEqual(config({ args: { cni: { ips: ['10.1.0.6', '10.1.0.7'] } } }).ips, ['10.1.0.6'])
  assert.deepEqual(config({ args: { cni: { ips: ['fd00::6'] } } }).ips, ['fd00::6'])
  assert.deepEqual(config({}, { CNI_ARGS: 'IgnoreUnknown=1;IP=10.1.0.7/24;MAC=02:00:00:00:00:05' }).ips, ['10.1.0.7'])
  assert.deepEqual(config().ips, [])
  assert.equal(config({}, { CNI_ARGS: 'MAC=02:00:00:00:00:05' }).mac, '02:00:00:00:00:05')
  assert.equal(config({ runtimeConfig: { mac: '02:00:00:00:00:06' } }).mac, '02:00:00:00:00:06')
})

test('port mappings: what asks for no host port asks for nothing, and a pair for all addresses is one', () => {
  const { portMappings } = config({
    runtimeConfig: {
      portMappings: [
        { hostPort: 8080, containerPort: 80, protocol: 'TCP' },
        { hostPort: 53, containerPort: 53, protocol: 'udp', hostIP: '127.0.0.1' },
        { hostPort: 0, containerPort: 90, protocol: 'tcp' },
        { hostPort: 8080, containerPort: 80, protocol: 'tcp', hostIP: '::' },
        { hostPort: 8081, containerPort: 80, protocol: 'tcp', hostIP: '::' },
        { hostPort: 8081, containerPort: 80, protocol: 'tcp', hostIP: '0.0.0.0' },
        { hostPort: 8082, containerPort: 80, protocol: 'tcp', hostIP: '0.0.0.0' },
        { hostPort: 8083, containerPort: 80, protocol: 'tcp', hostIP: '::1' },
        { hostPort: 8082, containerPort: 80, protocol: 'udp', hostIP: '::' },
      ],
    },
  })
  assert.deepEqual(
    portMappings.map((m) => `${m.hostIP}:${m.hostPort}:${m.containerPort}/${m.protocol}`),
    [':8080:80/tcp', '127.0.0.1:53:53/udp', ':8081:80/tcp', '0.0.0.0:8082:80/tcp', '::1:8083:80/tcp', ':::8082:80/udp'],
  )
})

const attached: Attached = {
  id: 'net/c1/eth0',
  name: 'c1',
  network: 'default',
  netns: '/run/netns/x',
  state: 'running',
  ifname: 'eth0',
  mac: '02:00:00:00:00:01',
  mtu: 1500,
  addresses: ['192.168.100.100/24'],
  routes: [{ to: '0.0.0.0/0', via: '192.168.100.1' }],
  dns: { servers: ['192.168.100.2'], search: ['noid.internal'] },
  ports: [],
}

test('a result has the shape of the version that was asked for', () => {
  const ips = { interface: 0, address: '192.168.100.100/24', gateway: '192.168.100.1' }
  assert.deepEqual(resultOf(attached, '1.0.0'), {
    cniVersion: '1.0.0',
    interfaces: [{ name: 'eth0', mac: '02:00:00:00:00:01', sandbox: '/run/netns/x' }],
    ips: [ips],
    routes: [{ dst: '0.0.0.0/0', gw: '192.168.100.1' }],
    dns: { nameservers: ['192.168.100.2'], domain: 'noid.internal', search: ['noid.internal'] },
  })
  assert.deepEqual(resultOf(attached, '0.4.0').ips, [{ version: '4', ...ips }])
  assert.deepEqual(resultOf(attached, '1.1.0').interfaces, [
    { name: 'eth0', mac: '02:00:00:00:00:01', mtu: 1500, sandbox: '/run/netns/x' },
  ])
})

test('a result has both families, each with its gateway', () => {
  const dual = {
    ...attached,
    addresses: [...attached.addresses, 'fd00:1::100/64'],
    routes: [...attached.routes, { to: '::/0', via: 'fd00:1::1' }],
  }
  assert.deepEqual(resultOf(dual, '0.4.0').ips, [
    { version: '4', interface: 0, address: '192.168.100.100/24', gateway: '192.168.100.1' },
    { version: '6', interface: 0, address: 'fd00:1::100/64', gateway: 'fd00:1::1' },
  ])
  assert.deepEqual(resultOf(dual, '1.1.0').routes, [
    { dst: '0.0.0.0/0', gw: '192.168.100.1' },
    { dst: '::/0', gw: 'fd00:1::1' },
  ])
})

test('CHECK compares: another MAC, another address, no interface', () => {
  const r = resultOf(attached, '1.1.0') as { ips: { address: string }[]; interfaces: { mac: string; name: string }[] }
  mustMatch(attached, r)
  mustMatch(attached, { ...r, ips: [...r.ips, { address: '10.0.0.1/8' }] })
  assert.throws(() => mustMatch(attached, { ...r, ips: [{ address: '10.0.0.1/8' }] }), coded(101, /10\.0\.0\.1/))
  const other = { ...r.interfaces[0]!, mac: '02:00:00:00:00:02' }
  assert.throws(() => mustMatch(attached, { ...r, interfaces: [other] }), coded(101, /MAC/))
  assert.throws(() => mustMatch(attached, { ...r, interfaces: [] }), coded(7, /no interface eth0/))
})

test('errors of the daemon: its code goes along, and one that may pass is code 11', () => {
  const taken = asCniError(new NoidError('ADDRESS_TAKEN', { address: '10.0.0.1', by: 'web' }))
  assert.equal(taken.code, 100)
  assert.match(taken.details ?? '', /^ADDRESS_TAKEN/)
  assert.equal(asCniError(new NoidError('DAEMON_UNREACHABLE', { socket: '/s' })).code, 11)
  assert.equal(asCniError(new Error('broken pipe')).code, 5)
})
