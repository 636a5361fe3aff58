import assert from 'node:assert/strict'
import { SocketAddress } from 'node:net'
import { test } from 'node:test'
import fc from 'fast-check'
import { Address, endpointText, parseIp, parsePrefix64 } from '../../../src/netstack/wire/address.ts'

const word = fc.oneof(
  fc.constant(0),
  fc.constant(0x10000),
  fc.constant(1),
  fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
)

test('the text of any address reads as the same address, and is what the system writes', () => {
  fc.assert(
    fc.property(word, word, word, word, (...w) => {
      const a = new Address().set(...w)
      const text = `${a}`
      assert.ok(parseIp(text).equals(a), text)
      const b = new Uint8Array(16)
      a.write(b, 0)
      assert.ok(new Address().read(b, 0).equals(a))
      // The system writes addresses that hold an IPv4 one with dots; RFC 5952 §5 leaves that to those who know the prefix.
      if (a.family === 6 && (w[0] | w[1] | (w[2] & ~0xffff)) !== 0)
        assert.equal(new SocketAddress({ family: 'ipv6', address: text }).address, text)
    }),
    { numRuns: 2000 },
  )
})

test('RFC 5952: no leading zeros, the longest run of zeros, the first of equals, never a single one', () => {
  const said = (text: string) => `${parseIp(text)}`
  assert.equal(said('2001:0DB8:0000:0000:0000:0000:0002:0001'), '2001:db8::2:1')
  assert.equal(said('2001:db8:0:1:1:1:1:1'), '2001:db8:0:1:1:1:1:1')
  assert.equal(said('2001:0:0:1:0:0:0:1'), '2001:0:0:1::1')
  assert.equal(said('2001:db8:0:0:1:0:0:1'), '2001:db8::1:0:0:1')
  assert.equal(said('::'), '::')
  assert.equal(said('1::'), '1::')
  assert.equal(said('::ffff:10.0.0.1'), '10.0.0.1')
  assert.equal(said('64:ff9b::192.0.2.33'), '64:ff9b::c000:221')
  assert.equal(endpointText(0, 0, 0xffff, 0x0a000001, 80), '10.0.0.1:80')
  assert.equal(endpointText(0xfd000006 | 0, 0, 0, 1, 443), '[fd00:6::1]:443')
})

test('what is no address is refused', () => {
  for (const text of [':', ':::', '1:2:3:4:5:6:7', '1:2:3:4:5:6:7:8:9', '1::2::3', '12345::', 'g::', '1:2:3:4:5:6:7::8', 'fe80::1%eth0', '::1.2.3', '::1.2.3.4.5', '::256.0.0.1', '1.2.3.4:', '']) // biome-ignore format: a list
    assert.throws(() => parseIp(text), RangeError, text)
  for (const text of ['fd00::/48', 'fd00::', '10.0.0.0/24', 'fd00::/640'])
    assert.throws(() => parsePrefix64(text), RangeError, text)
  assert.deepEqual(parsePrefix64('fd00:6::1/64'), { p0: 0xfd000006 | 0, p1: 0 })
})
