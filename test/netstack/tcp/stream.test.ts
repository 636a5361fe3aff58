/** Which connections go the way of long streams: told by the length of their segments, not by how many there are. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FlowTable } from '../../../src/netstack/flow/table.ts'
import { WAY } from '../../../src/netstack/switch/port.ts'
import { TcpColumns } from '../../../src/netstack/tcp/columns.ts'
import { streamed } from '../../../src/netstack/tcp/stream.ts'
import { ACK, RST, Script, SYN } from '../../sim/script.ts'
import { Stream } from '../../sim/stream.ts'

const I = 3
function flow() {
  const table = new FlowTable(8, 4, 1)
  const c = new TcpColumns(8)
  const carried = (count: number, ...lengths: number[]): void => {
    for (let n = 0; n < count; n++) for (const len of lengths) streamed(c, table, I, len)
  }
  return { carried, way: () => table.way[I] }
}

test('a few frames of 64 KiB make a stream; requests and answers never do, however many', () => {
  const bulk = flow()
  bulk.carried(3, 64_240)
  assert.equal(bulk.way(), WAY.now)
  bulk.carried(3, 64_240)
  assert.equal(bulk.way(), WAY.stream)
  const asking = flow()
  asking.carried(100_000, 80, 1200, 1448)
  assert.equal(asking.way(), WAY.now)
})

test('a remainder of a few bytes behind long frames is still a stream', () => {
  const f = flow()
  f.carried(20, 64_240, 64_240, 2592)
  assert.equal(f.way(), WAY.stream)
})

test('between the bounds it stays what it is', () => {
  const f = flow()
  f.carried(100, 8000)
  assert.equal(f.way(), WAY.now)
  f.carried(10, 64_240)
  f.carried(100, 8000)
  assert.equal(f.way(), WAY.stream)
  f.carried(100, 100)
  assert.equal(f.way(), WAY.now)
})

test('a connection becomes a stream by what it sends, and the next one of its index begins anew', () => {
  const all = new Stream(3, 360_000)
  const s = new Script({ remote: { finFirst: false, takes: all, sendBuffer: 1 << 20 } })
  s.open(65535, 0)
  s.take(0.01)
  const { flows } = s.world
  const i = flows.port.findIndex((_, k) => flows.inUse(k))
  const payload = new Uint8Array(60_000)
  for (let at = 0; at < 360_000; at += payload.length) {
    all.fill(payload, 0, payload.length, at)
    s.send({ seq: 1 + at, ack: 1, payload })
    s.take(0.01)
  }
  assert.equal(flows.way[i], WAY.stream)
  s.send({ flags: RST | ACK, seq: 1 + 360_000, ack: 1 })
  assert.equal(s.state, 'gone')
  s.send({ flags: SYN, seq: 0 }, 40_001)
  assert.ok(flows.inUse(i))
  assert.equal(flows.way[i], WAY.now)
})

test('and by what it is sent', () => {
  const s = new Script({ remote: { gives: new Stream(4, 4_000_000), giveRate: 1 << 20, receiveBuffer: 1 << 20 } })
  s.open(65535, 7)
  const { flows } = s.world
  for (let turn = 0, ack = 1; turn < 200 && !flows.way.includes(WAY.stream); turn++) {
    for (const t of s.take(1)) ack = Math.max(ack, t.seq + t.payload.length)
    s.send({ seq: 1, ack })
  }
  assert.ok(flows.way.includes(WAY.stream))
})
