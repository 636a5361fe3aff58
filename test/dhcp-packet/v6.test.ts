/** DHCPv6: what real clients send, byte for byte; every value there and back; any bytes at all. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import {
  type Address6,
  DhcpError,
  decode,
  duidLinkLayer,
  encode,
  encodingLength,
  type Options6,
  optionCodes6,
  type Packet6,
} from '#dhcp-packet/v6'

const seed = 20261124
const hex = (s: string): Uint8Array => Uint8Array.from(Buffer.from(s.replaceAll(/\s/g, ''), 'hex'))
const plain = { noNullPrototype: true } as const

describe('known messages', () => {
  // dhclient 4.4 -6, as tcpdump saw it: client id, option request 23 24 39 31, elapsed time, IA_NA without times.
  const solicit = hex(`01 0f1e2d
    0001 000e 000100012c3d4e5f020000000010
    0006 0008 0017001800270016
    0008 0002 0000
    0003 000c 000000100000000000000000`)

  test('a SOLICIT is read', () => {
    assert.deepEqual(decode(solicit), {
      type: 'SOLICIT',
      transactionId: 0x0f1e2d,
      options: {
        clientId: hex('000100012c3d4e5f020000000010'),
        optionRequest: [23, 24, 39, 22],
        elapsedTime: 0,
        ia: [{ iaid: 16, t1: 0, t2: 0, addresses: [] }],
      },
    })
    assert.equal(decode.bytes, solicit.length)
  })

  test('a REPLY is written as the RFC lays it out', () => {
    const reply: Packet6 = {
      type: 'REPLY',
      transactionId: 0xabcdef,
      options: {
        clientId: hex('00030001020000000010'),
        serverId: duidLinkLayer('02:6e:c0:a8:64:01'),
        ia: [
          {
            iaid: 1,
            t1: 300,
            t2: 480,
            addresses: [{ address: 'fd00:1:2:3::10', preferred: 600, valid: 600 }],
            status: { code: 0, message: 'ok' },
          },
        ],
        dnsServers: ['fd00:1:2:3::2'],
        searchDomains: ['noid.internal', 'a'],
      },
    }
    const bytes = encode(reply)
    assert.deepEqual(
      bytes,
      hex(`07 abcdef
        0001 000a 00030001020000000010
        0002 000a 00030001026ec0a86401
        0003 0030 00000001 0000012c 000001e0
          0005 0018 fd000001000200030000000000000010 00000258 00000258
          000d 0004 0000 6f6b
        0017 0010 fd000001000200030000000000000002
        0018 0012 046e6f696408696e7465726e616c00 016100`),
    )
    assert.equal(encodingLength(reply), bytes.length)
    assert.deepEqual(decode(bytes), reply)
  })

  test('what is not of its type comes raw, and so does a second one', () => {
    const { options } = decode(
      hex(`01 000001  0008 0001 00  0001 0003 000401  0001 0004 00040102  000e 0001 00  ffff 0000`),
    )
    assert.deepEqual(options, {
      clientId: hex('000401'),
      other: [
        { code: 8, data: hex('00') },
        { code: 1, data: hex('00040102') },
        { code: 14, data: hex('00') },
        { code: 0xffff, data: hex('') },
      ],
    })
    // An association in which an address is cut short.
    const ia = decode(hex('03 000001 0003 0012 00000001 00000000 00000000 0005 0002 ffff')).options
    assert.deepEqual(Object.keys(ia), ['other'])
  })

  test('refused: too short, a relay, an option past the end, values that cannot be', () => {
    for (const [bytes, code] of [
      ['', 'ERR_DHCP_SHORT'],
      ['010000', 'ERR_DHCP_SHORT'],
      ['0c000000', 'ERR_DHCP_FIELD'],
      ['00000000', 'ERR_DHCP_FIELD'],
      ['0100000100', 'ERR_DHCP_OPTION'],
      ['01000001 0001 0004 0102', 'ERR_DHCP_OPTION'],
    ] as const)
      assert.throws(() => decode(hex(bytes)), { name: 'DhcpError', code }, bytes)
    const message = (options: Options6, transactionId = 1): Packet6 => ({ type: 'REPLY', transactionId, options })
    for (const p of [
      message({}, 0x1000000),
      message({ dnsServers: ['10.0.0.1'] }),
      message({ dnsServers: ['1::2::3'] }),
      message({ clientId: new Uint8Array(1) }),
      message({ ia: [{ iaid: -1, t1: 0, t2: 0, addresses: [] }] }),
      message({ iaPrefix: [{ iaid: 1, t1: 0, t2: 0, prefixes: [{ prefix: '::/129', preferred: 0, valid: 0 }] }] }),
    ])
      assert.throws(() => encode(p), { code: 'ERR_DHCP_VALUE' })
    assert.throws(() => encode(message({}), new Uint8Array(5), 2), { code: 'ERR_DHCP_SPACE' })
    assert.throws(() => duidLinkLayer('02:00'), { code: 'ERR_DHCP_VALUE' })
    assert.equal(optionCodes6.dnsServers, 23)
  })
})

const u32 = fc.integer({ min: 0, max: 0xffffffff })
const u16 = fc.integer({ min: 0, max: 0xffff })
const blob = (min: number, max: number): fc.Arbitrary<Uint8Array> => fc.uint8Array({ minLength: min, maxLength: max })
const address = fc
  .array(fc.oneof(fc.constant(0), u16), { minLength: 8, maxLength: 8 })
  // Through the codec once, so that its text is the canonical one.
  .map((g) => new URL(`http://[${g.map((n) => n.toString(16)).join(':')}]`).hostname.slice(1, -1))
const status = fc.record({ code: u16, message: fc.string({ maxLength: 20 }) }, plain)
const list = <T>(a: fc.Arbitrary<T>, minLength = 1): fc.Arbitrary<T[]> => fc.array(a, { minLength, maxLength: 4 })
const withStatus = <T extends object>(fields: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
  fc.record({ ...fields, status }, { requiredKeys: Object.keys(fields) as never[], noNullPrototype: true })
const iaAddress = withStatus({ address, preferred: u32, valid: u32 }) as unknown as fc.Arbitrary<Address6>
const iaPrefix = withStatus({
  prefix: fc.tuple(address, fc.integer({ min: 0, max: 128 })).map((p) => p.join('/')),
  preferred: u32,
  valid: u32,
})
const domain = fc.array(fc.stringMatching(/^[a-z0-9-]{1,20}$/), { minLength: 1, maxLength: 5 }).map((l) => l.join('.'))
const options = fc.record(
  {
    clientId: blob(3, 130),
    serverId: blob(3, 130),
    status,
    preference: fc.integer({ min: 0, max: 255 }),
    rapidCommit: fc.constant(true),
    ia: list(withStatus({ iaid: u32, t1: u32, t2: u32, addresses: list(iaAddress, 0) })),
    iaTemporary: list(withStatus({ iaid: u32, addresses: list(iaAddress, 0) })),
    iaPrefix: list(withStatus({ iaid: u32, t1: u32, t2: u32, prefixes: list(iaPrefix, 0) })),
    optionRequest: list(u16),
    elapsedTime: u16,
    dnsServers: list(address),
    searchDomains: list(domain),
    informationRefreshTime: u32,
    clientFqdn: fc.record(
      {
        serverUpdates: fc.boolean(),
        override: fc.boolean(),
        noServerUpdates: fc.boolean(),
        name: fc.tuple(domain, fc.constantFrom('', '.')).map((p) => p.join('')),
      },
      plain,
    ),
    userClass: blob(0, 30),
    other: list(fc.record({ code: fc.integer({ min: 200, max: 0xffff }), data: blob(0, 300) }, plain)),
  },
  { requiredKeys: [], noNullPrototype: true },
)
const packet = fc.record(
  {
    type: fc.constantFrom('SOLICIT', 'ADVERTISE', 'REQUEST', 'CONFIRM', 'REPLY', 'DECLINE', 'INFORMATION-REQUEST'),
    transactionId: fc.integer({ min: 0, max: 0xffffff }),
    options,
  },
  plain,
) as unknown as fc.Arbitrary<Packet6>

const dhcpErrors = (f: () => unknown): boolean => {
  try {
    f()
    return true
  } catch (e) {
    return e instanceof DhcpError
  }
}

test('there and back', () => {
  fc.assert(
    fc.property(packet, fc.integer({ min: 0, max: 9 }), (p, at) => {
      const bytes = encode(p, undefined, at)
      assert.equal(encode.bytes, encodingLength(p))
      assert.deepEqual(decode(bytes, at), p)
    }),
    { seed },
  )
})

test('any bytes are read or refused; what was read can be written', () => {
  const bytes = fc.oneof(
    blob(0, 400),
    fc.tuple(packet, list(fc.tuple(fc.nat(2000), fc.nat(255)))).map(([p, changes]) => {
      const b = encode(p)
      for (const [at, value] of changes) b[at % b.length] = value
      return b
    }),
    fc.tuple(packet, fc.nat(2000)).map(([p, n]) => encode(p).subarray(0, n)),
  )
  fc.assert(
    fc.property(bytes, (b) => {
      const copy = b.slice()
      assert.ok(dhcpErrors(() => decode(encode(decode(b)))))
      assert.deepEqual(b, copy)
    }),
    { seed, numRuns: 1000 },
  )
})
