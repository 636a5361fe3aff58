/** Beginnings: connect first, refusals, limits, inbound. RFC 9293 §3.5, DESIGN "Publish and TCP's order". */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT } from '../../../src/netstack/host.ts'
import { DROP } from '../../../src/netstack/trace/drops.ts'
import { ACK, FIN, RST, Script, SYN } from '../../sim/script.ts'
import { Stream } from '../../sim/stream.ts'
import { remote } from '../../sim/world.ts'

const SYN_OPTIONS = [2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 4, 2]

test('the guest’s SYN is answered when the host has connected, not before; repetitions need no answer', () => {
  const s = new Script({ remote: { connectAfter: 500 } })
  s.send({ flags: SYN, options: SYN_OPTIONS })
  s.none(300)
  s.send({ flags: SYN, options: SYN_OPTIONS })
  s.none(100)
  assert.equal(s.state, 'CONNECTING')
  const a = s.one(300)
  assert.equal(a.flags, SYN | ACK)
  assert.equal(a.ack, 1)
  assert.equal(a.raw.mss, 1456)
  assert.equal(a.raw.shift, 8)
  assert.equal(a.raw.sack, true)
  assert.equal(s.world.host.sockets.length, 1)
})

test('window scale and SACK are offered to who offered them', () => {
  const s = new Script()
  s.send({ flags: SYN, options: [2, 4, 5, 180] })
  const a = s.one(5)
  assert.equal(a.raw.shift, -1)
  assert.equal(a.raw.sack, false)
})

test('a lost SYN-ACK is sent again for the guest’s SYN, and by itself after 1, 3, 7, 15 s; then it is over', () => {
  const s = new Script()
  s.send({ flags: SYN })
  s.one(5)
  s.send({ flags: SYN })
  assert.equal(s.one(5).flags, SYN | ACK)
  assert.equal(s.take(20_000).filter((t) => t.flags === (SYN | ACK)).length, 4)
  const end = s.take(60_000)
  assert.equal(end.at(-1)?.flags, RST | ACK)
  assert.equal(s.state, 'gone')
  assert.equal(s.socket.reset, true)
})

test('refused becomes RST that acknowledges the SYN', () => {
  const s = new Script({ remote: { connectErrno: ECONNREFUSED } })
  s.send({ flags: SYN })
  const r = s.one(5)
  assert.equal(r.flags, RST | ACK)
  assert.equal(r.ack, 1)
  assert.equal(s.state, 'gone')
  assert.ok(s.socket.closed)
})

test('unreachable becomes ICMP and RST', () => {
  for (const [errno, code] of [
    [ENETUNREACH, 0],
    [EHOSTUNREACH, 1],
    [ETIMEDOUT, 1],
  ]) {
    const s = new Script({ remote: { connectErrno: errno } })
    s.send({ flags: SYN })
    assert.equal(s.one(5).flags, RST | ACK)
    assert.deepEqual(s.world.icmp, [{ type: 3, code }])
  }
  const now = new Script({ remote: { connectErrno: ENETUNREACH, connectAfter: -1 } })
  now.send({ flags: SYN })
  assert.equal(now.one(5).flags, RST | ACK)
  assert.equal(now.world.flows.count, 0)
})

test('a connect that nobody answers ends after two minutes', () => {
  const s = new Script({ remote: { connectAfter: 1e9 } })
  s.send({ flags: SYN })
  s.none(120_000)
  assert.equal(s.one(20_000).flags, RST | ACK)
  assert.deepEqual(s.world.icmp, [{ type: 3, code: 1 }])
  assert.ok(s.socket.closed)
})

test('no descriptors left: silence and a count, the guest asks again', () => {
  const s = new Script({ remote: { connectErrno: 24, connectAfter: -1 } })
  s.send({ flags: SYN })
  s.none(5)
  assert.equal(s.world.drops.of(0, DROP['host-socket']), 1)
  assert.equal(s.world.flows.count, 0)
})

test('a SYN flood is held to the limit, counted, and forgotten', () => {
  const s = new Script({ remote: { connectAfter: 1e9 }, world: { limits: { flows: 4096, halfOpenPerVm: 10 } } })
  for (let port = 1; port <= 1000; port++) s.send({ flags: SYN }, port)
  assert.equal(s.world.flows.count, 10)
  assert.equal(s.world.drops.of(0, DROP['half-open-limit']), 990)
  s.take(200_000)
  assert.equal(s.world.flows.count, 0)
  s.send({ flags: SYN }, 5000)
  assert.equal(s.world.flows.count, 1)
})

test('a segment of no connection is answered with RST and leaves nothing', () => {
  const s = new Script()
  s.send({ flags: ACK, seq: 5, ack: 77 })
  const r = s.one(5)
  assert.equal(r.flags, RST)
  assert.equal(r.seq, 77)
  s.send({ flags: FIN, seq: 5 })
  assert.equal(s.one(5).ack, 6)
  s.send({ flags: RST, seq: 5 })
  s.none(5)
  assert.equal(s.world.flows.count, 0)
  assert.equal(s.world.host.sockets.length, 0)
})

test('a guest that begins anew while the host connects is answered as it asked last', () => {
  const s = new Script({ remote: { connectAfter: 100 } })
  s.send({ flags: SYN, seq: 0, options: SYN_OPTIONS })
  s.wait(10)
  s.send({ flags: SYN, seq: 5000, options: [2, 4, 2, 24] })
  const a = s.one(200)
  assert.equal(a.ack, 5001)
  assert.equal(a.raw.shift, -1)
})

test('a guest that resets while the host connects leaves nothing', () => {
  const s = new Script({ remote: { connectAfter: 100 } })
  s.send({ flags: SYN })
  s.send({ flags: RST, seq: 9 })
  assert.equal(s.state, 'CONNECTING')
  s.send({ flags: RST, seq: 1 })
  assert.equal(s.state, 'gone')
  assert.ok(s.socket.closed)
  s.none(500)
})

test('an ACK of what was never sent does not complete the handshake', () => {
  const s = new Script()
  s.send({ flags: SYN })
  s.one(5)
  s.send({ seq: 1, ack: 2 })
  const r = s.one(5)
  assert.equal(r.flags, RST)
  assert.equal(r.seq, 2)
  assert.equal(s.state, 'SYN-RECEIVED')
})

test('what the server said before the guest was ready is sent with the handshake’s end', () => {
  const s = new Script({ remote: { gives: new Stream(1, 4) } })
  s.open()
  const [data, fin] = s.take(5)
  assert.equal(data.raw.payload.length, 4)
  assert.equal(data.seq, 1)
  assert.equal(fin.flags & FIN, FIN)
})

test('inbound: SYN to the guest, then the same relay', () => {
  const s = new Script()
  s.world.publish(s.guestPort, s.peerPort, remote({ gives: new Stream(2, 3), finFirst: false }))
  const syn = s.one(1)
  assert.equal(syn.flags, SYN)
  assert.equal(syn.raw.shift, 8)
  s.send({ flags: SYN | ACK, seq: 0, ack: 1, options: SYN_OPTIONS })
  const [ack, data] = s.take(5)
  assert.equal(ack.flags, ACK)
  assert.equal(ack.ack, 1)
  assert.equal(data.raw.payload.length, 3)
  assert.equal(s.state, 'ESTABLISHED')
})

test('inbound: the guest’s refusal resets the client', () => {
  const s = new Script()
  s.world.publish(s.guestPort, s.peerPort, remote({}))
  s.one(1)
  s.send({ flags: RST | ACK, seq: 0, ack: 2 })
  assert.equal(s.state, 'SYN-SENT')
  s.take(1)
  s.send({ flags: RST | ACK, seq: 0, ack: 1 })
  assert.equal(s.state, 'gone')
  assert.ok(s.socket.reset)
})

test('inbound: a silent guest is asked again after 1, 3, 7 and 15 s, then the client is reset', () => {
  const s = new Script()
  s.world.publish(s.guestPort, s.peerPort, remote({}))
  const syns = s.take(20_000)
  assert.deepEqual(
    syns.map((t) => t.flags),
    [SYN, SYN, SYN, SYN, SYN],
  )
  s.take(30_000)
  assert.ok(s.socket.reset)
  assert.equal(s.state, 'gone')
})

test('inbound: simultaneous open', () => {
  const s = new Script()
  s.world.publish(s.guestPort, s.peerPort, remote({ finFirst: false }))
  s.one(1)
  s.send({ flags: SYN, seq: 0, options: SYN_OPTIONS })
  assert.equal(s.one(1).flags, SYN | ACK)
  s.send({ flags: SYN | ACK, seq: 0, ack: 1, options: SYN_OPTIONS })
  s.take(1)
  assert.equal(s.state, 'ESTABLISHED')
})

const SYN_STAMPED = [2, 4, 5, 180, 1, 1, 8, 10, 0, 0, 3, 232, 0, 0, 0, 0]

test('the payload of whole segments is a multiple of 16, with timestamps and without, in both families', () => {
  for (const [family, stamped, mss] of [
    [4, true, 1452],
    [4, false, 1456],
    [6, true, 1436],
    [6, false, 1440],
  ] as const) {
    const gives = new Stream(9, 100_000)
    const s = new Script({ remote: { gives }, world: { family } })
    s.send({ flags: SYN, options: stamped ? SYN_STAMPED : [2, 4, 5, 180], window: 65535 })
    const announced = s.one(5).raw.mss
    const payload = announced - (stamped ? 12 : 0)
    assert.deepEqual([announced, payload % 16], [mss, 0])
    const sizes: number[] = []
    s.world.onSent = (p) => sizes.push(p.gsoSize)
    s.send({ seq: 1, ack: 1, window: 65535, options: stamped ? SYN_STAMPED.slice(4) : [] })
    const frames = s.take(5).filter((t) => t.payload.length > 0)
    assert.ok(frames.length > 0 && frames[0]!.payload.length % payload === 0)
    assert.ok(sizes.includes(payload), `${sizes}`)
  }
})

test('timestamps are offered to who offered them, and to the guest of a published port', () => {
  const s = new Script()
  s.send({ flags: SYN, options: SYN_STAMPED })
  const [value, echo] = s.one(5).raw.stamps ?? []
  assert.equal(echo, 1000)
  const age = (s.world.host.began + s.world.host.now() - (value ?? 0)) | 0
  assert.ok(age >= 0 && age <= 5, `${age} ms old`)
  s.send({ flags: SYN, options: [2, 4, 5, 180] }, 40001)
  assert.equal(s.one(5).raw.stamps, undefined)
  const inbound = new Script()
  inbound.world.publish(inbound.guestPort, inbound.peerPort, remote({}))
  const offered = inbound.one(5)
  assert.deepEqual([offered.flags, offered.raw.stamps?.[1]], [SYN, 0])
  // A guest that does not want them.
  inbound.send({ flags: SYN | ACK, ack: 1, options: [2, 4, 5, 180] })
  const after = inbound.take(5)
  assert.ok(after.length > 0 && after.every((t) => t.raw.stamps === undefined))
})

test('a SYN with the ports of a connection in TIME-WAIT begins a new one when its timestamp or its sequence number is behind that', () => {
  for (const [stamp, seq, anew] of [
    [2001, -500_000, true],
    [1999, 500_000, false],
    [2000, 500_000, true],
    [2000, -500_000, false],
    [undefined, 500_000, true],
    [undefined, -500_000, false],
  ] as const) {
    const s = new Script({ remote: { finFirst: true } })
    const stamps = (v: number) => [1, 1, 8, 10, 0, 0, v >> 8, v & 255, 0, 0, 0, 0]
    s.send({ flags: SYN, options: [2, 4, 5, 180, ...stamps(1000)] })
    s.one(5)
    s.send({ seq: 1, ack: 1, options: stamps(1001) })
    s.take(5)
    s.send({ flags: FIN | ACK, seq: 1, ack: 2, options: stamps(2000) })
    s.take(0.1)
    assert.equal(s.state, 'TIME-WAIT')
    s.send({ flags: SYN, seq, options: [2, 4, 5, 180, ...(stamp === undefined ? [] : stamps(stamp))] })
    const answer = s.one(5)
    assert.equal(answer.flags, anew ? SYN | ACK : ACK, `${stamp} ${seq}`)
  }
})
