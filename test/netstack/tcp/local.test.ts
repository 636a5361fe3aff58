/** Streams of the gateway's own services, through the relay as the guest sees them. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { StreamService } from '../../../src/netstack/gateway/service.ts'
import { LINGER } from '../../../src/netstack/tcp/local.ts'
import { ACK, FIN, RST, Script } from '../../sim/script.ts'
import { PEER } from '../../sim/world.ts'

/** Answers each piece in upper case; what ends with "." closes. `later`: answers wait to be released. */
function shouter(later?: (() => void)[]): StreamService & { log: string[] } {
  const log: string[] = []
  return {
    log,
    accept: (port, send, close) => {
      log.push(`accept ${port}`)
      return {
        push: (bytes) => {
          const text = Buffer.from(bytes).toString()
          const answer = () => {
            send(Buffer.from(text.toUpperCase()))
            if (text.endsWith('.')) close()
          }
          if (later === undefined) answer()
          else later.push(answer)
          return bytes.length
        },
        end: () => {
          log.push('end')
          close()
        },
      }
    },
  }
}

test('a question is answered, and the guest may close first', () => {
  const service = shouter()
  const s = new Script({ world: { listen: { address: PEER, l4port: 80, service } } })
  s.open()
  s.send({ seq: 1, ack: 1, payload: 'hello' })
  const answer = s.take().find((t) => t.payload !== '')
  assert.deepEqual([answer?.payload, answer?.ack], ['HELLO', 6])
  s.send({ flags: FIN | 16, seq: 6, ack: 6 })
  const fin = s.take().at(-1)
  assert.ok(fin!.flags & FIN)
  s.send({ seq: 7, ack: 7 })
  assert.equal(s.state, 'gone')
  assert.deepEqual(service.log, ['accept 0', 'end'])
  assert.equal(s.world.host.sockets.length, 0)
})

test('the service may close first; answers come before the end', () => {
  const later: (() => void)[] = []
  const s = new Script({ world: { listen: { address: PEER, l4port: 80, service: shouter(later) } } })
  s.open()
  s.send({ seq: 1, ack: 1, payload: 'bye.' })
  assert.equal(s.take().at(-1)?.payload, '')
  for (const answer of later) answer()
  s.world.turn()
  const [answer, fin] = s.take()
  assert.equal(answer.payload, 'BYE.')
  assert.ok(fin.flags & FIN)
})

test('a service that takes less has the rest sent again when it asks for more', () => {
  const taken: string[] = []
  let room = 3
  let more = () => {}
  const service: StreamService = {
    accept: (_port, _send, _close, again) => {
      more = again
      return {
        push: (bytes) => {
          const n = Math.min(room, bytes.length)
          room -= n
          if (n > 0) taken.push(Buffer.from(bytes.subarray(0, n)).toString())
          return n
        },
        end: () => taken.push('end'),
      }
    },
  }
  const s = new Script({ world: { listen: { address: PEER, l4port: 80, service } } })
  s.open()
  s.send({ seq: 1, ack: 1, payload: 'abcdef' })
  assert.deepEqual(
    s.take().map((t) => t.ack),
    [4],
  )
  // Nothing is asked of it until it wants to be asked.
  s.send({ seq: 4, ack: 1, payload: 'def' })
  s.send({ flags: FIN | 16, seq: 7, ack: 1 })
  assert.ok(s.take().every((t) => t.ack === 4))
  room = 10
  s.world.turn()
  s.none()
  assert.deepEqual(taken, ['abc'])
  more()
  s.world.turn()
  // Duplicate acknowledgments: the guest sends again without waiting for its timer.
  assert.ok(s.take().filter((t) => t.ack === 4).length > 3)
  s.send({ flags: FIN | 16, seq: 4, ack: 1, payload: 'def' })
  assert.deepEqual(taken, ['abc', 'def', 'end'])
})

test('a reset ends the handler; an answer after that goes nowhere', () => {
  const later: (() => void)[] = []
  const service = shouter(later)
  const s = new Script({ world: { listen: { address: PEER, l4port: 80, service } } })
  s.open()
  s.send({ seq: 1, ack: 1, payload: 'x' })
  s.take()
  s.send({ flags: RST, seq: 2 })
  assert.equal(s.state, 'gone')
  assert.deepEqual(service.log, ['accept 0', 'end'])
  for (const answer of later) answer()
  s.world.turn()
  s.none()
})

test('what the service has finished with is reset when the guest neither takes the rest nor closes', () => {
  const s = new Script({ world: { listen: { address: PEER, l4port: 80, service: shouter() } } })
  s.open()
  s.send({ seq: 1, ack: 1, window: 2, payload: 'bye.' })
  s.take(1)
  const { streams, host } = s.world
  s.wait(LINGER - 100)
  s.send({ seq: 5, ack: 3, window: 2 })
  s.take(200)
  // It has taken some just now.
  streams.tick(host.now())
  s.world.turn()
  assert.equal(s.state, 'ESTABLISHED')
  s.send({ seq: 5, ack: 3 })
  assert.ok(s.take(1).some((t) => t.flags & FIN))
  s.send({ seq: 5, ack: 6 })
  assert.equal(s.state, 'FIN-WAIT-2')
  s.wait(LINGER)
  s.take(1)
  streams.tick(host.now())
  s.world.turn()
  assert.equal(s.one().flags, RST | ACK)
  assert.equal(s.state, 'gone')
})

test('answers are bounded: a guest that does not read is not listened to any more, until it reads', () => {
  const s = new Script({ world: { listen: { address: PEER, l4port: 80, service: shouter() } } })
  s.open(0)
  let seq = 1
  let shut = false
  for (let k = 0; k < 400 && !shut; k++) {
    s.send({ seq, ack: 1, window: 0, payload: 'a'.repeat(1000) })
    const t = s.take()
    const before = seq
    seq = t.at(-1)!.ack
    shut = t.at(-1)!.ack === before
  }
  assert.ok(shut)
  assert.ok(seq < 200_000)
  // It reads everything.
  let got = 0
  for (let k = 0; k < 400; k++) {
    const t = s.take(10)
    for (const x of t) if (x.payload !== '') got = Math.max(got, x.seq - 1 + x.payload.length)
    s.send({ seq, ack: 1 + got })
    if (got === seq - 1) break
  }
  assert.equal(got, seq - 1)
  s.send({ seq, ack: 1 + got, payload: 'b' })
  assert.equal(s.take().find((t) => t.payload !== '')?.payload, 'B')
})
