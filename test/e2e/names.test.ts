/** Names: the proxy as dig sees it, and what happens when the world behind it changes. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Agent, network } from './agent-client.ts'
import { DNS, EXAMPLE, eventually, Lab, missing, type Place } from './lab.ts'

const net = network(101)
const SERVICES = '192.168.101.2'
let lab: Lab
let agent: Agent
let web: Place
let db: Place

describe('names', { skip: missing('dig') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
    web = lab.guest('web')
    db = lab.guest('db')
    await agent.join(net, web, 10)
    await agent.join(net, db, 11)
  })
  after(async () => {
    await lab?.remove()
  })
  const dig = async (...argv: string[]) =>
    (await web.run(['dig', '+tries=1', '+time=15', ...argv], { timeoutMs: 30_000 })).stdout
  const short = async (...argv: string[]) => (await dig('+short', ...argv)).trim()
  const queries = async () => (await lab.tell({ queries: true })) as Record<string, number>

  test('A, CNAME, MX, TXT over UDP and TCP', async () => {
    assert.equal(await short('example.com'), EXAMPLE)
    assert.equal(await short('www.example.com'), `example.com.\n${EXAMPLE}`)
    assert.equal(await short('MX', 'example.com'), '10 mail.example.com.')
    assert.equal(await short('+tcp', 'TXT', 'example.com'), '"v=spf1 -all"')
    assert.equal(await short('AAAA', 'v6.example.com'), '2001:db8::34')
  })

  test('a missing AAAA is NODATA, a missing name is NXDOMAIN', async () => {
    const nodata = await dig('AAAA', 'example.com')
    assert.match(nodata, /status: NOERROR/)
    assert.match(nodata, /ANSWER: 0/)
    assert.match(nodata, /SOA/)
    assert.match(await dig('nothing.example.com'), /status: NXDOMAIN/)
  })

  test('a big answer: truncated and asked again over TCP, or whole with EDNS', async () => {
    assert.match(await dig('+noedns', '+ignore', 'TXT', 'big.example.com'), /flags: [^;]*\btc\b/)
    assert.match(await dig('+noedns', 'TXT', 'big.example.com'), /ANSWER: 15/)
    assert.match(await dig('+bufsize=4096', '+ignore', 'TXT', 'big.example.com'), /ANSWER: 15|flags: [^;]*\btc\b/)
  })

  test('a type that nobody knows passes byte for byte', async () => {
    assert.equal(await short('TYPE65400', 'odd.example.com'), '\\# 7 00FF10C00C01FE')
  })

  test('an answer is cached, also that there is none; its TTL counts down', async () => {
    const ttl = async () => Number(/example\.com\.\s+(\d+)\s+IN\s+A\s/.exec(await dig('www.example.com'))?.[1])
    const first = await ttl()
    await dig('gone.example.com')
    // Once, or again where the machine was too busy to answer in time: from here on no more.
    assert.ok(((await queries())['gone.example.com A'] ?? 0) >= 1)
    await dig('gone.example.com')
    await new Promise((r) => setTimeout(r, 1100))
    assert.ok((await ttl()) < first)
    const asked = await queries()
    for (const name of ['www', 'gone']) assert.equal(asked[`${name}.example.com A`], undefined)
  })

  test('VMs by name, short and long, and back', async () => {
    assert.equal(await short('web.noid.internal'), '192.168.101.10')
    assert.equal(await short('db.noid.internal'), '192.168.101.11')
    assert.equal(await short('+search', 'db'), '192.168.101.11')
    assert.equal(await short('-x', '192.168.101.11'), 'db.noid.internal.')
    assert.equal(await short('host.noid.internal'), '192.168.101.254')
    assert.match(await dig('none.noid.internal'), /status: NXDOMAIN/)
    const nodata = await dig('AAAA', 'db.noid.internal')
    assert.match(nodata, /status: NOERROR/)
    assert.match(nodata, /ANSWER: 0/)
    await web.sh('ping -c1 -w20 db')
  })

  test('private reverse zones stay at home', async () => {
    await queries()
    await dig('-x', '192.168.101.200')
    assert.deepEqual(
      Object.keys(await queries()).filter((q) => q.includes('in-addr')),
      [],
    )
  })

  test('upstream gone: SERVFAIL in time; back: answers again', async () => {
    await lab.tell({ dns: 'silent' })
    try {
      const out = (await web.run(['dig', '+tries=1', '+time=25', 'fresh.example.com'], { timeoutMs: 40_000 })).stdout
      assert.match(out, /status: SERVFAIL/)
    } finally {
      await lab.tell({ dns: 'normal' })
    }
    assert.equal(await eventually('it answers again', () => short('short.example.com')), EXAMPLE)
  })

  test("the host's resolv.conf is followed: another server, none, and one again", async () => {
    lab.host.resolvConf('nameserver 1.1.1.1\n')
    await eventually('the other server', async () => (await short('short.example.com')) === EXAMPLE)
    lab.host.resolvConf('# offline\n')
    await eventually('offline', async () => /status: SERVFAIL/.test(await dig(`x${Math.random()}.example.com`)))
    lab.host.resolvConf(`nameserver ${DNS}\n`)
    await eventually('online', async () => /status: NXDOMAIN/.test(await dig(`x${Math.random()}.example.com`)))
  })

  test("systemd-resolved's stub on the host's loopback is asked", { skip: missing('dnsmasq') }, async () => {
    const stub = lab.host.start([
      'dnsmasq',
      '--keep-in-foreground',
      '--conf-file=/dev/null',
      '--no-resolv',
      '--no-hosts',
      `--server=${DNS}`,
      '--listen-address=127.0.0.53',
      '--bind-interfaces',
      '--cache-size=0',
      '--pid-file=',
    ])
    try {
      await eventually('the stub listens', async () => (await lab.host.sh('ss -Hlnu sport = 53')) !== '')
      lab.host.resolvConf('nameserver 127.0.0.53\noptions edns0 trust-ad\n')
      await new Promise((r) => setTimeout(r, 3000))
      await queries()
      assert.equal(await short('MX', 'example.com'), '10 mail.example.com.')
      assert.equal(await short('short.example.com'), EXAMPLE)
    } finally {
      lab.host.resolvConf(`nameserver ${DNS}\n`)
      stub.kill('SIGKILL')
    }
    await eventually('NXDOMAIN', async () => /NXDOMAIN/.test(await dig(`m${Math.random()}.example.com`)))
  })

  test('a name of a VM that left is gone, a new one is there', async () => {
    const late = lab.guest('late')
    await agent.join(net, late, 12)
    assert.equal(await short('late.noid.internal'), '192.168.101.12')
    await agent.detach(`${net.id}-12`, net.id)
    assert.match(await dig('late.noid.internal'), /status: NXDOMAIN/)
  })

  test('many questions at once are all answered', async () => {
    const script = 'for i in $(seq 1 60); do dig +tries=1 +time=30 h$i.example.com & done; wait'
    const out = await web.sh(script)
    assert.equal(out.split('status: NXDOMAIN').length - 1, 60)
  })

  test(`the name server is at ${SERVICES} for TCP as well`, async () => {
    assert.match(
      await dig('+tcp', 'example.com'),
      new RegExp(`SERVER: ${SERVICES.replaceAll('.', '\\.')}#53\\(${SERVICES.replaceAll('.', '\\.')}\\) \\(TCP\\)`),
    )
  })
})
