import assert from 'node:assert/strict'
import { beforeEach, it } from 'node:test'
import dnsPacket from 'dns-packet'
import { idOf, query, rcodeOf, World } from './world.ts'

let w: World
beforeEach(() => {
  w = new World()
})
const data = (name: string, type = 'A', port = 1): unknown[] =>
  w.ask({ name, type }, port).answers!.map((a) => (a as { data: unknown }).data)
const rcode = (name: string, type = 'A', port = 1): number => rcodeOf(w.send(query({ name, type }), port)!)

it('knows VMs by name, with and without the domain, in any case', () => {
  for (const n of ['web', 'WEB', 'web.noid.internal', 'Web.Noid.Internal'])
    assert.deepEqual(data(n), ['192.168.100.10'])
  assert.deepEqual(data('db', 'A', 2), ['192.168.100.11'])
  assert.equal(w.asked.length, 0, 'nothing left')
})

it('answers with authority, a small TTL, the id and the spelling of the question', () => {
  const raw = w.send(query({ name: 'wEb.noid.INTERNAL', id: 0xbeef }))!
  const p = dnsPacket.decode(Buffer.from(raw))
  assert.equal(idOf(raw), 0xbeef)
  assert.equal(p.flag_aa, true)
  assert.equal(p.flag_ra, true)
  assert.equal(p.flag_rd, true)
  assert.equal(p.questions![0].name, 'wEb.noid.INTERNAL')
  assert.ok(p.answers![0].type === 'A' && p.answers![0].ttl! <= 10)
})

it('has names of its own', () => {
  assert.deepEqual(data('host.noid.internal'), ['192.168.100.254'])
  assert.deepEqual(data('gateway.noid.internal'), ['192.168.100.1'])
  assert.deepEqual(data('dns.noid.internal'), ['192.168.100.2'])
  assert.deepEqual(data('localhost'), ['127.0.0.1'])
  assert.deepEqual(data('x.localhost', 'AAAA'), ['::1'])
})

/** A question for A by its labels, which need not be text. */
function labels(...list: (string | Uint8Array)[]): Uint8Array {
  const name = list.flatMap((l) => [l.length, ...Buffer.from(l)])
  return Uint8Array.from([0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, ...name, 0, 0, 1, 0, 1])
}

it('below .localhost any label is answered, with a well-formed record', () => {
  for (const label of ['a.b', 'a\\', new Uint8Array(63).fill(255), new Uint8Array(10), 'x']) {
    const q = labels(label, 'localhost')
    const b = w.send(q)
    assert.ok(b !== undefined)
    const record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 0, 0, 1]
    assert.deepEqual([...b.subarray(4, 12)], [0, 1, 0, 1, 0, 0, 0, 0])
    assert.deepEqual([...b.subarray(12)], [...q.subarray(12), ...record])
  }
  assert.equal(w.asked.length, 0)
})

it('a dot within a label parts no names: what only looks like one of this zone goes upstream', () => {
  const seen: string[] = []
  w.policy = (_port, name) => {
    seen.push(name)
    return undefined
  }
  for (const name of ['x.localhost', 'web.noid.internal', 'web\\']) w.send(labels(name))
  assert.equal(w.asked.length, 3)
  assert.deepEqual(seen, ['x\\046localhost', 'web\\046noid\\046internal', 'web\\092'])
})

it('AAAA of a VM is NODATA, never NXDOMAIN, with the SOA', () => {
  for (const name of ['web', 'web.noid.internal']) {
    const p = w.ask({ name, type: 'AAAA' })
    assert.equal(p.rcode, 'NOERROR')
    assert.deepEqual(p.answers, [])
    assert.equal(p.authorities![0].type, 'SOA')
  }
  assert.equal(rcode('web.noid.internal', 'MX'), 0)
})

it('an unknown name of the zone is NXDOMAIN with the SOA, and stays here', () => {
  const p = w.ask('nobody.noid.internal')
  assert.equal(p.rcode, 'NXDOMAIN')
  assert.equal(p.authorities![0].name, 'noid.internal')
  assert.equal(rcode('a.web.noid.internal'), 3)
  assert.equal(w.asked.length, 0)
})

it('has an apex', () => {
  assert.equal(w.ask({ name: 'noid.internal', type: 'SOA' }).answers![0].type, 'SOA')
  assert.deepEqual(data('noid.internal', 'NS'), ['dns.noid.internal'])
  assert.deepEqual(data('noid.internal', 'A'), [])
  assert.equal(rcode('noid.internal'), 0)
})

it('maps addresses of the subnet back, and no question about them leaves', () => {
  assert.deepEqual(data('10.100.168.192.in-addr.arpa', 'PTR'), ['web.noid.internal'])
  assert.deepEqual(data('254.100.168.192.IN-ADDR.arpa', 'PTR'), ['host.noid.internal'])
  assert.deepEqual(data('1.100.168.192.in-addr.arpa', 'PTR'), ['gateway.noid.internal'])
  assert.equal(rcode('77.100.168.192.in-addr.arpa', 'PTR'), 3)
  assert.equal(rcode('b._dns-sd._udp.0.100.168.192.in-addr.arpa', 'PTR'), 3)
  assert.equal(rcode('lb.100.168.192.in-addr.arpa', 'PTR'), 3)
  assert.equal(rcode('300.100.168.192.in-addr.arpa', 'PTR'), 3)
  assert.equal(rcode('100.168.192.in-addr.arpa', 'SOA'), 0)
  assert.equal(rcode('10.100.168.192.in-addr.arpa', 'A'), 0)
  assert.equal(w.asked.length, 0)
  data('8.8.8.8.in-addr.arpa', 'PTR')
  data('10.101.168.192.in-addr.arpa', 'PTR')
  assert.equal(w.asked.length, 2, 'other networks are not ours to answer')
})

it('a subnet that is not cut at an octet keeps its own addresses, and only those', () => {
  w = new World({ subnet: '10.1.16.0/20', gateway: '10.1.16.1', services: '192.168.100.2', hostAddress: '10.1.31.254' })
  w.dns.bind(3, 'far', ['10.1.17.5'])
  assert.deepEqual(data('5.17.1.10.in-addr.arpa', 'PTR'), ['far.noid.internal'])
  assert.equal(rcode('6.17.1.10.in-addr.arpa', 'PTR'), 3)
  assert.equal(w.asked.length, 0)
  data('5.32.1.10.in-addr.arpa', 'PTR')
  assert.equal(w.asked.length, 1)
})

it('follows VMs that come, move and go', () => {
  w.upstream = (a) => w.answer(a, [], { rcode: 3, authorities: [] })
  assert.equal(rcode('late'), 3, 'a single label that is nobody is asked upstream')
  w.dns.bind(3, 'late', ['192.168.100.30'])
  assert.deepEqual(data('late'), ['192.168.100.30'])
  w.dns.bind(3, 'late', ['192.168.100.31'])
  assert.deepEqual(data('late.noid.internal'), ['192.168.100.31'])
  assert.equal(rcode('30.100.168.192.in-addr.arpa', 'PTR'), 3)
  w.dns.unbind(3)
  assert.equal(rcode('late.noid.internal'), 3)
})

it('a VM cannot take the network’s own names', () => {
  w.dns.bind(3, 'gateway', ['192.168.100.66'])
  assert.deepEqual(data('gateway.noid.internal'), ['192.168.100.1'])
})

it('on an isolated network a VM knows itself and nobody else', () => {
  w = new World({ isolated: true })
  assert.deepEqual(data('web', 'A', 1), ['192.168.100.10'])
  assert.equal(rcode('db.noid.internal', 'A', 1), 3)
  assert.equal(rcode('11.100.168.192.in-addr.arpa', 'PTR', 1), 3)
  assert.deepEqual(data('db.noid.internal', 'A', 2), ['192.168.100.11'])
})

it('answers EDNS with EDNS', () => {
  const p = w.ask({ name: 'web', edns: { size: 4096 } })
  assert.equal(p.additionals!.length, 1)
  assert.equal(p.additionals![0].type, 'OPT')
})
