/** Whose acknowledgments go the way of streams: told by the length of segments, and by whether there are several at a time. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { WAY } from '../../../src/netstack/switch/port.ts'
import { TcpColumns } from '../../../src/netstack/tcp/columns.ts'
import { Streams } from '../../../src/netstack/tcp/streams.ts'

const LONG = 64_240
const [A, B] = [3, 5]
function relay() {
  const c = new TcpColumns(8)
  const streams = new Streams(c)
  let now = 1000
  return {
    c,
    /** So many rounds, in each of which every flow sends these, all within a millisecond. */
    hear(rounds: number, flows: readonly number[], ...lengths: number[]): void {
      for (let n = 0; n < rounds; n++, now++)
        for (const i of flows) for (const len of lengths) streams.heard(i, len, now)
    },
    way: (i: number, later = 0) => streams.ackWay(i, now + later),
  }
}

test('two streams at a time', () => {
  const r = relay()
  r.hear(3, [A, B], LONG)
  assert.equal(r.way(A), WAY.now, 'three frames are no stream yet')
  r.hear(20, [A, B], LONG)
  assert.deepEqual([r.way(A), r.way(B)], [WAY.stream, WAY.stream])
  assert.equal(r.way(A, 5), WAY.now, 'and no more once they are silent')
})

test('one stream alone waits for its acknowledgments', () => {
  const r = relay()
  r.hear(100, [A], LONG)
  assert.equal(r.way(A), WAY.now)
  r.hear(10, [A, B], LONG)
  assert.equal(r.way(A), WAY.stream)
  r.hear(10, [A], LONG)
  assert.equal(r.way(A), WAY.now)
})

test('requests and answers never go this way, however many, nor beside streams', () => {
  const r = relay()
  r.hear(100_000, [A], 80, 1200, 1448)
  r.hear(20, [B, 6], LONG)
  assert.deepEqual([r.way(A), r.way(B)], [WAY.now, WAY.stream])
})

test('a remainder of a few bytes behind long frames is still a stream; short frames end it', () => {
  const r = relay()
  r.hear(20, [A, B], LONG, LONG, 2592)
  assert.equal(r.way(A), WAY.stream)
  r.hear(50, [A, B], 100)
  assert.equal(r.way(A), WAY.now)
})

test('the next connection of an index begins anew', () => {
  const r = relay()
  r.hear(20, [A, B], LONG)
  r.c.clear(A, 1 as never, 0)
  r.hear(1, [B, 6], LONG)
  assert.equal(r.way(A), WAY.now)
})
