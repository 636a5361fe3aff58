import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Received, type Station, TestNet, tcp, udp } from '../net.ts'

const pair = () => {
  const net = new TestNet()
  return { web: net.vm('web'), old: net.vm('old', { offload: false }) }
}
const joined = (parts: Received[]) => Buffer.concat(parts.map((r) => (r.tcp ?? r.udp)!.data)).toString('hex')
const bytes = (n: number) => new Uint8Array(n).map((_, i) => i * 7)
const to = (s: Station) => ({ to: `${s.ip}:80`, dstMac: s.mac })

test('TCP of any length and segment size, IP options or none: the same bytes, each segment within the size', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 30_000 }),
      fc.integer({ min: 48, max: 9000 }),
      fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
      fc.boolean(),
      fc.integer({ min: 0, max: 0xffff }),
      (len, segment, seq, padded, id) => {
        const { web, old } = pair()
        const options = padded ? Uint8Array.of(1, 1, 1, 0) : undefined
        web.send(tcp({ ...to(old), data: bytes(len), segment, seq, id, options, flags: 0x99 }))
        const parts = old.take()
        assert.equal(joined(parts), Buffer.from(bytes(len)).toString('hex'))
        assert.equal(parts.length, Math.ceil(len / segment))
        let next = seq
        parts.forEach((r, n) => {
          assert.ok(r.tcp!.data.length <= segment)
          assert.equal(r.tcp!.seq, next)
          next = (next + r.tcp!.data.length) | 0
          const last = n === parts.length - 1
          // CWR on the first, FIN and PSH on the last.
          assert.equal(r.tcp!.flags, 0x10 | (n === 0 ? 0x80 : 0) | (last ? 0x09 : 0))
          assert.equal(r.ip!.id, (id + n) & 0xffff)
        })
      },
    ),
    { numRuns: 60 },
  )
})

test('UDP of any length and segment size', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 100 }),
      fc.integer({ min: 1, max: 1472 }),
      fc.integer({ min: 1, max: 64 }),
      (rest, segment, count) => {
        const { web, old } = pair()
        const len = Math.min(60_000, segment * (count - 1) + Math.min(rest, segment))
        web.send(udp({ ...to(old), data: bytes(len), segment }))
        const parts = old.take()
        assert.equal(joined(parts), Buffer.from(bytes(len)).toString('hex'))
        assert.deepEqual(
          parts.map((r) => r.udp!.data.length),
          parts.map((_, n) => (n < parts.length - 1 ? segment : len - segment * n)),
        )
      },
    ),
    { numRuns: 60 },
  )
})

test('the frame itself stays as it was: others of a flood get it whole', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const old = net.vm('old', { offload: false })
  const db = net.vm('db')
  web.send(udp({ to: '239.1.1.1:9', dstMac: '01:00:5e:01:01:01', data: bytes(3000), segment: 1000 }))
  assert.equal(old.take().length, 3)
  assert.deepEqual(
    db.take().map((r) => [r.gso?.size, r.udp?.data.length]),
    [[1000, 3000]],
  )
})
