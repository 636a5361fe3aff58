// The engine's half of the CNI protocol against plugins that are told what to do: order, prevResult, versions, errors, hangs, garbage.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { add, type Chain, check, del, gc, remap, settle, status, type Target } from '../../src/plugins/cni/chain.ts'
import { isShared, parseConfig, parseConflist } from '../../src/plugins/cni/config.ts'
import { runPlugin } from '../../src/plugins/cni/plugin.ts'
import { addressesOf, flawOf, resolverOf, routesOf } from '../../src/plugins/cni/result.ts'
import { parseChains, withoutMasquerade } from '../../src/plugins/cni/traces.ts'
import { FakePlugins } from './fake.ts'

const never = new AbortController().signal
const target: Target = {
  containerId: 'c1',
  netns: '/ns',
  ifname: 'eth0',
  args: 'IgnoreUnknown=1;MAC=02:00:00:00:00:09',
}
const caps = { mac: '02:00:00:00:00:09', portMappings: [] }
const port = (hostPort: number) => ({ hostPort, containerPort: 80, protocol: 'tcp' as const })

const chainOf = (f: FakePlugins, over: Partial<Chain> = {}): Chain => ({
  name: 'net',
  cniVersion: '1.1.0',
  disableCheck: false,
  disableGC: false,
  plugins: [
    { type: 'first', some: 1 },
    { type: 'second', capabilities: { portMappings: true } },
  ],
  binDirs: [f.dir],
  ...over,
})

test('ADD in order, each with the result before it; DEL in reverse with the last; one environment for all', async (t) => {
  const f = new FakePlugins(t, 'first', 'second')
  const c = chainOf(f)
  const results = await add(c, target, { ...caps, portMappings: [port(8080)] }, never)
  assert.equal(results.length, 2)
  await check(c, target, caps, results[1]!, never)
  await del(c, target, caps, results[1], never)
  const calls = f.calls()
  assert.deepEqual(
    calls.map((x) => `${x.command} ${x.plugin}`),
    ['ADD first', 'ADD second', 'CHECK first', 'CHECK second', 'DEL second', 'DEL first'],
  )
  for (const x of calls) {
    assert.equal(x.containerId, 'c1')
    assert.equal(x.netns, '/ns')
    assert.equal(x.ifname, 'eth0')
    assert.equal(x.args, target.args)
    assert.equal(x.path, f.dir)
    assert.equal(x.conf.name, 'net')
    assert.equal(x.conf.cniVersion, '1.1.0')
    assert.equal('capabilities' in x.conf, false, 'capabilities are the engine’s')
  }
  assert.equal(calls[0]!.conf.prevResult, undefined)
  assert.equal(calls[0]!.conf.some, 1)
  assert.equal(calls[0]!.conf.runtimeConfig, undefined, 'first has declared no capability')
  assert.deepEqual(calls[1]!.conf.runtimeConfig, { portMappings: [port(8080)] })
  assert.deepEqual(calls[1]!.conf.prevResult, results[0])
  for (const x of calls.slice(2)) assert.deepEqual(x.conf.prevResult, results[1])
})

test('an error result is told with its code, message and details, and the rest of the chain is not run', async (t) => {
  const f = new FakePlugins(t, 'first', 'second')
  f.on('first', 'ADD', `echo '{"cniVersion":"1.0.0","code":7,"msg":"no subnet","details":"give one"}'; exit 1`)
  await assert.rejects(add(chainOf(f), target, caps, never), (e: Error & { cniCode?: number; hint?: string }) => {
    assert.match(e.message, /first failed at ADD: no subnet \(code 7\)/)
    assert.equal(e.cniCode, 7)
    assert.equal(e.hint, 'give one')
    return true
  })
  assert.equal(f.calls('ADD').length, 1)
})

test('what was done before a plugin failed is told, for its DEL', async (t) => {
  const f = new FakePlugins(t, 'first', 'second')
  f.on('second', 'ADD', 'exit 9')
  const told: (readonly unknown[])[] = []
  await assert.rejects(add(chainOf(f), target, caps, never, (results) => told.push(results)))
  assert.equal(told.length, 1)
  assert.equal(told[0]!.length, 1)
})

test('garbage, silence, half a result and a crash are errors with the plugin’s name', async (t) => {
  const f = new FakePlugins(t, 'first')
  const c = chainOf(f, { plugins: [{ type: 'first' }] })
  const told = async (script: string, what: RegExp) => {
    f.on('first', 'ADD', script)
    await assert.rejects(add(c, target, caps, never), what)
  }
  await told('echo hello', /first failed at ADD: it printed no JSON: hello/)
  await told(':', /it printed no result/)
  await told('echo "[]"', /it printed no result/)
  await told(`echo '{"ips":[{"address":"1.2.3"}]}'`, /the address "1\.2\.3"/)
  await told(`echo '{"ips":[{"address":"10.0.0.1/24","interface":4}]}'`, /an interface that is not there/)
  await told('echo bad luck >&2; exit 3', /bad luck/)
  await told('exit 3', /exit code 3/)
  await told('kill -SEGV $$', /SIGSEGV/)
  await told('exec yes', /printed more than 1048576 bytes/)
})

test('a plugin that hangs is killed with what it has started; so is one whose caller gave up', async (t) => {
  const f = new FakePlugins(t, 'first')
  f.on('first', 'ADD', 'sleep 300 & sleep 300')
  await assert.rejects(
    runPlugin('first', [f.dir], 'ADD', {}, target, never, 200),
    /first failed at ADD: it took longer than 0\.2 s and was killed/,
  )
  const gaveUp = new AbortController()
  const running = runPlugin('first', [f.dir], 'ADD', {}, target, gaveUp.signal)
  setTimeout(() => gaveUp.abort(new Error('gave up')), 50)
  await assert.rejects(running, /gave up/)
})

test('a plugin that does not read what it is given is no fault', async (t) => {
  const f = new FakePlugins(t, 'first')
  const { writeFileSync } = await import('node:fs')
  writeFileSync(`${f.dir}/first`, '#!/bin/sh\nexit 0\n')
  await runPlugin('first', [f.dir], 'DEL', { filler: 'x'.repeat(1 << 20) }, target, never)
})

test('the highest version that the conflist allows and all plugins speak; none is an error before anything is made', async (t) => {
  const f = new FakePlugins(t, 'first', 'second')
  const list = (o: object) => parseConflist({ plugins: [{ type: 'first' }, { type: 'second' }], ...o })
  assert.equal((await settle(list({ cniVersion: '1.0.0' }), [f.dir], 'lab', never)).cniVersion, '1.0.0')
  f.on('second', 'VERSION', `echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'`)
  const several = list({ cniVersion: '0.4.0', cniVersions: ['0.4.0', '1.0.0', '1.1.0'] })
  const chain = await settle(several, [f.dir], 'lab', never)
  assert.equal(chain.cniVersion, '1.0.0')
  assert.equal(chain.name, 'lab', 'a conflist without a name has the network’s')
  await assert.rejects(
    settle(list({ cniVersion: '1.1.0' }), [f.dir], 'lab', never),
    /for CNI 1\.1\.0, and the plugin second speaks 0\.4\.0, 1\.0\.0/,
  )
  await assert.rejects(
    settle(parseConflist({ cniVersion: '1.0.0', plugins: [{ type: 'absent' }] }), [f.dir], 'lab', never),
    (e: Error & { code?: string }) => e.code === 'CNI_PLUGIN_MISSING' && /absent/.test(e.message),
  )
})

test('STATUS and GC only from 1.1 on, CHECK from 0.4 on and unless the conflist forbids it', async (t) => {
  const f = new FakePlugins(t, 'first', 'second')
  const result = { cniVersion: '1.0.0' }
  await status(chainOf(f, { cniVersion: '1.0.0' }), never)
  await gc(chainOf(f, { cniVersion: '1.0.0' }), [], never)
  await gc(chainOf(f, { disableGC: true }), [], never)
  await check(chainOf(f, { disableCheck: true }), target, caps, result, never)
  await check(chainOf(f, { cniVersion: '0.3.1' }), target, caps, result, never)
  assert.deepEqual(f.calls(), [])
  const valid = [{ containerID: 'c1', ifname: 'eth0' }]
  await gc(chainOf(f), valid, never)
  assert.deepEqual(
    f.calls('GC').map((x) => x.conf['cni.dev/valid-attachments']),
    [valid, valid],
  )
  f.on('second', 'STATUS', `echo '{"code":50,"msg":"not yet"}'; exit 1`)
  await assert.rejects(status(chainOf(f), never), /second failed at STATUS: not yet \(code 50\)/)
})

test('other ports: the plugin that maps them is given DEL with the old and ADD with the new ones, the other nothing', async (t) => {
  const f = new FakePlugins(t, 'first', 'second')
  const results = await add(chainOf(f), target, caps, never)
  const before = f.calls().length
  await remap(
    chainOf(f),
    target,
    { ...caps, portMappings: [port(1)] },
    { ...caps, portMappings: [port(2)] },
    results,
    never,
  )
  const [gone, made] = f.calls().slice(before)
  assert.equal(`${gone!.command} ${gone!.plugin}`, 'DEL second')
  assert.deepEqual(gone!.conf.runtimeConfig, { portMappings: [port(1)] })
  assert.equal(`${made!.command} ${made!.plugin}`, 'ADD second')
  assert.deepEqual(made!.conf.runtimeConfig, { portMappings: [port(2)] })
  assert.deepEqual(made!.conf.prevResult, results[0])
})

test('what is of use in a result: own addresses with IPv4 first, routes through their family’s gateway, name servers', () => {
  const result = {
    cniVersion: '1.0.0',
    interfaces: [{ name: 'br0' }, { name: 'eth0', sandbox: '/ns' }, { name: 'eth1', sandbox: '/ns' }],
    ips: [
      { address: 'fd00::2/64', gateway: 'fd00::1', interface: 1 },
      { address: '10.0.0.2/24', gateway: '10.0.0.1', interface: 1 },
      { address: '10.9.0.2/24', interface: 2 },
    ],
    routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }, { dst: '10.3.0.0/16', gw: '10.0.0.9' }],
    dns: { nameservers: ['10.0.0.1', 'nonsense'], domain: 'lab', search: ['lab', 'corp'] },
  }
  assert.equal(flawOf(result), undefined)
  assert.deepEqual(addressesOf(result, 'eth0'), ['10.0.0.2/24', 'fd00::2/64'])
  assert.deepEqual(routesOf(result), [
    { to: '0.0.0.0/0', via: '10.0.0.1' },
    { to: '::/0', via: 'fd00::1' },
    { to: '10.3.0.0/16', via: '10.0.0.9' },
  ])
  assert.deepEqual(resolverOf(result), { servers: ['10.0.0.1'], search: ['lab', 'corp'] })
  assert.equal(resolverOf({ cniVersion: '1.0.0', dns: {} }), undefined)
})

test('configurations: a conflist itself, in a key, a single plugin; every flaw is named', async (t) => {
  const plugins = [{ type: 'bridge' }]
  assert.equal(parseConfig({ cniVersion: '1.0.0', name: 'x', plugins }).conflist.name, 'x')
  assert.equal(parseConfig({ conflist: { cniVersion: '1.0.0', plugins } }).conflist.plugins.length, 1)
  assert.equal(parseConfig({ cniVersion: '1.0.0', name: 'x', type: 'ptp' }).conflist.plugins[0]?.type, 'ptp')
  assert.deepEqual(parseConfig({ conflist: { cniVersion: '1.0.0', plugins }, binDirs: '/a:/b' }).binDirs, ['/a', '/b'])
  const f = new FakePlugins(t)
  const { writeFileSync } = await import('node:fs')
  assert.throws(() => parseConfig({}, f.dir), /no conflist was given and there is none/)
  writeFileSync(`${f.dir}/20-b.conflist`, 'nonsense')
  writeFileSync(`${f.dir}/10-a.conflist`, JSON.stringify({ cniVersion: '0.4.0', name: 'a', plugins }))
  assert.equal(parseConfig({}, f.dir).conflist.name, 'a')
  assert.deepEqual([isShared('a', f.dir), isShared('b', f.dir), isShared('a', `${f.dir}/absent`)], [true, false, false])
  const refused = (raw: unknown, what: RegExp) => assert.throws(() => parseConfig(raw, f.dir), what)
  refused({ conflist: `${f.dir}/20-b.conflist` }, /is not JSON/)
  refused({ conflist: `${f.dir}/absent` }, /cannot be read \(ENOENT\)/)
  refused({ conflist: 'lab.conflist' }, /absolute/)
  refused({ conflists: 1 }, /no key "conflists"/)
  refused({ conflist: { plugins } }, /no cniVersion/)
  refused({ conflist: { cniVersion: '9.0.0', plugins } }, /9\.0\.0, and noid speaks/)
  refused({ conflist: { cniVersion: '1.0.0', plugins: [] } }, /no plugins/)
  refused({ conflist: { cniVersion: '1.0.0', plugins: [{ type: '../sh' }] } }, /not a plugin's type/)
  refused({ conflist: { cniVersion: '1.0.0', name: 'a b', plugins } }, /not a name of a CNI network/)
  refused({ conflist: { cniVersion: '1.0.0', plugins }, binDirs: ['lib'] }, /absolute directories/)
})

const SAVED = `*nat
:PREROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-aaaa - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \\"net\\" id: \\"c1\\"" -j CNI-aaaa
-A POSTROUTING -s 10.0.0.3/32 -m comment --comment "name: \\"net\\" id: \\"c11\\"" -j CNI-bbbb
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
COMMIT
`

test('masquerading that DEL has left is removed by its own mark only; chains in use are seen as such', () => {
  assert.equal(
    withoutMasquerade(SAVED, 'net', 'c1'),
    '*nat\n-D POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \\"net\\" id: \\"c1\\"" -j CNI-aaaa\n-F CNI-aaaa\n-X CNI-aaaa\nCOMMIT\n',
  )
  assert.equal(withoutMasquerade(SAVED, 'net', 'c2'), undefined)
  assert.deepEqual(
    parseChains('iptables-save', SAVED).map((c) => [c.key, c.used, c.jumps.length]),
    [
      ['iptables-save:nat:CNI-HOSTPORT-DNAT', false, 1],
      ['iptables-save:nat:CNI-HOSTPORT-MASQ', false, 0],
    ],
  )
  const used = SAVED.replace('COMMIT', '-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80 -j CNI-DN-cccc\nCOMMIT')
  assert.equal(parseChains('iptables-save', used)[0]?.used, true)
})
