/**
 * Hostile frames: random ones, and good ones with bytes changed, cut, or with other offload metadata. Nothing may throw, no frame that leaves
 * may be larger than what is allowed, every IPv6 frame that leaves comes from whom it says, and the arena beyond the receive slot and the engine's own slots is never written.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { FRAME_MAX, VNET } from '../../src/netstack/arena.ts'
import {
  advertise,
  arp,
  BROADCAST_MAC,
  type Build,
  IPV6,
  icmp,
  icmp6,
  packet,
  solicit,
  TestNet,
  tcp,
  udp,
} from './net.ts'

const BUILDS: readonly Build[] = [
  arp({ target: '192.168.100.1' }),
  arp({ target: '192.168.100.11', op: 2, dstMac: '02:00:00:00:00:12' }),
  icmp({ to: '192.168.100.1', data: 'x' }),
  icmp({ to: '8.8.8.8', ttl: 1 }),
  icmp({ to: '8.8.8.8', type: 3, data: new Uint8Array(28) }),
  udp({ to: '8.8.8.8:9000', data: 'hello' }),
  udp({ to: '8.8.8.8:9000', data: new Uint8Array(3000), segment: 1000 }),
  udp({ from: '0.0.0.0:68', to: '255.255.255.255:67', dstMac: BROADCAST_MAC, data: new Uint8Array(300) }),
  udp({ to: '192.168.100.2:53', data: new Uint8Array(40) }),
  udp({ to: '192.168.100.254:61001' }),
  tcp({ to: '93.184.216.34:80' }),
  tcp({ to: '93.184.216.34:80', flags: 0x10, data: 'GET /', seq: 1001 }),
  tcp({ to: '192.168.100.2:53' }),
  tcp({ to: '192.168.100.11:80', dstMac: '02:00:00:00:00:12', flags: 0x18, data: new Uint8Array(4000), segment: 1460 }),
  packet({ to: '8.8.8.8', proto: 17, payload: new Uint8Array(64), mf: true }),
  packet({ to: '8.8.8.8', proto: 17, payload: new Uint8Array(64), offset: 64 }),
  packet({ to: '8.8.8.8', proto: 132, payload: new Uint8Array(64) }),
  // The same over IPv6, and what only IPv6 has.
  solicit({ target: 'fd00:6::1' }),
  solicit({ from: '::', target: 'fd00:6::77:1' }),
  solicit({ target: 'fd00:6::b' }),
  advertise({ target: 'fd00:6::a' }),
  icmp6({ to: 'ff02::2', type: 133, id: 0, sequence: 0, ttl: 255 }),
  icmp6({ to: 'ff02::1', type: 134, ttl: 255, data: new Uint8Array(40) }),
  icmp6({ to: 'fd00:6::1', data: 'x' }),
  icmp6({ to: '2001:db8::8', ttl: 1 }),
  icmp6({ to: '2001:db8::8', type: 2, data: new Uint8Array(48) }),
  udp({ to: '[2001:db8::8]:9000', data: 'hello' }),
  udp({ to: '[2001:db8::8]:9000', data: new Uint8Array(3000), segment: 1000 }),
  udp({ to: '[fd00:6::2]:53', data: new Uint8Array(40) }),
  udp({ from: 546, to: '[ff02::1:2]:547', data: Uint8Array.of(1, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 1) }),
  udp({ to: '[fd00:6::254]:61001' }),
  tcp({ to: '[2001:db8::80]:80' }),
  tcp({ to: '[2001:db8::80]:80', flags: 0x10, data: 'GET /', seq: 1001 }),
  tcp({ to: '[fd00:6::b]:80', dstMac: '02:00:00:00:00:12', flags: 0x18, data: new Uint8Array(4000), segment: 1440 }),
  extended(0, 17, 0, 5, 2, 0, 0, 1, 0),
  extended(60, 44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9),
  extended(44, 17, 0, 0, 64, 0, 0, 0, 9),
  extended(44, 60, 0, 0, 1, 0, 0, 0, 8, 17, 0, 1, 4, 0, 0, 0, 0),
  extended(43, 17, 0, 4, 0, 0, 0, 0, 0),
]

/** A UDP datagram behind extension headers. */
function extended(next: number, ...before: number[]): Build {
  const payload = new Uint8Array(72).fill(7)
  return packet({ to: '2001:db8::8', proto: 17, next, before: Uint8Array.from(before), payload })
}

/** The gateway's, the services', and what the other VMs were given. */
const NOT_WEBS = [1, 2, 0x0b, 0x0c].map((n) => `fd000006${'0'.repeat(22)}${n.toString(16).padStart(2, '0')}`)

function world() {
  const net = new TestNet({ config: { allowHostPorts: [61001], ipv6: IPV6 } })
  const web = net.vm('web')
  const db = net.vm('db')
  const old = net.vm('old', { offload: false })
  const slot = net.host.arena.slot()
  // A fence behind everything.
  const fence = net.host.arena.alloc(4096)
  net.host.arena.bytes.fill(0x5a, fence, fence + 4096)
  const check = () => {
    for (const s of [web, db, old])
      for (const { bytes } of s.port.frames.splice(0)) {
        assert.ok(bytes.length <= FRAME_MAX)
        const hex = Buffer.from(bytes.subarray(0, 38)).toString('hex')
        if (s === web || hex.slice(24, 28) !== '86dd' || hex.startsWith('026ec0a86401', 12)) continue
        // From web, then: whose addresses are nobody else's, and no router's.
        assert.ok(!NOT_WEBS.includes(hex.slice(44, 76)), hex)
        assert.ok(bytes[20] !== 58 || bytes[54] !== 134, 'a router advertisement')
      }
    assert.ok(net.host.arena.bytes.subarray(fence, fence + 4096).every((v) => v === 0x5a))
  }
  return { net, web, slot, check }
}

test('random bytes never throw', () => {
  const { net, web, slot, check } = world()
  const b = net.host.arena.bytes
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 200 }),
      fc.uint8Array({ minLength: VNET, maxLength: VNET }),
      (bytes, header) => {
        b.set(header, slot - VNET)
        b.set(bytes, slot)
        net.network.receive(web.index, slot, bytes.length)
        net.deliver()
        check()
      },
    ),
    { numRuns: 3000 },
  )
})

test('changed, cut and stretched frames never throw', () => {
  const { net, web, slot, check } = world()
  const b = net.host.arena.bytes
  const change = fc.record({
    build: fc.nat(BUILDS.length - 1),
    edits: fc.array(fc.tuple(fc.nat(120), fc.integer({ min: 0, max: 255 })), { maxLength: 4 }),
    header: fc.option(fc.uint8Array({ minLength: VNET, maxLength: VNET })),
    cut: fc.option(fc.nat(200)),
    grow: fc.option(fc.nat(FRAME_MAX)),
    reseal: fc.boolean(),
    wait: fc.nat(3),
  })
  fc.assert(
    fc.property(change, ({ build, edits, header, cut, grow, reseal, wait }) => {
      const built = BUILDS[build](web)
      const bytes = built.bytes
      for (const [at, v] of edits) if (at < bytes.length) bytes[at] = v
      let len = bytes.length
      if (cut !== null) len = Math.min(len, cut)
      if (grow !== null) len = Math.max(len, grow)
      b.set(bytes, slot)
      if (reseal && bytes.length >= 34 && bytes[12] === 8) sealHeader(b, slot + 14)
      b.set(header ?? new Uint8Array(VNET), slot - VNET)
      net.network.receive(web.index, slot, len)
      net.deliver()
      if (wait === 0) net.host.advance(700)
      net.network.tick()
      net.deliver()
      check()
    }),
    { numRuns: 6000 },
  )
  for (const s of net.host.open()) if (s.kind !== 'tcp') net.host.arrive(s.id, new Uint8Array(9))
  net.deliver()
  net.network.detach(web.index)
  assert.equal(net.network.stats().flows.length, 0)
  assert.equal(net.host.open().length, 0, 'no socket is left behind')
})

/** An IPv4 checksum that is right, so that the mutation gets past the first check. */
function sealHeader(b: Uint8Array, o: number): void {
  b[o + 10] = b[o + 11] = 0
  let s = 0
  const len = (b[o] & 15) * 4
  for (let i = 0; i < len; i += 2) s += (b[o + i] << 8) | b[o + i + 1]
  while (s > 0xffff) s = (s & 0xffff) + (s >>> 16)
  b[o + 10] = (~s & 0xffff) >>> 8
  b[o + 11] = ~s & 0xff
}

test('no chain of extension headers carries a router advertisement, or a false neighbour, to another VM', () => {
  const { net, web } = world()
  const db = net.vm('target')
  const header = fc.record({
    kind: fc.constantFrom(0, 43, 44, 60),
    // Multiples of eight; a claim about the length that may be a lie.
    size: fc.nat(2),
    claims: fc.option(fc.nat(4)),
    left: fc.nat(1),
    offset: fc.constantFrom(0, 0, 0, 8, 64),
    more: fc.boolean(),
  })
  const said = fc.constantFrom<Build>(
    icmp6({ to: db.ip6, dstMac: db.mac, type: 134, ttl: 255, data: new Uint8Array(16) }),
    icmp6({ to: db.ip6, dstMac: db.mac, type: 137, ttl: 255, data: new Uint8Array(32) }),
    advertise({ to: db.ip6, dstMac: db.mac, target: 'fd00:6::1' }),
    advertise({ to: db.ip6, dstMac: db.mac, target: db.ip6 }),
  )
  fc.assert(
    fc.property(fc.array(header, { maxLength: 7 }), said, (chain, build) => {
      const payload = build(web).bytes.slice(54)
      const before = chain.flatMap(({ kind, size, claims, left, offset, more }, n) => {
        const next = chain[n + 1]?.kind ?? 58
        if (kind === 44) return [next, 0, offset >> 8, (offset & 0xf8) | (more ? 1 : 0), 0, 0, 0, 1]
        const options = kind === 43 ? [4, left, 0, 0, 0, 0] : [1, 4, 0, 0, 0, 0]
        return [next, claims ?? size, ...options, ...new Array(size * 8).fill(0)]
      })
      const next = chain[0]?.kind ?? 58
      const o = { to: db.ip6, dstMac: db.mac, proto: 58, next, before: Uint8Array.from(before), ttl: 255 }
      web.send(packet({ ...o, payload }))
      for (const r of db.take()) {
        // What passes is a later fragment, whose first one would have been refused; or something else by its own lie.
        const b = r.bytes
        let [kind, at, later] = [b[20], 54, false]
        while ([0, 43, 44, 60].includes(kind) && !later) {
          const size = kind === 44 ? 8 : (b[at + 1] + 1) * 8
          later = kind === 44 && ((b[at + 2] << 8) | (b[at + 3] & 0xf8)) !== 0
          kind = b[at]
          at += size
        }
        assert.ok(later || kind !== 58 || ![134, 136, 137].includes(b[at]), Buffer.from(b).toString('hex'))
      }
    }),
    { numRuns: 4000 },
  )
})
