/**
 * Every setter/getter pair, as properties: a field holds what was put in, its neighbours keep what they had, and nothing outside the
 * header is touched. What is text at the edges comes back as the same text.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import * as arp from '../../../src/netstack/wire/arp.ts'
import { finish, fold, pseudo4, pseudo6, sum, update } from '../../../src/netstack/wire/checksum.ts'
import * as eth from '../../../src/netstack/wire/ethernet.ts'
import * as icmp from '../../../src/netstack/wire/icmp.ts'
import * as ip from '../../../src/netstack/wire/ipv4.ts'
import * as ip6 from '../../../src/netstack/wire/ipv6.ts'
import * as tcp from '../../../src/netstack/wire/tcp.ts'
import * as udp from '../../../src/netstack/wire/udp.ts'
import * as vnet from '../../../src/netstack/wire/vnet.ts'

type Get = (b: Uint8Array, o: number) => number
type Set = (b: Uint8Array, o: number, v: never) => void
const u8 = fc.integer({ min: 0, max: 255 })
const u16 = fc.integer({ min: 0, max: 65535 })
const i32 = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 })

/** name, length of the header, field's bytes [from, to), getter, setter, values */
const FIELDS: readonly (readonly [string, number, number, number, Get, Set, fc.Arbitrary<number>])[] = [
  ['ethernet type', 14, 12, 14, eth.type, eth.setType, u16],
  ['ipv4 total length', 20, 2, 4, ip.totalLength, ip.setTotalLength, u16],
  ['ipv4 id', 20, 4, 6, ip.id, ip.setId, u16],
  ['ipv4 ttl', 20, 8, 9, ip.ttl, ip.setTtl, u8],
  ['ipv4 checksum', 20, 10, 12, ip.checksum, ip.setChecksum, u16],
  ['ipv6 payload length', 40, 4, 6, ip6.payloadLength, ip6.setPayloadLength, u16],
  ['ipv4 src', 20, 12, 16, ip.src, ip.setSrc, i32],
  ['ipv4 dst', 20, 16, 20, ip.dst, ip.setDst, i32],
  ['icmp type', 8, 0, 1, icmp.type, icmp.setType, u8],
  ['icmp code', 8, 1, 2, icmp.code, icmp.setCode, u8],
  ['icmp checksum', 8, 2, 4, icmp.checksum, icmp.setChecksum, u16],
  ['icmp id', 8, 4, 6, icmp.id, icmp.setId, u16],
  ['icmp sequence', 8, 6, 8, icmp.sequence, icmp.setSequence, u16],
  ['icmp info', 8, 4, 8, icmp.info, icmp.setInfo, i32],
  ['udp source', 8, 0, 2, udp.srcPort, udp.setSrcPort, u16],
  ['udp destination', 8, 2, 4, udp.dstPort, udp.setDstPort, u16],
  ['udp length', 8, 4, 6, udp.length, udp.setLength, u16],
  ['udp checksum', 8, 6, 8, udp.checksum, udp.setChecksum, u16],
  ['tcp source', 20, 0, 2, tcp.srcPort, tcp.setSrcPort, u16],
  ['tcp destination', 20, 2, 4, tcp.dstPort, tcp.setDstPort, u16],
  ['tcp seq', 20, 4, 8, tcp.seq, tcp.setSeq, i32],
  ['tcp ack', 20, 8, 12, tcp.ack, tcp.setAck, i32],
  [
    'tcp header length',
    20,
    12,
    13,
    tcp.headerLength,
    tcp.setHeaderLength,
    fc.integer({ min: 5, max: 15 }).map((n) => n * 4),
  ],
  ['tcp flags', 20, 13, 14, tcp.flags, tcp.setFlags, u8],
  ['tcp window', 20, 14, 16, tcp.window, tcp.setWindow, u16],
  ['tcp checksum', 20, 16, 18, tcp.checksum, tcp.setChecksum, u16],
  ['tcp urgent', 20, 18, 20, tcp.urgent, tcp.setUrgent, u16],
  ['vnet flags', 10, 0, 1, vnet.flags, vnet.setFlags, u8],
  ['vnet gso type', 10, 1, 2, vnet.gsoType, vnet.setGsoType, u8],
  ['vnet header length', 10, 2, 4, vnet.headerLength, vnet.setHeaderLength, u16],
  ['vnet gso size', 10, 4, 6, vnet.gsoSize, vnet.setGsoSize, u16],
  ['vnet csum start', 10, 6, 8, vnet.csumStart, vnet.setCsumStart, u16],
  ['vnet csum offset', 10, 8, 10, vnet.csumOffset, vnet.setCsumOffset, u16],
]

for (const [name, length, from, to, get, set, values] of FIELDS)
  test(`${name}: what is set is got, and nothing else changes`, () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: length + 16, maxLength: length + 16 }), fc.nat(8), values, (b, o, v) => {
        const before = b.slice()
        set(b, o, v as never)
        assert.equal(get(b, o), v)
        for (let i = 0; i < b.length; i++)
          if (i < o + from || i >= o + to) assert.equal(b[i], before[i], `byte ${i - o}`)
      }),
      { numRuns: 50 },
    )
  })

test('ipv4 fragment field', () => {
  fc.assert(
    fc.property(fc.nat(8191), fc.boolean(), fc.boolean(), (unit, df, mf) => {
      const b = new Uint8Array(20)
      ip.setFragment(b, 0, unit * 8, (df ? ip.DF : 0) | (mf ? ip.MF : 0))
      assert.deepEqual([ip.fragmentOffset(b, 0), ip.dontFragment(b, 0), ip.moreFragments(b, 0)], [unit * 8, df, mf])
    }),
  )
})

test('MAC addresses: both halves, and text', () => {
  fc.assert(
    fc.property(u16, i32, (hi, lo) => {
      const b = new Uint8Array(14)
      eth.setDst(b, 0, hi, lo)
      eth.setSrc(b, 0, ~hi & 0xffff, ~lo)
      assert.deepEqual(
        [eth.dstHi(b, 0), eth.dstLo(b, 0), eth.srcHi(b, 0), eth.srcLo(b, 0)],
        [hi, lo, ~hi & 0xffff, ~lo],
      )
      assert.deepEqual(eth.parseMac(eth.macText(hi, lo)), { hi, lo })
    }),
  )
  for (const bad of ['', '02:00:00:00:00', '02:00:00:00:00:0g', '020000000001', '02-00-00-00-00-01'])
    assert.throws(() => eth.parseMac(bad), RangeError)
})

test('IPv4 addresses and subnets as text', () => {
  fc.assert(fc.property(i32, (a) => assert.equal(ip.parseAddress(ip.addressText(a)), a)))
  for (const bad of ['', '1.2.3', '1.2.3.256', '1.2.3.4.5', 'a.b.c.d', '1.2.3.-4'])
    assert.throws(() => ip.parseAddress(bad), RangeError)
  assert.deepEqual(ip.parseSubnet('192.168.100.7/24'), { base: ip.parseAddress('192.168.100.0'), mask: -256, bits: 24 })
  assert.deepEqual(ip.parseSubnet('1.2.3.4/0'), { base: 0, mask: 0, bits: 0 })
  for (const bad of ['1.2.3.4', '1.2.3.4/33', '1.2.3.4/x']) assert.throws(() => ip.parseSubnet(bad), RangeError)
})

test('ARP body', () => {
  fc.assert(
    fc.property(u16, i32, i32, u16, i32, i32, (shaHi, shaLo, spa, thaHi, thaLo, tpa) => {
      const b = new Uint8Array(arp.ARP)
      arp.write(b, 0, arp.REPLY, shaHi, shaLo, spa, thaHi, thaLo, tpa)
      assert.ok(arp.valid(b, 0))
      assert.deepEqual(
        [arp.op(b, 0), arp.senderHi(b, 0), arp.senderLo(b, 0), arp.senderIp(b, 0)],
        [arp.REPLY, shaHi, shaLo, spa],
      )
      assert.deepEqual([arp.targetHi(b, 0), arp.targetLo(b, 0), arp.targetIp(b, 0)], [thaHi, thaLo, tpa])
    }),
  )
})

// -- checksum ---------------------------------------------------------------------------------------------------------

function naive(b: Uint8Array, off: number, len: number): number {
  let s = 0
  for (let i = 0; i < len; i++) {
    s += i & 1 ? b[off + i] : b[off + i] << 8
    s = (s & 0xffff) + (s >>> 16)
  }
  return s
}

test('sum agrees with RFC 1071’s definition at every offset and length', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 0, maxLength: 400 }), fc.nat(9), fc.nat(7), (b, skip, tail) => {
      const off = Math.min(skip, b.length)
      const len = Math.max(0, b.length - off - tail)
      assert.equal(fold(sum(b, off, len, 0)) % 0xffff, naive(b, off, len) % 0xffff)
    }),
    { numRuns: 2000 },
  )
})

test('sum of 64 KiB of ones does not overflow, and adds to what it is given', () => {
  const b = new Uint8Array(68 * 1024).fill(0xff)
  for (const off of [0, 1, 2, 3]) assert.equal(fold(sum(b, off, 65535 - off, 0xffff)), naive(b, off, 65535 - off))
})

test('sums over views that begin anywhere in their buffer', () => {
  const whole = Uint8Array.from({ length: 300 }, (_, i) => i * 7)
  for (let begin = 0; begin < 5; begin++) {
    const b = whole.subarray(begin)
    assert.equal(fold(sum(b, 3, 200, 0)) % 0xffff, naive(b, 3, 200) % 0xffff)
  }
})

test('update (RFC 1624) gives what computing anew gives', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 20, maxLength: 20 }), u16, (b, value) => {
      b[0] = 0x45
      ip.seal(b, 0)
      const before = ip.totalLength(b, 0)
      const updated = update(ip.checksum(b, 0), before, value)
      ip.setTotalLength(b, 0, value)
      ip.setChecksum(b, 0, updated)
      assert.ok(ip.sound(b, 0))
    }),
  )
})

test('hop: TTL less one, the checksum still right', () => {
  for (let ttl = 2; ttl < 256; ttl++) {
    const b = new Uint8Array(20)
    ip.write(b, 0, 20, ttl * 77, 0, ttl, 17, ttl * 12345, -ttl)
    ip.hop(b, 0)
    assert.equal(ip.ttl(b, 0), ttl - 1)
    assert.ok(ip.sound(b, 0))
  }
})

test('the pseudo header’s sum is that of its bytes', () => {
  fc.assert(
    fc.property(i32, i32, u8, u16, (src, dst, proto, len) => {
      const b = new Uint8Array(12)
      const v = new DataView(b.buffer)
      v.setInt32(0, src)
      v.setInt32(4, dst)
      b[9] = proto
      v.setUint16(10, len)
      assert.equal(fold(pseudo4(src, dst, proto, len)), fold(sum(b, 0, 12, 0)))
    }),
  )
  assert.equal(finish(0xffff), 0)
})

// -- TCP --------------------------------------------------------------------------------------------------------------

test('sequence arithmetic wraps around', () => {
  fc.assert(
    fc.property(i32, fc.integer({ min: 1, max: 2 ** 31 - 1 }), (start, n) => {
      const a = start as tcp.Seq
      const b = tcp.seqAdd(a, n)
      assert.equal(tcp.seqDiff(b, a), n)
      assert.ok(tcp.seqLt(a, b) && tcp.seqLe(a, b) && tcp.seqLe(a, a) && tcp.seqGt(b, a) && tcp.seqGe(b, a))
      assert.ok(!tcp.seqLt(b, a) && !tcp.seqLt(a, a))
      assert.deepEqual([tcp.seqMax(a, b), tcp.seqMin(a, b)], [b, a])
    }),
  )
})

test('options: what is written is read', () => {
  fc.assert(
    fc.property(u16, fc.integer({ min: 0, max: 14 }), i32, i32, (mss, shift, value, echo) => {
      const b = new Uint8Array(60)
      let at = tcp.putMss(b, tcp.TCP, mss)
      at = tcp.putScale(b, at, shift)
      at = tcp.putSackPermitted(b, at)
      at = tcp.putTimestamps(b, at, value, echo)
      tcp.setHeaderLength(b, 0, at)
      tcp.readOptions(b, 0)
      const { sackAt: _, ...read } = tcp.options
      assert.deepEqual(read, {
        mss,
        scale: shift,
        sackPermitted: true,
        timestamps: true,
        tsValue: value,
        tsEcho: echo,
        sackBlocks: 0,
      })
    }),
  )
})

test('options of any bytes are read without an end beyond the header', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 60, maxLength: 60 }), (b) => {
      tcp.readOptions(b, 0)
      assert.ok(tcp.options.scale <= 14)
      assert.ok(tcp.options.sackAt + tcp.options.sackBlocks * 8 <= Math.max(tcp.headerLength(b, 0), 0))
    }),
    { numRuns: 2000 },
  )
})

test('IPv6: what is written is read, and the pseudo header sums what it is made of', () => {
  const words = fc.tuple(i32, i32, i32, i32)
  fc.assert(
    fc.property(words, words, u16, u8, u8, i32, (s, d, payload, next, hops, id) => {
      const b = new Uint8Array(48)
      ip6.write(b, 0, payload, next, hops)
      ip6.setSrc(b, 0, ...s)
      ip6.setDst(b, 0, ...d)
      const offset = payload & 0xfff8
      ip6.writeFragment(b, 40, next, offset, (id & 1) === 1, id)
      assert.deepEqual(
        [ip6.version(b, 0), ip6.payloadLength(b, 0), ip6.nextHeader(b, 0), ip6.hopLimit(b, 0)],
        [6, payload, next, hops],
      )
      for (let n = 0; n < 4; n++) assert.deepEqual([ip6.src(b, 0, n), ip6.dst(b, 0, n)], [s[n], d[n]])
      assert.deepEqual(
        [ip6.fragmentNext(b, 40), ip6.fragmentOffset(b, 40), ip6.moreFragments(b, 40), ip6.fragmentId(b, 40)],
        [next, offset, (id & 1) === 1, id],
      )
      // RFC 8200 §8.1: addresses, a 32-bit length, three zero bytes and the next header.
      const header = new Uint8Array(40)
      header.set(b.subarray(8, 40))
      new DataView(header.buffer).setUint32(32, payload)
      header[39] = next
      assert.equal(fold(pseudo6(b, 0, next, payload)), fold(sum(header, 0, 40, 0)))
    }),
  )
})

test('the identifier that SLAAC makes of a MAC (RFC 4291 appendix A)', () => {
  const { hi, lo } = eth.parseMac('34:56:78:9a:bc:de')
  const id = [ip6.eui64Upper(hi, lo), ip6.eui64Lower(lo)].map((w) => (w >>> 0).toString(16).padStart(8, '0')).join('')
  assert.equal(id, '365678fffe9abcde')
})
