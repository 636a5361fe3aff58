/**
 * Hostile frames: random ones, and good ones with bytes changed, cut, or with other offload metadata. Nothing may throw, no frame that leaves
 * may be larger than what is allowed, and the arena beyond the receive slot and the engine's own slots is never written.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { FRAME_MAX, VNET } from '../../src/netstack/arena.ts'
import { arp, BROADCAST_MAC, type Build, icmp, packet, TestNet, tcp, udp } from './net.ts'

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
]

function world() {
  const net = new TestNet({ config: { allowHostPorts: [61001] } })
  const web = net.vm('web')
  const db = net.vm('db')
  const old = net.vm('old', { offload: false })
  const slot = net.host.arena.slot()
  // A fence behind everything.
  const fence = net.host.arena.alloc(4096)
  net.host.arena.bytes.fill(0x5a, fence, fence + 4096)
  const check = () => {
    for (const s of [web, db, old]) for (const f of s.port.frames.splice(0)) assert.ok(f.bytes.length <= FRAME_MAX)
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
      if (reseal && bytes.length >= 34) sealHeader(b, slot + 14)
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
