/**
 * Services through the whole network: DHCP by broadcast and by unicast, DNS over UDP and over TCP, at .2 and at .1.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decode as decodeDns, encode as encodeDns } from 'dns-packet'
import { decode as decodeDhcp, encode as encodeDhcp } from '#dhcp-packet'
import { ACK, FIN, RST, SYN } from '../../src/netstack/wire/tcp.ts'
import { arp, BROADCAST_MAC, packet, type Station, TestNet, tcp, udp } from './net.ts'

const dhcp = (s: Station, messageType: 'DISCOVER' | 'REQUEST', more: object = {}) =>
  udp({
    from: '0.0.0.0:68',
    to: '255.255.255.255:67',
    dstMac: BROADCAST_MAC,
    data: encodeDhcp({ op: 'request', xid: 7, chaddr: s.mac, options: { messageType, ...more } }),
  })

test('DHCP: discover, offer, request, ack; the lease is in the rows', () => {
  const net = new TestNet()
  const web = net.vm('web', { bound: false })
  web.send(dhcp(web, 'DISCOVER'))
  const [offer] = web.take()
  assert.deepEqual([offer.ip?.src, offer.udp?.srcPort, offer.udp?.dstPort], ['192.168.100.2', 67, 68])
  const o = decodeDhcp(offer.udp!.data)
  assert.deepEqual([o.options.messageType, o.yiaddr], ['OFFER', '192.168.100.10'])
  web.send(dhcp(web, 'REQUEST', { requestedAddress: o.yiaddr, serverId: '192.168.100.2' }))
  assert.equal(decodeDhcp(web.take()[0].udp!.data).options.messageType, 'ACK')
  assert.deepEqual(
    net.network.stats().leases.map((l) => [l.vm, l.address, l.state]),
    [['web', '192.168.100.10', 'bound']],
  )
  // Renewal is unicast to the server.
  const renew = encodeDhcp({
    op: 'request',
    xid: 8,
    chaddr: web.mac,
    ciaddr: web.ip,
    options: { messageType: 'REQUEST' },
  })
  web.send(udp({ from: 68, to: '192.168.100.2:67', data: renew }))
  const [ack] = web.take()
  assert.deepEqual([ack.ip?.dst, decodeDhcp(ack.udp!.data).options.messageType], [web.ip, 'ACK'])
})

const question = (name: string) => encodeDns({ type: 'query', id: 99, flags: 256, questions: [{ type: 'A', name }] })
const answers = (bytes: Uint8Array) =>
  decodeDns(Buffer.from(bytes)).answers?.map((a) => (a.type === 'A' ? `${a.name} ${a.data}` : a.type))

test('DNS over UDP: names of VMs, at both addresses', () => {
  const net = new TestNet()
  const web = net.vm('web')
  net.vm('db')
  for (const server of ['192.168.100.2', '192.168.100.1']) {
    web.send(udp({ to: `${server}:53`, data: question('db.noid.internal') }))
    const [a] = web.take()
    assert.equal(a.ip?.src, server)
    assert.deepEqual(answers(a.udp!.data), ['db.noid.internal 192.168.100.11'])
  }
})

test('several questions in one frame are several questions', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const q = question('web')
  web.send(udp({ to: '192.168.100.2:53', data: Buffer.concat([q, q, q]), segment: q.length }))
  assert.equal(web.take().length, 3)
})

test('DNS upstream: the host’s resolver is asked, its answer passed on', () => {
  const net = new TestNet()
  net.network.setResolvers(['10.0.0.53'])
  const web = net.vm('web')
  web.send(udp({ to: '192.168.100.2:53', data: question('example.com') }))
  const [s] = net.host.open('udp')
  assert.equal(s.peer, '10.0.0.53:53')
  const q = decodeDns(Buffer.from(s.sent[0].bytes))
  const answer = encodeDns({
    type: 'response',
    id: q.id,
    flags: 256 | 128,
    questions: q.questions,
    answers: [{ type: 'A', name: q.questions![0].name, ttl: 60, data: '93.184.216.34' }],
  })
  net.host.arrive(s.id, answer)
  net.deliver()
  const [a] = web.take()
  assert.deepEqual(answers(a.udp!.data)?.[0].toLowerCase(), 'example.com 93.184.216.34')
})

test('a resolver that cannot be used is a warning', () => {
  const net = new TestNet()
  net.network.setResolvers(['not-an-address', '10.0.0.53'])
  assert.match((net.host.events[0] as { message: string }).message, /not-an-address/)
})

test('DNS over TCP: a connection to the services’ address is answered within the engine', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const to = '192.168.100.2:53'
  web.send(tcp({ to, seq: 100 }))
  const [synAck] = web.take()
  assert.equal(synAck.tcp?.flags, SYN | ACK)
  const ack = synAck.tcp!.seq + 1
  const q = question('web')
  const message = new Uint8Array(q.length + 2)
  message[1] = q.length
  message.set(q, 2)
  web.send(tcp({ to, seq: 101, ack, flags: ACK }), tcp({ to, seq: 101, ack, flags: ACK, data: message }))
  const data = Buffer.concat(web.take().map((r) => r.tcp!.data))
  assert.equal(data.readUInt16BE(0), data.length - 2)
  assert.deepEqual(answers(data.subarray(2)), ['web 192.168.100.10'])
  assert.equal(net.host.sockets.size, 0)
  const seq = 101 + message.length
  web.send(tcp({ to, seq, ack: ack + data.length, flags: FIN | ACK }))
  const [fin] = web.take().filter((r) => (r.tcp!.flags & FIN) !== 0)
  web.send(tcp({ to, seq: seq + 1, ack: fin.tcp!.seq + 1, flags: ACK }))
  net.advance(10_000)
  assert.equal(net.network.stats().flows.length, 0)
})

test('DNS over TCP: a VM that never closes its connections has a share, and loses it', () => {
  const net = new TestNet({ limits: { flows: 1024 } })
  const to = '192.168.100.2:53'
  /** What is answered to a SYN; an end of the service's is acknowledged, and nothing closed. */
  const open = (vm: Station, from: number): number | undefined => {
    vm.take()
    vm.send(tcp({ to, from, seq: 1000 }))
    const first = vm.take()[0]?.tcp
    if (first?.flags !== (SYN | ACK)) return first?.flags
    vm.send(tcp({ to, from, seq: 1001, ack: first.seq + 1, flags: ACK }))
    for (const { tcp: t } of vm.take())
      if (t && t.flags & FIN) vm.send(tcp({ to, from, seq: 1001, ack: t.seq + 1, flags: ACK }))
    return first.flags
  }
  const bad = net.vm('bad')
  const all = Array.from({ length: 300 }, (_, k) => open(bad, 10_000 + k))
  assert.equal(all.filter((flags) => flags === (SYN | ACK)).length, 40)
  assert.equal(all.filter((flags) => flags === (RST | ACK)).length, 260)
  // Of the 40, the service itself has listened to 32.
  const told = net.network.stats().drops.find((d) => d.vm === 'bad' && d.reason === 'dns-streams')
  assert.equal(told?.count, 268)
  // However many others want all that there is.
  for (let n = 0; n < 9; n++) {
    const vm = net.vm(`bad${n}`)
    for (let k = 0; k < 40; k++) open(vm, 10_000 + k)
  }
  const good = net.vm('good')
  assert.equal(open(good, 4000), SYN | ACK)
  for (let s = 0; s < 60; s++) net.advance(1000)
  assert.deepEqual(net.network.stats().flows, [])
})

test('a published TCP port: the client’s address is shown; from the host itself .254', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const listener = net.host.make('listener', '')
  const publish = {
    id: 'p',
    proto: 'tcp',
    sock: listener.id,
    guestAddress: web.ip,
    guestPort: 80,
    hostAddress: '0.0.0.0',
    hostPort: 8080,
  } as const
  net.network.publish(publish)
  const far = net.host.client(listener.id, '203.0.113.9:5555')
  net.host.client(listener.id, '127.0.0.1:5555')
  net.host.client(listener.id, '192.168.100.254:5555')
  net.host.client(listener.id, '[2001:db8::1]:5555')
  net.deliver()
  const syns = web.take()
  assert.deepEqual(
    syns.map((r) => r.ip?.src),
    ['203.0.113.9', '192.168.100.254', '192.168.100.254', '192.168.100.254'],
  )
  assert.equal(new Set(syns.map((r) => `${r.ip?.src} ${r.tcp?.srcPort}`)).size, 4)
  assert.ok(syns.slice(1).every((r) => r.tcp!.srcPort >= 61001))

  const accept = (r: (typeof syns)[0]) =>
    web.send(
      tcp({ from: 80, to: `${r.ip!.src}:${r.tcp!.srcPort}`, seq: 500, ack: r.tcp!.seq + 1, flags: SYN | ACK }),
      tcp({ from: 80, to: `${r.ip!.src}:${r.tcp!.srcPort}`, seq: 501, ack: r.tcp!.seq + 1, flags: ACK, data: 'hello' }),
    )
  accept(syns[0])
  accept(syns[1])
  assert.equal(Buffer.from(net.host.tcpRead(far.id)).toString(), 'hello')
  // A guest's refusal resets the client.
  const third = syns[2]
  web.send(
    tcp({ from: 80, to: `${third.ip!.src}:${third.tcp!.srcPort}`, seq: 0, ack: third.tcp!.seq + 1, flags: 0x14 }),
  )
  assert.equal(net.host.open('tcp').length, 3)
  // Taken back: the socket is closed, connections go on.
  net.network.unpublish('p')
  assert.equal(listener.closed, 'close')
  web.send(tcp({ from: 80, to: '203.0.113.9:5555', seq: 506, ack: syns[0].tcp!.seq + 1, flags: ACK, data: 'more' }))
  assert.equal(Buffer.from(net.host.tcpRead(far.id)).toString(), 'more')
})

test('a client of a published port whose VM is not there is reset', () => {
  const net = new TestNet()
  const listener = net.host.make('listener', '')
  net.network.publish({
    id: 'p',
    proto: 'tcp',
    sock: listener.id,
    guestAddress: '192.168.100.10',
    guestPort: 80,
    hostAddress: '0.0.0.0',
    hostPort: 8080,
  })
  const client = net.host.client(listener.id, '203.0.113.9:5555')
  net.deliver()
  assert.equal(client.closed, 'reset')
  assert.equal(net.drops('publish-no-guest'), 1)
  // It comes: the next client reaches it.
  const web = net.vm('web')
  net.host.client(listener.id, '203.0.113.9:5556')
  net.deliver()
  assert.deepEqual(web.lines(), ['tcp 203.0.113.9:5556 > 192.168.100.10:80 SYN'])
  net.network.detach(web.index)
  assert.equal(net.host.open('tcp').length, 0)
})

test('beside a host interface, answers to a client shown as .254 come back to its flow', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const host = net.hostPort()
  const shared = net.host.make('udp-bound', '')
  net.network.publish({
    id: 'p',
    proto: 'udp',
    sock: shared.id,
    guestAddress: web.ip,
    guestPort: 80,
    hostAddress: '0.0.0.0',
    hostPort: 8080,
  })
  net.host.arrive(shared.id, Buffer.from('in'), { peer: '127.0.0.1:1111' })
  net.deliver()
  const [r] = web.take()
  web.send(udp({ from: 80, to: `192.168.100.254:${r.udp!.srcPort}`, dstMac: host.mac, data: 'out' }))
  assert.deepEqual([shared.sent.length, host.lines()], [1, []])
  web.send(udp({ from: 81, to: `192.168.100.254:${r.udp!.srcPort}`, dstMac: host.mac, data: 'out' }))
  assert.deepEqual([shared.sent.length, host.take().length], [1, 1])
})

test('large datagrams to an allowed host port, in fragments, beside a host interface', () => {
  const net = new TestNet({ config: { allowHostPorts: [99] } })
  const web = net.vm('web')
  const host = net.hostPort()
  const fragments = (port: number, id: number) => {
    const whole = udp({ to: `192.168.100.254:${port}`, data: new Uint8Array(2000).fill(7) })(web).bytes.slice(34)
    web.send(
      () => fragment(whole.slice(0, 1480), { id, mf: true }),
      () => fragment(whole.slice(1480), { id, offset: 1480 }),
    )
  }
  const fragment = (payload: Uint8Array, o: object) =>
    packet({ to: host.ip, dstMac: host.mac, proto: 17, payload, ...o })(web)
  fragments(99, 1)
  assert.equal(net.host.open('udp')[0].sent[0].bytes.length, 2000)
  fragments(98, 2)
  assert.deepEqual(
    host.take().map((r) => r.udp?.data.length),
    [2000],
  )
})

test('the host asks the gateway: ARP, ping and names', () => {
  const net = new TestNet()
  net.vm('web')
  const host = net.hostPort()
  host.send(arp({ target: '192.168.100.2' }), udp({ to: '192.168.100.2:53', data: question('web.noid.internal') }))
  const [, a] = host.take()
  assert.deepEqual(answers(a.udp!.data), ['web.noid.internal 192.168.100.10'])
})

test('stats: flows, leases, drops and ports are rows for people', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:53', data: 'abc' }), udp({ to: '169.254.169.254:80' }))
  const s = net.network.stats()
  assert.deepEqual(
    s.flows.map((f) => [f.proto, f.vm, f.guest, f.peer, f.direction, f.state, f.bytesOut]),
    [['udp', 'web', '192.168.100.10:4000', '8.8.8.8:53', 'out', 'waiting', 3]],
  )
  assert.deepEqual(
    s.drops.map((d) => [d.vm, d.reason, d.count]),
    [['web', 'deny-link-local', 1]],
  )
  assert.deepEqual(
    s.ports.map((p) => [p.vm, p.mac, p.framesIn]),
    [['web', web.mac, 2]],
  )
  assert.ok(s.drops.every((d) => d.meaning.length > 0))
})
