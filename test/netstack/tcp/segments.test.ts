/** An open connection, segment by segment: order, windows, resets, ends. RFC 9293 §3.10.7, RFC 5961, RFC 5681. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DROP } from '../../../src/netstack/trace/drops.ts'
import { ACK, FIN, PSH, RST, Script, SYN, type Taken } from '../../sim/script.ts'
import { Stream } from '../../sim/stream.ts'

const NEVER = { finFirst: false }
const up = (length: number) => new Stream(3, length)
const part = (s: Stream, from: number, to: number): Uint8Array => {
  const b = new Uint8Array(to - from)
  s.fill(b, 0, to - from, from)
  return b
}

function opened(remote: ConstructorParameters<typeof Script>[0] = {}, window = 65535, shift = -1): Script {
  const s = new Script(remote)
  s.open(window, shift)
  s.take(0.01)
  return s
}

test('what the host took is acknowledged, once for a burst', () => {
  const all = up(3000)
  const s = opened({ remote: { ...NEVER, takes: all } })
  s.send({ seq: 1, ack: 1, payload: part(all, 0, 1000) })
  const a = s.one()
  assert.equal(a.flags, ACK)
  assert.equal(a.ack, 1001)
  assert.equal(s.socket.accepted, 1000)
})

test('who sends much is acknowledged for a quarter of the window, or as soon as nothing else is to be done', () => {
  const all = up(1_000_000)
  const s = opened({ remote: { ...NEVER, takes: all, sendBuffer: 1 << 20 } }, 65535, 0)
  let seq = 0
  const { world } = s
  const frame = (length: number): void => {
    world.busy = true
    s.send({ seq: 1 + seq, ack: 1, payload: part(all, seq, seq + length) })
    seq += length
    world.busy = false
  }
  const said = (): Taken[] => {
    world.turn()
    return s.take()
  }
  frame(20_000)
  assert.equal(world.relay.urgent, false, 'a request waits for its answer')
  const window = (said()[0]?.window ?? 0) << 8
  assert.ok(window > 900_000, `${window}`)
  frame(40_000)
  frame(40_000)
  assert.equal(world.relay.urgent, true, 'its sender may have sent all that it can')
  assert.deepEqual(
    said().map((t) => t.ack),
    [1 + seq],
  )
  assert.equal(world.relay.urgent, false)
  for (let n = 0; n < 6; n++) frame(60_000)
  const [quarter, rest] = said().map((t) => t.ack)
  assert.ok(
    quarter !== undefined && quarter - 100_001 >= window / 4 && quarter - 100_001 < window / 4 + 60_000,
    `${quarter}`,
  )
  assert.equal(rest, 1 + seq)
})

test('out of order: a duplicate ACK at once; the hole filled, all of it goes on; overlap is trimmed', () => {
  const all = up(3000)
  const s = opened({ remote: { ...NEVER, takes: all } })
  s.send({ seq: 1001, ack: 1, payload: part(all, 1000, 2000) })
  assert.equal(s.one().ack, 1)
  assert.equal(s.socket.accepted, 0)
  s.send({ seq: 1, ack: 1, payload: part(all, 0, 1000) })
  assert.equal(s.one().ack, 2001)
  s.send({ seq: 1501, ack: 1, payload: part(all, 1500, 2500) })
  assert.equal(s.one().ack, 2501)
  s.send({ seq: 1, ack: 1, payload: part(all, 0, 1000) })
  assert.equal(s.one().ack, 2501)
  assert.equal(s.socket.accepted, 2500)
})

test('what is held is reported by SACK blocks, the last one first; an end that came ahead waits for its turn', () => {
  const all = up(5000)
  const s = new Script({ remote: { ...NEVER, takes: all } })
  s.send({ flags: SYN, options: [2, 4, 3, 232, 1, 1, 4, 2] })
  s.one(5)
  s.send({ seq: 1, ack: 1 })
  s.send({ seq: 1001, ack: 1, payload: part(all, 1000, 2000) })
  assert.deepEqual(s.one().sack, [[1001, 2001]])
  s.send({ flags: FIN | ACK, seq: 4001, ack: 1, payload: part(all, 4000, 5000) })
  assert.deepEqual(s.one().sack, [
    [4001, 5001],
    [1001, 2001],
  ])
  s.send({ seq: 1501, ack: 1, payload: part(all, 1500, 3000) })
  assert.deepEqual(s.one().sack, [
    [1001, 3001],
    [4001, 5001],
  ])
  s.send({ seq: 1, ack: 1, payload: part(all, 0, 1000) })
  const a = s.one()
  assert.deepEqual([a.ack, a.sack], [3001, [[4001, 5001]]])
  s.send({ seq: 3001, ack: 1, payload: part(all, 3000, 4000) })
  const [last, fin] = s.take()
  assert.deepEqual([last.ack, fin.ack, fin.flags], [5002, 5002, FIN | ACK])
  assert.equal(s.state, 'LAST-ACK')
})

test('holes that are never filled share what there is for disorder, and give it up after a minute; what was reported is kept until then', () => {
  const all = up(50_000)
  const s = new Script({ remote: { ...NEVER, takes: all }, world: { limits: { flows: 256 } } })
  const withSack = [2, 4, 3, 232, 1, 1, 4, 2]
  const iss: number[] = []
  for (let port = 1; port <= 20; port++) {
    s.send({ flags: SYN, options: withSack }, port)
    assert.equal(s.one(5).flags, SYN | ACK)
    iss[port] = s.iss
    for (let k = 1; k < 30; k++)
      s.send({ seq: 1 + 1000 * k, ack: 1, payload: part(all, 1000 * k, 1000 * k + 10) }, port)
    const reported = s.take().at(-1)?.sack.length
    // Half of all for a VM that asks for all.
    assert.equal(reported, port <= 5 ? 4 : 0, `flow ${port}`)
  }
  // Kept for the first, in order for the last.
  for (const port of [1, 20]) {
    s.iss = iss[port]
    s.send({ seq: 1, ack: 1, payload: part(all, 0, 1000) }, port)
  }
  assert.deepEqual(
    s.take().map((t) => t.ack),
    [1011, 1001],
  )
  s.wait(61_000)
  for (let k = 1; k < 20; k++) s.send({ seq: 5001, ack: 1, payload: part(all, 5000, 5010) }, 20)
  assert.equal(s.take().at(-1)?.sack.length, 1)
})

test('payload beyond the window is not looked at; its edge never goes back; a probe learns that it has opened', () => {
  const all = up(10_000)
  const s = new Script({ remote: { ...NEVER, takes: all, sendBuffer: 2000, drainRate: 0 } })
  s.open()
  s.take(0.01)
  s.send({ seq: 1, ack: 1, payload: part(all, 0, 1500) })
  const a = s.one()
  assert.equal(a.ack, 1501)
  assert.equal(a.window, 500)
  s.send({ seq: 1501, ack: 1, payload: part(all, 1500, 2500) })
  const b = s.one()
  assert.equal(b.ack, 2001)
  assert.equal(b.window, 0)
  s.send({ seq: 2001, ack: 1, payload: part(all, 2000, 2001) })
  assert.deepEqual([s.one().ack, s.socket.accepted], [2001, 2000])
  s.send({ seq: 5001, ack: 1, payload: part(all, 5000, 5100) })
  s.one()
  assert.ok(s.world.drops.of(0, DROP['tcp-refused']) > 0)
  // A probe of the other kind: an old sequence number and no payload.
  s.wait(200)
  s.send({ seq: 2000, ack: 1 })
  assert.equal(s.one().window, 0)
})

test('when the host has room again the guest is told', () => {
  const all = up(10_000)
  const s = new Script({ remote: { ...NEVER, takes: all, sendBuffer: 4000, drainRate: 20, giveRate: 1 } })
  s.open()
  s.take(0.01)
  for (let at = 0; at < 4000; at += 1000) s.send({ seq: 1 + at, ack: 1, payload: part(all, at, at + 1000) })
  assert.equal(s.take(0.1).at(-1)?.window, 0)
  const update = s.take(400)
  assert.ok(update.length > 0 && update.every((t) => t.ack === 4001))
  assert.ok(update.at(-1)!.window >= 1000)
})

test('less taken than offered: the rest is asked for with duplicate ACKs when there is room, not after a timeout', () => {
  const all = up(10_000)
  const s = new Script({ remote: { ...NEVER, takes: all, sendBuffer: 4000, lie: 1500, drainRate: 100 } })
  s.open()
  s.take(0.01)
  s.send({ seq: 1, ack: 1, payload: part(all, 0, 4000) })
  assert.equal(s.take(0.05).at(-1)?.ack, 2501)
  const dups = s.take(60).filter((t) => t.ack === 2501)
  assert.ok(dups.length >= 3, `${dups.length} duplicate ACKs`)
})

test('RST: exact ends it and resets the server, in the window is challenged, elsewhere ignored', () => {
  const s = opened({ remote: NEVER })
  s.send({ flags: RST, seq: 100_000 })
  s.none()
  s.send({ flags: RST, seq: 50 })
  const c = s.one()
  assert.deepEqual([c.flags, c.ack], [ACK, 1])
  assert.equal(s.state, 'ESTABLISHED')
  s.send({ flags: RST, seq: 1 })
  assert.equal(s.state, 'gone')
  assert.ok(s.socket.reset)
})

test('a SYN within a connection is challenged, and not without end', () => {
  const s = opened({ remote: NEVER })
  for (let k = 0; k < 50; k++) s.send({ flags: SYN, seq: 1 + k })
  assert.equal(s.take().length, 1)
  assert.equal(s.state, 'ESTABLISHED')
})

test('acknowledgments of what was never sent, or of long ago, change nothing', () => {
  const all = up(100)
  const s = opened({ remote: { ...NEVER, takes: all, gives: new Stream(4, 500) } })
  s.take(3)
  s.send({ seq: 1, ack: 100_000, payload: part(all, 0, 100) })
  assert.equal(s.one().ack, 1)
  assert.equal(s.socket.accepted, 0)
  s.wait(200)
  s.send({ seq: 1, ack: -1_000_000, payload: part(all, 0, 100) })
  assert.equal(s.socket.accepted, 0)
  assert.equal(s.socket.base, 0)
})

test('the server’s bytes are consumed as they are acknowledged, and sent again when not', () => {
  const s = opened({ remote: { ...NEVER, gives: new Stream(4, 2500) } })
  const sent = s.take(5)
  assert.equal(
    sent.reduce((n, t) => n + t.payload.length, 0),
    2500,
  )
  assert.ok(sent.at(-1)!.flags & PSH)
  s.send({ seq: 1, ack: 1001 })
  assert.equal(s.socket.base, 1000)
  const again = s.take(1100).find((t) => t.payload.length > 0)
  assert.equal(again?.seq, 1001)
  s.send({ seq: 1, ack: 2501 })
  s.none(5000)
  assert.equal(s.socket.base, 2500)
})

test('three duplicate ACKs: the segment is sent again at once', () => {
  const s = opened({ remote: { ...NEVER, gives: new Stream(4, 5000) } })
  s.take(5)
  for (let k = 0; k < 3; k++) s.send({ seq: 1, ack: 1 })
  const again = s.one()
  // Two segments, because a guest acknowledges one alone late.
  assert.deepEqual([again.seq, again.payload.length], [1, 2000])
  // A partial acknowledgment: the next hole.
  s.send({ seq: 1, ack: 3001 })
  assert.equal(s.take()[0].seq, 3001)
  s.send({ seq: 1, ack: 5001 })
  s.none(3000)
})

test('a SACK block that is half the sequence space long is not believed', () => {
  const s = opened({ remote: { ...NEVER, gives: new Stream(4, 5000) } })
  s.take(5)
  const blocks = [s.iss + 0x1000000, s.iss - 0x7fffffff, s.iss + 2001, s.iss + 2000, s.iss + 1, s.iss + 1001]
  const bytes = blocks.flatMap((b) => [(b >>> 24) & 255, (b >>> 16) & 255, (b >>> 8) & 255, b & 255])
  s.send({ seq: 1, ack: 1, options: [1, 1, 5, 2 + bytes.length, ...bytes] })
  s.world.relay.check(0)
  s.send({ seq: 1, ack: 5001 })
  s.none(3000)
})

test('a guest whose window stays shut is probed for as long as it answers, and given up when it does not', () => {
  const s = new Script({ remote: { ...NEVER, gives: new Stream(4, 5000) } })
  s.open(0)
  const probes = s.take(3000)
  assert.ok(probes.length >= 1 && probes.every((t) => t.seq === 0 && t.payload === ''))
  for (let k = 0; k < 50; k++) {
    s.send({ seq: 1, ack: 1, window: 0 })
    s.take(60_000)
  }
  assert.equal(s.state, 'ESTABLISHED')
  s.send({ seq: 1, ack: 1, window: 2000 })
  assert.equal(
    s.take().reduce((n, t) => n + t.payload.length, 0),
    2000,
  )
  s.send({ seq: 1, ack: 2001, window: 0 })
  s.take(1_000_000)
  assert.equal(s.state, 'gone')
  assert.ok(s.socket.reset)
})

for (const windows of [[0], [10], [0, 10]])
  test(`a guest that drops what is under way and leaves a window of ${windows.join(' or ')} is asked for as long as it answers, and given up when it does not`, () => {
    const gives = up(20_000)
    const s = new Script({ remote: { ...NEVER, gives } })
    s.open(10_000)
    assert.ok(s.take(1).length > 0)
    let said = 0
    const drop = () => s.send({ seq: 1, ack: 1, window: windows[said++ % windows.length] })
    const hours = (n: number) => {
      let asked = 0
      for (let seconds = 0; seconds < n * 3600; seconds++) {
        const t = s.take(1000)
        asked += t.length
        if (t.length > 0) drop()
      }
      return asked
    }
    drop()
    hours(1)
    assert.equal(s.state, 'ESTABLISHED')
    const asked = hours(1)
    assert.ok(asked >= 60 && (windows.length > 1 || asked < 200), `${asked} in an hour`)
    // It has memory again.
    s.send({ seq: 1, ack: 1, window: 10_000 })
    let next = 1
    for (let turns = 0; next <= 10_000 && turns < 1000; turns++) {
      for (const t of s.take(100))
        if (t.seq === next) {
          gives.check(t.raw.payload, 0, t.raw.payload.length, next - 1)
          next += t.payload.length
        }
      s.send({ seq: 1, ack: next, window: 10_000 })
    }
    assert.equal(s.state, 'ESTABLISHED')
    for (let n = 0; n < 3600; n++) if (s.take(1000).length > 0) s.send({ seq: 1, ack: next, window: windows[0] })
    assert.equal(s.state, 'ESTABLISHED')
    s.wait(300_000)
    assert.equal(s.state, 'gone')
    assert.ok(s.socket.reset)
  })

test('a guest that never acknowledges is given up; nothing is kept for it', () => {
  const s = opened({ remote: { ...NEVER, gives: new Stream(4, 5000) } })
  const sent = s.take(600_000)
  assert.equal(sent.at(-1)?.flags, RST | ACK)
  assert.ok(sent.length < 40, `${sent.length} segments`)
  assert.equal(s.state, 'gone')
  assert.ok(s.socket.reset)
})

test('an idle guest is asked after two hours, and kept while it answers', () => {
  const s = opened({ remote: NEVER })
  s.none(7_100_000)
  assert.equal(s.take(200_000)[0].seq, 0)
  s.send({ seq: 1, ack: 1 })
  s.take(7_100_000)
  assert.equal(s.state, 'ESTABLISHED')
  s.take(2_000_000)
  assert.equal(s.state, 'gone')
})

test('the guest ends first: half-close, the server goes on, LAST-ACK, no TIME-WAIT', () => {
  const s = opened({ remote: { ...NEVER, giveRate: 100, gives: new Stream(4, 3000), drainRate: 1000 } })
  s.send({ flags: FIN | ACK, seq: 1, ack: 1 })
  const a = s.take(0.05)
  assert.equal(a.at(-1)?.ack, 2)
  assert.equal(s.socket.shut, true)
  assert.equal(s.state, 'CLOSE-WAIT')
  // The guest is silent: what was first is asked for again after the FIN.
  assert.ok(s.take(100).some((r) => r.flags & FIN))
  assert.equal(s.state, 'LAST-ACK')
  s.send({ seq: 2, ack: 3002 })
  assert.equal(s.state, 'gone')
  assert.equal(s.socket.reset, false)
})

test('the server ends first: FIN-WAIT, the guest goes on, TIME-WAIT answers a late FIN and goes', () => {
  const all = up(500)
  const s = opened({ remote: { takes: all } })
  assert.ok(s.one(3).flags & FIN)
  assert.equal(s.state, 'FIN-WAIT-1')
  s.send({ seq: 1, ack: 2 })
  assert.equal(s.state, 'FIN-WAIT-2')
  s.send({ seq: 1, ack: 2, payload: part(all, 0, 500) })
  assert.equal(s.one().ack, 501)
  s.send({ flags: FIN | ACK, seq: 501, ack: 2 })
  assert.equal(s.one().ack, 502)
  assert.equal(s.state, 'TIME-WAIT')
  assert.ok(s.socket.closed && !s.socket.reset)
  s.wait(200)
  s.send({ flags: FIN | ACK, seq: 501, ack: 2 })
  assert.equal(s.one().ack, 502)
  s.none(3000)
  assert.equal(s.state, 'gone')
})

test('simultaneous close: CLOSING, then TIME-WAIT', () => {
  const s = opened({ remote: {} })
  s.take(3)
  s.send({ flags: FIN | ACK, seq: 1, ack: 1 })
  assert.equal(s.one().ack, 2)
  assert.equal(s.state, 'CLOSING')
  s.send({ seq: 2, ack: 2 })
  assert.equal(s.state, 'TIME-WAIT')
})

test('a new SYN takes over the ports of a TIME-WAIT', () => {
  const s = opened({ remote: {} })
  s.take(3)
  s.send({ flags: FIN | ACK, seq: 1, ack: 2 })
  s.take(1)
  assert.equal(s.state, 'TIME-WAIT')
  s.send({ flags: SYN, seq: 90_000 })
  const a = s.one(5)
  assert.deepEqual([a.flags, a.ack], [SYN | ACK, 90_001])
  assert.equal(s.world.host.sockets.length, 2)
  assert.equal(s.world.flows.count, 1)
})

test('a FIN that is lost is sent again; a FIN that comes again is acknowledged again', () => {
  const s = opened({ remote: {} })
  assert.ok(s.one(3).flags & FIN)
  assert.ok(s.take(2000)[0].flags & FIN)
  s.send({ flags: FIN | ACK, seq: 1, ack: 1 })
  s.take()
  s.send({ flags: FIN | ACK, seq: 1, ack: 1 })
  assert.equal(s.take()[0].ack, 2)
})

test('the server’s reset reaches the guest where it expects its next byte', () => {
  const s = opened({ remote: { ...NEVER, gives: new Stream(4, 700) } })
  s.take(3)
  s.world.host.breakOff(s.socket)
  const r = s.one()
  assert.deepEqual([r.flags, r.seq, r.ack], [RST | ACK, 701, 1])
  assert.equal(s.state, 'gone')
  assert.ok(s.socket.closed)
})

test('abort: RST to both sides', () => {
  const s = opened({ remote: NEVER })
  s.world.relay.abort(0)
  assert.equal(s.one().flags, RST | ACK)
  assert.ok(s.socket.reset)
  assert.equal(s.world.flows.count, 0)
})

test('a wrong checksum or a header that lies is counted and nothing else', () => {
  const all = up(100)
  const s = opened({ remote: { ...NEVER, takes: all } })
  const b = s.bytes({ seq: 1, ack: 1, payload: part(all, 0, 100) })
  b[60] ^= 1
  s.world.inject(b)
  const c = s.bytes({ seq: 1, ack: 1, payload: part(all, 0, 100) })
  c[32] = 0xf0
  s.world.inject(c.subarray(0, 45))
  s.none()
  assert.equal(s.socket.accepted, 0)
  assert.equal(s.world.drops.of(0, DROP.checksum), 1)
  assert.equal(s.world.drops.of(0, DROP['tcp-malformed']), 1)
})

test('a switch port that takes no frame for a while does not stall the flow', () => {
  const s = new Script({ remote: { ...NEVER, gives: new Stream(4, 700) } })
  s.send({ flags: SYN })
  s.one(5)
  s.world.portFull = true
  s.send({ seq: 1, ack: 1 })
  s.none(30)
  s.world.portFull = false
  assert.ok(s.take(50).some((t) => t.payload.length > 0))
})

/** A connection whose SYNs agreed on timestamps, with the guest's clock at 1000; and how to write them. */
function stamped(remote: ConstructorParameters<typeof Script>[0] = {}): Script {
  const s = new Script(remote)
  s.send({ flags: SYN, options: [2, 4, 3, 232, 1, 1, 4, 2, ...at(1000)], window: 65535 })
  assert.equal(s.one(5).raw.stamps?.[1], 1000)
  s.world.onSent = (p) => {
    if (p.gsoSize > 0) assert.equal(p.gsoSize, 1000 - 12)
  }
  s.send({ seq: 1, ack: 1, options: at(1000) })
  return s
}
const at = (v: number) => [1, 1, 8, 10, 0, 0, v >> 8, v & 255, 0, 0, 0, 0]

test('timestamps: in every segment, beside SACK blocks, and out of the MSS; never in a reset', () => {
  const all = up(5000)
  const s = stamped({ remote: { ...NEVER, takes: all, gives: new Stream(9, 3000) } })
  const data = s.take(5)
  assert.ok(data.some((d) => d.payload.length > 1000) && data.every((d) => d.raw.stamps?.[1] === 1000))
  for (const from of [1000, 2000, 3000, 4000])
    s.send({ seq: 1 + from, ack: 1, payload: part(all, from, from + 500), options: at(1000) })
  const last = s.take().at(-1)
  assert.equal(last?.sack.length, 3, 'as many blocks as fit')
  assert.equal(last?.raw.stamps?.[1], 1000)
  s.send({ flags: RST, seq: 2, options: at(1000) })
  assert.ok(s.take().every((t) => t.raw.stamps !== undefined))
  s.world.relay.abort(0)
  const reset = s.take().at(-1)
  assert.equal(reset?.flags, RST | ACK)
  assert.equal(reset?.raw.stamps, undefined)
})

test('timestamps: the one of the first segment that is not acknowledged yet is echoed (RFC 7323 §4.3)', () => {
  const all = up(5000)
  const s = stamped({ remote: { ...NEVER, takes: all } })
  const { world } = s
  world.busy = true
  s.send({ seq: 1, ack: 1, payload: part(all, 0, 500), options: at(1010) })
  s.send({ seq: 501, ack: 1, payload: part(all, 500, 1000), options: at(1020) })
  world.busy = false
  world.turn()
  assert.equal(s.one().raw.stamps?.[1], 1010)
  // Ahead of a hole: nothing of it is acknowledged.
  s.send({ seq: 2001, ack: 1, payload: part(all, 2000, 2500), options: at(1030) })
  assert.equal(s.one().raw.stamps?.[1], 1010)
  s.send({ seq: 1001, ack: 1, payload: part(all, 1000, 2000), options: at(1025) })
  const filled = s.one()
  assert.deepEqual([filled.ack, filled.raw.stamps?.[1]], [2501, 1025])
})

test('timestamps: what is older than the last one is answered and not taken (PAWS), a reset is; one without is taken', () => {
  const all = up(5000)
  const s = stamped({ remote: { ...NEVER, takes: all } })
  s.send({ seq: 1, ack: 1, payload: part(all, 0, 500), options: at(1500) })
  assert.equal(s.one().ack, 501)
  s.send({ seq: 501, ack: 1, payload: part(all, 500, 1000), options: at(1499) })
  const a = s.one(200)
  assert.deepEqual([a.flags, a.ack], [ACK, 501])
  assert.equal(s.socket.accepted, 500)
  s.send({ seq: 501, ack: 1, payload: part(all, 500, 1000) })
  assert.equal(s.one().ack, 1001)
  s.send({ flags: RST, seq: 1001, options: at(1) })
  assert.equal(s.state, 'gone')
})
