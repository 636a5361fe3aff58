/**
 * Hostile guests: whatever segments come, nothing throws, invariants of the control block hold, the host never gets a byte that
 * was not sent in order, and everything is given back in the end.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CHUNK } from '../../../src/netstack/tcp/disorder.ts'
import { Guest } from '../../sim/guest.ts'
import type { Packet } from '../../sim/link.ts'
import { Random } from '../../sim/random.ts'
import { ACK, FIN, RST, Script, SYN } from '../../sim/script.ts'
import { Stream } from '../../sim/stream.ts'
import { GUEST, PEER, remote, World } from '../../sim/world.ts'
import { type Station, TestNet, tcp } from '../net.ts'

const TEXT = new Stream(9, 1 << 20)
const GIVES = new Stream(10, 50_000)

/** Near the interesting places, and anywhere. */
const distance = fc.oneof(
  fc.integer({ min: -3, max: 3 }),
  fc.integer({ min: -3000, max: 70_000 }),
  fc.constantFrom(0x7fffffff, -0x7fffffff, 65535, 65536, 1 << 24),
)
const options = fc.oneof(
  fc.constant([]),
  fc.array(fc.integer({ min: 0, max: 255 }), { maxLength: 40 }).map((o) => o.slice(0, o.length & ~3)),
)
const segment = fc.record({
  flags: fc.oneof(fc.constantFrom(ACK, ACK, ACK, FIN | ACK, RST, SYN, SYN | ACK, 0), fc.integer({ min: 0, max: 255 })),
  // Relative to what the relay expects next, or to what it sent last.
  seq: distance,
  ack: distance,
  window: fc.constantFrom(0, 0, 1, 500, 65535),
  length: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 1460 }), fc.constant(60_000)),
  sack: fc.array(fc.tuple(distance, distance), { maxLength: 4 }),
  options,
  wait: fc.constantFrom(0, 0, 0, 1, 50, 300, 5000),
})

test('any sequence of segments leaves the relay sound and nothing behind', () => {
  fc.assert(
    fc.property(
      fc.array(segment, { minLength: 1, maxLength: 60 }),
      fc.boolean(),
      fc.integer(),
      (segments, inbound, isn) => {
        const s = new Script({
          isn: isn | 0,
          remote: { gives: GIVES, takes: TEXT, sendBuffer: 30_000, drainRate: 2000, finFirst: inbound },
        })
        if (inbound) {
          s.world.publish(s.guestPort, s.peerPort, remote({ gives: GIVES, takes: TEXT }))
          s.take()
          s.send({ flags: SYN | ACK, seq: 0, ack: 1, options: [2, 4, 4, 0, 1, 1, 4, 2] })
        } else {
          s.send({ flags: SYN, options: [2, 4, 4, 0, 1, 1, 4, 2] })
          s.take(5)
          s.send({ seq: 1, ack: 1 })
        }
        let next = 1
        let sent = 1
        for (const g of segments) {
          for (const t of s.take(g.wait + 0.2)) {
            if (t.flags & ACK && !(t.flags & RST)) next = t.ack
            sent = Math.max(sent, t.seq + t.payload.length)
          }
          const seq = (next + g.seq) | 0
          const payload = new Uint8Array(g.length)
          TEXT.fill(payload, 0, g.length, seq - 1)
          const blocks = g.sack.flatMap(([l, r]) => [l, r].map((d) => (s.iss + sent + d) | 0))
          const sack = blocks.length === 0 ? [] : [1, 1, 5, 2 + 4 * blocks.length]
          for (const b of blocks) sack.push(b >>> 24, (b >> 16) & 255, (b >> 8) & 255, b & 255)
          s.send({
            flags: g.flags,
            seq,
            ack: (sent + g.ack) | 0,
            window: g.window,
            payload,
            options: sack.length > 0 ? sack.slice(0, 36) : g.options,
          })
          for (let i = 0; i < s.world.flows.capacity; i++) s.world.relay.check(i)
        }
        // Silence from now on: everything ends by itself.
        s.take(9_000_000)
        assert.equal(s.world.flows.count, 0, s.state)
        for (const socket of s.world.host.sockets) assert.ok(socket.closed)
      },
    ),
    { numRuns: Number(process.env.NOID_RUNS ?? 200) },
  )
})

test('a stranger’s segments do not end or corrupt somebody’s transfer', () => {
  for (let seed = 1; seed <= 30; seed++) {
    const random = new Random(seed)
    const up = new Stream(seed, 200_000)
    const down = new Stream(seed + 1, 200_000)
    const world = new World(seed, {
      next: () => remote({ gives: down, takes: up, giveRate: 5000, drainRate: 5000 }),
    })
    const guest = world.guest({ gives: up, takes: down })
    // Blind: knows the tuple, guesses numbers (never the exact one).
    const forge = new Guest(world.clock, { ...guest.o, isn: 0 }, () => {})
    assert.equal(forge.state, 'closed')
    const attack = () => {
      const s = new Script()
      s.iss = random.word()
      const bytes = s.bytes({
        flags: random.pick([RST, RST | ACK, SYN, FIN | ACK, ACK]),
        seq: random.word(),
        ack: random.word(),
        payload: random.chance(0.5) ? 'forged' : '',
      })
      world.inject(bytes)
      if (!guest.done) world.clock.after(0.3, attack)
    }
    guest.connect()
    world.clock.after(3, attack)
    assert.ok(
      world.clock.run(() => guest.done && world.host.sockets[0].done, 60_000),
      `seed ${seed}: ${guest.state} ${guest.read}`,
    )
  }
})

test('connections that the server ends do not fill the table', () => {
  const s = new Script({ world: { limits: { flows: 4096 } } })
  for (let port = 1; port <= 3000; port++) {
    s.send({ flags: SYN }, port)
    s.take(1.2)
    s.send({ seq: 1, ack: 1 }, port)
    s.take(0.3)
    s.send({ flags: FIN | ACK, seq: 1, ack: 2 }, port)
  }
  assert.ok(s.world.flows.count <= 1024 + 1, `${s.world.flows.count} flows`)
  s.take(5000)
  assert.equal(s.world.flows.count, 0)
})

test('many guests’ worth of connections come and go without a trace', () => {
  const world = new World(3, { limits: { flows: 1024, halfOpenPerVm: 1024 } })
  const guests: Guest[] = []
  const byPort = new Map<number, Guest>()
  for (let k = 0; k < 500; k++) {
    const g = new Guest(
      world.clock,
      {
        address: GUEST,
        port: 1000 + k,
        peer: PEER,
        peerPort: 80,
        isn: k * 7_919_337,
        mss: 1460,
        shift: 7,
        sack: true,
        stamps: k % 3 === 0,
        frame: 1460,
        receiveBuffer: 65536,
        readRate: 1 << 20,
        gives: new Stream(0, 0),
        takes: new Stream(0, 0),
        finFirst: k % 2 === 0,
      },
      (p: Packet) => world.up.send(p),
    )
    guests.push(g)
    byPort.set(1000 + k, g)
    world.clock.at(k * 0.5, () => g.connect())
  }
  world.toGuest = (p) => byPort.get((p.bytes[22] << 8) | p.bytes[23])?.receive(p)
  assert.ok(world.clock.run(() => guests.every((g) => g.done) && world.flows.count === 0, 20_000))
  assert.ok(world.host.sockets.every((s) => s.closed && !s.reset))
})

test('whatever other VMs leave out, there is room for what comes to one out of order; what nobody came for is given on', () => {
  const HOGS = 6
  const net = new TestNet()
  const to = '93.184.216.34:80'
  const open = (vm: Station, from: number) => {
    vm.take()
    vm.send(tcp({ to, from, seq: 1000 }))
    const synAck = vm.take()[0]?.tcp
    assert.ok(synAck)
    const ack = synAck.seq + 1
    vm.send(tcp({ to, from, flags: ACK, seq: 1001, ack }))
    return { from, ack }
  }
  for (let n = 0; n < HOGS; n++) {
    const hog = net.vm(`hog${n}`)
    for (let from = 5000; from < 5003; from++) {
      const o = open(hog, from)
      for (let k = 1; k <= 64; k++) hog.send(tcp({ to, ...o, flags: ACK, seq: 1001 + 2 * k, data: 'x' }))
    }
  }
  const web = net.vm('web')
  const o = open(web, 4000)
  const PART = 16_000
  /** Three parts, then the one before them; how many bytes have arrived. */
  const arrived = (seq: number): number => {
    const part = (k: number) =>
      tcp({ to, ...o, flags: ACK, seq: seq + k * PART, data: new Uint8Array(PART), segment: 1448 })
    for (let k = 1; k < 4; k++) web.send(part(k))
    web.take()
    web.send(part(0))
    net.network.flush()
    return (web.take().at(-1)?.tcp?.ack as number) - seq
  }
  // They have left four, of which it gets half.
  const first = arrived(1001)
  assert.equal(first, PART + 2 * CHUNK)
  net.host.tcpRead(net.host.open('tcp').at(-1)?.id as number)
  net.deliver()
  net.host.advance(61_000)
  assert.equal(arrived(1001 + first), 4 * PART)
})
