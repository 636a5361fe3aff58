/** Names over IPv6: asked at ::2, of VMs in both families, of name servers over IPv6, also by link. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Agent, dual } from './agent-client.ts'
import { DNS, DNS6, EXAMPLE, EXAMPLE6, eventually, Lab, missing, type Place } from './lab.ts'

const net = dual(117)
const P = 'fd00:77:0:75'
let lab: Lab
let agent: Agent
let web: Place
let db: Place

describe('IPv6: names', { skip: missing('dig', 'dnsmasq', 'ss') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
    web = lab.guest('web')
    db = lab.guest('db')
    await agent.join(net, web, 10)
    // A VM that has IPv4 alone.
    await agent.join(net, db, 11, { addresses: ['192.168.117.11/24'] })
  })
  after(async () => {
    await lab?.remove()
  })
  const dig = async (...argv: string[]) =>
    (await web.run(['dig', `@${P}::2`, '+tries=2', '+time=15', ...argv], { timeoutMs: 40_000 })).stdout
  const short = async (...argv: string[]) => (await dig('+short', ...argv)).trim()

  test('the outside, over UDP and TCP, whichever family the name has', async () => {
    assert.equal(await short('AAAA', 'v6.example.com'), EXAMPLE6)
    assert.equal(await short('+tcp', 'AAAA', 'dual.example.com'), EXAMPLE6)
    assert.equal(await short('A', 'dual.example.com'), EXAMPLE)
    for (const [name, type] of [
      ['v6.example.com', 'A'],
      ['example.com', 'AAAA'],
    ] as const) {
      const nodata = await dig(type, name)
      assert.match(nodata, /status: NOERROR/)
      assert.match(nodata, /ANSWER: 0/)
    }
    assert.match(await dig('+tcp', 'example.com'), new RegExp(`SERVER: ${P}::2#53\\(${P}::2\\) \\(TCP\\)`))
  })

  test('big answers come whole', async () => {
    assert.match(await dig('+noedns', '+ignore', 'TXT', 'big.example.com'), /flags: [^;]*\btc\b/)
    assert.match(await dig('+noedns', 'TXT', 'big.example.com'), /ANSWER: 15/)
  })

  test('VMs by name and back; who has one family has no other, and is no stranger', async () => {
    // It was configured without a word, and is asked whether it is there.
    await eventually('it was heard', async () => (await short('AAAA', 'web.noid.internal')) === `${P}::10`)
    assert.equal(await short('A', 'web.noid.internal'), '192.168.117.10')
    assert.equal(await short('-x', `${P}::10`), 'web.noid.internal.')
    assert.equal(await short('-x', `${P}:0:5054:ff:fe00:a01`.replace(':0:5054', ':5054')), 'web.noid.internal.')
    assert.equal(await short('AAAA', 'host.noid.internal'), `${P}::254`)
    assert.equal(await short('-x', `${P}::254`), 'host.noid.internal.')
    assert.match(await dig('-x', `${P}::99`), /status: NXDOMAIN/)
    await web.sh('ping -6 -c1 -w20 host.noid.internal')
  })

  test('a VM that asks no DHCPv6 is at what its kernel made of the prefix', async () => {
    const auto = lab.guest('auto')
    await agent.attach(net, auto, 20)
    await auto.sh('ip link set eth0 up')
    await eventually('its name', async () => (await short('AAAA', 'auto.noid.internal')) === `${P}:5054:ff:fe00:1401`)
    await eventually('it answers', async () => (await web.run(['ping', '-6', '-c1', '-W2', 'auto'])).code === 0)
    await auto.sh(`ip addr add ${P}::20/64 dev eth0`)
    await eventually('its own', async () => (await short('AAAA', 'auto.noid.internal')) === `${P}::20`)
  })

  test('reverse names of the network stay at home, others do not', async () => {
    await lab.tell({ queries: true })
    await dig('-x', `${P}::99`)
    await dig('-x', 'fe80::1')
    await dig('-x', '2001:db8::99')
    const asked = Object.keys((await lab.tell({ queries: true })) as object).filter((q) => q.includes('ip6.arpa'))
    assert.equal(asked.length, 1, asked.join())
    assert.match(asked[0] as string, /8\.b\.d\.0\.1\.0\.0\.2\.ip6\.arpa/)
  })

  test("the host's name server is known by IPv6, with others, or by its link", async () => {
    const answers = (what: string) =>
      eventually(what, async () => (await short('+tries=1', '+time=5', 'AAAA', 'v6.example.com')) === EXAMPLE6)
    const asked = async () => JSON.stringify(await lab.tell({ queries: true }))
    for (const conf of [
      `nameserver ${DNS6}\n`,
      `nameserver 2001:db8:dead::1\nnameserver ${DNS}\nnameserver ${DNS6}\n`,
    ]) {
      lab.host.resolvConf(conf)
      // A changed list empties the cache.
      await eventually(conf, async () => {
        await asked()
        await short('AAAA', 'v6.example.com')
        return (await asked()).includes('v6.example.com AAAA')
      })
      await answers(conf)
    }
    // A router that is the name server and says so by its link-local address.
    const local = /fe80:[0-9a-f:]+/.exec(await lab.router.sh('ip -6 -o addr show dev down0 scope link'))?.[0] as string
    const stub = lab.router.start([
      'dnsmasq',
      '--keep-in-foreground',
      '--conf-file=/dev/null',
      '--no-resolv',
      '--no-hosts',
      `--server=${DNS6}`,
      '--interface=down0',
      '--bind-interfaces',
      '--cache-size=0',
      '--pid-file=',
      `--address=/scoped.test/2001:db8::5c`,
    ])
    try {
      await eventually('it listens', async () => (await lab.router.sh('ss -Hlnu6 sport = 53')).includes('fe80'))
      lab.host.resolvConf(`nameserver ${local}%uplink\n`)
      await eventually('by its link', async () => (await short('+tries=1', 'AAAA', 'scoped.test')) === '2001:db8::5c')
      assert.equal(await short('+tcp', 'AAAA', 'scoped.test'), '2001:db8::5c')
    } finally {
      lab.host.resolvConf(`nameserver ${DNS}\n`)
      stub.kill('SIGKILL')
    }
    await answers('and IPv4 again')
  })
})
