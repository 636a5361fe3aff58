/** Bytes over IPv6, whole: TCP both ways and under loss, half-closes, UDP small and in fragments, a published port in both families at once. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { type Agent, dual } from './agent-client.ts'
import { block } from './inet/blocks.ts'
import { EXAMPLE6, HOST6, Lab, missing, type Place } from './lab.ts'

const net = dual(124)
const P = 'fd00:77:0:7c'
const MIB = 1 << 20
const WEB = `http://[${EXAMPLE6}]`
let lab: Lab
let agent: Agent
let vm: Place

function hashOf(bytes: number): string {
  const h = createHash('sha256')
  for (let left = bytes; left > 0; left -= block.length) h.update(left < block.length ? block.subarray(0, left) : block)
  return h.digest('hex')
}

describe('IPv6: transfer', { skip: missing('curl', 'socat', 'iptables', 'ip6tables') }, () => {
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
  const both = async (bytes: number) => {
    const expected = hashOf(bytes)
    const fetched = await vm.sh(`curl -sS --fail ${WEB}/bytes/${bytes} | sha256sum | cut -d' ' -f1`, 240_000)
    assert.equal(fetched, expected)
    const sent = `curl -sS --fail ${WEB}/bytes/${bytes} -o - | curl -sS --fail -T - -X POST ${WEB}/hash`
    assert.equal(await vm.sh(sent, 240_000), expected)
  }

  test('256 MiB arrive with the same hash, both ways', () => both(256 * MIB))

  test('the same with loss between gateway and internet', async () => {
    await lab.loss(0.005)
    try {
      await both(32 * MIB)
    } finally {
      await lab.loss(0)
    }
  })

  test('the same with loss between guest and gateway', async () => {
    const drop = (how: string) =>
      vm.sh(
        `for c in INPUT OUTPUT; do ip6tables -${how} $c -p tcp -m statistic --mode random --probability 0.01 -j DROP; done`,
      )
    await drop('A')
    try {
      await both(32 * MIB)
    } finally {
      await drop('D')
    }
  })

  test('half-close both ways', async () => {
    const echoed = await vm.run(['socat', '-t30', '-', `TCP6:[${EXAMPLE6}]:7`], { input: 'x'.repeat(200_000) })
    assert.equal(echoed.stdout.length, 200_000)
    const said = await vm.run(['socat', '-t30', '-', `TCP6:[${EXAMPLE6}]:13`], { input: 'y'.repeat(1000) })
    assert.equal(said.stdout, 'first\ngot 1000\n')
  })

  test('two hundred connections at once', async () => {
    const out = await vm.sh(`seq 200 | xargs -P 50 -I{} curl -sS --max-time 60 ${WEB}/ | sort | uniq -c`)
    assert.equal(out.trim(), `200 hello ${HOST6}`)
  })

  test('UDP: small, as large as the path takes, in fragments', async () => {
    // The path takes 1400; between there and 1500 the guest is told, and cuts by itself.
    for (const n of [5, 1300, 1400, 1440, 4000, 20_000, 60_000])
      assert.equal((await vm.echo(`UDP6:[${EXAMPLE6}]:7`, 'f'.repeat(n))).length, n, `${n} bytes`)
  })

  test('UDP within the network and to a published port, in fragments too', async () => {
    const other = lab.guest('other')
    await agent.join(net, other, 11)
    for (const bind of ['', `,bind=[${P}::11]`])
      other.start(['socat', `UDP6-RECVFROM:${bind === '' ? 7 : 8},fork${bind}`, 'PIPE'])
    for (const n of [5, 1400, 4000])
      assert.equal((await vm.echo(`UDP6:[${P}::11]:8`, 'n'.repeat(n))).length, n, `${n} bytes`)
    const guest = { guestAddress: '192.168.124.11', guestAddress6: `${P}::11`, guestPort: 7 }
    const wish = { id: 'u', attachment: `${net.id}-11`, proto: 'udp', hostAddress: '*', hostPort: 7007 } as const
    await agent.publish({ ...wish, ...guest })
    for (const n of [5, 1400, 4000])
      assert.equal((await lab.inet.echo(`UDP6:[${HOST6}]:7007`, 'p'.repeat(n))).length, n, `${n} bytes`)
  })
})
