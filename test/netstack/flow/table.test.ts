// The flow table against a Map of tuples, under random work.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { FlowTable, IN, MAPPED, OUT, TCP, UDP } from '../../../src/netstack/flow/table.ts'

const CAPACITY = 32
const PORTS = 3

interface Tuple {
  port: number
  proto: number
  g: number
  gp: number
  p: number
  pp: number
}
const tuple = fc.record({
  port: fc.nat(PORTS - 1),
  proto: fc.constantFrom(TCP, UDP),
  g: fc.constantFrom(0x0a000001, -1062706076, -1),
  gp: fc.constantFrom(1, 40000, 65535),
  p: fc.constantFrom(0x08080808, 1, -2),
  pp: fc.constantFrom(53, 65535),
})
const key = (t: Tuple) => `${t.port} ${t.proto} ${t.g}:${t.gp} ${t.p}:${t.pp}`
const lookup = (f: FlowTable, t: Tuple) => f.lookup(t.port, t.proto, 0, 0, MAPPED, t.g, t.gp, 0, 0, MAPPED, t.p, t.pp)
const insert = (f: FlowTable, t: Tuple, now: number) =>
  f.insert(t.port, t.proto, 0, 0, MAPPED, t.g, t.gp, 0, 0, MAPPED, t.p, t.pp, OUT, now)

test('lookup, insert, touch and remove behave as a map with a list per port in order of last use', () => {
  const step = fc.record({ op: fc.constantFrom('insert', 'remove', 'touch', 'look'), t: tuple })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), fc.integer(), (steps, seed) => {
      const table = new FlowTable(CAPACITY, PORTS, seed)
      const model = new Map<string, number>()
      const order: string[][] = Array.from({ length: PORTS }, () => [])
      const forget = (t: Tuple) => order[t.port]!.splice(order[t.port]!.indexOf(key(t)), 1)
      let now = 0
      for (const { op, t } of steps) {
        now++
        const at = model.get(key(t))
        assert.equal(lookup(table, t), at ?? -1)
        if (op === 'insert' && at === undefined) {
          const i = insert(table, t, now)
          if (model.size === CAPACITY) assert.equal(i, -1)
          else {
            assert.ok(i >= 0 && i < CAPACITY && ![...model.values()].includes(i))
            assert.equal(table.far3[i], t.p)
            model.set(key(t), i)
            order[t.port]!.push(key(t))
          }
        } else if (op === 'remove' && at !== undefined) {
          table.remove(at)
          model.delete(key(t))
          forget(t)
        } else if (op === 'touch' && at !== undefined) {
          table.touch(at, now)
          forget(t)
          order[t.port]!.push(key(t))
        }
        assert.equal(table.count, model.size)
        for (let port = 0; port < PORTS; port++) {
          const walked: number[] = []
          for (let i = table.oldest(port); i !== -1; i = table.newer(i)) walked.push(i)
          assert.deepEqual(
            walked,
            order[port]!.map((k) => model.get(k)),
          )
          assert.equal(table.ofPort(port), walked.length)
        }
      }
    }),
    { numRuns: 300 },
  )
})

test('IPv6 and IPv4 tuples that share their last words are different flows', () => {
  const table = new FlowTable(CAPACITY, PORTS, 1)
  const four = table.insert(0, TCP, 0, 0, MAPPED, 1, 2, 0, 0, MAPPED, 3, 4, OUT, 0)
  const six = table.insert(0, TCP, 0x20010db8, 0, MAPPED, 1, 2, 0x20010db8, 0, MAPPED, 3, 4, IN, 0)
  assert.notEqual(four, six)
  assert.equal(table.lookup(0, TCP, 0, 0, MAPPED, 1, 2, 0, 0, MAPPED, 3, 4), four)
  assert.equal(table.lookup(0, TCP, 0x20010db8, 0, MAPPED, 1, 2, 0x20010db8, 0, MAPPED, 3, 4), six)
  assert.equal(table.lookup(0, TCP, 0x20010db9, 0, MAPPED, 1, 2, 0x20010db8, 0, MAPPED, 3, 4), -1)
})
