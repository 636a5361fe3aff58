/**
 * Correct at speed: many flows, slow and silent ones beside fast ones, against a data-plane process between namespaces.
 *
 * What decides is shape: that all bytes came, that nothing stays behind, that memory is bounded. Rates are compared only with rates of the same
 * minute and with wide bounds, because the machine has others to serve; what was measured is printed (diagnostics).
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { loadavg } from 'node:os'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { HelloAnswer, StatsAnswer } from '../../src/dataplane/protocol.ts'
import { type Guest, Lab, SERVER } from '../dataplane/lab.ts'
import { eventually, missing } from './lab.ts'
import { rounds } from './rounds.ts'
import { SLOW, StreamsTool } from './streams.ts'

/** What a slow reader may cost a fast one, at most; the aim is a tenth, the rest is the machine's. */
const SLOWED_LEAST = 0.5
const FLOW_BYTES = 2048
/** What the process's own size moves by from one minute to the next: V8's young generation, and what glibc keeps or gives back. */
const RUNTIME_BYTES = 64 << 20

let lab: Lab
let pid: number
let server: StreamsTool
const guests: Guest[] = []

const load = () => loadavg()[0]!.toFixed(1)
const callFrom = (g: Guest) => new StreamsTool((argv) => lab.background(g.netns, argv, 'pipe'), 'call', SERVER).ready()
const stats = () => lab.link.request<StatsAnswer>({ op: 'stats' })
const tcpFlows = async () => (await stats()).flows.filter((f) => f.proto === 'tcp')
const descriptors = () => readdirSync(`/proc/${pid}/fd`).length
const rss = () => Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))![1]) * 1024
const drops = async () => (await stats()).drops.map((d) => `${d.vm} ${d.reason} ${d.count}`).join(', ') || 'none'
const gbits = (bytes: number, ms: number) => ((bytes * 8) / ms / 1e6).toFixed(2)

/** Bytes per second over a guest's nic, both ways. */
const carries = async (g: Guest) => {
  const files = ['rx', 'tx'].map((way) => `/sys/class/net/eth0/statistics/${way}_bytes`)
  const bytes = () =>
    lab
      .in(g.netns, 'cat', ...files)
      .split('\n')
      .reduce((sum, line) => sum + Number(line), 0)
  const [from, before] = [performance.now(), bytes()]
  await sleep(500)
  return ((bytes() - before) / (performance.now() - from)) * 1000
}

/** Frames that a guest's kernel could not hand over: its TAP's queue was full. */
const queueDrops = (g: Guest) => Number(lab.in(g.netns, 'cat', '/sys/class/net/eth0/statistics/tx_dropped'))
const retransmits = (g: Guest) => {
  const rows = lab
    .in(g.netns, 'cat', '/proc/net/snmp')
    .split('\n')
    .filter((l) => l.startsWith('Tcp:'))
  const [names, values] = rows.map((l) => l.split(' '))
  return Number(values![names!.indexOf('RetransSegs')])
}

describe('correct at speed', { skip: missing('iperf3', 'iptables') }, () => {
  before(async () => {
    lab = new Lab()
    await lab.start()
    pid = (await lab.link.request<HelloAnswer>({ op: 'hello' })).pid
    server = await new StreamsTool((argv) => lab.background(lab.host, argv, 'pipe'), 'serve', SERVER).ready()
    lab.background(lab.host, ['iperf3', '-s', '-B', SERVER])
    for (let n = 0; n < 4; n++) guests.push(await lab.guest(`g${n}`, 10 + n))
    // What the process allocates once, and code that is compiled once, is no flow's memory.
    const caller = await callFrom(guests[0]!)
    await caller.ask({ do: 'storm', count: 3000, parallel: 64 })
    caller.process.kill()
  })
  after(async () => {
    await lab?.close()
  })

  test('10,000 idle flows: little memory for each, and nothing of them stays', async (t) => {
    const [before, open] = [rss(), descriptors()]
    const callers = await Promise.all(guests.slice(0, 3).map(callFrom))
    const stand = await Promise.all(callers.map((c) => c.ask({ do: 'hold', count: 3400, parallel: 50 }, 90_000)))
    assert.deepEqual(stand, [3400, 3400, 3400])
    assert.ok((await tcpFlows()).length >= 10_200)
    assert.ok(descriptors() >= open + 10_200)
    const each = await eventually('little memory for each', () => {
      const bytes = (rss() - before) / 10_200
      if (bytes >= FLOW_BYTES) throw new Error(`${bytes} bytes for each`)
      return `${Math.round(bytes)}`
    })
    t.diagnostic(`10,200 flows: ${each} bytes each; load ${load()}`)
    await Promise.all(callers.map((c) => c.ask({ do: 'end' })))
    await eventually('no descriptor stays', () => descriptors() <= open + 5)
    for (const c of callers) c.process.kill()
  })

  test('a guest that never acknowledges: 1,000 flows with data waiting hold no memory', async (t) => {
    const g = guests[3]!
    const open = descriptors()
    const caller = await callFrom(g)
    assert.equal(await caller.ask({ do: 'hold', count: 1000, parallel: 50 }), 1000)
    await eventually('the server has all of them', async () => (await server.ask({ do: 'give', bytes: 0 })) >= 1000)
    const before = rss()
    lab.in(g.netns, 'iptables', '-A', 'OUTPUT', '-p', 'tcp', '-j', 'DROP')
    await server.ask({ do: 'give', bytes: 256 * 1024 })
    await sleep(3000)
    // 256 MB, were they held.
    const held = await eventually('their memory is bounded', () => {
      const bytes = rss() - before
      if (bytes >= RUNTIME_BYTES + 1000 * FLOW_BYTES) throw new Error(`${bytes} bytes more than before`)
      return `${Math.round(bytes / 1000)}`
    })
    t.diagnostic(`1,000 silent flows with 256 KiB waiting: ${held} bytes each; load ${load()}`)
    await lab.link.request({ op: 'detach', id: g.name })
    assert.equal((await tcpFlows()).filter((f) => f.vm === g.name && f.state !== 'TIME-WAIT').length, 0)
    await eventually('no descriptor stays', () => descriptors() <= open + 5)
    caller.process.kill()
    await server.ask({ do: 'end' })
  })

  test('a storm of connections leaves neither flow nor descriptor', async (t) => {
    const open = descriptors()
    const caller = await callFrom(guests[0]!)
    for (let round = 0; round < 3; round++) {
      const from = performance.now()
      assert.equal(await caller.ask({ do: 'storm', count: 3000, parallel: 64 }), 3000)
      const rate = Math.round(3000 / ((performance.now() - from) / 1000))
      t.diagnostic(`3,000 connections, ${rate} per second; load ${load()}`)
    }
    await eventually('no descriptor stays', () => descriptors() <= open + 2)
    await eventually('no flow stays', async () => (await tcpFlows()).every((f) => f.state === 'TIME-WAIT'))
    t.diagnostic(`drops: ${await drops()}`)
    caller.process.kill()
  })

  for (const way of ['in', 'out'] as const)
    test(`slow readers beside a fast one, ${way}`, async (t) => {
      const MS = 600
      const [fast, slow] = await Promise.all([callFrom(guests[0]!), callFrom(guests[0]!)])
      const beside = async (count: number) => {
        if (count > 0) assert.equal(await slow.ask({ do: 'slow', way, count }), count)
        // They are fast until every buffer on their way is full.
        if (count > 0) await eventually('they are slow', async () => (await carries(guests[0]!)) < 3 * count * SLOW)
        const moved = await fast.ask({ do: 'move', way, ms: MS })
        await slow.ask({ do: 'end' })
        await sleep(50)
        return moved
      }
      await fast.ask({ do: 'move', way, ms: MS })
      // Fifty have 40 Mbit/s of their own.
      const share = (best: Record<0 | 1 | 50, number>) => [best[1] / best[0], best[50] / best[0]] as const
      const good = ([one, many]: readonly [number, number]) => one > SLOWED_LEAST && many > SLOWED_LEAST / 2
      const { best } = await rounds([0, 1, 50] as const, beside, (b) => good(share(b)))
      const [one, many] = share(best)
      t.diagnostic(
        `${way}: alone ${gbits(best[0], MS)} Gbit/s; beside one slow reader ${one.toFixed(2)} of it, beside 50 ${many.toFixed(2)}; load ${load()}`,
      )
      assert.ok(good([one, many]), `beside one ${one} of the rate alone, beside fifty ${many}`)
      for (const c of [fast, slow]) c.process.kill()
    })

  test('a hundred connections at once echo 200 KB each, whole', async (t) => {
    const g = guests[0]!
    const caller = await callFrom(g)
    const whole: number[] = []
    // A guest whose answers are late says much again: on a busy machine that comes and goes.
    await eventually(
      'little is said again',
      async () => {
        const before = [retransmits(g), queueDrops(g)]
        const from = performance.now()
        whole.push(await caller.ask({ do: 'echo', count: 100, bytes: 200_000 }))
        const [again, lost] = [retransmits(g) - before[0]!, queueDrops(g) - before[1]!]
        t.diagnostic(
          `100 × 200 KB there and back in ${Math.round(performance.now() - from)} ms: ${again} retransmits by the guest, ${lost} frames that its queue had no room for; load ${load()}`,
        )
        return whole.at(-1) !== 100 || again < 2000
      },
      180_000,
    )
    assert.deepEqual([...new Set(whole)], [100])
    caller.process.kill()
  })

  for (const kind of ['tap', 'packet'] as const)
    test(`eight flows each way, and both ways at once: none stands still (${kind})`, async (t) => {
      const g = kind === 'tap' ? guests[1]! : await lab.guest('p0', 20, 'packet')
      const measure = (how: readonly string[]) => {
        const lost = queueDrops(g)
        const out = lab.in(g.netns, 'iperf3', '-J', '-t2', '-c', SERVER, ...how)
        const { end } = JSON.parse(out) as {
          end: {
            streams: { receiver: { bytes: number } }[]
            sum_received: Sum
            sum_received_bidir_reverse?: Sum
            sum_sent: Sum
          }
        }
        const least = Math.min(...end.streams.map((s) => s.receiver.bytes))
        const back = end.sum_received_bidir_reverse
        t.diagnostic(
          `${how.join(' ')}: ${gbits(end.sum_received.bytes, 2000)}${back ? ` and ${gbits(back.bytes, 2000)}` : ''} Gbit/s, the slowest flow ${gbits(least, 2000)}, ${end.sum_sent.retransmits} retransmits, ${queueDrops(g) - lost} frames that the queue had no room for; load ${load()}`,
        )
        assert.ok(least > 1 << 20, `a flow moved ${least} bytes in 2 s`)
        return true
      }
      // Two seconds of a busy machine are few: then again.
      for (const how of [['-P8'], ['-P8', '-R'], ['-P4', '--bidir']])
        await eventually('every flow moves', () => measure(how), 180_000)
    })
})

interface Sum {
  readonly bytes: number
  readonly retransmits: number
}
