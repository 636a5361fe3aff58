import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Figure, Report } from '../../src/bench/contract.ts'
import { answer, nameOf, question } from '../../src/bench/dns-tool.ts'
import { reportHtml } from '../../src/bench/html.ts'
import { cpuSeconds, measures } from '../../src/bench/measures.ts'
import { parseDnsperf, parseIperf } from '../../src/bench/parse.ts'
import { median, medianOf, percentile, ratio, three } from '../../src/bench/stats.ts'
import { reportText } from '../../src/bench/table.ts'

const figure = (part: string, subject: string, ...list: number[]): Figure => ({
  part,
  subject,
  samples: list.map((value) => ({ value, more: { cpu: 0.5, loss: 2 } })),
})

const REPORT: Report = {
  format: 1,
  at: '2026-01-01T00:00:00.000Z',
  took: 12,
  options: { quick: false, rounds: 3, seconds: 1, only: [] },
  facts: [
    ['kernel', 'Linux 6'],
    ['CPU', '2 × <b>'],
  ],
  load: 4,
  subjects: [
    { name: 'bridge', kind: 'noid', version: '1', mtu: 1500, txQueueLen: 0, offloads: [], note: '', can: ['host'] },
    {
      name: 'userspace',
      kind: 'noid',
      version: '1',
      mtu: 1500,
      txQueueLen: 500,
      offloads: ['tso'],
      note: '',
      can: ['host'],
    },
    { name: 'slirp', kind: 'peer', version: '2', mtu: 65520, txQueueLen: 500, offloads: [], note: '', can: ['host'] },
    { name: 'broken', kind: 'peer', version: '2', mtu: 1500, txQueueLen: 500, offloads: [], note: '', can: ['host'] },
  ],
  leftOut: [{ name: 'pasta', why: 'pasta is not installed' }],
  parts: [
    { id: 'tcp', title: 'TCP guest→host', unit: 'Gbit/s', better: 'higher' },
    { id: 'never', title: 'nobody has it', unit: 's', better: 'lower' },
  ],
  figures: [
    figure('tcp', 'userspace', 8, 10, 12),
    figure('tcp', 'slirp', 2, 5, 2),
    { ...figure('tcp', 'broken', Number.NaN), failed: 'connection <refused>' },
  ],
}

test('median, percentile, figures a person reads', () => {
  assert.equal(median([3, 1, 2]), 2)
  assert.equal(median([4, 1, 2, 3]), 2.5)
  assert.ok(Number.isNaN(median([])))
  assert.equal(percentile([1, 2, 3, 4], 0.5), 2)
  assert.equal(percentile([1, 2, 3, 4], 0.99), 4)
  assert.deepEqual([12345, 99.5, 1.234, 0.00123, Number.NaN].map(three), ['12,345', '99.5', '1.23', '0.0012', '-'])
})

test('ratios are of rounds, and a failed round is no value, also after JSON', () => {
  assert.equal(ratio(figure('p', 'a', 8, 10, 12), figure('p', 'b', 2, 5, 2)), 4)
  const stored = JSON.parse(JSON.stringify(figure('p', 'a', 1, Number.NaN, 3))) as Figure
  assert.equal(medianOf(stored), 2)
  assert.ok(Number.isNaN(ratio(undefined, stored)))
})

test('iperf3: the receiver counts; its error is told in its own words', () => {
  const text = JSON.stringify({
    end: { sum_sent: { retransmits: 7 }, sum_received: { bits_per_second: 8e9, bytes: 1e9, seconds: 1 } },
  })
  assert.deepEqual(parseIperf(text), { bitsPerSecond: 8e9, bytes: 1e9, seconds: 1, retransmits: 7 })
  assert.throws(() => parseIperf('{"error":"unable to connect"}'), /unable to connect/)
  assert.throws(() => parseIperf('{"end":{}}'), /no result/)
})

test('dnsperf: rate, counts, latency', () => {
  const text = `
Statistics:

  Queries sent:         81022
  Queries completed:    81000 (100.00%)
  Queries lost:         22 (0.00%)

  Run time (s):         1.000612
  Queries per second:   80972.444864

  Average Latency (s):  0.001250 (min 0.000033, max 0.012013)
`
  assert.deepEqual(parseDnsperf(text), { perSecond: 80972.444864, sent: 81022, completed: 81000, latencyMs: 1.25 })
  assert.throws(() => parseDnsperf('Error: no servers'), /no servers/)
})

test("the machine's CPU time leaves out idle, iowait and steal", () => {
  assert.equal(cpuSeconds('cpu  100 20 300 9999 8888 40 50 7777 0 0\ncpu0 1 2\n'), 5.1)
})

test('the upstream answers what the client asks', () => {
  const q = question(7, nameOf(3))
  const a = answer(q)
  assert.equal(a.readUInt16BE(0), 7)
  assert.equal(a.readUInt16BE(6), 1)
  assert.deepEqual([...a.subarray(-4)], [203, 0, 113, 7])
  const aaaa = Buffer.from(q)
  aaaa.writeUInt16BE(28, aaaa.length - 4)
  assert.equal(answer(aaaa).readUInt16BE(6), 0)
})

test('parts have names of their own', () => {
  const ids = measures.flatMap((m) => m.parts.map((p) => p.id))
  assert.equal(new Set(ids).size, ids.length)
})

test('the table: MTU beside every figure, ratios, what failed, what was left out, a busy machine', () => {
  const text = reportText(REPORT)
  assert.match(text, /userspace +MTU 1500 +10\.0 +\[8\.00 – 12\.0\] +0\.50 CPU s\/GB, loss 2\.0 %/)
  assert.match(text, /slirp +MTU 65520 +2\.00 +\[2\.00 – 5\.00\] +× 4\.00/)
  assert.match(text, /broken .*failed: connection/)
  assert.match(text, /left out: pasta: pasta is not installed/)
  assert.match(text, /busy \(load 4\.0\)/)
  assert.doesNotMatch(text, /nobody has it/)
})

test('the page: one file, nothing loaded, text escaped', () => {
  const html = reportHtml(REPORT)
  assert.doesNotMatch(html, /<script|<link|https?:|@import|url\(/)
  assert.match(html, /2 × &lt;b&gt;/)
  assert.match(html, /connection &lt;refused&gt;/)
  assert.equal(html.match(/<svg/g)?.length, 1)
  assert.equal(html.match(/<circle/g)?.length, 6)
  assert.doesNotMatch(html, /NaN|Infinity|undefined/)
})
