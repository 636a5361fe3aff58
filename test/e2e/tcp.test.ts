/** TCP through the gateway: whole, in both directions, under loss, and with every way to end. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { type Agent, network } from './agent-client.ts'
import { block } from './inet/blocks.ts'
import { EXAMPLE, eventually, Lab, missing, type Place } from './lab.ts'

const here = import.meta.dirname
const net = network(102)
const GIB = 1 << 30
let lab: Lab
let agent: Agent
let vm: Place

function hashOf(bytes: number): string {
  const h = createHash('sha256')
  for (let left = bytes; left > 0; left -= block.length) h.update(left < block.length ? block.subarray(0, left) : block)
  return h.digest('hex')
}

describe('tcp', { skip: missing('curl', 'socat', 'iptables') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
    vm = lab.guest('vm')
    await agent.join(net, vm, 10)
  })
  after(async () => {
    await lab?.remove()
  })
  const fetchHash = (bytes: number, timeoutMs = 240_000) =>
    vm.sh(`curl -sS --fail http://${EXAMPLE}/bytes/${bytes} | sha256sum | cut -d' ' -f1`, timeoutMs)
  const sendHash = (bytes: number, timeoutMs = 240_000) =>
    vm.sh(
      `curl -sS --fail http://${EXAMPLE}/bytes/${bytes} -o - | curl -sS --fail -T - -X POST http://${EXAMPLE}/hash`,
      timeoutMs,
    )
  const flowCount = async () => (await agent.stats(net.id)).flows.filter((f) => f.proto === 'tcp').length

  test('a page by name', async () => {
    assert.equal(await vm.sh('curl -sS http://example.com/'), 'hello 10.77.0.2')
  })

  test('1 GiB arrives with the same hash, both ways', async () => {
    const expected = hashOf(GIB)
    assert.equal(await fetchHash(GIB), expected)
    assert.equal(await sendHash(GIB), expected)
  })

  test('the same hash with loss between gateway and internet', async () => {
    const expected = hashOf(64 << 20)
    await lab.loss(0.005)
    try {
      assert.equal(await fetchHash(64 << 20), expected)
      assert.equal(await sendHash(64 << 20), expected)
    } finally {
      await lab.loss(0)
    }
  })

  test('the same hash with loss between guest and gateway', async () => {
    const expected = hashOf(64 << 20)
    const drop = (how: string) =>
      vm.sh(
        `for c in INPUT OUTPUT; do iptables -${how} $c -p tcp -m statistic --mode random --probability 0.01 -j DROP; done`,
      )
    await drop('A')
    try {
      assert.equal(await fetchHash(64 << 20), expected)
      assert.equal(await sendHash(64 << 20), expected)
    } finally {
      await drop('D')
    }
  })

  test('1 GiB with the same hash over a wire that loses and reorders one frame in a hundred', async () => {
    // guest eth0 ── veth ── m0 (impair.ts) eth0 ── data plane
    const mid = lab.guest('mid')
    const guest = lab.guest('far')
    const a = await agent.attach(net, mid, 30)
    await mid.sh(
      `ip link add m0 type veth peer eth0 netns ${guest.name}
       for l in m0 eth0; do echo 1 >/proc/sys/net/ipv6/conf/$l/disable_ipv6; ip link set $l arp off; done`,
    )
    mid.start([process.execPath, join(here, 'impair.ts'), 'm0', 'eth0', '0.01', '0.01', '0.001', '7'])
    await guest.sh(
      `echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
       ip link set eth0 address ${a.mac} up
       ip addr add ${a.addresses[0]} dev eth0
       ip route add default via ${net.gateway}`,
    )
    await eventually('the wire carries', async () => (await guest.run(['ping', '-c1', '-W1', net.gateway])).code === 0)
    const expected = hashOf(GIB)
    const url = `http://${EXAMPLE}/bytes/${GIB}`
    assert.equal(await guest.sh(`curl -sS --fail ${url} | sha256sum | cut -d' ' -f1`, 300_000), expected)
    const back = `curl -sS --fail -T - -X POST http://${EXAMPLE}/hash`
    assert.equal(
      await guest.sh(`${process.execPath} ${join(here, 'inet/blocks.ts')} ${GIB} | ${back}`, 300_000),
      expected,
    )
  })

  test('half-close both ways', async () => {
    const echoed = await vm.run(['socat', '-t30', '-', `TCP:${EXAMPLE}:7`], { input: 'x'.repeat(200_000) })
    assert.equal(echoed.stdout.length, 200_000)
    const said = await vm.run(['socat', '-t30', '-', `TCP:${EXAMPLE}:13`], { input: 'y'.repeat(1000) })
    assert.equal(said.stdout, 'first\ngot 1000\n')
  })

  test('a refused port is refused at once, an unreachable network is said', async () => {
    const connect = (to: string) => vm.run(['socat', '-', `TCP:${to},connect-timeout=30`], { timeoutMs: 40_000 })
    assert.match((await connect(`${EXAMPLE}:81`)).stderr, /Connection refused/)
    await lab.router.sh('ip route add unreachable 198.18.0.0/15')
    assert.match((await connect('198.18.0.1:80')).stderr, /No route to host|Network is unreachable/)
  })

  test('a reader that stops and goes on loses nothing', async () => {
    const bytes = 64 << 20
    const out = await vm.sh(`curl -sS http://${EXAMPLE}/bytes/${bytes} | (sleep 3; sha256sum) | cut -d' ' -f1`)
    assert.equal(out, hashOf(bytes))
  })

  test('two hundred connections at once', async () => {
    const out = await vm.sh(`seq 200 | xargs -P 50 -I{} curl -sS --max-time 60 http://${EXAMPLE}/ | sort | uniq -c`)
    assert.match(out.trim(), /^200 hello 10\.77\.0\.2$/)
  })

  test('a guest that vanishes in the middle leaves no flow', async () => {
    const gone = lab.guest('gone')
    await agent.join(net, gone, 20)
    gone.start(['curl', '-s', '-o', '/dev/null', '--limit-rate', '1M', `http://${EXAMPLE}/bytes/${GIB}`])
    await eventually('a flow', async () => (await agent.stats(net.id)).flows.some((f) => f.vm === 'gone'))
    await agent.detach(`${net.id}-20`, net.id)
    await gone.remove()
    assert.ok(!(await agent.stats(net.id)).flows.some((f) => f.vm === 'gone'))
  })

  test('closed connections do not pile up', async () => {
    await eventually('few flows', async () => (await flowCount()) < 60)
  })
})
