/** At speed over a path whose MTU (1400) is smaller than the guests' (1500): TCP both ways, UDP that may not be fragmented. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Agent, network } from './agent-client.ts'
import { EXAMPLE, eventually, Lab, missing, type Place, UPLINK_MTU } from './lab.ts'

const net = network(117)
let lab: Lab
let agent: Agent
let vm: Place

interface Report {
  readonly end: {
    readonly sum_received: { readonly bytes: number; readonly bits_per_second: number }
    readonly sum_sent: { readonly retransmits: number }
    readonly streams: readonly { readonly receiver: { readonly bytes: number } }[]
  }
}

describe('a path with a smaller MTU', { skip: missing('iperf3', 'socat', 'ss') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
    vm = lab.guest('vm')
    await agent.join(net, vm, 10)
    lab.inet.start(['iperf3', '-s', '-B', EXAMPLE])
    await eventually('iperf3 listens', async () => (await lab.inet.sh('ss -Hlnt sport = 5201 | wc -l')) === '1')
  })
  after(async () => {
    await lab?.remove()
  })
  const pathMtu = async () => Number(/mtu (\d+)/.exec(await vm.sh(`ip route get ${EXAMPLE}`))?.[1] ?? 1500)

  test('TCP at speed, both ways, one flow and eight', async (t) => {
    // Two seconds of a busy machine are few, and iperf3 may still be busy with the last: then again.
    for (const how of [[], ['-R'], ['-P8'], ['-P8', '-R']])
      await eventually(
        'every flow moves',
        async () => {
          const r = await vm.sh(`iperf3 -J -t2 -c ${EXAMPLE} ${how.join(' ')}`, 20_000)
          const { end } = JSON.parse(r) as Report
          const gbits = (end.sum_received.bits_per_second / 1e9).toFixed(2)
          t.diagnostic(`${how.join(' ') || '-P1'}: ${gbits} Gbit/s, ${end.sum_sent.retransmits} retransmits`)
          const least = Math.min(...end.streams.map((s) => s.receiver.bytes))
          assert.ok(least > 1 << 20, `a flow moved ${least} bytes in 2 s`)
          return true
        },
        180_000,
      )
    // The guest's TCP ends at the gateway, so the path behind it is no affair of the guest's.
    assert.equal(await pathMtu(), 1500)
  })

  test('UDP that may not be fragmented: what is too long is told, with the MTU; what fits passes', async () => {
    const to = `UDP:${EXAMPLE}:7,ip-mtu-discover=2`
    const most = UPLINK_MTU - 28
    const fits = 'd'.repeat(most)
    assert.equal((await vm.echo(to, fits)).length, most)
    assert.equal(await pathMtu(), 1500)
    const came: string[] = []
    await eventually('the MTU is told', async () => {
      const { stdout } = await vm.run(['socat', '-t1', '-b65000', '-', to], { input: `${fits}d`, timeoutMs: 20_000 })
      came.push(stdout)
      return (await pathMtu()) === UPLINK_MTU
    })
    assert.equal(came.join(''), '')
    assert.equal((await vm.echo(to, fits)).length, most)
  })
})
