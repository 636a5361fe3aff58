import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { DhcpError, decode, encode, encodingLength, optionCodes, type PacketInit } from '#dhcp-packet'

const hex = (s: string): Uint8Array => Uint8Array.from(Buffer.from(s.replace(/\s/g, ''), 'hex'))
const fixed = (op: number): Uint8Array => {
  const b = new Uint8Array(240)
  b.set([op, 1, 6, 0, 0x11, 0x22, 0x33, 0x44])
  b.set([2, 0, 0, 0, 0, 9], 28)
  b.set([0x63, 0x82, 0x53, 0x63], 236)
  return b
}
const message = (options: string, op = 1): Uint8Array => Uint8Array.from([...fixed(op), ...hex(options)])
const refused = (code: string, b: Uint8Array): void =>
  assert.throws(
    () => decode(b),
    (e: unknown) => e instanceof DhcpError && e.code === code,
  )

describe('decode', () => {
  it('reads a DISCOVER of udhcpc', () => {
    const p = decode(message('350105 790e 00c0a86401 190affffff c0a86402 ff'))
    assert.deepEqual(p.options.classlessRoutes, [
      { to: '0.0.0.0/0', via: '192.168.100.1' },
      { to: '10.255.255.128/25', via: '192.168.100.2' },
    ])
  })

  it('reads the high bit of flags as broadcast, and xids above 2^31', () => {
    const b = message('350101ff')
    b[10] = 0x80
    b[4] = 0xff
    assert.equal(decode(b).broadcast, true)
    assert.equal(decode(b).xid, 0xff223344)
  })

  it('joins an option that comes in parts (RFC 3396)', () => {
    assert.equal(decode(message('350101 0c03616263 0c03646566 ff')).options.hostname, 'abcdef')
  })

  it('reads options from file and sname in that order (option 52)', () => {
    const b = message('350105 340103 0c0161 ff', 2)
    b.set(hex('0c0163ff'), 44)
    b.set(hex('0c0162ff'), 108)
    const p = decode(b)
    assert.equal(p.options.hostname, 'abc')
    assert.equal(p.file, '')
    assert.equal(p.sname, '')
  })

  it('follows compression, with the example of RFC 3397', () => {
    const p = decode(message('771b 03656e67 056170706c65 03636f6d00 096d61726b6574696e67 c004 ff'))
    assert.deepEqual(p.options.searchDomains, ['eng.apple.com', 'marketing.apple.com'])
  })

  it('reads classless routes and masks what lies beyond the prefix', () => {
    const p = decode(message('350105 790e 00c0a86401 190affffff c0a86402 ff'))
    assert.deepEqual(p.options.classlessRoutes, [
      { to: '0.0.0.0/0', via: '192.168.100.1' },
      { to: '10.255.255.128/25', via: '192.168.100.2' },
    ])
  })

  it('reads a client’s FQDN in both forms', () => {
    const wire = decode(message('5109 05ffff 0477656231 00 ff'))
    assert.deepEqual(wire.options.clientFqdn, {
      serverUpdates: true,
      override: false,
      noServerUpdates: false,
      canonical: true,
      name: 'web1.',
    })
    assert.equal(decode(message('5107 010000 77656231ff')).options.clientFqdn?.name, 'web1')
  })

  it('hands over raw what is not of its type, and still reads the rest', () => {
    const p = decode(message('350101 0103ffffff 0000 3200 ff'))
    assert.equal(p.options.messageType, 'DISCOVER')
    assert.deepEqual(p.options.other, [
      { code: 1, data: hex('ffffff') },
      { code: 50, data: hex('') },
    ])
  })

  it('takes a message without END', () => {
    assert.equal(decode(message('350101')).options.messageType, 'DISCOVER')
  })

  it('drops the NULs behind a host name', () => {
    assert.equal(decode(message('0c0477656200ff')).options.hostname, 'web')
  })

  it('refuses, by code, what is no DHCP message', () => {
    refused('ERR_DHCP_SHORT', new Uint8Array(0))
    refused('ERR_DHCP_SHORT', fixed(1).subarray(0, 239))
    refused('ERR_DHCP_FIELD', message('ff', 3))
    const cookie = message('ff')
    cookie[236] = 0
    refused('ERR_DHCP_COOKIE', cookie)
    const hlen = message('ff')
    hlen[2] = 17
    refused('ERR_DHCP_FIELD', hlen)
    refused('ERR_DHCP_OPTION', message('0c'))
    refused('ERR_DHCP_OPTION', message('0c0561'))
  })

  it('keeps nothing of the buffer it read', () => {
    const b = message('3d0401020304ff')
    const p = decode(b)
    b.fill(0xee)
    assert.deepEqual(p.options.clientId, hex('01020304'))
  })

  it('does not follow a search list in circles', () => {
    for (const list of ['c000', '0161c000', '0161c001', 'c0ff', '016100c000c000c0ff', 'ff00'])
      assert.equal(
        decode(message(`77${(list.length / 2).toString(16).padStart(2, '0')}${list}ff`)).options.searchDomains,
        undefined,
      )
  })
})

describe('encode', () => {
  const offer: PacketInit = {
    op: 'reply',
    xid: 7,
    yiaddr: '192.168.100.10',
    chaddr: '02:00:00:00:00:01',
    options: { messageType: 'OFFER', serverId: '192.168.100.2', leaseTime: 43200, searchDomains: ['noid.internal'] },
  }

  it('pads to the size of BOOTP', () => {
    const b = encode(offer)
    assert.equal(b.length, 300)
    assert.equal(encode.bytes, 300)
    assert.equal(encodingLength(offer), 300)
    assert.equal(b[240], optionCodes.messageType)
  })

  it('writes at an offset and touches nothing else', () => {
    const b = new Uint8Array(400).fill(0xaa)
    encode(offer, b, 50)
    assert.equal(b[49], 0xaa)
    assert.equal(b[350], 0xaa)
    assert.equal(decode(b.subarray(0, 350), 50).yiaddr, '192.168.100.10')
  })

  it('refuses a buffer that is too small, and values that do not fit their fields', () => {
    const of = (code: string, p: PacketInit, b?: Uint8Array): void =>
      assert.throws(
        () => encode(p, b),
        (e: unknown) => e instanceof DhcpError && e.code === code,
      )
    of('ERR_DHCP_SPACE', offer, new Uint8Array(299))
    of('ERR_DHCP_VALUE', { ...offer, yiaddr: '192.168.100' })
    of('ERR_DHCP_VALUE', { ...offer, yiaddr: '1.2.3.256' })
    of('ERR_DHCP_VALUE', { ...offer, xid: -1 })
    of('ERR_DHCP_VALUE', { ...offer, chaddr: 'zz:00' })
    of('ERR_DHCP_VALUE', { ...offer, file: 'x'.repeat(129) })
    of('ERR_DHCP_VALUE', { ...offer, options: { hostname: 'žena' } })
    of('ERR_DHCP_VALUE', { ...offer, options: { mtu: 67 } })
    of('ERR_DHCP_VALUE', { ...offer, options: { searchDomains: ['a..b'] } })
    of('ERR_DHCP_VALUE', { ...offer, options: { classlessRoutes: [{ to: '10.0.0.0/33', via: '10.0.0.1' }] } })
    of('ERR_DHCP_VALUE', { ...offer, options: { other: [{ code: 52, data: hex('03') }] } })
    of('ERR_DHCP_VALUE', { ...offer, options: { mtu: 1500, other: [{ code: 26, data: hex('05dc') }] } })
  })

  it('splits what is longer than an option (RFC 3396)', () => {
    const long = 'm'.repeat(600)
    const p = { ...offer, options: { messageType: 'NAK', message: long } } as const
    const b = encode(p)
    assert.equal(b.length, 240 + 3 + 600 + 3 * 2 + 1)
    assert.equal(decode(b).options.message, long)
  })

  it('moves options into file and sname when a limit asks for it (option 52)', () => {
    const p: PacketInit = {
      ...offer,
      options: {
        ...offer.options,
        searchDomains: ['a'.repeat(60), 'b'.repeat(60), 'c'.repeat(60)],
        message: 'x'.repeat(90),
        domainName: 'noid.internal',
        vendorClass: 'y'.repeat(40),
      },
    }
    const b = encode(p, undefined, 0, 600)
    assert.equal(b.length, encodingLength(p), 'everything fits: no overload')
    const tight = encode(p, undefined, 0, 470)
    assert.ok(tight.length <= 470)
    assert.deepEqual(decode(tight).options, decode(b).options)
    assert.throws(() => encode({ ...p, options: { message: 'x'.repeat(600) } }, undefined, 0, 400), DhcpError)
    assert.throws(() => encode({ ...p, file: 'boot' }, undefined, 0, 340), DhcpError)
  })

  it('puts the relay’s option last and leaves empty lists out', () => {
    const b = encode({
      ...offer,
      options: { relayInfo: hex('0101aa'), routers: [], other: [{ code: 200, data: hex('01') }] },
    })
    assert.deepEqual(Array.from(b.subarray(240, 249)), [200, 1, 1, 82, 3, 1, 1, 0xaa, 255])
  })
})
