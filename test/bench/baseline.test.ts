import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Baseline, compare, condense, stored as store } from '../../bench/lib/baseline.ts'
import { processor } from '../../src/bench/processor.ts'

const machine = { cpu: 'A', cpus: 2, kernel: '6', node: 'v26.1.0' }
const stored = { cost: 1, least: 1, spread: 0.02, bytes: 0, ns: 100, kernel: false }
const baseline: Baseline = [{ machine, cases: { a: stored } }]
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

test('another version of Node has a wider tolerance', () => {
  const other = { ...machine, node: 'v27.0.0' }
  assert.equal(verdict({ cost: 1.8 }, other).regressed, false)
  assert.equal(verdict({ cost: 2.1 }, other).regressed, true)
})

test('another processor is compared by bytes alone, which are exact everywhere', () => {
  const other = { ...machine, cpu: 'B' }
  assert.equal(verdict({ cost: 5 }, other).regressed, false)
  assert.equal(verdict({ bytes: 1 }, other).regressed, false)
  assert.match(verdict({ bytes: 2 }, other).why, /allocates 2.0 bytes, 0.0 before/)
})

test('each processor has figures of its own; what was not run stays', () => {
  const other = { ...machine, cpu: 'B' }
  const both = store(baseline, { machine: other, cases: { a: { ...stored, cost: 5 }, b: stored } }, true)
  assert.equal(compare(both, other, { a: { ...stored, cost: 7, least: 7 } })[0]?.regressed, true)
  assert.equal(compare(both, machine, { a: { ...stored, cost: 1.1 } })[0]?.ratio, 1.1)
  const part = store(both, { machine: other, cases: { a: stored } }, false)
  assert.deepEqual(
    part.map((f) => [f.machine.cpu, Object.keys(f.cases)]),
    [
      ['A', ['a']],
      ['B', ['a', 'b']],
    ],
  )
  assert.deepEqual(Object.keys(store(both, { machine: other, cases: { a: stored } }, true)[1]!.cases), ['a'])
})

test('a processor is told by more than its name', () => {
  const x86 = 'processor\t: 0\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 2\n'
  assert.equal(processor(x86, 'AMD EPYC'), 'AMD EPYC (cpu family 23, model 1)')
  const arm = 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n'
  assert.equal(processor(arm, 'unknown'), 'unknown (CPU implementer 0x41, CPU part 0xd0c)')
  assert.equal(processor('', 'A'), 'A')
})

test('a case that is not in the baseline is new', () => {
  assert.equal(compare(baseline, machine, { b: stored })[0]?.why, 'new')
})
