import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Baseline, compare, condense } from '../../bench/lib/baseline.ts'

const machine = { cpu: 'A', cpus: 2, kernel: '6', node: 'v26.1.0' }
const stored = { cost: 1, least: 1, spread: 0.02, bytes: 0, ns: 100, kernel: false }
const baseline: Baseline = { machine, cases: { a: stored } }
const verdict = (over: Partial<typeof stored>, m = machine) =>
  compare(baseline, m, { a: { ...stored, least: over.cost ?? 1, ...over } })[0]!

test('a machine that is slower, or busy, slows the reference too: the cost stays', () => {
  const quick = condense([{ ns: 100, reference: 1000, bytes: 0, kernel: false }])
  const slow = condense([{ ns: 300, reference: 3000, bytes: 0, kernel: false }])
  assert.equal(quick.cost, slow.cost)
})

test('the median of rounds, their spread, the least bytes', () => {
  const rounds = [1, 2, 9].map((ns) => ({ ns, reference: 1, bytes: ns, kernel: false }))
  assert.deepEqual(condense(rounds), { cost: 2, least: 1, spread: 1, bytes: 1, ns: 2, kernel: false })
})

test('beyond the tolerance is a regression; within, or within the noise, is none', () => {
  assert.equal(verdict({ cost: 1.3 }).regressed, false)
  assert.equal(verdict({ cost: 1.4 }).regressed, true)
  assert.equal(verdict({ cost: 1.4, spread: 0.2 }).regressed, false)
  assert.equal(verdict({ cost: 1.4, least: 1.1 }).regressed, false)
  assert.equal(verdict({ cost: 0.5 }).regressed, false)
})

test('what the kernel does feels other work more', () => {
  assert.equal(verdict({ cost: 2.5, kernel: true }).regressed, false)
  assert.equal(verdict({ cost: 3.1, kernel: true }).regressed, true)
})

test('another machine has a wider tolerance, but bytes are exact everywhere', () => {
  const other = { ...machine, cpu: 'B' }
  assert.equal(verdict({ cost: 1.8 }, other).regressed, false)
  assert.equal(verdict({ cost: 2.1 }, other).regressed, true)
  assert.equal(verdict({ bytes: 1 }, other).regressed, false)
  assert.match(verdict({ bytes: 2 }, other).why, /allocates 2.0 bytes, 0.0 before/)
})

test('a case that is not in the baseline is new', () => {
  assert.equal(compare(baseline, machine, { b: stored })[0]?.why, 'new')
})
