import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ECONNREFUSED, EHOSTUNREACH } from '../../../src/netstack/host.ts'
import { IDLE_ANSWERED, IDLE_DNS, IDLE_UNANSWERED } from '../../../src/netstack/udp/relay.ts'
import { icmp, TestNet, udp } from '../net.ts'

const text = (b: Uint8Array) => Buffer.from(b).toString()

test('a datagram leaves by a socket of its own flow, and the answer comes back', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:53', from: 4000, data: 'question' }))
  web.send(udp({ to: '8.8.8.8:53', from: 4000, data: 'again' }))
  web.send(udp({ to: '8.8.8.8:53', from: 4001, data: 'other' }))
  const [a, b] = net.host.open('udp')
  assert.deepEqual([a.peer, a.sent.map((d) => text(d.bytes))], ['8.8.8.8:53', ['question', 'again']])
  assert.deepEqual(
    b.sent.map((d) => text(d.bytes)),
    ['other'],
  )
  net.host.arrive(a.id, Buffer.from('answer'))
  net.deliver()
  assert.deepEqual(web.lines(), ['udp 8.8.8.8:53 > 192.168.100.10:4000 answer'])
})

test('idle times: DNS 10 s, unanswered 2 minutes, answered 5', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:53' }), udp({ to: '1.1.1.1:9999' }), udp({ to: '1.1.1.1:9998' }))
  const [, , answered] = net.host.open('udp')
  net.host.arrive(answered.id, Buffer.from('x'))
  net.deliver()
  net.advance(IDLE_DNS + 10)
  assert.equal(net.host.open('udp').length, 2)
  net.advance(IDLE_UNANSWERED - IDLE_DNS)
  assert.deepEqual(net.host.open('udp'), [answered])
  net.advance(IDLE_ANSWERED)
  assert.equal(net.host.open('udp').length, 0)
  assert.equal(net.network.stats().flows.length, 0)
  web.send(udp({ to: '1.1.1.1:9998', data: 'reuse' }))
  assert.equal(net.host.open('udp').length, 1)
})

test('a VM has a bounded number of flows: the oldest is given up and counted', () => {
  const net = new TestNet({ limits: { udpFlowsPerVm: 4 } })
  const web = net.vm('web')
  const db = net.vm('db')
  db.send(udp({ to: '9.9.9.9:1' }))
  for (let p = 1; p <= 6; p++) {
    web.send(udp({ to: `8.8.8.8:${p}` }))
    net.host.advance(1)
  }
  assert.deepEqual(
    net.host.open('udp').map((s) => s.peer),
    ['9.9.9.9:1', '8.8.8.8:3', '8.8.8.8:4', '8.8.8.8:5', '8.8.8.8:6'],
  )
  assert.equal(web.drops('udp-evicted'), 2)
})

test('several datagrams in one frame stay together, out and back', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const slow = net.vm('slow', { offload: false })
  web.send(udp({ to: '8.8.8.8:9000', data: new Uint8Array(2500), segment: 1000 }))
  const [a] = net.host.open('udp')
  assert.deepEqual([a.sent[0].bytes.length, a.sent[0].segment], [2500, 1000])
  net.host.arrive(a.id, new Uint8Array(2500).fill(66), { segment: 1000 })
  net.deliver()
  const [back] = web.take()
  assert.deepEqual([back.gso, back.udp?.data.length], [{ type: 5, size: 1000 }, 2500])
  slow.send(udp({ to: '8.8.8.8:9000' }))
  net.host.arrive(net.host.open('udp')[1].id, new Uint8Array(2500).fill(66), { segment: 1000 })
  net.deliver()
  assert.deepEqual(
    slow.take().map((r) => r.udp?.data.length),
    [1000, 1000, 500],
  )
})

test('datagrams longer than the MTU reach the guest in fragments', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:9000' }))
  net.host.arrive(net.host.open('udp')[0].id, new Uint8Array(4000).fill(66))
  net.deliver()
  assert.deepEqual(
    web.take().map((r) => [r.ip?.offset, r.ip?.mf]),
    [
      [0, true],
      [1480, true],
      [2960, false],
    ],
  )
})

test('an ICMP error about a datagram reaches the guest with the reporting router’s address', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:33435', from: 5000, ttl: 3 }))
  const [s] = net.host.open('udp')
  assert.equal(s.ttl, 2)
  net.host.report(s.id, { type: 11, code: 0, errno: EHOSTUNREACH, from: '10.1.2.3' })
  net.deliver()
  const [r] = web.take()
  assert.deepEqual([r.ip?.src, r.icmp?.type], ['10.1.2.3', 11])
  const quoted = Buffer.from(r.icmp!.data)
  assert.deepEqual([quoted.readUInt16BE(20), quoted.readUInt16BE(22)], [5000, 33435])
  net.host.report(s.id, { type: 3, code: 3, errno: ECONNREFUSED, from: '8.8.8.8' })
  net.deliver()
  assert.deepEqual(web.lines(), ['icmp 8.8.8.8 > 192.168.100.10 3/3'])
})

test('a published UDP port: two clients are told apart, and see their own answers', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const shared = net.host.make('udp-bound', '')
  net.network.publish({
    id: 'p',
    proto: 'udp',
    sock: shared.id,
    guestAddress: web.ip,
    guestPort: 53,
    hostAddress: '0.0.0.0',
    hostPort: 5353,
  })
  net.host.arrive(shared.id, Buffer.from('one'), { peer: '10.0.0.5:1111' })
  net.host.arrive(shared.id, Buffer.from('two'), { peer: '10.0.0.6:1111' })
  net.host.arrive(shared.id, Buffer.from('local'), { peer: '127.0.0.1:1111' })
  net.deliver()
  const got = web.take()
  assert.deepEqual(
    got.map((r) => r.ip?.src),
    ['10.0.0.5', '10.0.0.6', '192.168.100.254'],
  )
  const shown = got[2].udp!.srcPort
  assert.ok(shown >= 61001)
  web.send(
    udp({ from: 53, to: `192.168.100.254:${shown}`, data: 'to local' }),
    udp({ from: 53, to: '10.0.0.6:1111', data: 'to two' }),
    udp({ from: 53, to: '10.0.0.5:1111', data: 'to one' }),
  )
  assert.deepEqual(
    shared.sent.map((d) => `${d.peer} ${text(d.bytes)}`),
    ['127.0.0.1:1111 to local', '10.0.0.6:1111 to two', '10.0.0.5:1111 to one'],
  )
  net.host.arrive(shared.id, Buffer.from('again'), { peer: '127.0.0.1:1111' })
  net.deliver()
  assert.deepEqual(web.lines(), [`udp 192.168.100.254:${shown} > 192.168.100.10:53 again`])
  net.network.unpublish('p')
  assert.equal(shared.closed, 'close')
  assert.equal(net.network.stats().flows.length, 0)
})

test('ping: the guest’s id comes back, TTL is carried, errors are reported per request', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(icmp({ to: '8.8.8.8', id: 77, sequence: 1, data: 'abc', ttl: 2 }))
  web.send(icmp({ to: '8.8.8.8', id: 77, sequence: 2, data: 'abc', ttl: 3 }))
  const [s] = net.host.open('ping')
  assert.deepEqual(
    s.sent.map((d) => d.ttl),
    [1, 2],
  )
  net.host.report(s.id, { type: 11, code: 0, errno: EHOSTUNREACH, from: '10.9.9.9', sequence: 1 })
  net.deliver()
  const [late] = web.take()
  assert.equal(late.ip?.src, '10.9.9.9')
  assert.deepEqual([...late.icmp!.data.slice(24, 28)], [0, 77, 0, 1])
  const reply = s.sent[1].bytes.slice()
  reply[0] = 0
  reply[5] = 200
  net.host.arrive(s.id, reply)
  net.deliver()
  const [r] = web.take()
  assert.deepEqual([r.icmp?.type, r.icmp?.id, r.icmp?.sequence], [0, 77, 2])
})

test('no ICMP sockets allowed: the guest hears so and a person is told once', () => {
  const net = new TestNet()
  net.host.pingAllowed = false
  const web = net.vm('web')
  web.send(icmp({ to: '8.8.8.8' }), icmp({ to: '8.8.8.8' }))
  assert.deepEqual(web.lines(), [
    'icmp 192.168.100.1 > 192.168.100.10 3/13',
    'icmp 192.168.100.1 > 192.168.100.10 3/13',
  ])
  assert.equal(net.host.events.length, 1)
})

test('"do not fragment" is carried: what is longer than the path is said to be, with the path’s MTU', () => {
  const net = new TestNet()
  net.host.pathMtu = 1400
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:9000', from: 5000, data: new Uint8Array(1400), df: true }))
  web.send(icmp({ to: '8.8.8.8', id: 7, sequence: 5, data: new Uint8Array(1400), df: true }))
  const told = web.take()
  assert.deepEqual(
    told.map((r) => [r.ip?.src, r.icmp?.type, r.icmp?.code, r.icmp?.info]),
    [
      ['192.168.100.1', 3, 4, 1400],
      ['192.168.100.1', 3, 4, 1400],
    ],
  )
  assert.deepEqual([...told[1].icmp!.data.slice(24, 28)], [0, 7, 0, 5])
  assert.equal(web.drops('too-big'), 2)
  web.send(udp({ to: '8.8.8.8:9000', from: 5000, data: new Uint8Array(1400) }))
  web.send(udp({ to: '8.8.8.8:9000', from: 5000, data: new Uint8Array(1372), df: true }))
  assert.deepEqual(
    net.host.open('udp')[0].sent.map((d) => d.bytes.length),
    [1400, 1372],
  )
})
