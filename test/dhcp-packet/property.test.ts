import assert from 'node:assert/strict'
import { it } from 'node:test'
import fc from 'fast-check'
import { DhcpError, decode, encode, encodingLength, type Options, type PacketInit } from '#dhcp-packet'

const seed = 20261123
const byte = fc.integer({ min: 0, max: 255 })
const address = fc.tuple(byte, byte, byte, byte).map((a) => a.join('.'))
const latin = (max: number, min = 0): fc.Arbitrary<string> =>
  fc.array(fc.integer({ min: 1, max: 255 }), { minLength: min, maxLength: max }).map((a) => String.fromCharCode(...a))
const label = fc.stringMatching(/^[a-z0-9-]{1,20}$/)
const domain = fc.array(label, { minLength: 1, maxLength: 6 }).map((l) => l.join('.'))
const blob = (max: number): fc.Arbitrary<Uint8Array> => fc.uint8Array({ minLength: 0, maxLength: max })
const u32 = fc.integer({ min: 0, max: 0xffffffff })
const plain = { noNullPrototype: true } as const
const route = fc.record(
  {
    to: fc.integer({ min: 0, max: 32 }).chain((w) =>
      u32.map((a) => {
        const m = w === 0 ? 0 : (a & (-1 << (32 - w))) >>> 0
        return `${m >>> 24}.${(m >>> 16) & 255}.${(m >>> 8) & 255}.${m & 255}/${w}`
      }),
    ),
    via: address,
  },
  plain,
)
const list = <T>(a: fc.Arbitrary<T>, maxLength = 5): fc.Arbitrary<T[]> => fc.array(a, { minLength: 1, maxLength })

const options: fc.Arbitrary<Options> = fc.record(
  {
    messageType: fc.constantFrom('DISCOVER', 'OFFER', 'REQUEST', 'DECLINE', 'ACK', 'NAK', 'RELEASE', 'INFORM'),
    serverId: address,
    leaseTime: u32,
    renewalTime: u32,
    rebindingTime: u32,
    clientId: blob(40),
    requestedAddress: address,
    rapidCommit: fc.constant(true as const),
    parameterRequestList: list(byte, 40),
    maxMessageSize: fc.integer({ min: 576, max: 65535 }),
    subnetMask: address,
    classlessRoutes: list(route),
    routers: list(address),
    dnsServers: list(address),
    hostname: latin(70),
    domainName: latin(40),
    searchDomains: list(domain, 8),
    mtu: fc.integer({ min: 68, max: 65535 }),
    clientFqdn: fc.record(
      {
        serverUpdates: fc.boolean(),
        override: fc.boolean(),
        noServerUpdates: fc.boolean(),
        canonical: fc.constant(true),
        name: fc.tuple(domain, fc.constantFrom('', '.')).map(([d, dot]) => d + dot),
      },
      plain,
    ),
    vendorClass: latin(40),
    message: latin(700),
    relayInfo: blob(30),
    other: fc.constant([{ code: 224, data: Uint8Array.of(1, 2, 3) }]),
  },
  { requiredKeys: [], ...plain },
)

const packet: fc.Arbitrary<PacketInit> = fc.record(
  {
    op: fc.constantFrom('request', 'reply'),
    htype: byte,
    hops: byte,
    xid: u32,
    secs: fc.integer({ min: 0, max: 65535 }),
    broadcast: fc.boolean(),
    ciaddr: address,
    yiaddr: address,
    siaddr: address,
    giaddr: address,
    chaddr: fc.array(byte, { maxLength: 16 }).map((a) => a.map((n) => n.toString(16).padStart(2, '0')).join(':')),
    sname: latin(64),
    file: latin(128),
    options,
  },
  plain,
)

it('decode(encode(p)) is p', () => {
  fc.assert(
    fc.property(packet, (p) => {
      const b = encode(p)
      assert.equal(b.length, encodingLength(p))
      assert.ok(b.length >= 300)
      assert.deepEqual(decode(b), p)
    }),
    { seed, numRuns: 500 },
  )
})

it('a limit is kept or refused, and loses nothing', () => {
  fc.assert(
    fc.property(packet, fc.integer({ min: 200, max: 1200 }), (p, limit) => {
      const q = { ...p, file: '', sname: '' }
      let b: Uint8Array
      try {
        b = encode(q, undefined, 0, limit)
      } catch (e) {
        assert.ok(e instanceof DhcpError && e.code === 'ERR_DHCP_SPACE')
        return
      }
      assert.ok(b.length <= limit)
      assert.deepEqual(decode(b), q)
    }),
    { seed, numRuns: 1000 },
  )
})

/** A valid message with some of its bytes changed, or cut short: hostile, yet close enough to get far. */
const mutated = fc
  .tuple(packet, fc.array(fc.tuple(fc.nat(2000), byte), { maxLength: 12 }), fc.option(fc.nat(1500)))
  .map(([p, changes, cut]) => {
    const b = encode(p)
    for (const [at, value] of changes) b[at < 240 ? 240 + (at % Math.max(1, b.length - 240)) : at % b.length] = value
    return cut === null ? b : b.subarray(0, Math.min(cut, b.length))
  })

const hostile = (b: Uint8Array): void => {
  let p: ReturnType<typeof decode>
  try {
    p = decode(b)
  } catch (e) {
    assert.ok(e instanceof DhcpError, String(e))
    return
  }
  assert.deepEqual(decode(encode(p)), p, 'what was read can be written, and reads the same')
}

it('decode throws nothing but DhcpError on mutated messages', () => {
  fc.assert(fc.property(mutated, hostile), { seed, numRuns: 2000 })
})

it('decode throws nothing but DhcpError on random bytes behind a valid head', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 800 }), fc.integer({ min: 1, max: 3 }), (tail, overload) => {
      const head = encode({ op: 'request', options: {} }).subarray(0, 240)
      hostile(Uint8Array.from([...head, 52, 1, overload, ...tail]))
      hostile(tail)
    }),
    { seed, numRuns: 2000 },
  )
})

it('a message full of pointers costs bounded time and memory', () => {
  const bomb = [
    3,
    97,
    98,
    99,
    63,
    ...new Array(63).fill(98),
    63,
    ...new Array(63).fill(98),
    63,
    ...new Array(63).fill(98),
    0,
  ]
  const b: number[] = [...encode({ op: 'request', options: {} }).subarray(0, 240)]
  const list = [...bomb]
  while (list.length < 60000) list.push(0xc0, 0)
  for (let i = 0; i < list.length; i += 255) b.push(119, Math.min(255, list.length - i), ...list.slice(i, i + 255))
  assert.equal(decode(Uint8Array.from(b)).options.searchDomains, undefined)
})
