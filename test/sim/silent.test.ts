/**
 * Guests that never answer: a thousand flows with data waiting are given up in simulated time, nothing is consumed from the host's sockets meanwhile
 * (so the far ends are held by their own window), what is sent is bounded, and nothing stays behind.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseSegment } from './guest.ts'
import { ACK, Script, SYN } from './script.ts'
import { Stream } from './stream.ts'
import { remote } from './world.ts'

const COUNT = 1000
const GIVES = new Stream(31, 1 << 20)
const MINUTE = 60_000
const OPTIONS = [2, 4, 5, 180, 1, 1, 4, 2]

/** `COUNT` guests' ends of one script: SYN, then nothing, or the ACK of the SYN-ACK, then nothing. */
function silent(handshake: boolean) {
  const s = new Script({
    remote: { gives: GIVES, giveRate: 1 << 20 },
    world: { limits: { flows: 2048, flowsPerVm: 2048, halfOpenPerVm: 2048 } },
  })
  const { world } = s
  let sent = 0
  let reset = 0
  world.toGuest = (p) => {
    const segment = parseSegment(p.bytes)
    assert.ok(segment !== undefined)
    sent += p.bytes.length
    if (segment.flags & 4) reset++
    if (handshake && segment.flags & SYN) {
      s.iss = segment.seq
      world.inject(s.bytes({ flags: ACK, seq: 1, ack: 1 }, (p.bytes[22]! << 8) | p.bytes[23]!))
    }
  }
  for (let n = 0; n < COUNT; n++) world.inject(s.bytes({ flags: SYN, options: OPTIONS }, 20_000 + n))
  return { world, sent: () => sent, reset: () => reset }
}

for (const handshake of [false, true])
  test(`${COUNT} guests fall silent ${handshake ? 'with data on its way to them' : 'after their SYN'}: given up, nothing held`, (t) => {
    const { world, sent, reset } = silent(handshake)
    world.clock.run(() => false, 5000)
    assert.equal(world.flows.count, COUNT)
    const early = sent() / COUNT
    assert.ok(
      world.host.sockets.every((x) => x.base === 0),
      'the relay consumed what nobody acknowledged',
    )
    assert.ok(
      world.clock.run(() => world.flows.count === 0, 30 * MINUTE),
      `${world.flows.count} flows stay`,
    )
    t.diagnostic(
      `given up after ${Math.round(world.clock.now / 1000)} s of simulated time; ${Math.round(early)} bytes sent to each in 5 s, ${Math.round(sent() / COUNT)} in all; ${reset()} resets`,
    )
    assert.ok(sent() / COUNT < 256 * 1024, `${sent() / COUNT} bytes to each`)
    assert.ok(world.host.sockets.every((x) => x.closed))
  })

test('a client of a published port whose guest never answers is let go', () => {
  const s = new Script({ world: { limits: { flows: 2048, flowsPerVm: 2048, halfOpenPerVm: 2048 } } })
  s.world.toGuest = () => {}
  for (let n = 0; n < COUNT; n++) s.world.publish(80, 10_000 + n, remote({ gives: GIVES }))
  assert.ok(s.world.flows.count > 0)
  assert.ok(
    s.world.clock.run(() => s.world.flows.count === 0, 30 * MINUTE),
    `${s.world.flows.count} flows stay`,
  )
  assert.ok(s.world.host.sockets.every((x) => x.closed))
})
