/**
 * A guest that sends what no kernel would: real frames with bytes changed, cut and with false offload metadata, a seeded stream of
 * them. The process counts drops, throws nothing, and serves everybody afterwards.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { StatsAnswer } from '../../src/dataplane/protocol.ts'
import { sum } from '../../src/netstack/wire/checksum.ts'
import { close } from '../../src/sys/fd.ts'
import { Scratch } from '../../src/sys/libc.ts'
import { linkIndex } from '../../src/sys/netdev.ts'
import { inNetns } from '../../src/sys/netns.ts'
import { openPacket } from '../../src/sys/packet.ts'
import { recv, send } from '../../src/sys/socket.ts'
import { DUAL, type Guest, Lab, SERVER, SERVER6, skipWithoutRoot } from './lab.ts'

const VNET = 10
const L3 = VNET + 14
const SEED = 20261123
const ROUNDS = 60
const EACH = 500

/** mulberry32: a small generator with a seed, so that a failure can be had again. */
function generator(seed: number): (below: number) => number {
  let s = seed
  return (below) => {
    s = (s + 0x6d2b79f5) | 0
    let t = Math.imul(s ^ (s >>> 15), s | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) % below
  }
}

/** What the guest sends on its own for a moment, in both families: ARP and neighbour discovery, ping, TCP, UDP, fragments, DNS, DHCPv6. */
async function frames(lab: Lab, guest: Guest, s: Scratch): Promise<Uint8Array[]> {
  const wire = inNetns(lab.path(`${guest.netns}-wire`), () => openPacket(linkIndex('far'), true))
  const attempt = (...argv: string[]) => {
    try {
      lab.in(guest.netns, ...argv)
    } catch {}
  }
  attempt('ping', '-c', '2', '-W', '1', SERVER)
  attempt('ping', '-c', '1', '-W', '1', '-s', '4000', SERVER)
  attempt('socat', '-u', 'OPEN:/etc/services,rdonly', `TCP:${SERVER}:7100`)
  attempt('sh', '-c', `head -c 9000 /dev/zero | socat -u - UDP:${SERVER}:7101`)
  attempt('dig', '+time=1', '+tries=1', '@192.168.100.2', 'example.com')
  attempt('ping', '-6', '-c', '2', '-W', '1', SERVER6)
  attempt('ping', '-6', '-c', '1', '-W', '1', '-s', '4000', SERVER6)
  attempt('socat', '-u', 'OPEN:/etc/services,rdonly', `TCP6:[${SERVER6}]:7100`)
  attempt('sh', '-c', `head -c 9000 /dev/zero | socat -u - UDP6:[${SERVER6}]:7101`)
  attempt('dig', '+time=1', '+tries=1', `@${DUAL.ipv6?.services}`, 'example.com')
  attempt('rdisc6', '-1', '-r1', '-w200', 'eth0')
  attempt('timeout', '2', 'dhclient', '-6', '-1', '-lf', '/dev/null', '-pf', '/dev/null', '-sf', '/bin/true', 'eth0')
  const out: Uint8Array[] = []
  for (let n = recv(wire, s.address, s.bytes.length); n > 0; n = recv(wire, s.address, s.bytes.length))
    out.push(s.bytes.slice(0, n))
  close(wire)
  return out
}

test('hostile frames are dropped and counted, nothing throws, the others are served', {
  skip: skipWithoutRoot,
}, async () => {
  const lab = new Lab()
  try {
    await lab.start(DUAL)
    await lab.rawIcmp()
    const hostile = await lab.guest('hostile', 10)
    const victim = await lab.guest('victim', 11, 'packet')
    lab.background(lab.host, ['socat', '-u', 'TCP6-LISTEN:7100,reuseaddr,fork,ipv6only=0', 'OPEN:/dev/null'])
    await lab.listening(lab.host, 'tcp', 7100)
    const s = new Scratch(70_000)
    const seeds = await frames(lab, victim, s)
    const of = (type: number) => seeds.filter((f) => ((f[L3 - 2]! << 8) | f[L3 - 1]!) === type).length
    assert.ok(of(0x0800) > 10 && of(0x86dd) > 10, `${of(0x0800)} frames of IPv4, ${of(0x86dd)} of IPv6`)
    const fd = inNetns(lab.path(hostile.netns), () => openPacket(linkIndex('eth0'), true))
    const random = generator(SEED)
    let sent = 0
    for (let round = 0; round < ROUNDS; round++) {
      for (let n = 0; n < EACH; n++) {
        const f = seeds[random(seeds.length)].slice()
        f.set([2, 0, 0, 0, 0, 10], VNET + 6)
        if (f[L3 - 2] === 8 && f[L3 - 1] === 0) f.set([192, 168, 100, 10], L3 + 12)
        // Its own: fd00:77::10, so that the guard lets most of it pass. Of neighbour discovery it says what its neighbour said.
        if (f[L3 - 2] === 0x86 && random(8) > 0)
          f.set([0xfd, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10], L3 + 8)
        for (let changes = random(5); changes > 0; changes--)
          f[random(Math.min(f.length, random(2) ? 90 : 60))] = random(256)
        if (random(3) === 0) f.fill(0, 0, VNET)
        // A correct header sum lets it pass the first gate.
        if (random(4) > 0 && f[L3] === 0x45 && f.length >= L3 + 20) {
          f[L3 + 10] = f[L3 + 11] = 0
          const total = sum(f, L3, 20, 0)
          const folded = ~((total & 0xffff) + (total >>> 16)) & 0xffff
          f[L3 + 10] = folded >> 8
          f[L3 + 11] = folded & 255
        }
        const length = random(8) === 0 ? VNET + 14 + random(f.length - VNET - 13) : f.length
        s.bytes.set(f)
        if (send(fd, s.address, length) > 0) sent++
      }
      await sleep(2)
    }
    close(fd)
    // The kernel itself refuses false offload metadata; the rest arrives.
    assert.ok(sent > (ROUNDS * EACH) / 4)
    for (const guest of [hostile, victim])
      for (const to of ['192.168.100.1', SERVER, 'fd00:77::1', SERVER6])
        lab.in(guest.netns, 'ping', '-c', '1', '-w', '30', to)
    const { drops } = await lab.link.request<StatsAnswer>({ op: 'stats' })
    assert.deepEqual(
      drops.filter((d) => d.reason === 'fault'),
      [],
      lab.log,
    )
    assert.ok(drops.filter((d) => d.vm === 'hostile').length > 8, JSON.stringify(drops))
  } finally {
    await lab.close()
  }
})
