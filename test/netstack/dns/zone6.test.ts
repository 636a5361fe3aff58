/** The network's names in both families: AAAA, ip6.arpa, and who has only one of the two. */
import assert from 'node:assert/strict'
import { beforeEach, it } from 'node:test'
import dnsPacket from 'dns-packet'
import { addressBytes } from '../../../src/sys/socket.ts'
import { ipv6, query, rcodeOf, World } from './world.ts'

const WEB6 = 'fd12:3456:789a:1::10'
const EUI64 = 'fd12:3456:789a:1:0:ff:fe00:10'
let w: World
beforeEach(() => {
  w = new World({ ipv6 })
  w.dns.bind(1, 'web', ['192.168.100.10', WEB6, EUI64])
  w.dns.bind(3, 'six', ['fd12:3456:789a:1::12'])
  w.speaking.add(WEB6)
})
const data = (name: string, type: string, port = 1): unknown[] =>
  w.ask({ name, type }, port).answers!.map((a) => (a as { data: unknown }).data)
const rcode = (name: string, type = 'PTR', port = 1): number => rcodeOf(w.send(query({ name, type }), port)!)
const arpa = (address: string, nibbles = 32): string =>
  `${[...Buffer.from(addressBytes(address)).toString('hex').slice(0, nibbles)].reverse().join('.')}.ip6.arpa`

for (const family of [4, 6] as const)
  it(`AAAA beside A, asked over IPv${family}`, () => {
    w.family = family
    assert.deepEqual(data('web', 'AAAA'), [WEB6])
    assert.deepEqual(data('web', 'A'), ['192.168.100.10'])
    assert.deepEqual(data('web.noid.internal', 'ANY'), ['192.168.100.10', WEB6])
    assert.deepEqual(data('host.noid.internal', 'AAAA'), [ipv6.hostAddress])
    assert.deepEqual(data('host.noid.internal', 'A'), ['192.168.100.254'])
    assert.deepEqual(data('gateway.noid.internal', 'AAAA'), [ipv6.gateway])
    assert.deepEqual(data('dns.noid.internal', 'AAAA'), [ipv6.services])
    assert.equal(w.asked.length, 0)
  })

it('a VM is at the address that it uses: its own, or what it makes of the prefix', () => {
  w.speaking.clear()
  assert.deepEqual(data('web', 'AAAA'), [], 'it was not heard, and has IPv4')
  assert.deepEqual(data('six', 'AAAA'), ['fd12:3456:789a:1::12'], 'it has nothing else')
  w.speaking.add(EUI64)
  assert.deepEqual(data('web', 'AAAA'), [EUI64])
  w.speaking.add(WEB6)
  assert.deepEqual(data('web', 'AAAA'), [WEB6])
  // The network's own names are what they are.
  assert.deepEqual(data('host.noid.internal', 'AAAA'), [ipv6.hostAddress])
})

it('who has one family: the other is NODATA with the SOA, never NXDOMAIN', () => {
  for (const [name, type] of [
    ['db', 'AAAA'],
    ['db.noid.internal', 'AAAA'],
    ['six.noid.internal', 'A'],
  ] as const) {
    const p = w.ask({ name, type })
    assert.equal(p.rcode, 'NOERROR')
    assert.deepEqual(p.answers, [])
    assert.equal(p.authorities![0].type, 'SOA')
  }
})

it('every address of a VM leads back to it', () => {
  for (const a of [WEB6, EUI64]) assert.deepEqual(data(arpa(a), 'PTR'), ['web.noid.internal'])
  assert.deepEqual(data(arpa(ipv6.hostAddress), 'PTR'), ['host.noid.internal'])
  assert.deepEqual(data(arpa(ipv6.gateway).toUpperCase(), 'PTR'), ['gateway.noid.internal'])
  w.dns.unbind(1)
  for (const a of [WEB6, EUI64]) assert.equal(rcode(arpa(a)), 3)
})

it('its part of ip6.arpa never leaves, nor do link-local addresses', () => {
  assert.equal(rcode(arpa('fd12:3456:789a:1::99')), 3)
  assert.equal(rcode(`x.${arpa(WEB6)}`), 3)
  assert.equal(rcode(`0.${arpa(WEB6)}`), 3)
  assert.equal(rcode(`lb._dns-sd.${arpa(WEB6, 16)}`), 3)
  assert.equal(rcode(arpa(WEB6, 20)), 0, 'between: it has names below it')
  assert.equal(rcode(arpa(WEB6), 'A'), 0)
  assert.equal(rcode(arpa('fe80::1')), 3)
  assert.equal(w.ask({ name: arpa(WEB6, 16), type: 'SOA' }).answers![0].type, 'SOA')
  assert.deepEqual(data(arpa(WEB6, 16), 'NS'), ['dns.noid.internal'])
  assert.equal(w.asked.length, 0)
  // What is above it, and beside it, is somebody else's to answer.
  data(arpa(WEB6, 12), 'PTR')
  data(arpa('fd12:3456:789a:2::10'), 'PTR')
  data(arpa('2001:4860:4860::8888'), 'PTR')
  data('ip6.arpa', 'SOA')
  assert.equal(w.asked.length, 4)
})

it('on an isolated network a VM knows itself and nobody else', () => {
  w = new World({ ipv6, isolated: true })
  w.dns.bind(1, 'web', ['192.168.100.10', WEB6])
  w.speaking.add(WEB6)
  assert.deepEqual(data('web', 'AAAA', 1), [WEB6])
  assert.equal(rcode('web.noid.internal', 'AAAA', 2), 3)
  assert.equal(rcode(arpa(WEB6), 'PTR', 2), 3)
})

it('a network without IPv4 says nothing of it', () => {
  w = new World({ ipv6, ipv4: false })
  w.family = 6
  w.dns.bind(3, 'six', ['fd12:3456:789a:1::12'])
  assert.deepEqual(data('gateway.noid.internal', 'A'), [])
  assert.deepEqual(data('gateway.noid.internal', 'AAAA'), [ipv6.gateway])
  data('1.100.168.192.in-addr.arpa', 'PTR')
  assert.equal(w.asked.length, 1, 'that subnet is not its own')
})

it('an answer over IPv6 leaves room for its longer header', () => {
  w = new World({ ipv6, mtu: 1280 })
  w.family = 6
  const size = 1245
  w.upstream = (a) =>
    w.answer(a, [{ type: 'TXT', name: 'big.example', ttl: 60, data: 'x'.repeat(200) }, ...filler(size)])
  const raw = w.send(query({ name: 'big.example', type: 'TXT', edns: { size: 4096 } }))!
  assert.ok(raw.length <= 1280 - 48)
  assert.equal(dnsPacket.decode(Buffer.from(raw)).flag_tc, true)
})

const filler = (n: number) =>
  Array.from({ length: Math.ceil(n / 230) }, () => ({
    type: 'TXT' as const,
    name: 'big.example',
    ttl: 60,
    data: 'y'.repeat(200),
  }))
