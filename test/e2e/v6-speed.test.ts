/**
 * The same work over both families in one run, in alternating rounds: bulk each way, many flows, UDP. What was measured is printed; the aim is 5 %
 * between the families, the bound is wide, because the machine has others to serve.
 */
import assert from 'node:assert/strict'
import { loadavg } from 'node:os'
import { after, before, describe, test } from 'node:test'
import { type Agent, dual } from './agent-client.ts'
import { eventually, Lab, missing, type Place } from './lab.ts'
import { rounds } from './rounds.ts'

const net = dual(122)
const LEAST = 0.5
/** On the host itself, so that the path is the data plane and nothing else. */
const SERVER = { 4: '10.99.0.1', 6: '2001:db8:99::1' } as const
let lab: Lab
let agent: Agent
let vm: Place

describe('IPv6: as fast as IPv4', { skip: missing('iperf3', 'ss') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
    vm = lab.guest('vm')
    await agent.join(net, vm, 10)
    for (const f of [4, 6] as const) {
      await lab.host.sh(`ip addr add ${SERVER[f]}/${f === 4 ? 32 : 128} dev lo ${f === 6 ? 'nodad' : ''}`)
      lab.host.start(['iperf3', '-s', '-B', SERVER[f], '-p', '5201'])
    }
    await eventually('iperf3 listens', async () => Number(await lab.host.sh('ss -Hlnt sport = 5201 | wc -l')) === 2)
  })
  after(async () => {
    await lab?.remove()
  })

  const once = async (family: 4 | 6, how: readonly string[]): Promise<number> => {
    const out = await eventually('iperf3 runs', () =>
      vm.sh(`iperf3 -J -t1 -O0 -p 5201 -c ${SERVER[family]} ${how.join(' ')}`, 30_000),
    )
    const { end } = JSON.parse(out) as { end: Record<'sum_received' | 'sum', { bits_per_second: number } | undefined> }
    return ((end.sum_received ?? end.sum)?.bits_per_second ?? 0) / 1e9
  }

  for (const [what, how] of [
    ['one flow out', []],
    ['one flow in', ['-R']],
    ['eight flows out', ['-P8']],
    ['UDP out, 1300 bytes', ['-u', '-b', '2G', '-l', '1300']],
  ] as const)
    test(what, async (t) => {
      for (const f of [4, 6] as const) await once(f, how)
      const { rates, best } = await rounds(
        [4, 6] as const,
        (f) => once(f, how),
        (b) => b[6] > LEAST * b[4],
      )
      const [four, six] = [best[4], best[6]]
      const list = (f: 4 | 6) => rates[f].map((r) => r.toFixed(2)).join(' ')
      t.diagnostic(
        `${what}: IPv4 ${four.toFixed(2)} (${list(4)}), IPv6 ${six.toFixed(2)} (${list(6)}) Gbit/s, ratio ${(six / four).toFixed(3)}; load ${loadavg()[0]?.toFixed(1)}`,
      )
      assert.ok(four > 0 && six > LEAST * four, `IPv6 has ${six / four} of IPv4's rate`)
    })
})
