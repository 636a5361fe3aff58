// The wheel against the simplest model there is: a map from index to deadline.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Timers } from '../../src/netstack/timers.ts'

test('fires what is due, once, never early, and never later than the next advance', () => {
  const step = fc.oneof(
    fc.record({ op: fc.constant('set' as const), i: fc.nat(15), in: fc.integer({ min: 0, max: 60_000 }) }),
    fc.record({ op: fc.constant('clear' as const), i: fc.nat(15), in: fc.constant(0) }),
    fc.record({ op: fc.constant('advance' as const), i: fc.constant(0), in: fc.integer({ min: 0, max: 40_000 }) }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const timers = new Timers(16)
      const model = new Map<number, number>()
      let now = 0
      for (const s of steps) {
        if (s.op === 'set') {
          timers.set(s.i, now + s.in)
          model.set(s.i, now + s.in)
        } else if (s.op === 'clear') {
          timers.clear(s.i)
          model.delete(s.i)
        } else {
          now += s.in
          const before = now - s.in
          const fired: number[] = []
          timers.advance(now, (i) => fired.push(i))
          for (const i of fired) {
            const deadline = model.get(i)
            assert.ok(deadline !== undefined, `index ${i} fired though it was not armed`)
            assert.ok(deadline <= now, `index ${i} fired at ${now}, before its deadline ${deadline}`)
            model.delete(i)
          }
          // What was due a tick before the last advance must have fired by now.
          for (const [i, deadline] of model)
            assert.ok(deadline > now - 8 || deadline > before, `index ${i} due at ${deadline} did not fire by ${now}`)
        }
        for (let i = 0; i < 16; i++) assert.equal(timers.deadline(i), model.get(i) ?? Infinity)
      }
    }),
    { numRuns: 300 },
  )
})

test('sleeping until nextWake each time fires every timer within a tick or two of its deadline', () => {
  const timers = new Timers(64)
  const due = new Map<number, number>()
  let seed = 7
  const random = () => (seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff)
  for (let i = 0; i < 64; i++) {
    const deadline = random() % 30_000
    timers.set(i, deadline)
    due.set(i, deadline)
  }
  let now = 0
  for (let turns = 0; due.size > 0; turns++) {
    assert.ok(turns < 10_000, 'the wheel does not make progress')
    const wake = timers.nextWake()
    assert.ok(wake <= Math.min(...due.values()) + 8, `would sleep until ${wake}, past ${Math.min(...due.values())}`)
    now = Math.max(now + 1, wake)
    timers.advance(now, (i) => {
      assert.ok(now - due.get(i)! <= 12, `fired ${now - due.get(i)!} ms late`)
      due.delete(i)
    })
  }
  assert.equal(timers.nextWake(), Infinity)
})

test('a timer may set itself and clear its neighbour while it fires', () => {
  const timers = new Timers(4)
  timers.set(0, 10)
  timers.set(1, 10)
  const fired: number[] = []
  const fire = (i: number) => {
    fired.push(i)
    timers.clear(i === 0 ? 1 : 0)
    timers.set(i, 30)
  }
  timers.advance(20, fire)
  assert.equal(fired.length, 1)
  timers.advance(40, fire)
  assert.deepEqual(fired, [fired[0], fired[0]])
})
