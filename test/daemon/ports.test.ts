import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { clash, mappings, names, parsePorts, parseSpec } from '../../src/daemon/ports.ts'
import { NoidError } from '../../src/errors.ts'

const one = (hostAddress: string, hostPort: number, guestPort: number, proto: 'tcp' | 'udp' = 'tcp') => ({
  proto,
  hostAddress,
  hostPort,
  guestPort,
})

test('mappings as people type them', () => {
  const cases: readonly (readonly [string, ReturnType<typeof one>[]])[] = [
    ['8080:80', [one('*', 8080, 80)]],
    ['8080:80/tcp', [one('*', 8080, 80)]],
    ['53:5353/udp', [one('*', 53, 5353, 'udp')]],
    ['*:8080:80', [one('*', 8080, 80)]],
    ['0.0.0.0:8080:80', [one('0.0.0.0', 8080, 80)]],
    ['[::]:8080:80', [one('::', 8080, 80)]],
    ['[::1]:0:53/udp', [one('::1', 0, 53, 'udp')]],
    ['[2001:DB8:0:0::A]:8000-8001:80-81', [one('2001:db8::a', 8000, 80), one('2001:db8::a', 8001, 81)]],
    ['127.0.0.1:8080:80', [one('127.0.0.1', 8080, 80)]],
    ['localhost:8080:80', [one('127.0.0.1', 8080, 80)]],
    ['8080', [one('*', 8080, 8080)]],
    ['8080/udp', [one('*', 8080, 8080, 'udp')]],
    ['0:80', [one('*', 0, 80)]],
    ['127.0.0.1:0:80', [one('127.0.0.1', 0, 80)]],
    ['8000-8002:9000-9002', [one('*', 8000, 9000), one('*', 8001, 9001), one('*', 8002, 9002)]],
    ['0:90-91', [one('*', 0, 90), one('*', 0, 91)]],
  ]
  for (const [text, expected] of cases) assert.deepEqual(parsePorts([text]), expected, text)
})

test('what is no mapping is refused with the reason', () => {
  const cases: readonly (readonly [string, RegExp])[] = [
    ['', /empty/],
    ['abc', /neither a port/],
    ['80:', /neither a port/],
    [':80', /neither a port/],
    ['-1:80', /neither a port/],
    ['70000:80', /at most 65535/],
    ['80:0', /only the host port alone/],
    ['0', /needs a guest port/],
    ['0-5:0-5', /may be 0/],
    ['80:80/sctp', /tcp or udp/],
    ['80:80/tcp/udp', /tcp or udp/],
    ['::1:80:80', /brackets/],
    ['fe80:1:2:80:80', /brackets/],
    ['[::1]:80', /both ports/],
    ['[::1]', /both ports/],
    ['[::1]8080:80', /both ports/],
    ['[]:80:80', /not an IPv6 address/],
    ['[127.0.0.1]:80:80', /not an IPv6 address/],
    ['[::ffff:127.0.0.1]:80:80', /write it as one/],
    ['[fe80::1]:80:80', /link-local/],
    ['[fe80::1%eth0]:80:80', /zone/],
    ['[::1]:80:80:80', /both ports/],
    ['1:2:3:4', /4 parts/],
    ['127.0.0.1:80:80:80', /4 parts/],
    ['300.1.1.1:80:80', /not an IPv4 address/],
    ['127.0.0.1:80', /both ports/],
    ['8000-8010:9000-9005', /not equally long/],
    ['8000-8010:9000', /not equally long/],
    ['8010-8000:9010-9000', /backwards/],
    ['1-2000:1-2000', /at most 1000/],
    ['1e3:80', /neither a port/],
    ['80 :80', /neither a port/],
  ]
  for (const [text, why] of cases)
    assert.throws(
      () => parsePorts([text]),
      (e) => e instanceof NoidError && e.code === 'PORT_SPEC_INVALID' && why.test(e.message),
      text,
    )
})

test('one host port twice in one VM is refused, unless protocol or address differ', () => {
  assert.throws(() => parsePorts(['80:80', '80:81']), /mapped twice/)
  assert.throws(() => parsePorts(['80:80', '127.0.0.1:80:81']), /mapped twice/)
  assert.throws(() => parsePorts(['85:80'], parsePorts(['80-90:80-90'])), /mapped twice/)
  assert.equal(parsePorts(['80:80', '80:80/udp', '0:80', '0:80']).length, 4)
  assert.equal(parsePorts(['127.0.0.1:80:80', '127.0.0.2:80:80']).length, 2)
  assert.throws(() => parsePorts(['80:80', '[::1]:80:81']), /mapped twice/)
  assert.throws(() => parsePorts(['[::]:80:80', '[::1]:80:81']), /mapped twice/)
  assert.equal(parsePorts(['0.0.0.0:80:80', '[::]:80:80']).length, 2)
  assert.equal(parsePorts(['127.0.0.1:80:80', '[::1]:80:80']).length, 2)
})

const port = fc.integer({ min: 1, max: 65535 })
const anyPublish = fc.record(
  {
    proto: fc.constantFrom('tcp' as const, 'udp' as const),
    hostAddress: fc.constantFrom('*', '0.0.0.0', '127.0.0.1', '10.0.0.7', '::', '::1', 'fd00::7'),
    hostPort: port,
    guestPort: port,
  },
  { noNullPrototype: true },
)

test('a mapping is the same after text and back, and its text names it', () => {
  fc.assert(
    fc.property(anyPublish, (p) => {
      const host = p.hostAddress.includes(':') ? `[${p.hostAddress}]` : p.hostAddress
      const text = `${host}:${p.hostPort}:${p.guestPort}/${p.proto}`
      assert.deepEqual(mappings(parseSpec(text)), [p])
      assert.ok(names(parseSpec(text), p))
      assert.ok(names(parseSpec(`${p.hostPort}/${p.proto}`), p))
      assert.ok(!names(parseSpec(`${(p.hostPort % 65535) + 1}/${p.proto}`), p))
    }),
  )
})

test('clash is symmetric, and a mapping clashes with itself', () => {
  fc.assert(fc.property(anyPublish, anyPublish, (p, q) => clash(p, p) && clash(p, q) === clash(q, p)))
})

test('whatever is typed gives mappings or PORT_SPEC_INVALID', () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'0123456789-:/.[]tcpudx ') }), (text) => {
      try {
        for (const p of parsePorts([text])) assert.ok(p.guestPort >= 1 && p.guestPort <= 65535 && p.hostPort <= 65535)
      } catch (e) {
        assert.ok(e instanceof NoidError && e.code === 'PORT_SPEC_INVALID')
      }
    }),
  )
})
