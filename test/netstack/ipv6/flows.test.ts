import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ROUTE } from '../../../src/netstack/host.ts'
import { ACK, FIN, PSH, RST, SYN } from '../../../src/netstack/wire/tcp.ts'
import { IPV6, icmp6, packet, TestNet, tcp, udp } from '../net.ts'

const OUTSIDE = '2001:db8::80'
const world = (config = {}, limits = {}) => {
  const net = new TestNet({ config: { ipv6: IPV6, ...config }, limits })
  return { net, web: net.vm('web'), db: net.vm('db') }
}

test('TCP: connect first, data both ways, the end', () => {
  const { net, web } = world()
  const to = `[${OUTSIDE}]:80`
  web.send(tcp({ to, flags: SYN, seq: 1000 }))
  const [sock] = net.host.open('tcp')
  assert.equal(sock.peer, to)
  const [synAck] = web.take()
  assert.deepEqual(
    [synAck.ip?.src, synAck.ip?.dst, synAck.tcp?.flags, synAck.tcp?.ack],
    [OUTSIDE, web.ip6, SYN | ACK, 1001],
  )
  const ack = ((synAck.tcp?.seq ?? 0) + 1) | 0
  // MSS: what fits 1500 bytes with an IPv6 header.
  const option = synAck.bytes.indexOf(2, 14 + 40 + 20)
  assert.equal((synAck.bytes[option + 2] << 8) | synAck.bytes[option + 3], 1440)
  web.send(tcp({ to, flags: ACK | PSH, seq: 1001, ack, data: 'GET /' }))
  assert.equal(Buffer.concat(sock.outbox).toString(), 'GET /')
  net.host.tcpWrite(sock.id, Buffer.from('hello'))
  net.deliver()
  const data = web.take().filter((r) => r.tcp && r.tcp.data.length > 0)
  assert.equal(Buffer.from(data[0].tcp!.data).toString(), 'hello')
  assert.deepEqual(
    net.network.stats().flows.map((f) => [f.guest, f.peer, f.state]),
    [['[fd00:6::a]:4000', to, 'ESTABLISHED']],
  )
  web.send(tcp({ to, flags: ACK | FIN, seq: 1006, ack: (ack + 5) | 0 }))
  assert.equal(sock.outboxEnd, true)
})

test('TCP: long payload leaves as one frame for TCPv6 segmentation', () => {
  const { net, web } = world()
  const to = `[${OUTSIDE}]:80`
  // With an MSS of its own, in the SYN's options.
  web.send((from) => {
    const b = tcp({ to, flags: SYN, seq: 1000, data: Uint8Array.of(2, 4, 0x05, 0xa0) })(from)
    b.bytes[14 + 40 + 12] = 0x60
    const fixed = tcp({ to, flags: SYN, seq: 1000, data: Uint8Array.of(2, 4, 0x05, 0xa0) })(from)
    fixed.bytes[14 + 40 + 12] = 0x60
    return { bytes: fixed.bytes, partial: true }
  })
  const [sock] = net.host.open('tcp')
  const [synAck] = web.take()
  web.send(tcp({ to, flags: ACK, seq: 1001, ack: ((synAck.tcp?.seq ?? 0) + 1) | 0 }))
  net.host.tcpWrite(sock.id, new Uint8Array(10_000).fill(7))
  net.deliver()
  const data = web.take().filter((r) => r.tcp && r.tcp.data.length > 0)
  assert.equal(
    data.reduce((n, r) => n + (r.tcp?.data.length ?? 0), 0),
    10_000,
  )
  assert.deepEqual(data[0].gso, { type: 4, size: 1440 })
})

test('TCP: refused, unreachable, no route', () => {
  const { net, web } = world()
  net.host.internet = () => 'refuse'
  web.send(tcp({ to: `[${OUTSIDE}]:80` }))
  assert.deepEqual(web.lines(), [`tcp [${OUTSIDE}]:80 > [${web.ip6}]:4000 RST+ACK`])
  net.host.internet = () => 'unreachable'
  web.send(tcp({ to: `[${OUTSIDE}]:81` }))
  assert.deepEqual(web.lines(), [
    `icmp6 ${IPV6.gateway} > ${web.ip6} 1/3`,
    `tcp [${OUTSIDE}]:81 > [${web.ip6}]:4000 RST+ACK`,
  ])
  // A host without IPv6 says so at once: happy eyeballs costs nothing.
  net.host.routes = () => ROUTE.unreachable
  web.send(tcp({ to: `[${OUTSIDE}]:82` }), udp({ to: `[${OUTSIDE}]:82` }))
  assert.deepEqual(web.lines(), [`icmp6 ${IPV6.gateway} > ${web.ip6} 1/0`, `icmp6 ${IPV6.gateway} > ${web.ip6} 1/0`])
  web.send(tcp({ to: `[${OUTSIDE}]:83`, flags: ACK, ack: 7 }))
  assert.deepEqual(web.lines(), [`tcp [${OUTSIDE}]:83 > [${web.ip6}]:4000 RST`])
})

test('UDP: out, the answer, and what the way says', () => {
  const { net, web } = world()
  web.send(udp({ to: `[${OUTSIDE}]:9000`, data: 'question', ttl: 5 }))
  const [sock] = net.host.open('udp')
  assert.deepEqual(
    [sock.peer, Buffer.from(sock.sent[0].bytes).toString(), sock.sent[0].ttl],
    [`[${OUTSIDE}]:9000`, 'question', 4],
  )
  assert.equal(sock.dontFragment, true, 'nobody but the sender fragments')
  net.host.arrive(sock.id, Buffer.from('answer'))
  net.deliver()
  assert.deepEqual(web.lines(), [`udp [${OUTSIDE}]:9000 > [${web.ip6}]:4000 answer`])
  // A router's time exceeded, a port unreachable of the destination, a link-local router of the host's side.
  const err = (type: number, code: number, from: string, errno = 113, mtu = 0) => {
    sock.errors.push({ type, code, errno, mtu, from })
    net.host.signal(sock.id, 8)
    net.deliver()
    return web.lines()
  }
  assert.deepEqual(err(3, 0, '2001:db8:1::1'), [`icmp6 2001:db8:1::1 > ${web.ip6} 3/0`])
  assert.deepEqual(err(1, 4, OUTSIDE, 111), [`icmp6 ${OUTSIDE} > ${web.ip6} 1/4`])
  assert.deepEqual(err(1, 0, 'fe80::77'), [`icmp6 ${IPV6.gateway} > ${web.ip6} 1/0`])
  sock.errors.push({ type: 2, code: 0, errno: 90, mtu: 1400, from: '2001:db8:1::1' })
  net.host.signal(sock.id, 8)
  net.deliver()
  const [big] = web.take()
  assert.deepEqual([big.icmp?.type, big.icmp?.info], [2, 1400])
})

test('UDP: a checksum is not optional', () => {
  const { net, web } = world()
  web.send(udp({ to: `[${OUTSIDE}]:9000`, checksum: 0 }))
  web.send(udp({ to: `[${OUTSIDE}]:9000`, checksum: 0x1234 }))
  assert.deepEqual([net.drops('udp-unsummed'), net.drops('checksum'), net.host.open('udp').length], [1, 1, 1])
  assert.equal(net.host.open('udp')[0].sent.length, 0)
})

test('UDP: joined datagrams stay together; long ones come in fragments', () => {
  const { net, web } = world()
  web.send(udp({ to: `[${OUTSIDE}]:9000`, data: new Uint8Array(3000), segment: 1000 }))
  const [sock] = net.host.open('udp')
  assert.deepEqual([sock.sent[0].bytes.length, sock.sent[0].segment], [3000, 1000])
  net.host.arrive(sock.id, new Uint8Array(2000).fill(1), { segment: 1000 })
  net.deliver()
  const [joined] = web.take()
  assert.deepEqual([joined.gso, joined.udp?.data.length], [{ type: 5, size: 1000 }, 2000])
  net.host.arrive(
    sock.id,
    new Uint8Array(4000).map((_, i) => i),
  )
  net.deliver()
  const parts = web.take()
  assert.deepEqual(
    parts.map((r) => [r.ip?.offset, r.ip?.mf, r.ip?.proto, r.bytes.length <= 1514]),
    [
      [0, true, 17, true],
      [1448, true, 17, true],
      [2896, false, 17, true],
    ],
  )
  assert.equal(new Set(parts.map((r) => r.ip?.id)).size, 1)
  const whole = Buffer.concat(parts.map((r) => r.bytes.subarray(14 + 48)))
  assert.equal(whole.length, 4008)
})

test('path MTU: what is longer is told, and what then comes in fragments may be fragmented on its way', () => {
  const { net, web } = world()
  net.host.pathMtu = 1400
  const to = `[${OUTSIDE}]:9000`
  web.send(udp({ to, data: new Uint8Array(1400) }))
  const [big] = web.take()
  assert.deepEqual([big.icmp?.type, big.icmp?.info, big.ip?.src], [2, 1400, IPV6.gateway])
  const whole = udp({ to, data: new Uint8Array(1400) })(web).bytes.slice(14 + 40)
  const piece = (offset: number, end: number) => {
    const more = end < whole.length ? 1 : 0
    const before = Uint8Array.of(17, 0, offset >> 8, (offset & 0xf8) | more, 0, 0, 0, 9)
    return packet({ to: OUTSIDE, proto: 17, next: 44, before, payload: whole.slice(offset, end) })
  }
  web.send(piece(0, 800), piece(800, whole.length))
  const [sock] = net.host.open('udp')
  assert.equal(sock.sent.length, 1)
  assert.equal(sock.sent[0].bytes.length, 1400)
})

test('ping: request, reply under the guest’s id, errors, permission', () => {
  const { net, web } = world()
  web.send(icmp6({ to: OUTSIDE, id: 77, sequence: 3, data: 'abc', ttl: 3 }))
  const [sock] = net.host.open('ping')
  assert.deepEqual([sock.peer, sock.sent[0].ttl, sock.sent[0].bytes[0]], [OUTSIDE, 2, 128])
  net.host.arrive(sock.id, Uint8Array.of(129, 0, 0, 0, 9, 9, 0, 3, 97, 98, 99))
  net.deliver()
  const [reply] = web.take()
  assert.deepEqual([reply.icmp?.type, reply.icmp?.id, reply.icmp?.sequence, reply.ip?.src], [129, 77, 3, OUTSIDE])
  sock.errors.push({ type: 3, code: 0, errno: 113, sequence: 3, from: '2001:db8:1::1' })
  net.host.signal(sock.id, 8)
  net.deliver()
  const [late] = web.take()
  assert.deepEqual([late.icmp?.type, late.ip?.src, late.icmp?.data[40]], [3, '2001:db8:1::1', 128])
  assert.deepEqual(
    net.network.stats().flows.map((f) => [f.proto, f.guest, f.peer]),
    [['icmp', web.ip6, OUTSIDE]],
  )
  net.host.pingAllowed = false
  web.send(icmp6({ to: OUTSIDE, id: 78 }))
  assert.deepEqual(web.lines(), [`icmp6 ${IPV6.gateway} > ${web.ip6} 1/1`])
})

test('hop limit: traceroute sees the gateway', () => {
  const { net, web } = world()
  web.send(udp({ to: `[${OUTSIDE}]:33434`, ttl: 1, data: 'probe' }))
  const [r] = web.take()
  assert.deepEqual([r.icmp?.type, r.icmp?.code, r.ip?.src, r.ip?.ttl], [3, 0, IPV6.gateway, 64])
  // The quote is the packet as it was sent.
  assert.equal(r.icmp?.data.length, 40 + 8 + 5)
  assert.equal(net.drops('ttl'), 1)
})

test('what leads nowhere, and who says so', () => {
  const { net, web, db } = world()
  const said = (...lines: string[]) => assert.deepEqual(web.lines(), lines)
  web.send(packet({ to: OUTSIDE, proto: 132, payload: new Uint8Array(20) }))
  said(`icmp6 ${IPV6.gateway} > ${web.ip6} 4/1`)
  web.send(udp({ to: `[${IPV6.gateway}]:99` }))
  said(`icmp6 ${IPV6.gateway} > ${web.ip6} 1/4`)
  web.send(tcp({ to: `[${IPV6.services}]:99` }))
  said(`tcp [${IPV6.services}]:99 > [${web.ip6}]:4000 RST+ACK`)
  web.send(icmp6({ to: IPV6.gateway, data: 'hi' }), icmp6({ to: 'fe80::1' }))
  said(`icmp6 ${IPV6.gateway} > ${web.ip6} 129/0`, `icmp6 fe80::1 > ${web.ip6} 129/0`)
  // By way of the gateway to a neighbour: not here.
  web.send(udp({ to: `[${db.ip6}]:9` }))
  said(`icmp6 ${IPV6.gateway} > ${web.ip6} 1/3`)
  // Never about an error, nor to nobody.
  web.send(icmp6({ to: OUTSIDE, type: 1, ttl: 1, data: new Uint8Array(48) }))
  said()
  assert.equal(net.drops('ttl'), 1)
})

test('policy: what a VM may not reach', () => {
  const { net, web } = world()
  const refused = (to: string, reason: Parameters<typeof net.drops>[0]) => {
    const before = net.drops(reason)
    web.send(tcp({ to: `[${to}]:80` }), udp({ to: `[${to}]:80` }))
    assert.equal(net.drops(reason) - before, 2, `${to} ${reason}`)
    assert.deepEqual(net.host.open('tcp').length + net.host.open('udp').length, 0)
    assert.deepEqual(web.lines(), [
      `tcp [${to}]:80 > [${web.ip6}]:4000 RST+ACK`,
      `icmp6 ${IPV6.gateway} > ${web.ip6} 1/1`,
    ])
  }
  refused('fe80::5', 'deny-link-local')
  refused('fd00:ec2::254', 'deny-link-local')
  refused('fd20:ce::254', 'deny-link-local')
  refused('64:ff9b::a9fe:a9fe', 'deny-link-local')
  refused('2002:a9fe:a9fe::1', 'deny-link-local')
  refused('64:ff9b::7f00:1', 'deny-loopback')
  refused('::1', 'deny-loopback')
  refused('::7f00:1', 'deny-reserved')
  net.host.routes = () => ROUTE.noid
  refused('fd12:3456:789a:1::10', 'deny-network')
  net.host.routes = () => ROUTE.loopback
  refused('2001:db8::1', 'deny-loopback')
  web.send((from) => {
    const b = udp({ to: '[2001:db8::1]:80' })(from)
    b.bytes.set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1], 14 + 24)
    return b
  })
  assert.equal(net.drops('deny-reserved') >= 2, true)
})

test('a link-local address stays on its link', () => {
  const { net, web } = world()
  const own = 'fe80::ff:fe00:11'
  web.send(udp({ from: `[${own}]:4000`, to: `[${OUTSIDE}]:9000` }))
  assert.deepEqual(web.lines(), [`icmp6 ${IPV6.gateway} > ${own} 1/2`])
  assert.equal(net.drops('scope'), 1)
  web.send(icmp6({ from: own, to: 'fe80::1' }))
  assert.deepEqual(web.lines(), [`icmp6 fe80::1 > ${own} 129/0`])
})

test('--allow-host: [::254]:PORT is the host’s loopback', () => {
  const { net, web } = world({ allowHostPorts: [5432] })
  const to = `[${IPV6.hostAddress}]:5432`
  web.send(tcp({ to }), udp({ to }))
  assert.deepEqual(
    net.host.open().map((s) => s.peer),
    ['127.0.0.1:5432', '127.0.0.1:5432'],
  )
  const [, sock] = net.host.open()
  web.take()
  sock.errors.push({ type: 3, code: 3, errno: 111, from: '127.0.0.1' })
  net.host.signal(sock.id, 8)
  net.deliver()
  assert.deepEqual(web.lines(), [`icmp6 ${IPV6.hostAddress} > ${web.ip6} 1/4`])
  web.send(tcp({ to: `[${IPV6.hostAddress}]:22` }))
  assert.equal(net.drops('deny-loopback'), 1)
})

test('an RST of a guest ends the connection', () => {
  const { net, web } = world()
  const to = `[${OUTSIDE}]:80`
  web.send(tcp({ to, seq: 1000 }))
  web.take()
  web.send(tcp({ to, flags: RST, seq: 1001 }))
  assert.equal(net.host.open('tcp').length, 0)
  assert.equal(net.network.stats().flows.length, 0)
})
