import assert from 'node:assert/strict'
import { beforeEach, it } from 'node:test'
import dnsPacket, { type Packet } from 'dns-packet'
import { type Asked, query, rcodeOf, World } from './world.ts'

let w: World
beforeEach(() => {
  w = new World()
})
const soa = (ttl: number, minimum: number): Packet['authorities'] => [
  {
    type: 'SOA',
    name: 'example.com',
    ttl,
    data: { mname: 'a', rname: 'b', serial: 1, refresh: 1, retry: 1, expire: 1, minimum },
  },
]
const a = (ttl: number): Packet['answers'] => [{ type: 'A', name: 'example.com', ttl, data: '1.2.3.4' }]
const ttlOf = (p: Packet): number => (p.answers![0] as { ttl: number }).ttl

it('counts TTLs down and forgets at the least of them', () => {
  w.upstream = (q) =>
    w.answer(q, [...a(60)!, ...a(90)!], { additionals: [{ type: 'A', name: 'x', ttl: 50, data: '1.1.1.1' }] })
  w.ask('example.com')
  w.wait(20_000, 1000)
  const p = w.ask('EXAMPLE.com')
  assert.equal(w.asked.length, 1)
  assert.deepEqual(
    p.answers!.map((r) => (r as { ttl: number }).ttl),
    [40, 70],
  )
  assert.equal(p.questions![0].name, 'EXAMPLE.com')
  w.wait(29_000, 1000)
  assert.equal(ttlOf(w.ask('example.com')), 11)
  w.wait(1000, 1000)
  assert.equal(ttlOf(w.ask('example.com')), 60)
  assert.equal(w.asked.length, 2)
})

it('keeps NXDOMAIN and NODATA apart, by the SOA’s minimum', () => {
  w.upstream = (q) =>
    q.packet.questions![0].type === 'AAAA' ? w.answer(q, [], { authorities: soa(900, 30) }) : w.answer(q, a(300))
  assert.equal(w.ask({ name: 'example.com', type: 'AAAA' }).rcode, 'NOERROR')
  assert.equal(w.ask('example.com').answers!.length, 1)
  const again = w.ask({ name: 'example.com', type: 'AAAA' })
  assert.equal(again.rcode, 'NOERROR')
  assert.equal(again.authorities![0].type, 'SOA')
  assert.equal(w.asked.length, 2)
  w.wait(30_000, 1000)
  w.ask({ name: 'example.com', type: 'AAAA' })
  assert.equal(w.asked.length, 3)

  w.upstream = (q) => w.answer(q, [], { rcode: 3, authorities: soa(10, 3600) })
  assert.equal(w.ask('no.example.com').rcode, 'NXDOMAIN')
  assert.equal(w.ask('no.example.com').rcode, 'NXDOMAIN')
  assert.equal(w.asked.length, 4)
  w.wait(10_000, 1000)
  w.ask('no.example.com')
  assert.equal(w.asked.length, 5)
})

it('keeps that an alias leads to nothing for no longer than the alias or the SOA’s minimum, and not without SOA', () => {
  const alias = (ttl: number): Packet['answers'] => [
    { type: 'CNAME', name: 'www.example.com', ttl, data: 'x.example.net' },
  ]
  const lives: [life: number, answers: Packet['answers'], more: Parameters<typeof w.answer>[2]][] = [
    [5, alias(5), { rcode: 3, authorities: soa(3600, 3600) }],
    [30, alias(3600), { authorities: soa(3600, 30) }],
    [3600, alias(86_400), { authorities: soa(86_400, 86_400) }],
    [0, alias(3600), {}],
    [0, alias(3600), { rcode: 3 }],
  ]
  for (const [life, answers, more] of lives) {
    w = new World()
    w.upstream = (q) => w.answer(q, answers, more)
    const ask = () => w.ask({ name: 'www.example.com', type: 'AAAA' })
    ask()
    if (life > 0) {
      w.wait(life * 1000 - 1, 60_000)
      ask()
      assert.equal(w.asked.length, 1, `${life} s`)
      w.wait(1)
    }
    ask()
    assert.equal(w.asked.length, 2, `${life} s`)
  }
})

it('an alias that was asked for itself, or that leads somewhere, is no negative answer', () => {
  const alias: Packet['answers'] = [{ type: 'CNAME', name: 'www.example.com', ttl: 7200, data: 'x.example.net' }]
  for (const [type, answers] of [
    ['CNAME', alias],
    ['ANY', alias],
    ['A', [...alias, ...a(7200)!]],
  ] as const) {
    w = new World()
    w.upstream = (q) => w.answer(q, [...answers])
    const ask = () => w.ask({ name: 'www.example.com', type })
    ask()
    w.wait(7_199_000, 60_000)
    ask()
    assert.equal(w.asked.length, 1, type)
  }
})

it('does not keep negative answers without SOA, failures, what was truncated, or a TTL of 0', () => {
  const cases: ((q: Asked) => Packet)[] = [
    (q) => w.answer(q, []),
    (q) => w.answer(q, [], { rcode: 3 }),
    (q) => w.answer(q, a(300), { rcode: 2 }),
    (q) => w.answer(q, a(300), { rcode: 5 }),
    (q) => w.answer(q, a(300), { flags: dnsPacket.TRUNCATED_RESPONSE }),
    (q) => w.answer(q, a(0)),
    (q) => w.answer(q, a(0x80000000)),
  ]
  for (const c of cases) {
    w.upstream = c
    w.asked.length = 0
    w.ask('example.com')
    w.ask('example.com')
    assert.equal(w.asked.length, 2, String(c))
  }
})

it('DO, CD, AD and RD make another question; EDNS alone does not', () => {
  w.ask('example.com')
  w.ask({ name: 'example.com', edns: {} })
  assert.equal(w.asked.length, 1)
  w.ask({ name: 'example.com', edns: { dnssec: true } })
  w.ask({ name: 'example.com', flags: dnsPacket.RECURSION_DESIRED | dnsPacket.CHECKING_DISABLED })
  w.ask({ name: 'example.com', flags: dnsPacket.RECURSION_DESIRED | dnsPacket.AUTHENTIC_DATA })
  w.ask({ name: 'example.com', flags: 0 })
  assert.equal(w.asked.length, 5)
})

it('gives each client an EDNS record of its own: no cookie of another, none to who has no EDNS', () => {
  const cookie = { code: 10, data: Buffer.from('0102030405060708aabbccddeeff0011', 'hex') }
  const opt = (options: unknown[]): Packet['additionals'] =>
    [{ type: 'OPT', name: '.', udpPayloadSize: 1232, flags: 0, options }] as unknown as Packet['additionals']
  w.upstream = (q) => w.answer(q, a(300), { additionals: opt([cookie]) })
  const first = w.ask({ name: 'example.com', edns: { options: [{ code: 10, data: cookie.data.subarray(0, 8) }] } })
  assert.equal((first.additionals![0] as unknown as { options: unknown[] }).options.length, 1)
  const second = w.ask({
    name: 'example.com',
    edns: { options: [{ code: 10, data: Buffer.from('ffffffffffffffff', 'hex') }] },
  })
  assert.equal((second.additionals![0] as unknown as { options: unknown[] }).options.length, 0)
  const third = w.ask('example.com')
  assert.equal(third.additionals!.length, 0)
  assert.equal(w.asked.length, 1)
})

it('neither gives nor keeps what depends on more than the question (client subnet)', () => {
  const edns = { options: [{ code: 8, data: Buffer.from('00011800010203', 'hex') }] }
  w.ask({ name: 'example.com', edns })
  w.ask({ name: 'example.com', edns })
  w.ask('example.com')
  assert.equal(w.asked.length, 3)
})

it('is emptied when the servers change', () => {
  w.ask('example.com')
  w.dns.setServers(['10.0.0.53'])
  w.ask('example.com')
  assert.equal(w.asked.length, 1, 'the same list is no change')
  w.dns.setServers(['10.0.0.54'])
  w.ask('example.com')
  assert.equal(w.asked.length, 2)
})

it('is bounded in entries and bytes', () => {
  const blob = Buffer.alloc(1100)
  w.upstream = (q) => w.answer(q, [{ type: 'NULL' as 'TXT', name: 'x', ttl: 300, data: blob } as never])
  for (let i = 0; i < 9000; i++) w.send(query({ name: `n${i}.example`, type: 'NULL', edns: {} }), 1 + (i & 1))
  const s = w.dns.stats()
  assert.ok(s.cached < 8192 && s.cached > 5000, String(s.cached))
  assert.ok(s.cachedBytes <= 8 * 1024 * 1024)
})

it('a hit asks nothing of the host', () => {
  w.ask('example.com')
  const before = w.host.calls
  const b = w.send(query({ name: 'example.com' }))!
  assert.equal(rcodeOf(b), 0)
  assert.equal(w.host.calls, before)
  assert.equal(w.dns.stats().hits, 1)
})
