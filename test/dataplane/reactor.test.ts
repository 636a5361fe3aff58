/** The reactor's promises: one that throws stops nobody, what is given up is never told, level and edge. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { READABLE, WRITABLE } from '../../src/netstack/host.ts'
import { close, dup } from '../../src/sys/fd.ts'
import { recvWithFds, sendWithFds, socketpair } from '../../src/sys/scm.ts'
import { SOCK_STREAM } from '../../src/sys/socket.ts'

function pair(): readonly [number, number] {
  const p = socketpair(SOCK_STREAM, true)
  assert.ok(typeof p !== 'number')
  return p
}
const turn = (r: Reactor): void => r.dispatch(r.wait(20))

test('a handler that throws is reported, and the others are told all the same', () => {
  const r = new Reactor(1024)
  const [a, b] = pair()
  const [c, d] = pair()
  const told: string[] = []
  r.onFault = (error, fd) => told.push(`${fd === b} ${(error as Error).message}`)
  r.watch(b, () => {
    throw new Error('mistake')
  })
  r.watch(d, () => told.push('fine'))
  sendWithFds(a, Buffer.from('x'), [])
  sendWithFds(c, Buffer.from('x'), [])
  turn(r)
  assert.deepEqual(told.sort(), ['fine', 'true mistake'])
  for (const fd of [a, b, c, d]) close(fd)
})

test('a callback is told again while something is left; a socket once for each edge', () => {
  const r = new Reactor(1024)
  const [a, b] = pair()
  const [c, d] = pair()
  let level = 0
  const edges: number[] = []
  r.watch(b, (readable, writable) => {
    if (readable) level++
    assert.equal(writable, false)
  })
  r.onSocket = (ref, events) => {
    assert.equal(ref, 42)
    edges.push(events)
  }
  assert.equal(r.watchSocket(d, 42, false), 0)
  sendWithFds(a, Buffer.from('x'), [])
  sendWithFds(c, Buffer.from('x'), [])
  turn(r)
  turn(r)
  assert.equal(level, 2)
  assert.deepEqual(edges, [READABLE])
  r.armSocket(d, true)
  turn(r)
  assert.deepEqual(edges, [READABLE, READABLE | WRITABLE])
  for (const fd of [a, b, c, d]) close(fd)
})

test('write space is told only while it is wanted', () => {
  const r = new Reactor(1024)
  const [a, b] = pair()
  let writable = 0
  r.watch(b, (_, w) => {
    if (w) writable++
  })
  turn(r)
  assert.equal(writable, 0)
  r.wantWrite(b, true)
  turn(r)
  assert.equal(writable, 1)
  r.wantWrite(b, false)
  turn(r)
  assert.equal(writable, 1)
  close(a)
  close(b)
})

test('what was handed over by another process is silent after it was given up, though the other still holds it', () => {
  const r = new Reactor(1024)
  const [a, b] = pair()
  const others = dup(b)
  let told = 0
  r.watch(b, () => told++)
  r.unwatch(b)
  close(b)
  sendWithFds(a, Buffer.from('x'), [])
  assert.equal(r.wait(0), 0)
  r.onSocket = () => told++
  const again = dup(others)
  assert.equal(r.watchSocket(again, 1, false), 0)
  r.forget(again, true)
  close(again)
  assert.equal(r.wait(0), 0)
  assert.equal(told, 0)
  assert.ok(typeof recvWithFds(others, 10) !== 'number')
  close(a)
  close(others)
})
