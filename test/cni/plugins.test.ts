// Chains of Debian's plugins beside the kit's one: ptp, macvlan, static, tuning; and what goes wrong between ADD and DEL. After each case
// the host is compared (runCase).
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { test } from 'node:test'
import { descriptor } from '../../src/plugins/cni/index.ts'
import type { Environment } from '../../src/plugins/conformance/environment.ts'
import { runCase } from '../../src/plugins/conformance/index.ts'
import { ownHost } from '../plugins/own-host.ts'
import { FakePlugins } from './fake.ts'
import { needsPlugins, PLUGINS } from './needs.ts'

const skip = needsPlugins('bridge', 'ptp', 'macvlan', 'host-local', 'static', 'tuning', 'portmap') || ownHost()

type Plugin = Record<string, unknown> & { readonly type: string }
const name = `ntpl${process.pid}`
const hostLocal = { type: 'host-local', subnet: '10.209.9.0/24', routes: [{ dst: '0.0.0.0/0' }] }
const bridge = { type: 'bridge', bridge: 'ntcni1', isGateway: true, ipMasq: true, ipam: hostLocal }

function chain(what: string, plugins: readonly Plugin[], run: (e: Environment) => Promise<void>, binDirs = [PLUGINS]) {
  test(what, { skip, timeout: 240_000 }, () =>
    runCase({ group: 'attach', name: what, run }, descriptor, {
      config: { conflist: { cniVersion: '1.0.0', name, plugins }, binDirs },
    }),
  )
}

async function attached(e: Environment) {
  const n = await e.network()
  const guest = await e.guest()
  const request = e.request(n, guest)
  const a = await e.attach(request)
  return { n, guest, request, a, address: a.addresses[0]?.split('/')[0] as string }
}

chain(
  'ptp: what the attachment says is what the guest has, and the host is reached',
  [{ type: 'ptp', ipMasq: true, ipam: hostLocal }],
  async (e) => {
    const { guest, a } = await attached(e)
    const [link] = JSON.parse(await guest.run('ip', '-j', '-4', 'addr', 'show', 'eth0')) as [
      { address: string; mtu: number; addr_info: { local: string; prefixlen: number }[] },
    ]
    assert.equal(`${link.addr_info[0]?.local}/${link.addr_info[0]?.prefixlen}`, a.addresses[0])
    assert.equal(link.mtu, a.mtu)
    assert.equal(a.configuredBy, 'backend')
    assert.deepEqual(a.routes, [{ to: '0.0.0.0/0', via: '10.209.9.1' }])
    await guest.run('ping', '-n', '-c', '1', '-W', '5', '198.51.100.1')
    await e.backend.check(a, e.signal())
  },
)

chain(
  'ptp cannot be told a MAC: the attachment has the real one, and a person is told how to mend it',
  [{ type: 'ptp', ipam: hostLocal }],
  async (e) => {
    const { guest, request, a } = await attached(e)
    assert.notEqual(a.mac, request.mac)
    assert.match(await guest.run('ip', 'link', 'show', 'eth0'), new RegExp(a.mac))
    assert.match(JSON.stringify(e.events), /tuning/)
  },
)

chain(
  'ptp with tuning has the MAC that was asked for',
  [
    { type: 'ptp', ipam: hostLocal },
    { type: 'tuning', capabilities: { mac: true } },
  ],
  async (e) => {
    const { request, a } = await attached(e)
    assert.equal(a.mac, request.mac)
    await e.backend.check(a, e.signal())
    assert.deepEqual(e.events, [])
  },
)

chain(
  'macvlan with host-local: two guests on one parent',
  [{ type: 'macvlan', master: 'up0', ipam: hostLocal }],
  async (e) => {
    const n = await e.network()
    const [g, h] = [await e.guest(), await e.guest()]
    await e.attach(e.request(n, g))
    const b = await e.attach(e.request(n, h))
    await g.run('ping', '-n', '-c', '1', '-W', '5', b.addresses[0]?.split('/')[0] as string)
  },
)

chain(
  'static addresses',
  [{ ...bridge, ipam: { type: 'static', addresses: [{ address: '10.209.10.7/24', gateway: '10.209.10.1' }] } }],
  async (e) => {
    const { a } = await attached(e)
    assert.deepEqual(a.addresses, ['10.209.10.7/24'])
    await e.backend.check(a, e.signal())
  },
)

chain('without IPAM the guest asks for its address', [{ type: 'bridge', bridge: 'ntcni1' }], async (e) => {
  const { a } = await attached(e)
  assert.deepEqual(a.addresses, [])
  assert.equal(a.configuredBy, 'dhcp')
})

chain('an address is given back, and the pool’s directory goes with the network', [bridge], async (e) => {
  const { n, guest, request, address } = await attached(e)
  assert.ok(existsSync(`/var/lib/cni/networks/${name}/${address}`))
  await e.detach(request.id)
  assert.ok(!existsSync(`/var/lib/cni/networks/${name}/${address}`))
  await e.attach(e.request(n, guest))
  await e.removeNetwork(n.id)
  assert.equal(await guest.hasLink('eth0'), false)
  assert.ok(!existsSync(`/var/lib/cni/networks/${name}`))
})

chain('the guest is gone before DEL: masquerading and address go all the same', [bridge], async (e) => {
  const { guest, request, address } = await attached(e)
  await guest.close()
  await e.detach(request.id)
  assert.ok(!execFileSync('iptables-save').toString().includes(`${address}/32`))
})

chain('the namespace is unmounted by somebody before DEL: DEL without a namespace', [bridge], async (e) => {
  const { guest, a, request, address } = await attached(e)
  await guest.close()
  if ('netns' in a.nic) execFileSync('umount', ['-l', a.nic.netns as string])
  await e.detach(request.id)
  assert.ok(!execFileSync('iptables-save').toString().includes(`${address}/32`))
})

chain('ports on a chain that maps none are refused, with what to add', [bridge], async (e) => {
  const { n, a, address } = await attached(e)
  const p = {
    id: 'p1',
    attachment: a.id,
    proto: 'tcp',
    hostAddress: '0.0.0.0',
    hostPort: 0,
    guestAddress: address,
    guestPort: 80,
  } as const
  await assert.rejects(e.backend.ports!.publish(p, e.signal()), /maps ports/)
  // And before there is a nic: with the attach that would have to map it.
  const early = e.request(n, await e.guest())
  await e.backend.ports!.publish({ ...p, id: 'p2', attachment: early.id }, e.signal())
  await assert.rejects(e.backend.attach(early, e.signal()), /maps ports/)
  await e.backend.detach(early.id, undefined, e.signal())
})

chain(
  'ports that were published before the nic go with ADD; a restart keeps them and each can be taken back',
  [bridge, { type: 'portmap', capabilities: { portMappings: true } }],
  async (e) => {
    const n = await e.network()
    const request = e.request(n, await e.guest())
    const p = {
      attachment: request.id,
      proto: 'tcp',
      hostAddress: '0.0.0.0',
      hostPort: 0,
      guestAddress: '',
      guestPort: 80,
    } as const
    const one = await e.backend.ports!.publish({ ...p, id: 'a' }, e.signal())
    await e.attach(request)
    const two = await e.backend.ports!.publish({ ...p, id: 'b', guestPort: 81 }, e.signal())
    const mapped = () => execFileSync('iptables-save', ['-t', 'nat']).toString()
    for (const { hostPort } of [one, two]) assert.match(mapped(), new RegExp(`--dport ${hostPort} -j DNAT`))
    await e.restart()
    await e.backend.ports!.publish({ ...p, id: 'b', guestPort: 81, hostPort: two.hostPort }, e.signal())
    await e.backend.ports!.unpublish('a', e.signal())
    assert.doesNotMatch(mapped(), new RegExp(`--dport ${one.hostPort} `))
    assert.match(mapped(), new RegExp(`--dport ${two.hostPort} -j DNAT`))
    await e.backend.ports!.unpublish('b', e.signal())
    assert.doesNotMatch(mapped(), /--dport/)
  },
)

test('a plugin that fails or hangs after others have made things: everything is unmade', {
  skip,
  timeout: 240_000,
}, async (t) => {
  const f = new FakePlugins(t, 'last')
  for (const script of ['echo "{\\"code\\":11,\\"msg\\":\\"later\\"}"; exit 1', 'sleep 300']) {
    f.on('last', 'ADD', script)
    await runCase(
      {
        group: 'attach',
        name: script,
        async run(e) {
          const n = await e.network()
          const guest = await e.guest()
          const controller = new AbortController()
          setTimeout(() => controller.abort(new Error('gave up')), 1000)
          await assert.rejects(e.backend.attach(e.request(n, guest), controller.signal), /later|gave up/)
          assert.equal(await guest.hasLink('eth0'), false)
          assert.ok(!existsSync(`/var/lib/cni/networks/${name}/10.209.9.2`))
        },
      },
      descriptor,
      {
        config: {
          conflist: { cniVersion: '1.0.0', name, plugins: [bridge, { type: 'last' }] },
          binDirs: [PLUGINS, f.dir],
        },
      },
    )
  }
  assert.ok(f.calls('DEL').length >= 2, 'DEL is for every plugin, also for the one that failed')
})

test('a 1.1 chain: STATUS before ADD, and its refusal makes nothing; GC with what is valid', {
  skip,
  timeout: 240_000,
}, async (t) => {
  const f = new FakePlugins(t, 'veth')
  f.on(
    'veth',
    'ADD',
    `nsenter --net=$CNI_NETNS ip link add $CNI_IFNAME address \${CNI_ARGS##*MAC=} type veth peer name peer0
    echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"interface":0,"address":"10.1.2.3/24"}]}'`,
  )
  f.on('veth', 'DEL', `[ -z "$CNI_NETNS" ] || nsenter --net=$CNI_NETNS ip link delete $CNI_IFNAME || true`)
  await runCase(
    {
      group: 'attach',
      name: '1.1',
      async run(e) {
        const n = await e.network()
        const [one, two] = [e.request(n, await e.guest()), e.request(n, await e.guest())]
        await e.attach(one)
        await e.attach(two)
        assert.deepEqual((await e.backend.gc(n.id, [one.id], e.signal())).removed, [two.id])
        e.forget(two.id)
        assert.deepEqual(
          f.calls().map((c) => c.command),
          ['VERSION', 'STATUS', 'ADD', 'STATUS', 'ADD', 'DEL', 'GC'],
        )
        const valid = [{ containerID: one.id, ifname: 'eth0' }]
        assert.deepEqual(f.calls('GC')[0]?.conf['cni.dev/valid-attachments'], valid)
        f.on('veth', 'STATUS', `echo '{"code":50,"msg":"no peers yet"}'; exit 1`)
        await assert.rejects(e.backend.attach(two, e.signal()), /veth failed at STATUS: no peers yet/)
        assert.equal(f.calls('ADD').length, 2)
      },
    },
    descriptor,
    { config: { conflist: { cniVersion: '1.1.0', name: `${name}s`, plugins: [{ type: 'veth' }] }, binDirs: [f.dir] } },
  )
})
