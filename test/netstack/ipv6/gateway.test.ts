/** The gateway's own IPv6: neighbours, routers, names, published ports, fragments. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decode as decodeDns, encode as encodeDns } from 'dns-packet'
import { TIMEOUT } from '../../../src/netstack/gateway/fragments.ts'
import { ACK, SYN } from '../../../src/netstack/wire/tcp.ts'
import { ALL_NODES_MAC, GATEWAY_MAC, IPV6, icmp6, packet, type Received, solicit, TestNet, tcp, udp } from '../net.ts'

const world = (config = {}, limits = {}) => {
  const net = new TestNet({ config: { ipv6: IPV6, ...config }, limits })
  return { net, web: net.vm('web') }
}

const IPV4_SERVICES = '192.168.100.2'
const isRouter = (r: Received): boolean => r.icmp?.type === 134

test('a VM is asked for its addresses until it uses the one it was given, and names lead there no sooner', () => {
  const { net, web } = world()
  const asked = () => web.take().filter((r) => r.icmp?.type === 135)
  const aaaa = () => {
    web.send(udp({ to: `${IPV4_SERVICES}:53`, data: question('web') }))
    return web.take().flatMap((r) => rcode(r.udp!.data).answers?.map((a) => (a as { data: unknown }).data) ?? [])
  }
  net.advance(1100)
  const first = asked()
  // The one it was given and the one that its MAC makes.
  assert.equal(new Set(first.map((r) => r.ip?.dst)).size, 2)
  for (const r of first) {
    assert.deepEqual([r.ip?.src, r.ip?.ttl], ['fe80::1', 255])
    assert.match(r.ip?.dst as string, /^ff02::1:ff/)
    assert.match(r.dstMac, /^33:33:ff/)
  }
  assert.deepEqual(aaaa(), [])
  net.advance(600_000)
  const again = asked().length
  assert.ok(again >= 24 && again <= 40, `${again} in ten minutes`)
  web.send(solicit({ target: IPV6.gateway }))
  web.take()
  assert.deepEqual(aaaa(), [web.ip6])
  net.advance(600_000)
  assert.deepEqual(asked(), [])
})

test('neighbours: the gateway answers for its own addresses, and for the host’s where no interface has it', () => {
  const { net, web } = world()
  for (const target of [IPV6.gateway, 'fe80::1', IPV6.services, IPV6.hostAddress]) {
    web.send(solicit({ target }))
    const [r] = web.take()
    assert.deepEqual([r.ip?.src, r.ip?.dst, r.ip?.ttl, r.icmp?.type], [target, web.ip6, 255, 136])
    // Solicited, to be believed; a router where it is one.
    assert.equal((r.icmp?.info ?? 0) >>> 24, target === IPV6.hostAddress ? 0x60 : 0xe0)
  }
  // A guest makes sure that the gateway is still there.
  web.send(solicit({ target: IPV6.gateway, to: IPV6.gateway, dstMac: GATEWAY_MAC }))
  assert.deepEqual(web.lines(), [`icmp6 ${IPV6.gateway} > ${web.ip6} is-at ${IPV6.gateway} ${GATEWAY_MAC}`])
  // Somebody wants an address of ours for his own.
  web.send(solicit({ from: '::', target: IPV6.services }))
  assert.deepEqual(web.lines(), [`icmp6 fe80::1 > ff02::1 is-at ${IPV6.services} ${GATEWAY_MAC}`])
  web.send(solicit({ target: 'fd00:6::77' }))
  assert.deepEqual(web.lines(), [])
  net.hostPort()
  web.send(solicit({ target: IPV6.hostAddress }))
  assert.deepEqual(web.lines(), [])
  web.send((from) => {
    const b = solicit({ target: IPV6.gateway })(from)
    b.bytes[14 + 40 + 2] ^= 1
    return b
  })
  assert.deepEqual([web.lines(), web.drops('checksum')], [[], 1])
})

test('who is there, and who is a router: the gateway', () => {
  const { net, web } = world()
  net.vm('db')
  for (const to of ['ff02::1', 'ff02::2']) {
    web.send(icmp6({ to, data: 'x' }))
    assert.deepEqual(web.lines(), [`icmp6 fe80::1 > ${web.ip6} 129/0`])
  }
  web.send(icmp6({ to: 'ff05::2', data: 'x' }))
  assert.deepEqual([web.lines(), web.drops('broadcast-leaving')], [[], 1])
})

/** An advertisement's options, by type. */
function options(r: Received): Map<number, Buffer> {
  const b = Buffer.from(r.icmp?.data ?? [])
  const found = new Map<number, Buffer>()
  for (let at = 8; at < b.length; at += b[at + 1] * 8) found.set(b[at], b.subarray(at, at + b[at + 1] * 8))
  return found
}

test('routers: what is advertised', () => {
  const { web } = world()
  web.send(icmp6({ from: 'fe80::ff:fe00:11', to: 'ff02::2', type: 133, id: 0, sequence: 0, ttl: 255 }))
  const [r] = web.take()
  assert.deepEqual([r.ip?.src, r.ip?.dst, r.ip?.ttl, r.icmp?.type], ['fe80::1', 'fe80::ff:fe00:11', 255, 134])
  const second = r.icmp?.info ?? 0
  assert.deepEqual([second >>> 24, (second >>> 16) & 0xc0, second & 0xffff], [64, 0xc0, 1800])
  const o = options(r)
  assert.equal(o.get(1)?.subarray(2).toString('hex'), GATEWAY_MAC.replaceAll(':', ''))
  assert.equal(o.get(5)?.readUInt32BE(4), 1500)
  const prefix = o.get(3) as Buffer
  assert.deepEqual([prefix[2], prefix[3] & 0xc0], [64, 0xc0])
  assert.equal(prefix.subarray(16, 24).toString('hex'), 'fd00000600000000')
  assert.equal(o.get(25)?.subarray(8).toString('hex'), 'fd000006000000000000000000000002')
  assert.deepEqual([...(o.get(31) ?? [])].slice(8, 23), [4, ...Buffer.from('noid'), 8, ...Buffer.from('internal'), 0])
})

test('routers: told at once, then now and then; an isolated network’s prefix is not on-link', () => {
  const { net, web } = world({ isolated: true })
  const count = () => web.take().filter(isRouter).length
  net.advance(1100)
  const [first] = web.take()
  assert.deepEqual([first.ip?.dst, first.dstMac], ['ff02::1', ALL_NODES_MAC])
  assert.equal((options(first).get(3) as Buffer)[3] & 0xc0, 0x40)
  net.advance(60_000)
  assert.equal(count(), 3)
  net.advance(3_600_000)
  const hour = count()
  assert.ok(hour >= 6 && hour <= 18, `${hour} in an hour`)
  net.network.retire()
  const [last] = web.take()
  assert.equal((last.icmp?.info ?? 0) & 0xffff, 0, 'no router any more')
  // An attached VM does not wait for its turn.
  const late = net.vm('late')
  net.advance(1100)
  assert.equal(late.take().filter(isRouter).length, 1)
})

const question = (name: string, type: 'A' | 'AAAA' = 'AAAA') =>
  encodeDns({ type: 'query', id: 99, flags: 256, questions: [{ type, name }] })
const rcode = (bytes: Uint8Array) => decodeDns(Buffer.from(bytes))

test('names are asked for at ::2, ::1 and fe80::1, by datagram and by stream', () => {
  const { net, web } = world()
  net.vm('db')
  for (const server of [IPV6.services, IPV6.gateway, 'fe80::1']) {
    web.send(udp({ to: `[${server}]:53`, data: question('db', 'A') }))
    const [r] = web.take()
    assert.deepEqual([r.ip?.src, r.ip?.dst], [server, web.ip6])
    assert.equal(rcode(r.udp!.data).answers?.length, 1)
  }
  const to = `[${IPV6.services}]:53`
  web.send(tcp({ to, seq: 100 }))
  const [synAck] = web.take()
  assert.equal(synAck.tcp?.flags, SYN | ACK)
  const ack = synAck.tcp!.seq + 1
  const q = question('db', 'A')
  const message = Uint8Array.of(0, q.length, ...q)
  web.send(tcp({ to, seq: 101, ack, flags: ACK }), tcp({ to, seq: 101, ack, flags: ACK, data: message }))
  const data = Buffer.concat(web.take().map((r) => r.tcp!.data))
  assert.equal(rcode(data.subarray(2)).answers?.length, 1)
  assert.equal(net.host.sockets.size, 0)
})

/** It speaks from its address. */
const heard = (vm: ReturnType<TestNet['vm']>): void => {
  vm.send(solicit({ target: IPV6.gateway }))
  vm.take()
}

const publish = (net: TestNet, proto: 'tcp' | 'udp', guestAddress: string, guestPort: number) => {
  const sock = net.host.make(proto === 'tcp' ? 'listener' : 'udp-bound', '')
  net.network.publish({ id: 'p', proto, sock: sock.id, guestAddress, guestPort, hostAddress: '::', hostPort: 8080 })
  return sock
}

test('a published port: each client in its own family, under its own address', () => {
  const { net, web } = world()
  const listener = publish(net, 'tcp', web.ip, 80)
  heard(web)
  for (const peer of ['[2001:db8::9]:5555', '203.0.113.9:5555', '[::1]:5555', '[fd00:6::254]:1', '[fe80::9]:1'])
    net.host.client(listener.id, peer)
  net.deliver()
  const syns = web.take()
  assert.deepEqual(
    syns.map((r) => [r.ip?.src, r.ip?.dst]),
    [
      ['2001:db8::9', web.ip6],
      ['203.0.113.9', web.ip],
      [IPV6.hostAddress, web.ip6],
      [IPV6.hostAddress, web.ip6],
      [IPV6.hostAddress, web.ip6],
    ],
  )
  assert.equal(new Set(syns.map((r) => `${r.ip?.src} ${r.tcp?.srcPort}`)).size, 5)
  const [first] = syns
  const to = '[2001:db8::9]:5555'
  web.send(
    tcp({ from: 80, to, seq: 500, ack: first.tcp!.seq + 1, flags: SYN | ACK }),
    tcp({ from: 80, to, seq: 501, ack: first.tcp!.seq + 1, flags: ACK, data: 'hello' }),
  )
  const [client] = net.host.open('tcp')
  assert.equal(Buffer.from(net.host.tcpRead(client.id)).toString(), 'hello')
})

test('a client of a family that the VM lacks is shown as the host', () => {
  const four = new TestNet()
  const old = four.vm('old')
  const shared = publish(four, 'udp', old.ip, 53)
  four.host.arrive(shared.id, Buffer.from('q'), { peer: '[2001:db8::9]:1111' })
  four.deliver()
  const [q] = old.take()
  assert.deepEqual([q.ip?.src, q.ip?.dst], ['192.168.100.254', old.ip])
  old.send(udp({ from: 53, to: `192.168.100.254:${q.udp?.srcPort}`, data: 'a' }))
  assert.deepEqual(
    shared.sent.map((d) => d.peer),
    ['[2001:db8::9]:1111'],
  )
  const six = new TestNet({ config: { ipv6: IPV6, ipv4: false } })
  const fresh = six.vm('fresh', { address: '' })
  const socket = publish(six, 'udp', fresh.ip6, 53)
  for (const peer of ['203.0.113.9:1111', '203.0.113.10:1111', '[2001:db8::9]:1111'])
    six.host.arrive(socket.id, Buffer.from(peer), { peer })
  six.deliver()
  const got = fresh.take()
  assert.deepEqual(
    got.map((r) => r.ip?.src),
    [IPV6.hostAddress, IPV6.hostAddress, '2001:db8::9'],
  )
  for (const r of got) fresh.send(udp({ from: 53, to: `[${r.ip?.src}]:${r.udp?.srcPort}`, data: r.udp?.data }))
  assert.deepEqual(
    socket.sent.map((d) => [d.peer, Buffer.from(d.bytes).toString()]),
    ['203.0.113.9:1111', '203.0.113.10:1111', '[2001:db8::9]:1111'].map((p) => [p, p]),
  )
  assert.deepEqual(
    six.network.stats().flows.map((f) => f.guest),
    new Array(3).fill(`[${fresh.ip6}]:53`),
  )
})

test('beside a host interface, answers to a client shown as ::254 come back to its flow', () => {
  const { net, web } = world()
  const host = net.hostPort()
  const shared = publish(net, 'udp', web.ip6, 53)
  heard(web)
  net.host.arrive(shared.id, Buffer.from('q'), { peer: '[::1]:1111' })
  net.deliver()
  const [q] = web.take()
  web.send(udp({ from: 53, to: `[${IPV6.hostAddress}]:${q.udp?.srcPort}`, dstMac: host.mac, data: 'a' }))
  assert.deepEqual(
    shared.sent.map((d) => d.peer),
    ['[::1]:1111'],
  )
  web.send(udp({ to: `[${IPV6.hostAddress}]:22`, dstMac: host.mac, data: 'in' }))
  assert.deepEqual(host.lines().slice(-1), [`udp [${web.ip6}]:4000 > [${IPV6.hostAddress}]:22 in`])
})

const OUTSIDE = '2001:db8::80'
const l4 = (web: { mac: string; ip: string; ip6: string }, size: number) =>
  udp({ to: `[${OUTSIDE}]:9000`, data: new Uint8Array(size).map((_, i) => i) })(web).bytes.slice(54)
const piece = (b: Uint8Array, offset: number, end: number, id = 1, proto = 17) => {
  const more = end < b.length ? 1 : 0
  const before = Uint8Array.of(proto, 0, offset >> 8, (offset & 0xf8) | more, 0, 0, id >> 8, id)
  return packet({ to: OUTSIDE, proto, next: 44, before, payload: b.slice(offset, end) })
}

test('fragments: whole again in any order, with options before and behind the fragment header', () => {
  const { net, web } = world()
  const sent = () => net.host.open('udp').flatMap((s) => s.sent.map((d) => d.bytes.length))
  const b = l4(web, 3000)
  web.send(piece(b, 1448, 2896), piece(b, 2896, b.length), piece(b, 0, 1448))
  assert.deepEqual(sent(), [3000])
  // Destination options belong to what is fragmented.
  const behind = Uint8Array.of(17, 0, 1, 4, 0, 0, 0, 0, ...l4(web, 100))
  web.send(piece(behind, 56, behind.length, 2, 60), piece(behind, 0, 56, 2, 60))
  assert.deepEqual(sent(), [3000, 100])
  // A fragment that is the whole packet (RFC 6946) waits for nobody, also while others of its id do.
  web.send(piece(b, 0, 1448, 3), piece(l4(web, 50), 0, 58, 3))
  assert.deepEqual(sent(), [3000, 100, 50])
  assert.equal(net.drops('fragment-overlap'), 0)
})

test('fragments: overlaps give the packet up, lengths are checked, time runs out', () => {
  const { net, web } = world()
  const b = l4(web, 3000)
  web.send(piece(b, 0, 1448), piece(b, 1440, 2896), piece(b, 2896, b.length))
  assert.equal(net.drops('fragment-overlap'), 1)
  web.send(piece(b.slice(0, 3000), 1448, 1451, 5))
  assert.equal(net.drops('fragment-malformed'), 1)
  net.advance(TIMEOUT + 1500)
  web.take()
  web.send(piece(b, 0, 1448, 7), piece(b, 1448, 2896, 8))
  net.advance(TIMEOUT + 1500)
  const said = web.lines().filter((l) => !l.endsWith('router'))
  assert.deepEqual(said, [`icmp6 ${IPV6.gateway} > ${web.ip6} 3/1`])
  assert.equal(net.host.open('udp').length, 0)
})

test('the gateway’s ICMPv6 errors are rationed', () => {
  const { web } = world({}, { icmpPerSecond: 3 })
  for (let n = 0; n < 10; n++) web.send(udp({ to: `[${OUTSIDE}]:9`, ttl: 1 }))
  assert.deepEqual([web.take().length, web.drops('icmp-rate')], [3, 7])
})

test('on a bridge of the kernel services answer for themselves, forward nothing, and say who the router is', () => {
  const router = { routerLinkLocal: 'fe80::b:1', routerMac: '02:00:00:00:0b:01' }
  const net = new TestNet({ config: { ipv6: { ...IPV6, ...router }, medium: 'bridge' } })
  const [web, db] = [net.vm('web'), net.vm('db')]
  const servicesMac = '02:6e:c0:a8:64:02'
  web.send(solicit({ target: IPV6.services }), solicit({ target: IPV6.gateway }), solicit({ target: 'fe80::b:1' }))
  assert.deepEqual(web.lines(), [`icmp6 ${IPV6.services} > ${web.ip6} is-at ${IPV6.services} ${servicesMac}`])
  // VMs do not hear each other's advertisements: the services say whose an address is, and where.
  web.send(solicit({ from: '::', target: db.ip6 }))
  assert.deepEqual(web.lines(), [`icmp6 fe80::2 > ff02::1 is-at ${db.ip6} ${servicesMac}`])
  web.send(
    solicit({ target: db.ip6 }),
    solicit({ target: web.ip6 }),
    solicit({ target: `${IPV6.subnet.split('::')[0]}::99` }),
  )
  assert.deepEqual(web.lines(), [`icmp6 ${db.ip6} > ${web.ip6} is-at ${db.ip6} ${db.mac}`])
  assert.deepEqual(db.lines(), [])
  web.send(udp({ to: `[${OUTSIDE}]:53`, dstMac: servicesMac }), udp({ to: '8.8.8.8:53', dstMac: servicesMac }))
  assert.deepEqual([net.drops('not-router'), net.host.open().length], [2, 0])
  web.send(udp({ to: `[${IPV6.services}]:53`, dstMac: servicesMac, data: question('db', 'A') }))
  assert.equal(web.take().length, 1)
  net.advance(1100)
  const told = [...web.take(), ...db.take()].filter(isRouter)
  assert.equal(told.length, 1, 'one is enough: all hear it')
  assert.equal(told[0].ip?.src, 'fe80::b:1')
  assert.equal(options(told[0]).get(1)?.subarray(2).toString('hex'), '020000000b01')
  const apart = new TestNet({ config: { ipv6: { ...IPV6, ...router }, medium: 'bridge', isolated: true } })
  const [lone, other] = [apart.vm('web'), apart.vm('db')]
  lone.send(solicit({ target: other.ip6 }))
  assert.deepEqual(lone.lines(), [], 'isolated VMs are nobody’s neighbours')
  const quiet = new TestNet({ config: { ipv6: IPV6, medium: 'bridge' } })
  const vm = quiet.vm('vm')
  quiet.advance(20_000)
  assert.deepEqual(vm.take().filter(isRouter), [])
})
