/** Ends that wait: in their order, not before anything else is ready, and never for ever. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { END, Later } from '../../src/dataplane/later.ts'
import { close, read } from '../../src/sys/fd.ts'
import { addressOf } from '../../src/sys/libc.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { SOCK_STREAM } from '../../src/sys/socket.ts'

const EAGAIN = 11
const byte = Buffer.alloc(1)

function pair(): readonly [number, number] {
  const p = socketpair(SOCK_STREAM, true)
  assert.ok(typeof p !== 'number')
  return p
}
/** What the other side of an end sees: nothing yet, or the end of the stream. */
const seen = (fd: number): 'nothing' | 'end' => {
  const n = read(fd, addressOf(byte), 1)
  assert.ok(n === 0 || n === -EAGAIN, `${n}`)
  return n === 0 ? 'end' : 'nothing'
}

test('one by one, from a certain age; all of them before a sleep', () => {
  const later = new Later()
  const [a, b] = pair()
  const [c, d] = pair()
  const before = performance.now()
  later.put(a, END.shutdown)
  later.put(c, END.close)
  assert.equal(later.one(before), false)
  assert.equal(seen(b), 'nothing')
  assert.equal(later.one(performance.now() + 1), true)
  assert.deepEqual([seen(b), seen(d)], ['end', 'nothing'])
  later.put(a, END.close)
  later.all()
  assert.equal(seen(d), 'end')
  assert.equal(later.one(performance.now() + 1000), false)
  for (const fd of [b, d]) close(fd)
})

test('a plane that is never idle carries them out after a millisecond', () => {
  const later = new Later()
  const [a, b] = pair()
  later.put(a, END.close)
  const from = performance.now()
  // Until it was asked once after the millisecond, however long nobody comes to ask.
  for (let asked = from; asked - from < 1; later.overdue()) asked = performance.now()
  assert.equal(seen(b), 'end')
  close(b)
})

test('a ring that is full ends the oldest; a number is not given again before', () => {
  const later = new Later()
  const pairs = Array.from({ length: 65 }, pair)
  for (const [a] of pairs) {
    later.put(a, END.shutdown)
    assert.equal(pairs.filter(([, b]) => seen(b) === 'end').length, Math.max(0, pairs.findIndex(([x]) => x === a) - 63))
  }
  const [first] = pairs[0] as readonly [number, number]
  later.put(first, END.reset)
  const [x, y] = pair()
  assert.ok(x !== first && y !== first)
  later.all()
  const [z, w] = pair()
  assert.equal(Math.min(z, w), first)
  for (const fd of [x, y, z, w, ...pairs.flatMap(([, b]) => b), ...pairs.slice(1).map(([a]) => a)]) close(fd)
})
