import assert from 'node:assert/strict'
import { it } from 'node:test'
import fc from 'fast-check'
import { Answer, parseQuery, Query, scanAnswer } from '../../../src/netstack/dns/message.ts'
import { DnsStream, framed } from '../../../src/netstack/dns/stream.ts'
import { idOf, query, World } from './world.ts'

const seed = 20261123
const byte = fc.integer({ min: 0, max: 255 })
const label = fc.uint8Array({ minLength: 1, maxLength: 20 })
const wireName = fc.array(label, { maxLength: 8 }).map((ls) => [...ls.flatMap((l) => [l.length, ...l]), 0])

/** A query with any bytes in its name, and any type and class. */
const wireQuery = fc
  .tuple(wireName, fc.integer({ min: 0, max: 65535 }), fc.constantFrom(1, 3, 255), fc.boolean())
  .map(([name, type, cls, edns]) =>
    Uint8Array.from([
      ...[0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, edns ? 1 : 0],
      ...name,
      ...[type >> 8, type & 255, cls >> 8, cls & 255],
      ...(edns ? [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0] : []),
    ]),
  )
const mutate = (b: Uint8Array, changes: [number, number][], cut: number | null): Uint8Array => {
  const c = b.slice()
  for (const [at, v] of changes) c[at % c.length] = v
  return cut === null ? c : c.subarray(0, cut % (c.length + 1))
}
const changes = fc.array(fc.tuple(fc.nat(600), byte), { maxLength: 8 })

it('any question gets one answer to its id, or is passed on, and none throws', () => {
  const w = new World()
  w.upstream = () => undefined
  fc.assert(
    fc.property(wireQuery, changes, fc.option(fc.nat(600)), (q, ch, cut) => {
      const before = w.told.length
      const b = mutate(q, ch, cut)
      const got = w.send(b)
      assert.ok(w.told.length <= before + 1)
      if (got !== undefined) {
        assert.ok(got.length >= 12)
        assert.equal(idOf(got), idOf(b))
        assert.ok((got[2] & 0x80) !== 0)
      }
      w.wait(5000, 5000)
    }),
    { seed, numRuns: 1500 },
  )
  assert.equal(w.host.open().length, 0)
  assert.equal(w.dns.stats().inFlight, 0)
})

it('whatever upstream says, the guest gets an answer or a SERVFAIL in bounded time', () => {
  const rest = fc.uint8Array({ maxLength: 400 })
  fc.assert(
    fc.property(rest, fc.array(byte, { minLength: 6, maxLength: 6 }), changes, byte, (tail, nums, ch, rcode) => {
      const w = new World()
      let n = 0
      w.upstream = (a) => {
        if (n++ > 20) return undefined
        const head = a.bytes.slice()
        head[2] |= 0x80
        head[3] = rcode
        head.set(nums, 6)
        const full = Uint8Array.from([...head, ...tail])
        // The id stays: what does not fit the question is dropped before anything else looks at it.
        return mutate(
          full,
          ch.map(([at, v]) => [Math.max(2, at), v] as [number, number]),
          null,
        )
      }
      const q = query({ name: 'example.com', id: 3 })
      w.send(q, 1, 1)
      w.wait(5000, 1000)
      assert.deepEqual(
        w.told.map((t) => t.port),
        [1],
        'one answer',
      )
      assert.equal(idOf(w.told[0].bytes), 3)
      // Again, maybe from the cache, and for another client.
      w.send(query({ name: 'EXAMPLE.com', id: 4, edns: {} }), 2, 2)
      w.wait(5000, 1000)
      assert.deepEqual(
        w.told.map((t) => t.port),
        [1, 2],
      )
      assert.equal(w.host.open().length, 0)
    }),
    { seed, numRuns: 500 },
  )
})

it('walks over answers end, and stay inside them', () => {
  const q = new Query()
  const a = new Answer()
  const base = query({ name: 'example.com' })
  assert.equal(parseQuery(q, base, 0, base.length, 1), 0)
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 1000 }), fc.array(byte, { minLength: 6, maxLength: 6 }), (tail, counts) => {
      const b = Uint8Array.from([...base, ...tail])
      b.set(counts, 6)
      if (!scanAnswer(a, b, b.length, base.length)) return
      assert.ok(a.bare <= b.length)
      for (const t of a.ttls) assert.ok(t >= base.length && t + 4 <= b.length)
    }),
    { seed, numRuns: 3000 },
  )
})

it('a compression bomb and pointer loops cost nothing', () => {
  const w = new World()
  w.upstream = (a) => {
    const head = Buffer.from(a.bytes)
    head[2] |= 0x80
    head.writeUInt16BE(4000, 6)
    const rrs = Array.from({ length: 4000 }, (_, i) => {
      const at = 29 + i * 12
      return Buffer.from([0xc0 | (at >> 8), at & 255, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0])
    })
    return Buffer.concat([head, ...rrs])
  }
  assert.ok(w.send(query({ name: 'example.com', edns: {} })))
  assert.ok(w.send(query({ name: 'example.com', edns: {} })))
})

it('a stream is the same messages in whatever pieces it comes', () => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ minLength: 12, maxLength: 900 }), { maxLength: 6 }),
      fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1, maxLength: 60 }),
      (messages, cuts) => {
        const all = Buffer.concat(messages.map((m) => framed(m)))
        const s = new DnsStream()
        const got: Uint8Array[] = []
        for (let o = 0, i = 0; o < all.length; i++) {
          const n = cuts[i % cuts.length]
          s.push(all.subarray(o, o + n), (m) => got.push(m.slice()) > 0)
          o += n
        }
        assert.deepEqual(got, messages)
        assert.equal(s.pending, false)
        assert.equal(s.broken, false)
      },
    ),
    { seed },
  )
})

it('any bytes on a stream are answered, closed or waited for', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 10 }), (parts) => {
      const w = new World()
      let closed = false
      const h = w.dns.accept(
        1,
        () => true,
        () => {
          assert.equal(closed, false, 'closed once')
          closed = true
        },
        () => {},
      )
      for (const p of parts) assert.equal(h.push(p), p.length)
      w.settle()
      h.end()
      w.wait(20_000, 1000)
      assert.ok(closed)
    }),
    { seed, numRuns: 300 },
  )
})
