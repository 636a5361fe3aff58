import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Arena } from '../../../src/netstack/arena.ts'
import { SoftwareOffload } from '../../../src/netstack/switch/segment.ts'
import * as vnet from '../../../src/netstack/wire/vnet.ts'
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

test('IPv6: TCP and UDP of any length, behind extension headers or none: whole, in order, each checksum right', () => {
  const arena = new Arena(new ArrayBuffer(1 << 20))
  const offload = new SoftwareOffload(arena)
  const off = arena.slot()
  const b = arena.bytes
  const naive = (at: number, len: number, initial: number): number => {
    let s = initial
    for (let i = 0; i < len; i++) s += i % 2 === 0 ? (b[at + i] as number) << 8 : (b[at + i] as number)
    while (s > 0xffff) s = (s & 0xffff) + Math.floor(s / 0x10000)
    return s
  }
  fc.assert(
    fc.property(
      fc.boolean(),
      fc.boolean(),
      fc.integer({ min: 1, max: 40_000 }),
      fc.integer({ min: 400, max: 1440 }),
      (isTcp, extended, len, size) => {
        const proto = isTcp ? 6 : 17
        const l4 = 14 + 40 + (extended ? 8 : 0)
        const header = l4 + (isTcp ? 20 : 8)
        b.fill(0, off - 10, off + header)
        b.set([0x86, 0xdd, 0x60], off + 12)
        b[off + 20] = extended ? 60 : proto
        for (let i = 0; i < 32; i++) b[off + 22 + i] = i * 11
        if (extended) b[off + 54] = proto
        const payload = header - 54 + len
        b[off + 18] = payload >>> 8
        b[off + 19] = payload
        if (isTcp) b.set([0, 80, 0, 81, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0x50, 0x19], off + l4)
        for (let i = 0; i < len; i++) b[off + header + i] = i * 7
        vnet.write(b, off - 10, 1, isTcp ? vnet.GSO_TCPV6 : vnet.GSO_UDP_L4, header, size, l4, isTcp ? 16 : 6)
        let done = 0
        const port = {
          offload: false,
          flush: () => {},
          transmit(at: number, n: number): number {
            const part = n - header
            assert.equal(part, Math.min(size, len - done))
            assert.equal(((b[at + 18] as number) << 8) | (b[at + 19] as number), n - 54)
            assert.equal(naive(at + l4, n - l4, naive(at + 22, 32, proto + n - l4)), 0xffff, 'checksum')
            if (isTcp)
              assert.equal((b[at + l4 + 7] as number) | ((b[at + l4 + 6] as number) << 8), (0xff00 + done) & 0xffff)
            else assert.equal(((b[at + l4 + 4] as number) << 8) | (b[at + l4 + 5] as number), 8 + part)
            for (let i = 0; i < part; i++) assert.equal(b[at + header + i], ((done + i) * 7) & 255)
            done += part
            return n
          },
        }
        assert.equal(offload.transmit(port, off, header + len), 0)
        assert.equal(done, len)
      },
    ),
    { numRuns: 60 },
  )
})
