import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AGEING, PER_PORT, QUIET } from '../../../src/netstack/switch/bindings.ts'
import type { DropName } from '../../../src/netstack/trace/drops.ts'
import {
  advertise,
  type Build,
  GATEWAY_MAC,
  IPV6,
  icmp6,
  packet,
  raw,
  type Station,
  solicit,
  TestNet,
  udp,
} from '../net.ts'

const lan = (config = {}) => {
  const net = new TestNet({ config: { ipv6: IPV6, ...config } })
  const [web, db, log] = [net.vm('web'), net.vm('db'), net.vm('log')]
  const refused = (who: Station, reason: DropName, ...builds: Build[]) => {
    const before = who.drops(reason)
    who.send(...builds)
    assert.equal(who.drops(reason) - before, builds.length, reason)
    assert.deepEqual([...web.lines(), ...db.lines(), ...log.lines()], [])
  }
  return { net, web, db, log, refused }
}

/** What SLAAC makes of web's MAC, 02:00:00:00:00:11. */
const EUI = 'fd00:6::ff:fe00:11'
const LINK_LOCAL = 'fe80::ff:fe00:11'

test('a VM speaks from its reserved address, from what its MAC makes, and from what it claimed first', () => {
  const { web, db } = lan()
  const to = (from: string) => udp({ from: `[${from}]:1`, to: `[${db.ip6}]:2`, dstMac: db.mac, data: 'x' })
  for (const from of [web.ip6, EUI, LINK_LOCAL, 'fd00:6::1234:5678:9abc:def0', 'fe80::1234']) {
    web.send(to(from))
    assert.deepEqual(db.lines(), [`udp [${from}]:1 > [${db.ip6}]:2 x`])
  }
})

test('never from what is another’s, the gateway’s, or of elsewhere', () => {
  const { web, db, refused } = lan()
  const from = (a: string) => udp({ from: `[${a}]:1`, to: `[${db.ip6}]:2`, dstMac: db.mac })
  db.send(udp({ from: '[fd00:6::aaaa:1]:1', to: '[2001:db8::1]:1' }))
  refused(
    web,
    'guard-address',
    ...[db.ip6, 'fd00:6::ff:fe00:12', 'fe80::ff:fe00:12', 'fd00:6::aaaa:1'].map(from),
    ...[IPV6.gateway, IPV6.services, 'fe80::1', 'fd00:6::'].map(from),
    ...['2001:db8::1', 'fd00:7::10', 'fe80:0:0:1::1', '::1', '::', 'ff02::1', '::ffff:10.0.0.1'].map(from),
  )
})

test('nobody (::) asks whether an address is free, looks for routers, reports listeners; nothing else', () => {
  const { web, db, log, refused } = lan()
  web.send(solicit({ from: '::', target: 'fd00:6::77:1' }))
  assert.deepEqual(db.lines(), ['icmp6 :: > ff02::1:ff77:1 who-has fd00:6::77:1'])
  web.send(icmp6({ from: '::', to: 'ff02::16', type: 143, ttl: 1, data: new Uint8Array(20) }))
  assert.equal(db.take().length, 1)
  web.send(icmp6({ from: '::', to: 'ff02::2', type: 133, id: 0, sequence: 0, ttl: 255 }))
  assert.equal(db.take().length, 0, 'routers alone hear it')
  assert.equal(web.take().filter((r) => r.icmp?.type === 134).length, 1)
  log.take()
  refused(
    web,
    'guard-address',
    icmp6({ from: '::', to: 'ff02::1' }),
    udp({ from: '[::]:546', to: '[ff02::1:2]:547' }),
    packet({ from: '::', to: 'ff02::1', proto: 132, payload: new Uint8Array(20) }),
  )
  refused(web, 'guard-nd', advertise({ from: '::', target: 'fd00:6::77:1' }))
  refused(web, 'nd-malformed', solicit({ from: '::', target: 'fd00:6::77:2', told: web.mac }))
})

test('first come, first served: who asked first has it, and the gateway says so to who asks next', () => {
  const { web, db, log, refused } = lan()
  const target = 'fd00:6::5:5'
  web.send(solicit({ from: '::', target }))
  for (const s of [web, db, log]) s.take()
  db.send(solicit({ from: '::', target }))
  assert.deepEqual(db.lines(), [`icmp6 fe80::1 > ff02::1 is-at ${target} ${GATEWAY_MAC}`])
  // To an owner that has just begun to use it, the question would mean that it must not (RFC 4862 §5.4.3); by whatever way it comes.
  db.send(solicit({ from: '::', target, dstMac: web.mac }))
  db.take()
  assert.deepEqual([web.lines(), db.drops('address-taken')], [[], 2])
  refused(db, 'nd-malformed', solicit({ from: '::', target, to: target, dstMac: web.mac }))
  for (const own of [web.ip6, EUI, LINK_LOCAL]) db.send(solicit({ from: '::', target: own }))
  assert.deepEqual([web.lines(), db.drops('address-taken')], [[], 5])
  web.send(advertise({ from: target, target }))
  assert.deepEqual(db.lines().slice(-1), [`icmp6 ${target} > ff02::1 is-at ${target} ${web.mac}`])
  web.take()
  log.take()
  refused(db, 'guard-address', udp({ from: `[${target}]:1`, to: `[${web.ip6}]:1`, dstMac: web.mac }))
  refused(db, 'guard-nd', advertise({ target }))
})

test('neighbour discovery names the sender’s own address and MAC, whole and from the link', () => {
  const { net, web, db, log, refused } = lan()
  refused(
    web,
    'guard-nd',
    solicit({ target: db.ip6, told: log.mac }),
    advertise({ target: web.ip6, told: db.mac }),
    advertise({ target: db.ip6 }),
    advertise({ target: IPV6.gateway }),
    advertise({ target: 'fe80::1' }),
    advertise({ target: '2001:db8::1' }),
  )
  refused(web, 'nd-malformed', solicit({ target: db.ip6, ttl: 64 }), advertise({ target: web.ip6, ttl: 1 }))
  refused(
    web,
    'nd-malformed',
    icmp6({ to: 'ff02::1', type: 135, ttl: 255, data: new Uint8Array(8) }),
    // An option of no length would be read for ever.
    icmp6({ to: db.ip6, dstMac: db.mac, type: 135, ttl: 255, data: new Uint8Array(24) }),
    icmp6({ to: db.ip6, dstMac: db.mac, type: 136, code: 1, ttl: 255, data: new Uint8Array(16) }),
  )
  // In a fragment, where other guards do not look (RFC 6980).
  const ns = solicit({ target: db.ip6 })(web).bytes.slice(54)
  const before = Uint8Array.of(58, 0, 0, 1, 0, 0, 0, 1)
  refused(
    web,
    'nd-malformed',
    packet({ to: db.ip6, dstMac: db.mac, proto: 58, next: 44, before, payload: ns, ttl: 255 }),
  )
  web.send(solicit({ target: db.ip6 }))
  assert.deepEqual(db.lines(), [`icmp6 ${web.ip6} > ff02::1:ff00:b who-has ${db.ip6}`])
  db.send(advertise({ target: db.ip6, to: web.ip6, dstMac: web.mac }))
  assert.deepEqual(web.lines(), [`icmp6 ${db.ip6} > ${web.ip6} is-at ${db.ip6} ${db.mac}`])
  assert.equal(net.drops('guard-nd'), 6)
})

test('a VM is no router and no DHCPv6 server, whatever stands before what it says', () => {
  const { net, web, db, refused } = lan()
  const ra = (o: object) => icmp6({ to: 'ff02::1', type: 134, ttl: 255, data: new Uint8Array(16), ...o })
  refused(web, 'guard-ra', ra({}), ra({ to: db.ip6, dstMac: db.mac }), ra({ from: LINK_LOCAL }), ra({ type: 151 }))
  // Behind options, behind an atomic fragment, in a first fragment (RFC 7113).
  const options = Uint8Array.of(58, 0, 1, 4, 0, 0, 0, 0)
  refused(web, 'guard-ra', ra({ next: 60, before: options }), ra({ next: 0, before: options }))
  refused(web, 'guard-ra', ra({ next: 44, before: Uint8Array.of(58, 0, 0, 0, 0, 0, 0, 1) }))
  refused(web, 'guard-ra', ra({ next: 44, before: Uint8Array.of(58, 0, 0, 1, 0, 0, 0, 1) }))
  // A chain that does not end in the first fragment.
  const chain = Uint8Array.of(60, 0, 0, 1, 0, 0, 0, 1, 58, 1, 1, 4, 0, 0, 0, 0)
  const half = packet({ to: 'ff02::1', proto: 58, next: 44, before: chain, payload: new Uint8Array(0), ttl: 255 })
  refused(web, 'ipv6-header-chain', half)
  refused(web, 'guard-redirect', icmp6({ to: db.ip6, dstMac: db.mac, type: 137, ttl: 255, data: new Uint8Array(32) }))
  refused(web, 'guard-dhcp-server', udp({ from: 547, to: `[${db.ip6}]:546`, dstMac: db.mac }))
  assert.equal(net.drops('guard-ra'), 8)
})

test('extension headers: known ones pass, source routes and unknown or endless ones do not', () => {
  const { web, db, refused } = lan()
  const to = { to: db.ip6, dstMac: db.mac, proto: 58 }
  const echo = icmp6({ to: db.ip6 })(web).bytes.slice(54)
  const one = (next: number, ...b: number[]) => packet({ ...to, next, before: Uint8Array.of(...b), payload: echo })
  web.send(one(0, 58, 0, 5, 2, 0, 0, 1, 0), one(60, 58, 0, 1, 4, 0, 0, 0, 0), one(43, 58, 0, 4, 0, 0, 0, 0, 0))
  assert.equal(db.take().length, 3)
  refused(web, 'ipv6-source-route', one(43, 58, 0, 0, 0, 0, 0, 0, 0), one(43, 58, 0, 4, 1, 0, 0, 0, 0))
  refused(web, 'ipv6-extension', one(135, 58, 0, 0, 0, 0, 0, 0, 0), one(139, 59, 0, 0, 0, 0, 0, 0, 0))
  // Hop-by-hop options come first or not at all.
  refused(web, 'ipv6-extension', one(60, 0, 0, 1, 4, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0))
  const many = Array.from({ length: 8 }, (_, n) => [n === 7 ? 58 : 60, 0, 1, 4, 0, 0, 0, 0]).flat()
  refused(web, 'ipv6-extension', one(60, ...many))
  refused(web, 'ipv6-malformed', packet({ ...to, next: 60, before: Uint8Array.of(58, 99), payload: new Uint8Array(6) }))
  refused(
    web,
    'ipv6-malformed',
    raw(Uint8Array.from([...new Uint8Array(12), 0x86, 0xdd, 0x60, 0, 0, 0, 0xff, 0xff, 58, 64, ...new Uint8Array(40)])),
  )
})

test('addresses of one port are bounded; the one silent longest makes room, ageing forgets', () => {
  const { net, web, db, refused } = lan()
  const say = (n: number) => udp({ from: `[fd00:6::9:${n.toString(16)}]:1`, to: `[${db.ip6}]:2`, dstMac: db.mac })
  for (let n = 0; n < PER_PORT; n++) web.send(say(n))
  assert.equal(db.take().length, PER_PORT)
  refused(web, 'guard-address-limit', say(100), solicit({ from: '::', target: 'fd00:6::9:64' }))
  net.host.advance(QUIET)
  web.send(say(1), say(100))
  assert.equal(db.take().length, 2)
  // Its first one was given up: it is anybody's now.
  db.send(udp({ from: '[fd00:6::9:0]:1', to: `[${web.ip6}]:2`, dstMac: web.mac }))
  assert.equal(web.take().length, 1)
  refused(db, 'guard-address', udp({ from: '[fd00:6::9:1]:1', to: `[${web.ip6}]:2`, dstMac: web.mac }))
  net.host.advance(AGEING + 1)
  net.network.tick()
  web.take()
  db.take()
  db.send(udp({ from: '[fd00:6::9:1]:1', to: `[${web.ip6}]:2`, dstMac: web.mac }))
  assert.equal(web.take().length, 1)
  // A port that goes gives everything back.
  net.network.detach(web.index)
  for (let n = 0; n < 3; n++) db.send(udp({ from: `[fd00:6::9:5${n}]:1`, to: '[2001:db8::1]:1' }))
  assert.equal(db.drops('guard-address'), 1)
})

test('an address that is assigned is its VM’s, whoever had claimed it before', () => {
  const { net, web } = lan()
  web.send(udp({ from: '[fd00:6::50]:1', to: '[2001:db8::1]:1' }))
  const late = net.vm('late', { address6: 'fd00:6::50' })
  late.send(udp({ to: '[2001:db8::1]:1' }))
  web.send(udp({ from: '[fd00:6::50]:1', to: '[2001:db8::1]:1' }))
  assert.deepEqual([late.drops('guard-address'), web.drops('guard-address')], [0, 1])
})

test('the host’s port: from its own address and link-local ones, to those', () => {
  const { net, web, db } = lan()
  const host = net.hostPort()
  host.send(
    udp({ to: `[${web.ip6}]:80`, dstMac: web.mac, data: 'hi' }),
    udp({ from: '[fe80::77]:1', to: `[${web.ip6}]:80`, dstMac: web.mac }),
  )
  assert.equal(web.take().length, 2)
  host.send(
    udp({ from: '[fd00:6::77]:1', to: `[${web.ip6}]:80`, dstMac: web.mac }),
    udp({ from: `[${db.ip6}]:1`, to: `[${web.ip6}]:80`, dstMac: web.mac }),
    icmp6({ to: 'ff02::1', type: 134, ttl: 255, data: new Uint8Array(16) }),
  )
  assert.equal(host.drops('guard-host'), 3)
  assert.deepEqual(web.lines(), [])
  web.send(
    udp({ to: `[${IPV6.hostAddress}]:22`, dstMac: host.mac }),
    udp({ to: '[fe80::77]:22', dstMac: host.mac }),
    solicit({ target: IPV6.hostAddress }),
    icmp6({ to: 'ff02::1' }),
  )
  assert.deepEqual(
    host.take().map((r) => r.ip?.dst),
    [IPV6.hostAddress, 'fe80::77', 'ff02::1:ff00:254'],
  )
  web.send(udp({ to: '[2001:db8::1]:22', dstMac: host.mac }), udp({ to: `[${db.ip6}]:22`, dstMac: host.mac }))
  assert.deepEqual([host.lines(), web.drops('host-foreign')], [[], 2])
  host.send(udp({ to: '[2001:db8::1]:53' }), icmp6({ from: 'fe80::77', to: 'ff02::2', type: 133, ttl: 255 }))
  assert.equal(host.drops('host-through'), 1)
  assert.deepEqual(host.lines(), [], 'the host is nobody’s guest: no router is advertised to it')
})

test('isolated: nothing between VMs, not even discovery; whose an address is the gateway says', () => {
  const { net, web, db } = lan({ isolated: true })
  const host = net.hostPort()
  web.send(
    udp({ to: `[${db.ip6}]:1`, dstMac: db.mac }),
    udp({ to: '[fe80::ff:fe00:12]:1', dstMac: db.mac }),
    udp({ to: `[${host.ip6}]:1`, dstMac: host.mac }),
    udp({ to: `[${db.ip6}]:1`, dstMac: '02:99:00:00:00:01' }),
    solicit({ target: db.ip6 }),
    icmp6({ to: 'ff02::1' }),
    advertise({ target: web.ip6 }),
  )
  assert.deepEqual([...db.lines(), ...host.lines()], [])
  assert.equal(web.drops('isolated'), 4)
  web.take()
  web.send(udp({ to: `[${db.ip6}]:1` }))
  assert.deepEqual(web.lines(), [`icmp6 ${IPV6.gateway} > ${web.ip6} 1/1`])
  assert.equal(web.drops('deny-isolated'), 1)
  web.send(solicit({ from: '::', target: db.ip6 }))
  assert.deepEqual(web.lines(), [`icmp6 fe80::1 > ff02::1 is-at ${db.ip6} ${GATEWAY_MAC}`])
  web.send(udp({ to: '[2001:db8::1]:53' }))
  assert.equal(net.host.open('udp').length, 1)
})

test('a network carries what it has: IPv4 alone, IPv6 alone', () => {
  const four = new TestNet()
  const web = four.vm('web')
  web.send(udp({ from: '[fd00:6::a]:1', to: '[2001:db8::1]:1' }))
  assert.equal(web.drops('ipv6'), 1)
  const net = new TestNet({ config: { ipv6: IPV6, ipv4: false } })
  const six = net.vm('six')
  six.send(udp({ to: '8.8.8.8:53' }), (from) => ({ bytes: udp({ to: '8.8.8.8:53' })(from).bytes.fill(6, 13, 14) }))
  assert.deepEqual([six.drops('ipv4'), net.host.open().length], [2, 0])
  six.send(udp({ to: '[2001:db8::1]:53' }))
  assert.equal(net.host.open('udp').length, 1)
})

test('unknown groups and MACs are flooded within the storm’s bound', () => {
  const net = new TestNet({ config: { ipv6: IPV6 }, limits: { floodCopiesPerSecond: 40 } })
  const [web, db] = [net.vm('web'), net.vm('db'), net.vm('log')]
  for (let i = 0; i < 8; i++) web.send(udp({ to: '[ff05::1:3]:9' }))
  assert.deepEqual([db.take().length, web.drops('storm')], [5, 3])
})
