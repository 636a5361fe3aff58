/** What a capture looks like for a person: blocks in pieces of any size, frames that a guest wrote with ill will. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { address6 } from '../../src/cli/capture/ipv6.ts'
import { describe } from '../../src/cli/capture/packet.ts'
import { type CapturedFrame, CaptureReader } from '../../src/cli/capture/pcapng.ts'
import { Capture } from '../../src/netstack/trace/capture.ts'
import { INBOUND, OUTBOUND } from '../../src/netstack/trace/pcapng.ts'

const AT = 1_700_000_000_123_456
const NAMES = ['web', 'db']

/** A file as the data plane writes it; its last frames do not fit and are missed. */
function file(): Buffer {
  const capture = new Capture({ only: -1, ring: 2048, clock: () => AT, describe: (p) => NAMES[p] as string })
  capture.frame(0, INBOUND, Buffer.alloc(60, 1), 0, 60, Buffer.from('guard-arp: it speaks for another’s address'))
  capture.frame(1, OUTBOUND, Buffer.alloc(60, 2), 0, 60, undefined)
  for (let i = 0; i < 3; i++) capture.frame(1, INBOUND, Buffer.alloc(1200, 3), 0, 1200, undefined)
  const parts: Buffer[] = []
  for (let p = capture.pending(); p.length > 0; p = capture.pending()) {
    parts.push(Buffer.from(p))
    capture.taken(p.length)
  }
  return Buffer.concat(parts)
}

test('a capture is read the same in pieces of any size, and every byte is given on', () => {
  const whole = file()
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 900 }), { minLength: 1 }), (sizes) => {
      const read = new CaptureReader()
      const frames: CapturedFrame[] = []
      const out: Buffer[] = []
      for (let at = 0, i = 0; at < whole.length; i++) {
        const size = sizes[i % sizes.length] as number
        out.push(
          read.push(whole.subarray(at, at + size), Infinity, (f) => frames.push({ ...f, bytes: Buffer.from(f.bytes) })),
        )
        at += size
      }
      assert.deepEqual(Buffer.concat(out), whole)
      assert.equal(read.captured, 3)
      assert.equal(read.missed, 2)
      const { bytes, ...first } = frames[0] as CapturedFrame
      assert.deepEqual(first, {
        at: AT,
        port: 'web',
        direction: 'sent',
        length: 60,
        refused: 'guard-arp: it speaks for another’s address',
      })
      assert.deepEqual(bytes, Buffer.alloc(60, 1))
      assert.deepEqual(
        frames.slice(1).map((f) => [f.port, f.direction, f.refused]),
        [
          ['db', 'received', undefined],
          ['db', 'sent', undefined],
        ],
      )
    }),
  )
})

test('a limit ends it behind a whole block', () => {
  const read = new CaptureReader()
  const whole = file()
  const kept = read.push(whole, 1)
  assert.equal(read.captured, 1)
  assert.ok(kept.length < whole.length)
  assert.equal(
    kept.readUInt32LE(kept.length - 4),
    kept.readUInt32LE(kept.length - kept.readUInt32LE(kept.length - 4) + 4),
  )
})

const ETH = '020000000001 020000000002'
const ip4 = (proto: string, l4: string, length = '0054'): string =>
  `${ETH} 0800 4500${length}00004000 40${proto}0000 c0a86464 08080808 ${l4}`

const FROM6 = 'fd120000000000010000000000000100'
const TO6 = '20010db8000000000000000000000034'
const ip6 = (next: string, payload: string, length = (payload.replaceAll(' ', '').length / 2).toString(16)): string =>
  `${ETH} 86dd 60000000 ${length.padStart(4, '0')} ${next} 40 ${FROM6} ${TO6} ${payload}`
const PREFIX = `0304 40c0 00000e10 00000e10 00000000 ${'fd120000000000010000000000000000'}`

for (const [hex, said] of [
  [
    `${ETH} 0806 0001080006040001 020000000002 c0a86464 000000000000 c0a86401`,
    'arp who has 192.168.100.1, asks 192.168.100.100',
  ],
  [
    `${ETH} 0806 0001080006040002 020000000002 c0a86464 000000000000 c0a86401`,
    'arp 192.168.100.100 is at 02:00:00:00:00:02',
  ],
  [ip4('01', '0800000000070003'), '192.168.100.100 > 8.8.8.8 ping 3'],
  [ip4('01', '030a000000000000'), '192.168.100.100 > 8.8.8.8 icmp unreachable: code 10'],
  [ip4('06', '9c400050 00000000 00000000 5012ffff00000000', '0028'), '192.168.100.100:40000 > 8.8.8.8:80 tcp SYN ACK'],
  [
    ip4('06', '9c400050 00000000 00000000 5018ffff00000000', '0054'),
    '192.168.100.100:40000 > 8.8.8.8:80 tcp PSH ACK 44 bytes',
  ],
  [
    ip4('11', '9c400035 00000000 000101000001000000000000 07 6578616d706c65 03 636f6d 00 0001 0001'),
    '192.168.100.100:40000 > 8.8.8.8:53 dns A example.com?',
  ],
  [
    ip4('11', '00359c40 00000000 000181830001000000000000 03 1b5b4a 00 001c 0001'),
    '192.168.100.100:53 > 8.8.8.8:40000 dns AAAA ?[J: NXDOMAIN',
  ],
  [ip4('2f', '0000000000000000'), '192.168.100.100 > 8.8.8.8 ip protocol 47'],
  [ip6('3a', '8000000000070003'), 'fd12:0:0:1::100 > 2001:db8::34 ping 3'],
  [ip6('3a', '0104000000000000'), 'fd12:0:0:1::100 > 2001:db8::34 icmpv6 unreachable: port'],
  [ip6('3a', '0200000000000578'), 'fd12:0:0:1::100 > 2001:db8::34 icmpv6 too big: mtu 1400'],
  [ip6('3a', '8500000000000000'), 'fd12:0:0:1::100 > 2001:db8::34 router solicitation'],
  [
    ip6('3a', `86000000 40c00708 00000000 00000000 0101020000000001 ${PREFIX}`),
    'fd12:0:0:1::100 > 2001:db8::34 router advertisement: fd12:0:0:1::/64',
  ],
  [ip6('3a', `8700000000000000 ${TO6}`), 'fd12:0:0:1::100 > 2001:db8::34 who has 2001:db8::34'],
  [ip6('3a', `8800000060000000 ${FROM6}`), 'fd12:0:0:1::100 > 2001:db8::34 fd12:0:0:1::100 is here'],
  [
    ip6('06', '9c400050 00000000 00000000 5018ffff00000000', '0040'),
    '[fd12:0:0:1::100]:40000 > [2001:db8::34]:80 tcp PSH ACK 44 bytes',
  ],
  [ip6('11', '02220223 00000000 01000001'), '[fd12:0:0:1::100]:546 > [2001:db8::34]:547 dhcpv6 SOLICIT'],
  [ip6('3c', '3a00010400000000 8000000000070003'), 'fd12:0:0:1::100 > 2001:db8::34 ping 3'],
  [ip6('2c', '11000100 00000001 00'), 'fd12:0:0:1::100 > 2001:db8::34 fragment at 256'],
  [ip6('3c', '3c00010400000000 '.repeat(8)), 'fd12:0:0:1::100 > 2001:db8::34 ipv6 with more than 6 extension headers'],
  [ip6('00', '3aff'), 'fd12:0:0:1::100 > 2001:db8::34 ipv6, short'],
  [`${ETH} 88cc 00`, '02:00:00:00:00:02 > 02:00:00:00:00:01 ethertype 0x88cc'],
  ['0200', 'short frame'],
] as const)
  test(`a line: ${said}`, () => assert.equal(describe(Buffer.from(hex.replaceAll(' ', ''), 'hex')), said))

test('an address is written as the URL standard writes it', () => {
  const word = fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 0xffff }))
  fc.assert(
    fc.property(fc.array(word, { minLength: 8, maxLength: 8 }), (words) => {
      const b = Buffer.alloc(16)
      for (const [i, w] of words.entries()) b.writeUInt16BE(w, 2 * i)
      const url = new URL(`http://[${words.map((w) => w.toString(16)).join(':')}]/`)
      assert.equal(`[${address6(b, 0)}]`, url.hostname)
    }),
  )
})

test('no frame is too strange for a line, and no line moves the terminal', () => {
  const types = fc.constantFrom('0800', '0806', '86dd')
  const body = fc.uint8Array({ maxLength: 400 })
  fc.assert(
    fc.property(types, fc.constantFrom(1, 6, 17), fc.constantFrom(53, 67, 80), body, (type, proto, port, bytes) => {
      const b = Buffer.concat([Buffer.from(ETH.replace(' ', '') + type, 'hex'), bytes])
      if (type === '86dd' && bytes.length > 50) {
        b[14] = 0x60
        b[20] = bytes[0]! % 2 === 0 ? 58 : 60
        b[54] = bytes[1]! % 2 === 0 ? 58 : 17
      }
      if (type === '0800' && bytes.length > 24) {
        b[14] = 0x45
        b[23] = proto
        b.writeUInt16BE(0, 20)
        b.writeUInt16BE(port, 36)
      }
      // biome-ignore lint/suspicious/noControlCharactersInRegex: what must not be there
      assert.doesNotMatch(describe(b), /[\x00-\x1f\x7f-\x9f]/)
    }),
    { numRuns: 2000 },
  )
})
