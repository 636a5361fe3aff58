/** Hosts and networks with one family alone: what is not there is said at once, what is there works. */
import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { type Agent, dual, network } from './agent-client.ts'
import { EXAMPLE, EXAMPLE6, eventually, Lab, missing, type Place } from './lab.ts'

const needs = { skip: missing('curl', 'dig', 'ping', 'rdisc6', 'socat', 'ss') }

/** curl's word for what happened: 7 is "could not connect", which it knows at once; 28 would be a time that ran out. */
const COULD_NOT = 7
const curl = (from: Place, ...argv: string[]) =>
  from.run(['curl', '-sS', '--max-time', '40', '-w', '%{time_connect}', ...argv], { timeoutMs: 60_000 })
// What must answer may take its time on a busy machine; what must not is asked once.
const LONG = '-w20'
const SHORT = '-W3'
const ping = (from: Place, ...argv: string[]) => from.run(['ping', '-c1', ...argv])

for (const [family, other, here, there] of [
  [4, 6, EXAMPLE, `[${EXAMPLE6}]`],
  [6, 4, `[${EXAMPLE6}]`, EXAMPLE],
] as const)
  describe(`a host with IPv${family} alone`, needs, () => {
    const net = dual(119)
    let lab: Lab
    let agent: Agent
    let vm: Place
    before(async () => {
      lab = await Lab.create([family])
      agent = lab.agent()
      await agent.createNetwork(net)
      vm = lab.guest('vm')
      await agent.join(net, vm, 10)
    })
    after(async () => {
      await lab?.remove()
    })

    test(`IPv${family} works, by address and by name`, async () => {
      for (const to of [here, `v${family}.example.com`.replace('v4.', ''), 'dual.example.com']) {
        const r = await curl(vm, `http://${to}/`)
        assert.match(r.stdout, /^hello /, `${to}: ${r.all}`)
      }
    })

    test(`IPv${other} is refused at once, so that who tries both loses no time`, async (t) => {
      const r = await curl(vm, `http://${there}/`)
      assert.equal(r.code, COULD_NOT, r.all)
      assert.match(r.stderr, /unreachable|Couldn't connect|No route/i)
      const named = await curl(vm, `-${other}`, 'http://dual.example.com/')
      assert.equal(named.code, COULD_NOT, named.all)
      // Whoever begins with the family that is not there: the other is tried without waiting.
      const bare = (a: string) => a.replace(/[[\]]/g, '')
      const addresses = [
        { address: bare(there), family: other },
        { address: bare(here), family },
      ]
      const file = join(lab.dir, 'both.cjs')
      writeFileSync(
        file,
        `const { connect } = require('node:net')
         const from = performance.now()
         const lookup = (host, options, done) => done(null, ${JSON.stringify(addresses)})
         const how = { autoSelectFamily: true, autoSelectFamilyAttemptTimeout: 30000 }
         connect({ host: 'dual.example.com', port: 80, lookup, ...how }, function () {
           console.log(this.remoteFamily, Math.round(performance.now() - from))
           this.destroy()
         }).on('error', (e) => console.log(e.message))`,
      )
      const said = await vm.sh(`${process.execPath} ${file}`)
      assert.match(said, new RegExp(`^IPv${family} \\d+$`), said)
      t.diagnostic(`the first family refused, connected over IPv${family} after ${said.split(' ')[1]} ms`)
      assert.match((await ping(vm, LONG, `-${other}`, bare(there))).all, /unreachable/i)
    })

    test('within the network both work all the same', async () => {
      const neighbour = lab.guest('neighbour')
      await agent.join(net, neighbour, 11)
      for (const a of ['192.168.119.10', 'fd00:77:0:77::10', '192.168.119.1', 'fd00:77:0:77::1'])
        assert.equal((await ping(neighbour, LONG, a)).code, 0, a)
      assert.equal(await neighbour.sh('dig +short +tries=3 @fd00:77:0:77::2 AAAA vm.noid.internal'), 'fd00:77:0:77::10')
    })

    test('a port on all addresses is one on what there is', async () => {
      vm.start(['socat', 'TCP6-LISTEN:80,fork,reuseaddr,ipv6only=0', 'SYSTEM:echo here'])
      await eventually('it listens', async () => (await vm.sh('ss -Hlnt sport = 80')) !== '')
      const guest = { guestAddress: '192.168.119.10', guestAddress6: 'fd00:77:0:77::10', guestPort: 80 }
      const wish = { id: 'p', attachment: `${net.id}-10`, proto: 'tcp', hostAddress: '*', hostPort: 8080 } as const
      await agent.publish({ ...wish, ...guest })
      const host = family === 4 ? '10.77.0.2' : '[2001:db8:77::2]'
      assert.equal(
        await eventually('it serves', () => lab.inet.sh(`socat -T3 - TCP${family}:${host}:8080,connect-timeout=3`)),
        'here',
      )
    })
  })

describe('networks with one family alone', needs, () => {
  let lab: Lab
  let agent: Agent
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
  })
  after(async () => {
    await lab?.remove()
  })

  test('IPv6 alone: no IPv4 is offered or passed, everything else is there', async () => {
    const net = dual(120, { ipv4: false })
    await agent.createNetwork(net)
    const vm = lab.guest('six')
    const a = await agent.attach(net, vm, 10)
    assert.deepEqual(a.addresses, ['fd00:77:0:78::10/64'])
    assert.deepEqual(a.routes, [{ to: '::/0', via: 'fd00:77:0:78::1' }])
    assert.deepEqual(a.dns?.servers, ['fd00:77:0:78::2'])
    await vm.sh('ip link set eth0 up')
    vm.resolvConf(`nameserver fd00:77:0:78::2\n`)
    await eventually('a default route', async () => (await vm.sh('ip -6 route show default')) !== '')
    await eventually(
      'an address',
      async () => (await vm.sh('ip -6 -o addr show dev eth0 scope global -tentative')) !== '',
    )
    await eventually('the outside', async () =>
      (await curl(vm, 'http://dual.example.com/')).stdout.startsWith('hello 2001'),
    )
    assert.equal(await vm.sh('dig +short A gateway.noid.internal'), '')
    assert.equal(await vm.sh('dig +short AAAA host.noid.internal'), 'fd00:77:0:78::254')
    const nic = await lab.host.sh('ip -o addr show to fd00:77:0:78::254')
    const ifname = /noid\d+/.exec(nic)?.[0] as string
    assert.doesNotMatch(await lab.host.sh(`ip -o addr show dev ${ifname}`), /inet /)
    // By hand, as somebody would who does not believe it.
    await vm.sh('ip addr add 192.168.120.10/24 dev eth0; ip route add default via 192.168.120.1')
    assert.notEqual((await ping(vm, SHORT, '-4', EXAMPLE)).code, 0)
  })

  test('IPv4 alone: no router is heard, no IPv6 passes, not even between VMs', async () => {
    const net = network(121)
    await agent.createNetwork(net)
    const [a, b] = [lab.guest('a4'), lab.guest('b4')]
    await agent.join(net, a, 10)
    await agent.join(net, b, 11)
    assert.notEqual((await a.run(['rdisc6', '-1', '-r2', '-w1000', 'eth0'])).code, 0)
    const local = /fe80:[0-9a-f:]+/.exec(await b.sh('ip -6 -o addr show dev eth0 scope link'))?.[0] as string
    assert.notEqual((await ping(a, SHORT, `${local}%eth0`)).code, 0)
    assert.equal((await ping(a, LONG, '192.168.121.11')).code, 0)
    assert.equal(await a.sh('dig +short AAAA host.noid.internal'), '')
    const ifname = /noid\d+/.exec(await lab.host.sh('ip -o addr show to 192.168.121.254'))?.[0] as string
    assert.equal(await lab.host.sh(`cat /proc/sys/net/ipv6/conf/${ifname}/disable_ipv6`), '1')
  })
})
