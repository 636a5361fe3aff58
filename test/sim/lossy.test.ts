/**
 * How long a transfer to the guest takes on a link that loses: in round trips and early probes, never in retransmission
 * timeouts. The first flight is the whole transfer here, so that its loss is the first thing a flow learns about its link.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Stream } from './stream.ts'
import { EMPTY, remote, World } from './world.ts'

const SIZE = 1 << 20

/** Simulated ms until the guest has read all of it. */
function transfer(seed: number, loss: number): number {
  const gives = new Stream(seed, SIZE)
  const host = remote({ gives, receiveBuffer: 4 << 20, giveRate: 1 << 24 })
  const link = { delay: 0.05, rate: 1_250_000, queue: 4 << 20, split: true }
  const world = new World(seed, { up: { delay: 0.05 }, down: { ...link, loss }, next: () => host })
  const guest = world.guest({ gives: EMPTY, takes: gives, receiveBuffer: 4 << 20, readRate: 1 << 24 })
  guest.connect()
  assert.ok(
    world.clock.run(() => guest.read === SIZE, 60_000),
    `seed ${seed} does not end`,
  )
  return world.clock.now
}

for (const [loss, ms] of [
  [0.01, 50],
  [0.05, 150],
] as const)
  test(`1 MiB to a guest at ${loss * 100} % loss takes no timeout`, () => {
    // A SYN that is lost costs a second whoever sends it: the median says what a flow pays.
    const took = Array.from({ length: 15 }, (_, k) => transfer(k + 1, loss)).sort((a, b) => a - b)
    assert.ok(took[7] < ms, took.map(Math.round).join(' '))
    assert.ok(took[13] < 1500, took.map(Math.round).join(' '))
  })
