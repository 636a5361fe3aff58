import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { TIMEOUT } from '../../../src/netstack/gateway/fragments.ts'
import { packet, type Station, TestNet, udp } from '../net.ts'

const TO = '8.8.8.8:9000'

/** A datagram's L4 bytes. */
const datagram = (from: Station, size: number, fill = 0x41) =>
  udp({ to: TO, data: new Uint8Array(size).map((_, i) => fill + (i % 23)) })(from).bytes.slice(34)

const piece = (l4: Uint8Array, offset: number, end: number, id = 1) =>
  packet({ to: '8.8.8.8', proto: 17, payload: l4.slice(offset, end), id, offset, mf: end < l4.length })

const world = (limits = {}) => {
  const net = new TestNet({ limits })
  const web = net.vm('web')
  const sent = () => net.host.open('udp').flatMap((s) => s.sent.map((d) => d.bytes))
  return { net, web, sent }
}

test('any split, in any order, with repetitions: the datagram leaves once, whole', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 100, max: 9000 }),
      fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1, maxLength: 12 }),
      fc.infiniteStream(fc.nat(1000)),
      (size, cuts, random) => {
        const { net, web, sent } = world()
        const l4 = datagram(web, size)
        const edges = [...new Set([0, ...cuts.map((c) => c * 8).filter((c) => c < l4.length), l4.length])].sort(
          (a, b) => a - b,
        )
        if (edges.length < 3) return
        const pieces = edges.slice(1).map((end, n) => piece(l4, edges[n], end))
        const order = [...pieces, ...pieces.slice(1)]
          .map((p) => [random.next().value as number, p] as const)
          .sort((a, b) => a[0] - b[0])
        // A repetition behind the last missing piece would begin a packet of its own: the first copy of each comes first.
        const first = new Set<unknown>()
        const firsts = order.filter(([, p]) => !first.has(p) && first.add(p))
        for (const [, p] of firsts.slice(0, -1)) web.send(p, p)
        web.send(firsts[firsts.length - 1][1])
        assert.deepEqual(
          sent().map((b) => Buffer.from(b).toString('hex')),
          [Buffer.from(l4.slice(8)).toString('hex')],
        )
        assert.equal(net.drops('fragment-overlap'), 0)
      },
    ),
    { numRuns: 60 },
  )
})

test('fragments that overlap give the packet up', () => {
  const { net, web, sent } = world()
  const l4 = datagram(web, 3000)
  web.send(piece(l4, 0, 1480), piece(l4, 1472, 2960), piece(l4, 2960, l4.length))
  assert.equal(net.drops('fragment-overlap'), 1)
  assert.deepEqual(sent(), [])
})

test('an end that contradicts another end, or what lies behind it', () => {
  const { net, web, sent } = world()
  const l4 = datagram(web, 3000)
  web.send(piece(l4, 1480, l4.length, 2), piece(l4.slice(0, 2000), 1480, 2000, 2))
  web.send(piece(l4, 2960, l4.length - 8, 3), piece(l4.slice(0, 2000), 1480, 2000, 3))
  web.send(
    piece(l4, 1480, l4.length, 4),
    packet({ to: '8.8.8.8', proto: 17, payload: new Uint8Array(80), id: 4, offset: 4000, mf: true }),
  )
  assert.equal(net.drops('fragment-overlap'), 3)
  assert.deepEqual(sent(), [])
})

test('malformed: no bytes, a middle that is no multiple of eight, an end beyond 64 KiB', () => {
  const { net, web } = world()
  web.send(
    packet({ to: '8.8.8.8', proto: 17, payload: new Uint8Array(0), mf: true, offset: 8 }),
    packet({ to: '8.8.8.8', proto: 17, payload: new Uint8Array(9), mf: true, offset: 8 }),
    packet({ to: '8.8.8.8', proto: 17, payload: new Uint8Array(1400), offset: 65528 }),
  )
  assert.equal(net.drops('fragment-malformed'), 3)
})

test('what does not come in time is given up, and the sender told if the first part is there', () => {
  const { net, web, sent } = world()
  const l4 = datagram(web, 3000)
  web.send(piece(l4, 0, 1480, 1), piece(l4, 1480, 2960, 2))
  net.advance(TIMEOUT + 1500)
  assert.deepEqual(web.lines(), ['icmp 192.168.100.1 > 192.168.100.10 11/1'])
  assert.equal(net.drops('fragment-timeout'), 2)
  web.send(piece(l4, 1480, l4.length, 1))
  assert.deepEqual(sent(), [])
})

test('memory is bounded, for each VM too', () => {
  const { net, web, sent } = world({ reassemblies: 8 })
  const db = net.vm('db')
  const l4 = datagram(db, 3000)
  db.send(piece(l4, 0, 1480, 1))
  for (let id = 1; id <= 100; id++) web.send(piece(l4, 0, 1480, id))
  assert.equal(web.drops('fragment-limit'), 98)
  db.send(piece(l4, 1480, l4.length, 1))
  assert.equal(sent().length, 1)
  net.network.detach(web.index)
})

test('a first fragment cannot pretend to be what the whole is not', () => {
  const { net, web } = world()
  // The UDP length says more than ever comes.
  const l4 = datagram(web, 100)
  l4[4] = 0xff
  web.send(piece(l4, 0, 56), piece(l4, 56, l4.length))
  assert.equal(net.drops('udp-malformed'), 1)
})
