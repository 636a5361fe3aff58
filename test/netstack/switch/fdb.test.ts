import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { AGEING, Fdb } from '../../../src/netstack/switch/fdb.ts'

interface Entry {
  port: number
  permanent: boolean
  seenAt: number
}

test('the forwarding database behaves like a map with ageing', () => {
  const step = fc.record({
    what: fc.constantFrom('add', 'remove', 'seen', 'clear', 'age', 'wait'),
    mac: fc.nat(11),
    port: fc.nat(3),
    permanent: fc.boolean(),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), fc.integer(), (steps, seed) => {
      const fdb = new Fdb(8, 4, seed)
      const model = new Map<number, Entry>()
      let now = 0
      // Some MACs differ in their first half only.
      const hi = (mac: number) => 0x0200 + (mac % 3)
      const lo = (mac: number) => -(mac >> 1)
      for (const { what, mac, port, permanent } of steps) {
        const entry = fdb.find(hi(mac), lo(mac))
        const known = [...model.keys()].find((m) => hi(m) === hi(mac) && lo(m) === lo(mac))
        assert.equal(entry >= 0, known !== undefined)
        if (what === 'wait') now += AGEING / 2
        else if (what === 'age') {
          fdb.age(now)
          for (const [m, e] of model) if (!e.permanent && now - e.seenAt > AGEING) model.delete(m)
        } else if (what === 'clear') {
          fdb.clear(port)
          for (const [m, e] of model) if (e.port === port) model.delete(m)
        } else if (known === undefined) {
          if (what === 'add' && fdb.add(hi(mac), lo(mac), port, permanent, now))
            model.set(mac, { port, permanent, seenAt: now })
          else if (what === 'add') assert.equal(model.size, 8)
        } else if (what === 'remove') {
          fdb.remove(entry)
          model.delete(known)
        } else if (what === 'seen') {
          fdb.seen(entry, now)
          ;(model.get(known) as Entry).seenAt = now
        }
        for (let p = 0; p < 4; p++) assert.equal(fdb.ofPort(p), [...model.values()].filter((e) => e.port === p).length)
        for (const [m, e] of model) assert.equal(fdb.lookup(hi(m), lo(m)), e.port)
      }
    }),
    { numRuns: 300 },
  )
})
