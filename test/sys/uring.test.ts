// io_uring as the data plane uses it: batches over real descriptors, and the trap of the unfilled read.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { close } from '../../src/sys/fd.ts'
import { addressOf } from '../../src/sys/libc.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { SOCK_SEQPACKET } from '../../src/sys/socket.ts'
import { Uring } from '../../src/sys/uring.ts'

const ring = Uring.open(8)
const skip = typeof ring === 'number' ? `io_uring is not allowed here (errno ${-ring})` : false

test('a batch of writes and a batch of reads carry every byte and every tag', { skip }, () => {
  const uring = ring as Uring
  const [a, b] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
  const out = new Uint8Array(8 * 64)
  const into = new Uint8Array(8 * 64)
  for (let round = 0; round < 1000; round++) {
    for (let i = 0; i < 8; i++) {
      out.fill((round + i) & 255, i * 64, i * 64 + 64)
      uring.write(a, addressOf(out) + i * 64, 40 + i, 100 + i)
    }
    assert.ok(uring.full)
    assert.equal(uring.submit(), 8)
    for (let i = 0; i < 8; i++) {
      assert.ok(uring.next())
      assert.equal(uring.res, 40 + uring.tag - 100)
    }
    assert.ok(!uring.next())
    for (let i = 0; i < 8; i++) uring.read(b, addressOf(into) + i * 64, 64, i)
    assert.equal(uring.submit(), 8)
    for (let i = 0; i < 8; i++) {
      assert.ok(uring.next())
      assert.equal(uring.res, 40 + uring.tag)
      assert.equal(into[uring.tag * 64], (round + uring.tag) & 255)
    }
  }
  close(a)
  close(b)
})

test('a read that finds nothing says EAGAIN at once and never writes into its buffer later', { skip }, () => {
  const uring = ring as Uring
  const [a, b] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
  const into = new Uint8Array(64)
  uring.read(b, addressOf(into), 64, 1)
  assert.equal(uring.submit(), 1)
  assert.ok(uring.next())
  assert.equal(uring.res, -11)
  const out = new Uint8Array(64).fill(7)
  uring.write(a, addressOf(out), 64, 2)
  uring.submit()
  assert.ok(uring.next())
  assert.equal(uring.tag, 2)
  assert.ok(!uring.next())
  assert.equal(into[0], 0)
  close(a)
  close(b)
  uring.close()
})
