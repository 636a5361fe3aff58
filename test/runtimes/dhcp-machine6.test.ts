/** The DHCPv6 client without a network: a script of packets and a clock. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { decode, duidLinkLayer, encode, type Packet6 } from '#dhcp-packet/v6'
import {
  buildFrame6,
  buildProbe,
  buildSolicitation,
  isAdvertisement,
  parseFrame6,
} from '../../src/runtimes/dhcp-client/frame6.ts'
import { hasDefault6, linkLocalIsUsable } from '../../src/runtimes/dhcp-client/ipv6.ts'
import type { Lease6 } from '../../src/runtimes/dhcp-client/lease.ts'
import { DhcpClient6 } from '../../src/runtimes/dhcp-client/machine6.ts'

const MAC = '02:00:00:00:00:11'
const SERVER = duidLinkLayer('02:00:00:00:00:02')
const OTHER = duidLinkLayer('02:00:00:00:00:03')
const ADDRESS = 'fd77::100'

const client = (o: { lease?: Lease6; begin?: 'solicit' | 'renew' | 'rebind' } = {}, now = 0): DhcpClient6 =>
  new DhcpClient6({ mac: MAC, hostname: 'web', begin: o.begin ?? 'solicit', random: () => 0.5, lease: o.lease }, now)

/** What a server says to a message: the address, unless something else is wanted. */
const reply = (to: Packet6, over: Partial<Packet6> = {}, options: Partial<Packet6['options']> = {}): Packet6 => ({
  type: 'REPLY',
  transactionId: to.transactionId,
  ...over,
  options: {
    clientId: to.options.clientId,
    serverId: SERVER,
    ...(to.type === 'SOLICIT' ? { rapidCommit: true } : {}),
    ia: [{ iaid: 1, t1: 0, t2: 0, addresses: [{ address: ADDRESS, preferred: 1000, valid: 2000 }] }],
    dnsServers: ['fd77::2'],
    searchDomains: ['noid.internal.'],
    ...options,
  },
})
const lease: Lease6 = {
  address: ADDRESS,
  server: Buffer.from(SERVER).toString('hex'),
  dns: [],
  search: [],
  leaseMs: 2_000_000,
  t1Ms: 500_000,
  t2Ms: 800_000,
  boundAt: 0,
}

describe('a DHCPv6 client', () => {
  it('is bound by one exchange with rapid commit', () => {
    const c = client()
    const solicit = c.due(0) as Packet6
    assert.equal(solicit.type, 'SOLICIT')
    assert.equal(solicit.options.rapidCommit, true)
    assert.deepEqual(solicit.options.clientId, duidLinkLayer(MAC))
    c.receive(decode(encode(reply(solicit))), 5, 1_000_000)
    assert.equal(c.state, 'bound')
    assert.equal(c.deadline, Number.POSITIVE_INFINITY)
    assert.deepEqual(c.lease, {
      address: ADDRESS,
      server: Buffer.from(SERVER).toString('hex'),
      dns: ['fd77::2'],
      search: ['noid.internal'],
      leaseMs: 2_000_000,
      t1Ms: 500_000,
      t2Ms: 800_000,
      boundAt: 1_000_000,
    })
  })

  it('is bound by two with a server that advertises, and takes no other server then', () => {
    const c = client()
    const solicit = c.due(0) as Packet6
    c.receive(reply(solicit, { type: 'ADVERTISE' }, { rapidCommit: undefined }), 1, 0)
    assert.equal(c.state, 'requesting')
    const request = c.due(1) as Packet6
    assert.equal(request.type, 'REQUEST')
    assert.deepEqual(request.options.serverId, SERVER)
    assert.equal(request.options.ia?.[0]?.addresses[0]?.address, ADDRESS)
    c.receive(reply(request, {}, { serverId: OTHER }), 2, 0)
    assert.equal(c.state, 'requesting')
    c.receive(reply(request), 2, 0)
    assert.equal(c.state, 'bound')
  })

  it('asks again, later and later', () => {
    const c = client()
    const times: number[] = []
    for (let now = 0; times.length < 8; now = c.deadline) {
      assert.equal(c.due(now)?.type, 'SOLICIT')
      times.push(now)
    }
    assert.deepEqual(times, [0, 250, 750, 1750, 3750, 7750, 15_750, 31_750])
  })

  it('is moved by nothing that is not its answer', () => {
    const c = client()
    const solicit = c.due(0) as Packet6
    const wrong: Packet6[] = [
      reply(solicit, { transactionId: solicit.transactionId ^ 1 }),
      reply(solicit, {}, { clientId: OTHER }),
      reply(solicit, {}, { clientId: undefined }),
      reply(solicit, {}, { serverId: undefined }),
      reply(solicit, {}, { rapidCommit: undefined }),
      reply(solicit, { type: 'REQUEST' }),
      reply(solicit, { type: 'ADVERTISE' }, { ia: [] }),
    ]
    for (const p of wrong) c.receive(p, 1, 0)
    assert.equal(c.state, 'soliciting')
    assert.equal(c.deadline, 250)
  })

  it('pauses after a refusal', () => {
    for (const ia of [
      [{ iaid: 1, t1: 0, t2: 0, addresses: [], status: { code: 2, message: '' } }],
      [{ iaid: 1, t1: 0, t2: 0, addresses: [{ address: ADDRESS, preferred: 0, valid: 0 }] }],
      [{ iaid: 9, t1: 0, t2: 0, addresses: [{ address: ADDRESS, preferred: 1, valid: 1 }] }],
    ]) {
      const c = client()
      c.receive(reply(c.due(0) as Packet6, {}, { ia }), 10, 0)
      assert.deepEqual([c.state, c.deadline], ['soliciting', 510])
    }
  })

  it('renews with its server, rebinds with any, and solicits when its binding is unknown', () => {
    const c = client({ lease, begin: 'renew' })
    const renew = c.due(0) as Packet6
    assert.equal(renew.type, 'RENEW')
    assert.deepEqual(renew.options.serverId, SERVER)
    assert.equal(renew.options.ia?.[0]?.addresses[0]?.address, ADDRESS)
    c.receive(reply(renew), 1, 7)
    assert.equal(c.lease?.boundAt, 7)
    const d = client({ lease, begin: 'rebind' })
    const rebind = d.due(0) as Packet6
    assert.equal(rebind.type, 'REBIND')
    assert.equal(rebind.options.serverId, undefined)
    const ia = [{ iaid: 1, t1: 0, t2: 0, addresses: [], status: { code: 3, message: 'no binding' } }]
    d.receive(reply(rebind, {}, { ia }), 1, 0)
    assert.equal(d.state, 'soliciting')
    assert.equal((d.due(d.deadline) as Packet6).options.ia?.[0]?.addresses[0]?.address, ADDRESS, 'it asks for it again')
  })

  it('takes lifetimes without end, and times that make no sense', () => {
    const c = client()
    const forever = [
      { iaid: 1, t1: 9, t2: 5, addresses: [{ address: ADDRESS, preferred: 2 ** 32 - 1, valid: 2 ** 32 - 1 }] },
    ]
    c.receive(reply(c.due(0) as Packet6, {}, { ia: forever }), 1, 0)
    assert.equal(c.lease?.leaseMs, null)
  })
})

describe('frames of IPv6', () => {
  it('a message to all servers, and what a server sends back', () => {
    const payload = Buffer.from('hello')
    const f = buildFrame6(MAC, payload)
    assert.equal(f.subarray(0, 6).toString('hex'), '333300010002')
    assert.equal(f.subarray(22, 38).toString('hex'), 'fe80000000000000000000fffe000011')
    assert.equal(parseFrame6(f), undefined, 'a client reads no client')
    const back = Buffer.from(f)
    back.writeUInt16BE(547, 54)
    back.writeUInt16BE(546, 56)
    assert.deepEqual(parseFrame6(back), payload)
    assert.equal(isAdvertisement(f), false)
  })

  it('a solicitation, from the link-local address or from nobody', () => {
    assert.equal(
      buildSolicitation(MAC, false)
        .subarray(54)
        .toString('hex')
        .replace(/^(8500)..../, '$1xxxx'),
      '8500xxxx000000000101020000000011',
    )
    const b = buildSolicitation(MAC, true)
    assert.equal(b.subarray(22, 38).toString('hex'), '0'.repeat(32))
    assert.equal(b.length, 62)
  })

  it('the question whether anybody has an address, as a kernel asks it', () => {
    const address = Buffer.from('fd770000000000000000000000123456', 'hex')
    const b = buildProbe(MAC, address)
    assert.equal(b.subarray(0, 6).toString('hex'), '3333ff123456')
    assert.equal(b.subarray(22, 54).toString('hex'), `${'0'.repeat(32)}ff0200000000000000000001ff123456`)
    assert.deepEqual([b[21], b[54]], [255, 135])
    assert.deepEqual(b.subarray(62), address)
  })

  it('whatever arrives is read or refused, never thrown at', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        const b = Buffer.from(bytes)
        parseFrame6(b)
        isAdvertisement(b)
      }),
    )
  })
})

describe('what the kernel says of a link', () => {
  it('is read as it writes it', () => {
    const addresses = (flags: string) => `fe80000000000000000000fffe000011 04 40 20 ${flags}     eth0\n`
    assert.equal(linkLocalIsUsable('eth0', addresses('80')), true)
    assert.equal(linkLocalIsUsable('eth0', addresses('40')), false)
    assert.equal(linkLocalIsUsable('eth0', addresses('44')), true)
    assert.equal(linkLocalIsUsable('eth1', addresses('80')), false)
    const none = '0'.repeat(32)
    const route = (to: string, flags: string) =>
      `${to} 00 ${none} 00 fe800000000000000000000000000001 00000400 00000001 00000000 ${flags}     eth0\n`
    assert.equal(hasDefault6('eth0', route(none, '00450003')), true)
    assert.equal(hasDefault6('eth1', route(none, '00450003')), false)
    assert.equal(hasDefault6('eth0', route(none, '00200200')), false)
    assert.equal(hasDefault6('eth0', ''), false)
  })
})
