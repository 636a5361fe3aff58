import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { AGEING, Bindings, PER_PORT, QUIET } from '../../../src/netstack/switch/bindings.ts'

/** What Bindings says, in the plainest way. */
class Model {
  entries = new Map<number, { port: number; permanent: boolean; seenAt: number }>()
  learned(port: number) {
    return [...this.entries].filter(([, e]) => e.port === port && !e.permanent)
  }
  assign(a: number, port: number, now: number): boolean {
    const e = this.entries.get(a)
    if (e?.permanent && e.port !== port) return false
    this.entries.set(a, { port, permanent: true, seenAt: now })
    return true
  }
  claim(a: number, port: number, now: number): boolean {
    const own = this.learned(port).sort((x, y) => x[1].seenAt - y[1].seenAt)
    if (own.length >= PER_PORT) {
      if (now - own[0][1].seenAt < QUIET) return false
      this.entries.delete(own[0][0])
    }
    this.entries.set(a, { port, permanent: false, seenAt: now })
    return true
  }
}

test('assigned, claimed, heard, aged, given back: as the model says', () => {
  const step = fc.record({
    what: fc.constantFrom('claim', 'claim', 'claim', 'hear', 'hear', 'assign', 'clear', 'age'),
    address: fc.nat(60),
    port: fc.nat(2),
    wait: fc.constantFrom(0, 1, QUIET, QUIET / 2, AGEING + 1),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
      const table = new Bindings(128, 3, 7)
      const model = new Model()
      let now = 0
      let last = 0
      for (const { what, address, port, wait } of steps) {
        // Two that were heard at the same moment: either may go. So nothing happens at the same moment.
        now += wait + (last++ % 2 === 0 ? 1 : 2)
        const words = [address & 3, address >> 2, 5, address] as const
        const entry = table.find(...words)
        assert.equal(entry >= 0 ? table.portOf(entry) : -1, model.entries.get(address)?.port ?? -1)
        if (what === 'claim' && entry < 0)
          assert.equal(table.claim(...words, port, 1, 2, now), model.claim(address, port, now))
        else if (what === 'hear' && entry >= 0) {
          table.heard(entry, 3, now, now)
          assert.deepEqual([table.macHi(entry), table.macLo(entry)], [3, now | 0])
          ;(model.entries.get(address) as { seenAt: number }).seenAt = now
        } else if (what === 'assign' && address < 6)
          assert.equal(table.assign(...words, port, 1, 2, now), model.assign(address, port, now))
        else if (what === 'clear') {
          table.clear(port)
          for (const [a, e] of model.entries) if (e.port === port) model.entries.delete(a)
        } else if (what === 'age') {
          table.age(now)
          for (const [a, e] of model.entries) if (!e.permanent && now - e.seenAt > AGEING) model.entries.delete(a)
        }
      }
    }),
    { numRuns: 300 },
  )
})

test('a full port stays full until its quietest address has been silent long enough, and then makes room once', () => {
  const table = new Bindings(128, 3, 7)
  for (let n = 0; n < PER_PORT; n++) assert.ok(table.claim(0, 0, 1, n, 1, 1, 2, 1000 + n))
  const taken: number[] = []
  for (let now = 2000; now < 1002 + QUIET; now++) if (table.claim(0, 0, 2, now, 1, 1, 2, now)) taken.push(now)
  // The first two fell silent at 1000 and 1001.
  assert.deepEqual(taken, [1000 + QUIET, 1001 + QUIET])
  assert.deepEqual(
    [0, 1, 2].map((n) => table.find(0, 0, 1, n) >= 0),
    [false, false, true],
  )
  table.clear(1)
  assert.ok(table.claim(0, 0, 3, 1, 1, 1, 2, 1003 + QUIET), 'somebody else’s port begins anew')
})
