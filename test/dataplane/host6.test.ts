/**
 * The engine's way out over IPv6, through real routers in namespaces: path MTU, hop limits, link-local peers, and hosts that have only one
 * of the families.
 *
 *   HOST ── link0, MTU 1500 ── ROUTER ── MTU 1280 ── FAR
 *   2001:db8:1::2          ::1      2001:db8:2::1      ::2
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { DataPlaneHost } from '../../src/dataplane/host.ts'
import { makeArena } from '../../src/dataplane/memory.ts'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { EMSGSIZE, FAILED, READABLE, ROUTE } from '../../src/netstack/host.ts'
import { linkIndex } from '../../src/sys/netdev.ts'
import { inNetns } from '../../src/sys/netns.ts'
import {
  AF_INET6,
  addressBytes,
  addressText,
  bind,
  IPPROTO_ICMPV6,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_RAW,
  socket,
} from '../../src/sys/socket.ts'
import { eventually } from '../eventually.ts'
import { skipWithoutRoot } from './lab.ts'

const prefix = `nt${randomBytes(3).toString('hex')}`
const [HOST, ROUTER, FAR] = ['host', 'router', 'far'].map((n) => `${prefix}-${n}`) as [string, string, string]
const ip = (ns: string, ...argv: string[]) => execFileSync('ip', ['-n', ns, ...argv], { encoding: 'utf8' })
const sysctl = (ns: string, ...words: string[]) =>
  execFileSync('ip', ['netns', 'exec', ns, 'sysctl', '-qw', ...words.map((w) => `net.${w}`)])
const inHost = <T>(f: () => T): T => inNetns(`/run/netns/${HOST}`, f)

function make(...names: string[]): void {
  for (const ns of names) {
    execFileSync('ip', ['netns', 'add', ns])
    ip(ns, 'link', 'set', 'lo', 'up')
  }
}

function lab() {
  const reactor = new Reactor(4096)
  const arena = makeArena(4)
  const host = new DataPlaneHost(reactor, arena, () => {}, { peekOffset: [true, true] })
  const [at, dst, far] = [arena.alloc(65536), arena.alloc(16), arena.alloc(16)]
  return {
    host,
    arena,
    at,
    far,
    dst,
    address(text: string): number {
      arena.bytes.set(addressBytes(text), dst)
      return dst
    },
    route: (text: string) => {
      arena.bytes.set(addressBytes(text), dst)
      const kind = host.route(dst)
      return Object.entries(ROUTE).find(([, v]) => v === kind)?.[0]
    },
    /** Events until one has any of `want`; what `act` says when it came. */
    until<T>(want: number, act: (ref: number) => T): T {
      host.gather.flush()
      const answers: T[] = []
      reactor.onSocket = (ref, e) => {
        if ((e & want) !== 0) answers.push(act(ref))
      }
      for (let i = 0; i < 2000 && answers.length === 0; i++) reactor.dispatch(reactor.wait(10))
      assert.ok(answers.length > 0, `no event ${want}`)
      return answers[0] as T
    },
  }
}

describe('IPv6 through routers', { skip: skipWithoutRoot }, () => {
  before(() => {
    make(HOST, ROUTER, FAR)
    ip(HOST, 'link', 'add', 'link0', 'type', 'veth', 'peer', 'down0', 'netns', ROUTER)
    ip(ROUTER, 'link', 'add', 'up0', 'mtu', '1280', 'type', 'veth', 'peer', 'eth0', 'mtu', '1280', 'netns', FAR)
    for (const [ns, dev, address] of [
      [HOST, 'link0', '2001:db8:1::2/64'],
      [ROUTER, 'down0', '2001:db8:1::1/64'],
      [ROUTER, 'up0', '2001:db8:2::1/64'],
      [FAR, 'eth0', '2001:db8:2::2/64'],
    ] as const) {
      sysctl(ns, `ipv6.conf.${dev}.accept_dad=0`)
      ip(ns, 'addr', 'add', address, 'dev', dev, 'nodad')
      ip(ns, 'link', 'set', dev, 'up')
    }
    ip(HOST, '-6', 'route', 'add', 'default', 'via', '2001:db8:1::1')
    ip(FAR, '-6', 'route', 'add', 'default', 'via', '2001:db8:2::1')
    sysctl(ROUTER, 'ipv6.conf.all.forwarding=1', 'ipv6.icmp.ratelimit=0')
    sysctl(HOST, 'ipv4.ping_group_range=1 0')
  })
  after(() => {
    for (const ns of [HOST, ROUTER, FAR])
      try {
        execFileSync('ip', ['netns', 'del', ns])
      } catch {}
  })

  test('a datagram too long for the path: an error with its MTU, and the next one is refused at once', () => {
    inHost(() => {
      const l = lab()
      const c = l.host.udpConnect(l.address('2001:db8:2::2'), 9)
      assert.equal(l.host.setDontFragment(c, 1), 0)
      l.host.watch(c, 1)
      assert.equal(l.host.udpSend(c, l.at, 1400, 0), 1400)
      l.until(FAILED, () => {
        assert.equal(l.host.recvError(c, l.far), 1)
        const { errno, type, code, mtu } = l.host.icmp
        assert.deepEqual({ errno, type, code, mtu }, { errno: EMSGSIZE, type: 2, code: 0, mtu: 1280 })
        assert.equal(addressText(l.arena.bytes, l.far), '2001:db8:1::1')
      })
      l.host.gather.flush()
      let r = l.host.udpSend(c, l.at, 1400, 0)
      l.host.gather.flush()
      if (r >= 0) r = l.host.udpSend(c, l.at, 1400, 0)
      assert.equal(r, -EMSGSIZE)
      const local: number[] = []
      while (l.host.recvError(c, l.far) > 0) local.push(l.host.icmp.errno, l.host.icmp.type, l.host.icmp.mtu)
      assert.deepEqual(local.slice(-3), [EMSGSIZE, 0, 1280])
      assert.equal(addressText(l.arena.bytes, l.far), '::')
      // Allowed to be fragmented it goes.
      l.host.setDontFragment(c, 0)
      assert.equal(l.host.udpSend(c, l.at, 1400, 0), 1400)
      l.host.gather.flush()
      l.host.close(c)
    })
  })

  test('a hop limit that ends on the way, of UDP and of ping: time exceeded, from the router', () => {
    inHost(() => {
      const l = lab()
      const raw = socket(AF_INET6, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMPV6)
      assert.ok(raw >= 0)
      l.host.adoptRawIcmp(raw)
      const udp = l.host.udpConnect(l.address('2001:db8:2::2'), 9)
      const ping = l.host.pingOpen(l.dst)
      assert.ok(ping > 1 << 20, 'a share of the raw socket')
      l.host.watch(udp, 1)
      l.host.watch(ping, 2)
      l.arena.bytes.set([128, 0, 0, 0, 0, 0, 1, 2, 9, 9], l.at)
      for (const [sock, sequence] of [
        [udp, -1],
        [ping, 0x102],
      ] as const) {
        assert.equal(l.host.setTtl(sock, 1), 0)
        const sent = sock === udp ? l.host.udpSend(udp, l.at, 10, 0) : l.host.pingSend(ping, l.at, 10)
        assert.equal(sent, 10)
        l.until(FAILED, () => {
          assert.equal(l.host.recvError(sock, l.far), 1)
          const { type, code } = l.host.icmp
          assert.deepEqual([type, code, l.host.icmp.sequence], [3, 0, sequence])
          assert.equal(addressText(l.arena.bytes, l.far), '2001:db8:1::1')
        })
      }
      l.host.setTtl(ping, 64)
      assert.equal(l.host.pingSend(ping, l.at, 10), 10)
      const n = l.until(READABLE, () => l.host.pingRecv(ping, l.at, 1500))
      assert.deepEqual([n, l.arena.bytes[l.at]], [10, 129])
      // Longer than the path takes: said by the router, then by our own kernel, in pieces when that is allowed.
      l.arena.bytes[l.at] = 128
      l.host.setDontFragment(ping, 1)
      for (const local of [false, true]) {
        const r = l.host.pingSend(ping, l.at, 1400)
        if (local) assert.equal(r, -EMSGSIZE)
        // The path's MTU may be known already, from the test before.
        if (r === -EMSGSIZE) assert.equal(l.host.recvError(ping, l.far), 1)
        else l.until(FAILED, () => assert.equal(l.host.recvError(ping, l.far), 1))
        assert.deepEqual([l.host.icmp.errno, l.host.icmp.mtu], [EMSGSIZE, 1280])
      }
      l.host.setDontFragment(ping, 0)
      assert.equal(l.host.pingSend(ping, l.at, 1400), 1400)
      assert.equal(
        l.until(READABLE, () => l.host.pingRecv(ping, l.at, 1500)),
        1400,
      )
      l.host.close(udp)
      l.host.close(ping)
    })
  })

  test('a link-local peer by its link: as a server that is asked, as a client that is answered', () => {
    const local = /inet6 (fe80:[0-9a-f:]+)/.exec(ip(ROUTER, '-6', 'addr', 'show', 'dev', 'down0'))?.[1] as string
    const own = /inet6 (fe80:[0-9a-f:]+)/.exec(ip(HOST, '-6', 'addr', 'show', 'dev', 'link0'))?.[1] as string
    // The neighbour has two sockets: one that is asked, one that asks.
    const [asked, asking] = inNetns(`/run/netns/${ROUTER}`, () => {
      const l = lab()
      const fd = socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK)
      assert.equal(bind(fd, { family: 'inet6', address: '::', port: 5300 }), 0)
      l.host.adoptUdp(fd)
      const c = l.host.udpConnect(l.address(`${own}%${linkIndex('down0')}`), 5301)
      assert.ok(c >= 0)
      return [
        { l, fd },
        { l, fd: c },
      ]
    })
    inHost(() => {
      const l = lab()
      const c = l.host.udpConnect(l.address(`${local}%${linkIndex('link0')}`), 5300)
      assert.ok(c >= 0)
      l.host.watch(c, 1)
      l.host.udpSend(c, l.at, 4, 0)
      l.host.gather.flush()
      const { l: r } = asked
      r.host.watch(asked.fd, 2)
      assert.equal(
        r.until(READABLE, () => r.host.udpRecvFrom(asked.fd, r.at, 1500, r.far)),
        4,
      )
      assert.match(addressText(r.arena.bytes, r.far), /^fe80::.*%\d+$/)
      assert.equal(r.host.udpSendTo(asked.fd, r.far, r.host.peerPort, r.at, 5, 0), 5)
      assert.equal(
        l.until(READABLE, () => l.host.udpRecv(c, l.at, 1500)),
        5,
      )
      // The other way round, on a port that is published on all addresses.
      const fd = socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK)
      assert.equal(bind(fd, { family: 'inet6', address: '::', port: 5301 }), 0)
      l.host.adoptUdp(fd)
      l.host.watch(fd, 3)
      asking.l.host.udpSend(asking.fd, r.at, 6, 0)
      asking.l.host.gather.flush()
      assert.equal(
        l.until(READABLE, () => l.host.udpRecvFrom(fd, l.at, 1500, l.far)),
        6,
      )
      assert.equal(l.host.udpSendTo(fd, l.far, l.host.peerPort, l.at, 7, 0), 7)
      asking.l.host.watch(asking.fd, 4)
      assert.equal(
        r.until(READABLE, () => r.host.udpRecv(asking.fd, r.at, 1500)),
        7,
      )
    })
  })

  test('where a destination is', () => {
    ip(HOST, '-6', 'addr', 'add', '2001:db8:1::77/128', 'dev', 'lo', 'nodad')
    ip(HOST, '-6', 'route', 'add', 'unreachable', '2001:db8:66::/48')
    inHost(() => {
      const l = lab()
      for (const [text, kind] of [
        ['2001:db8:2::2', 'outside'],
        ['2001:db8:1::1', 'outside'],
        ['2001:db8:1::2', 'host'],
        ['2001:db8:1::77', 'host'],
        ['::1', 'loopback'],
        ['::', 'loopback'],
        ['2001:db8:66::1', 'unreachable'],
        ['ff02::1', 'unreachable'],
        ['10.1.1.1', 'unreachable'],
      ] as const)
        assert.equal(l.route(text), kind, text)
    })
  })

  test('a default route without an address to go by is no route; with one it is', async () => {
    const ns = `${prefix}-bare`
    make(ns)
    try {
      ip(ns, 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'eth1')
      for (const dev of ['eth0', 'eth1']) {
        sysctl(ns, `ipv6.conf.${dev}.accept_dad=0`)
        ip(ns, 'link', 'set', dev, 'up')
      }
      ip(ns, '-6', 'route', 'add', 'default', 'via', 'fe80::1', 'dev', 'eth0')
      await eventually('an address of its link', () => /fe80::/.test(ip(ns, '-6', 'addr', 'show', 'dev', 'eth0')))
      inNetns(`/run/netns/${ns}`, () => assert.equal(lab().route('2001:db8::1'), 'unreachable'))
      ip(ns, 'addr', 'add', '2001:db8:5::2/64', 'dev', 'eth0', 'nodad')
      inNetns(`/run/netns/${ns}`, () => assert.equal(lab().route('2001:db8::1'), 'outside'))
      ip(ns, 'addr', 'del', '2001:db8:5::2/64', 'dev', 'eth0')
      // An address of its own on another link will do, as the kernel has it.
      ip(ns, 'addr', 'add', 'fd00:5::2/128', 'dev', 'lo', 'nodad')
      inNetns(`/run/netns/${ns}`, () => assert.equal(lab().route('2001:db8::1'), 'outside'))
    } finally {
      execFileSync('ip', ['netns', 'del', ns])
    }
  })

  test('a host with IPv6 switched off: no route, no socket, and nothing throws', () => {
    const ns = `${prefix}-off`
    make(ns)
    try {
      ip(ns, 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'eth1')
      ip(ns, 'addr', 'add', '192.0.2.1/24', 'dev', 'eth0')
      ip(ns, 'link', 'set', 'eth0', 'up')
      ip(ns, 'link', 'set', 'eth1', 'up')
      ip(ns, 'route', 'add', 'default', 'via', '192.0.2.2')
      sysctl(ns, 'ipv6.conf.all.disable_ipv6=1', 'ipv6.conf.default.disable_ipv6=1', 'ipv4.ping_group_range=1 0')
      inNetns(`/run/netns/${ns}`, () => {
        const l = lab()
        assert.equal(l.route('2001:db8::1'), 'unreachable')
        assert.equal(l.route('192.0.2.9'), 'outside')
        assert.ok(l.host.tcpConnect(l.address('2001:db8::1'), 80) < 0)
        assert.ok(l.host.udpConnect(l.dst, 80) < 0)
        assert.ok(l.host.pingOpen(l.dst) < 0)
        assert.equal(l.host.sockets.open, 0)
      })
    } finally {
      execFileSync('ip', ['netns', 'del', ns])
    }
  })
})
