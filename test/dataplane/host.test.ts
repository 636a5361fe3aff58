/**
 * The engine's way out over real sockets of the loopback: peek and consume, edges, segmented datagrams, error queues, shares of a
 * raw ICMP socket, and that no event outlives its socket.
 */
import assert from 'node:assert/strict'
import { closeSync, openSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { DataPlaneHost } from '../../src/dataplane/host.ts'
import { makeArena } from '../../src/dataplane/memory.ts'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { Arena } from '../../src/netstack/arena.ts'
import { FAILED, HANGUP, READABLE, ROUTE, WRITABLE } from '../../src/netstack/host.ts'
import { close } from '../../src/sys/fd.ts'
import {
  AF_INET,
  AF_INET6,
  addressBytes,
  addressText,
  bind,
  getsockname,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  listen,
  SO_RCVBUFFORCE,
  SOCK_DGRAM,
  SOCK_RAW,
  SOCK_STREAM,
  SOL_SOCKET,
  setOption,
  socket,
} from '../../src/sys/socket.ts'

const EAGAIN = 11
const ECONNABORTED = 103
const ECONNREFUSED = 111

function lab(peekOffset?: readonly [boolean, boolean], descriptors = 4096) {
  const reactor = new Reactor(descriptors)
  const arena = makeArena(4)
  const host = new DataPlaneHost(reactor, arena, () => {}, peekOffset && { peekOffset })
  const events: { ref: number; events: number }[] = []
  reactor.onSocket = (ref, e) => events.push({ ref, events: e })
  const a = arena.alloc(65536)
  const b = arena.alloc(65536)
  const dst = arena.alloc(16)
  const far = arena.alloc(16)
  return {
    reactor,
    arena,
    host,
    events,
    a,
    b,
    dst,
    far,
    text: (at: number, len: number) => Buffer.from(arena.bytes.subarray(at, at + len)).toString('latin1'),
    put: (at: number, s: string) => arena.bytes.set(Buffer.from(s, 'latin1'), at),
    address: (text: string) => arena.bytes.set(addressBytes(text), dst),
    /** Take events until one for `ref` has any of `want`, at most 20 s. */
    until(ref: number, want: number): number {
      host.gather.flush()
      for (let i = 0; i < 2000; i++) {
        events.length = 0
        reactor.dispatch(reactor.wait(10))
        for (const e of events) if (e.ref === ref && e.events & want) return e.events
      }
      throw new Error(`no event ${want} for ${ref}`)
    },
  }
}

const opened: number[] = []
after(() => {
  for (const fd of opened) close(fd)
})

function bound(type: number, address = '127.0.0.1') {
  const six = address.includes(':')
  const fd = socket(six ? AF_INET6 : AF_INET, type)
  opened.push(fd)
  assert.equal(bind(fd, { family: six ? 'inet6' : 'inet', address, port: 0 }), 0)
  const at = getsockname(fd)
  assert.ok(typeof at === 'object' && at.family !== 'unix')
  return { fd, port: at.port }
}

for (const [name, address, peekOffset] of [
  ['IPv4, peek offset of the kernel', '127.0.0.1', undefined],
  ['IPv6, peek offset of the kernel', '::1', undefined],
  ['IPv4, staged', '127.0.0.1', [false, false]],
  ['IPv6, staged', '::1', [false, false]],
] as const)
  describe(`TCP: ${name}`, () => {
    test('connect, send, peek at any place, consume, half-close, FIN', () => {
      const l = lab(peekOffset)
      const { fd, port } = bound(SOCK_STREAM, address)
      assert.equal(listen(fd), 0)
      l.address(address)
      const c = l.host.tcpConnect(l.dst, port)
      assert.ok(c >= 0)
      assert.equal(l.host.watch(c, 7), 0)
      assert.ok(l.until(7, WRITABLE) & WRITABLE)
      assert.equal(l.host.error(c), 0)
      l.host.adoptListener(fd)
      const s = l.host.tcpAccept(fd, l.far)
      assert.ok(s >= 0)
      assert.equal(addressText(l.arena.bytes, l.far), address)
      assert.ok(l.host.peerPort > 0)
      assert.equal(l.host.watch(s, 8), 0)
      assert.ok(l.host.tcpFree(c) > 10_000)
      l.put(l.a, 'abcdefgh')
      assert.equal(l.host.tcpSend(c, l.a, 8), 8)
      l.until(8, READABLE)
      assert.equal(l.host.tcpPeek(s, l.b, 3, 0), 3)
      assert.equal(l.host.tcpPeek(s, l.b + 3, 3, 3), 3)
      assert.equal(l.text(l.b, 6), 'abcdef')
      // a retransmission
      assert.equal(l.host.tcpPeek(s, l.b, 2, 1), 2)
      assert.equal(l.text(l.b, 2), 'bc')
      assert.equal(l.host.tcpConsume(s, 4), 4)
      assert.equal(l.host.tcpPeek(s, l.b, 100, 0), 4)
      assert.equal(l.text(l.b, 4), 'efgh')
      assert.equal(l.host.tcpPeek(s, l.b, 100, 4), -EAGAIN)
      l.host.tcpShutdown(c)
      l.host.sockets.later.all()
      l.until(8, READABLE)
      assert.equal(l.host.tcpPeek(s, l.b, 100, 4), 0)
      assert.equal(l.host.tcpPeek(s, l.b, 100, 2), 2)
      assert.equal(l.text(l.b, 2), 'gh')
      assert.equal(l.host.tcpConsume(s, 4), 4)
      assert.equal(l.host.tcpPeek(s, l.b, 100, 0), 0)
      l.host.close(c)
      l.host.close(s)
      assert.equal(l.host.sockets.open, 1)
    })
  })

describe('TCP', () => {
  test('refused on this machine: told at once; accepted: connected at once', () => {
    const l = lab()
    const { fd, port } = bound(SOCK_STREAM)
    l.address('127.0.0.1')
    assert.equal(l.host.tcpConnect(l.dst, port), -ECONNREFUSED)
    listen(fd)
    const c = l.host.tcpConnect(l.dst, port)
    assert.ok(c >= 0)
    assert.equal(l.host.connected, true)
    l.host.close(c)
  })

  test('staged: what lies beyond the staging area is told when something has been consumed', {
    skip: process.getuid?.() === 0 ? false : 'needs root for a receive buffer of that size',
  }, () => {
    const l = lab([false, false])
    const { fd, port } = bound(SOCK_STREAM)
    assert.equal(setOption(fd, SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20), 0)
    listen(fd)
    l.address('127.0.0.1')
    const c = l.host.tcpConnect(l.dst, port)
    l.host.adoptListener(fd)
    const s = l.host.tcpAccept(fd, l.far)
    l.host.watch(c, 7)
    l.host.watch(s, 8)
    for (let left = 10 * 65536; left > 0; ) {
      const n = l.host.tcpSend(c, l.a, Math.min(left, 65536))
      if (n > 0) left -= n
      else l.until(7, WRITABLE)
    }
    // As the engine does: fewer than asked for are all there are.
    let there = 0
    for (let n = 60_000; n === 60_000; there += n) n = l.host.tcpPeek(s, l.b, 60_000, there)
    assert.equal(there, 8 * 65536)
    l.reactor.dispatch(l.reactor.wait(0))
    l.host.tcpConsume(s, 65536)
    l.until(8, READABLE)
    assert.equal(l.host.tcpPeek(s, l.b, 65536, there - 65536), 65536)
    l.host.close(c)
    l.host.close(s)
  })

  test('nobody answers: not connected, and no error yet', () => {
    const l = lab()
    const { fd, port } = bound(SOCK_STREAM)
    // A backlog that is full lets a SYN wait.
    listen(fd, 0)
    l.address('127.0.0.1')
    const all = Array.from({ length: 4 }, () => {
      const c = l.host.tcpConnect(l.dst, port)
      return { c, connected: l.host.connected }
    })
    assert.ok(all.every(({ c }) => c >= 0))
    assert.equal(all[3]?.connected, false)
    for (const { c } of all) l.host.close(c)
  })

  test('a full socket says EAGAIN, and WRITABLE comes when the peer has read', () => {
    const l = lab()
    const { fd, port } = bound(SOCK_STREAM)
    listen(fd)
    l.address('127.0.0.1')
    const c = l.host.tcpConnect(l.dst, port)
    l.host.watch(c, 1)
    l.until(1, WRITABLE)
    l.host.adoptListener(fd)
    const s = l.host.tcpAccept(fd, l.far)
    let sent = 0
    for (;;) {
      const n = l.host.tcpSend(c, l.a, 65536)
      if (n < 0) {
        assert.equal(n, -EAGAIN)
        break
      }
      sent += n
    }
    assert.ok(l.host.tcpFree(c) < 65536)
    l.reactor.dispatch(l.reactor.wait(0))
    l.events.length = 0
    for (let taken = 0; taken < sent; ) {
      const n = l.host.tcpConsume(s, 1 << 20)
      if (n > 0) taken += n
      else l.reactor.dispatch(l.reactor.wait(5))
    }
    if (!l.events.some((e) => e.ref === 1 && e.events & WRITABLE)) l.until(1, WRITABLE)
    l.host.armWrite(c)
    l.until(1, WRITABLE)
    l.host.close(c)
    l.host.close(s)
  })

  test('an event collected before close is not delivered, also when the number is used again', () => {
    const l = lab()
    const { fd, port } = bound(SOCK_DGRAM)
    l.address('127.0.0.1')
    const one = l.host.udpConnect(l.dst, port)
    l.host.watch(one, 11)
    l.host.udpSend(one, l.a, 4, 0)
    l.host.gather.flush()
    l.host.adoptUdp(fd)
    l.host.watch(fd, 12)
    const n = l.reactor.wait(100)
    assert.equal(n, 1)
    l.host.close(fd)
    opened.splice(opened.indexOf(fd), 1)
    const again = l.host.udpConnect(l.dst, port)
    assert.equal(again, fd)
    l.host.watch(again, 13)
    l.reactor.dispatch(n)
    assert.deepEqual(l.events, [])
    l.host.close(one)
    l.host.close(again)
  })

  test('sockets are refused before the descriptors that others need run out', () => {
    const reactor = new Reactor(96)
    const arena = new Arena(new ArrayBuffer(1 << 20))
    const host = new DataPlaneHost(reactor, arena, () => {}, { peekOffset: [true, true] })
    const dst = arena.alloc(16)
    arena.bytes.set(addressBytes('127.0.0.1'), dst)
    const socks: number[] = []
    let r = 0
    while (r >= 0 && socks.length < 100) {
      r = host.udpConnect(dst, 9)
      if (r >= 0) socks.push(r)
    }
    assert.equal(r, -24)
    assert.ok(Math.max(...socks) < 96 - 24)
    const first = socks[0] as number
    host.close(first)
    assert.equal(host.udpConnect(dst, 9), first)
    for (const s of socks) host.close(s)
  })

  test('a listener that is watched once more tells of who waits still', () => {
    const l = lab()
    const { fd, port } = bound(SOCK_STREAM)
    listen(fd)
    l.address('127.0.0.1')
    l.host.watch(l.host.adoptListener(fd), 5)
    const c = l.host.tcpConnect(l.dst, port)
    l.until(5, READABLE)
    l.host.watch(fd, 6)
    l.until(6, READABLE)
    l.host.close(l.host.tcpAccept(fd, l.far))
    l.host.close(c)
    l.host.sockets.later.all()
  })

  test('clients for whom there are no descriptors are turned away one by one', () => {
    const l = lab(undefined, 512)
    const { fd, port } = bound(SOCK_STREAM)
    listen(fd)
    l.host.adoptListener(fd)
    l.address('127.0.0.1')
    const clients = Array.from({ length: 3 }, (_, k) => {
      const c = l.host.tcpConnect(l.dst, port)
      l.host.watch(c, k)
      return c
    })
    const taken: number[] = []
    while ((taken.at(-1) ?? 0) < l.host.sockets.limit) taken.push(openSync('/dev/null', 'r'))
    assert.deepEqual(
      [1, 2, 3, 4].map(() => l.host.tcpAccept(fd, l.far)),
      [-ECONNABORTED, -ECONNABORTED, -ECONNABORTED, -EAGAIN],
    )
    for (const each of taken) closeSync(each)
    for (const [k, c] of clients.entries()) {
      if (k === 0) l.until(k, HANGUP)
      assert.equal(l.host.tcpPeek(c, l.a, 1, 0), 0)
      l.host.close(c)
    }
    l.host.sockets.later.all()
  })
})

describe('UDP', () => {
  for (const address of ['127.0.0.1', '::1'])
    test(`${address}: datagrams of one size go and come together; the last may be shorter`, () => {
      const l = lab()
      const { fd, port } = bound(SOCK_DGRAM, address)
      l.address(address)
      l.host.adoptUdp(fd)
      const c = l.host.udpConnect(l.dst, port)
      for (let i = 0; i < 2500; i++) l.arena.bytes[l.a + i] = i & 255
      assert.equal(l.host.udpSend(c, l.a, 2500, 1000), 2500)
      const got: number[] = []
      let first = 0
      for (;;) {
        const n = l.host.udpRecvFrom(fd, l.b, 65536, l.far)
        if (n < 0) break
        first ||= n
        if (l.host.segment === 0) got.push(n)
        else for (let at = 0; at < n; at += l.host.segment) got.push(Math.min(l.host.segment, n - at))
      }
      assert.deepEqual(got, [1000, 1000, 500])
      assert.deepEqual(l.arena.bytes.slice(l.b, l.b + first), l.arena.bytes.slice(l.a, l.a + first))
      // back to the client, to its address
      assert.equal(l.host.udpSendTo(fd, l.far, l.host.peerPort, l.b, 700, 300), 700)
      let back = 0
      for (let n = l.host.udpRecv(c, l.a, 65536); n >= 0; n = l.host.udpRecv(c, l.a, 65536)) back += n
      assert.equal(back, 700)
      // a single one longer than the size that was set
      assert.equal(l.host.udpSend(c, l.a, 1400, 0), 1400)
      l.host.gather.flush()
      assert.equal(l.host.udpRecvFrom(fd, l.b, 65536, l.far), 1400)
      assert.equal(l.host.segment, 0)
      // more segments than one call takes, and an empty datagram
      assert.equal(l.host.udpSend(c, l.a, 200, 1), 200)
      assert.equal(l.host.udpSend(c, l.a, 0, 0), 0)
      l.host.close(c)
    })

  test('on all addresses: each client is answered from the address it spoke to', () => {
    for (const [any, spoken] of [
      ['0.0.0.0', '127.0.0.5'],
      ['0.0.0.0', '127.0.0.1'],
      ['::', '127.0.0.6'],
      ['::', '::1'],
    ] as const) {
      const l = lab()
      const { fd, port } = bound(SOCK_DGRAM, any)
      l.host.adoptUdp(fd)
      l.address(spoken)
      // Connected: what comes from another address is not let in.
      const c = l.host.udpConnect(l.dst, port)
      l.put(l.a, 'question')
      assert.equal(l.host.udpSend(c, l.a, 8, 0), 8)
      l.host.gather.flush()
      assert.equal(l.host.udpRecvFrom(fd, l.b, 1500, l.far), 8)
      assert.equal(l.host.udpSendTo(fd, l.far, l.host.peerPort, l.b, 8, 0), 8)
      assert.equal(l.host.udpSendTo(fd, l.far, l.host.peerPort, l.b, 8, 3), 8)
      let back = 0
      for (let n = l.host.udpRecv(c, l.a, 65536); n >= 0; n = l.host.udpRecv(c, l.a, 65536)) back += n
      assert.equal(back, 16, `${any} ${spoken}`)
      l.host.close(c)
    }
  })

  test('datagrams of one burst leave together, in order, whatever their sizes', () => {
    const l = lab()
    const { fd, port } = bound(SOCK_DGRAM)
    l.address('127.0.0.1')
    l.host.adoptUdp(fd)
    const c = l.host.udpConnect(l.dst, port)
    const other = l.host.udpConnect(l.dst, port)
    const lengths = [100, 100, 100, 40, 100, 200, 200, 0, 1, 1, 3000, 5, ...new Array(130).fill(7)]
    let n = 0
    for (const len of lengths) {
      l.arena.bytes.fill(++n, l.a, l.a + len)
      assert.equal(l.host.udpSend(c, l.a, len, 0), len)
      if (n === 6) assert.equal(l.host.udpSend(other, l.a, 9, 0), 9)
      if (n === 9) l.host.setTtl(c, 9)
    }
    l.host.close(c)
    l.host.gather.flush()
    const got: number[] = []
    let m = 0
    for (let r = l.host.udpRecvFrom(fd, l.b, 65536, l.far); r >= 0; r = l.host.udpRecvFrom(fd, l.b, 65536, l.far)) {
      const each = l.host.segment || r
      for (let at = 0; at < Math.max(r, 1); at += Math.max(each, 1)) {
        const len = Math.min(each, r - at)
        if (len === 9) continue
        got.push(len)
        m++
        if (len > 0) assert.equal(l.arena.bytes[l.b + at], m)
      }
    }
    assert.deepEqual(got, lengths)
    l.host.close(other)
  })

  test('what the kernel refuses is counted as lost, and the next one goes alone to say why', () => {
    const l = lab()
    const lost: number[] = []
    l.host.gather.onLost = (k) => lost.push(k)
    const { port } = bound(SOCK_DGRAM)
    l.address('127.0.0.1')
    const c = l.host.udpConnect(l.dst, port)
    l.host.sockets.close(c)
    // The descriptor is closed: every send is −EBADF, which the kernel tells at once.
    assert.equal(l.host.udpSend(c, l.a, 10, 0), 10)
    l.host.gather.flush()
    assert.deepEqual(lost, [1])
    assert.equal(l.host.udpSend(c, l.a, 10, 0), -9)
  })

  for (const [address, type, code] of [
    ['127.0.0.1', 3, 3],
    ['::1', 1, 4],
  ] as const)
    test(`${address}: a refused port comes through the error queue, and the next datagram is not lost`, () => {
      const l = lab()
      const { fd, port } = bound(SOCK_DGRAM, address)
      close(fd)
      opened.splice(opened.indexOf(fd), 1)
      l.address(address)
      const c = l.host.udpConnect(l.dst, port)
      l.host.watch(c, 5)
      assert.equal(l.host.udpSend(c, l.a, 10, 0), 10)
      l.until(5, FAILED)
      assert.equal(l.host.recvError(c, l.far), 1)
      assert.equal(l.host.icmp.errno, ECONNREFUSED)
      assert.deepEqual([l.host.icmp.type, l.host.icmp.code, l.host.icmp.sequence], [type, code, -1])
      assert.equal(addressText(l.arena.bytes, l.far), address)
      assert.equal(l.host.recvError(c, l.far), 0)
      assert.equal(l.host.udpSend(c, l.a, 10, 0), 10)
      assert.equal(l.host.udpSend(c, l.a, 10, 0), 10)
      l.host.close(c)
    })
})

describe('one socket for both families', () => {
  test("TCP: an IPv4 client's address is IPv4's, an IPv6 client's its own", () => {
    const l = lab()
    const { fd, port } = bound(SOCK_STREAM, '::')
    assert.equal(listen(fd), 0)
    l.host.adoptListener(fd)
    for (const address of ['127.0.0.1', '::1']) {
      l.address(address)
      const c = l.host.tcpConnect(l.dst, port)
      l.host.watch(c, 31)
      l.until(31, WRITABLE)
      const s = l.host.tcpAccept(fd, l.far)
      assert.ok(s >= 0)
      assert.equal(addressText(l.arena.bytes, l.far), address)
      // The relay's ways of reading work on it, whichever family speaks.
      l.put(l.a, 'abcdef')
      l.host.watch(s, 32)
      assert.equal(l.host.tcpSend(c, l.a, 6), 6)
      l.until(32, READABLE)
      assert.equal(l.host.tcpPeek(s, l.b, 4, 0), 4)
      assert.equal(l.host.tcpPeek(s, l.b + 4, 4, 4), 2)
      assert.equal(l.text(l.b, 6), 'abcdef')
      assert.equal(l.host.tcpConsume(s, 6), 6)
      l.host.close(c)
      l.host.close(s)
    }
  })

  test('a link-local address carries its link through text, bytes and sockaddr', () => {
    for (const text of ['fe80::1%7', 'febf::a:b%70000', 'fe80::1', '2001:db8::1', '10.0.0.1', 'fd00:0:1:2::3'])
      assert.equal(addressText(addressBytes(text)), text)
    for (const text of ['fe80::1%eth0', 'fe80::1%', '::g', '1.2.3'])
      assert.throws(() => addressBytes(text), RangeError, text)
  })
})

describe('routes', () => {
  test('loopback in all its names, the host itself', () => {
    const l = lab()
    for (const a of ['127.0.0.1', '127.9.9.9', '0.0.0.0', '::1', '::']) {
      l.address(a)
      assert.equal(l.host.route(l.dst), ROUTE.loopback, a)
    }
    l.address('224.0.0.251')
    assert.notEqual(l.host.route(l.dst), ROUTE.loopback)
    l.address('255.255.255.255')
    assert.equal(l.host.route(l.dst), ROUTE.unreachable)
  })
})

describe('ping', () => {
  for (const [address, af, protocol, echo, reply] of [
    ['127.0.0.1', AF_INET, IPPROTO_ICMP, 8, 0],
    ['::1', AF_INET6, IPPROTO_ICMPV6, 128, 129],
  ] as const)
    test(`${address}: two shares of a raw socket get their own replies`, {
      skip: process.getuid?.() === 0 ? false : 'needs root for a raw socket',
    }, () => {
      const l = lab()
      l.address(address)
      const direct = l.host.pingOpen(l.dst)
      if (direct >= 0) {
        l.host.close(direct)
        return
      }
      const raw = socket(af, SOCK_RAW, protocol)
      assert.ok(raw >= 0)
      l.host.adoptRawIcmp(raw)
      const got: string[] = []
      const p1 = l.host.pingOpen(l.dst)
      const p2 = l.host.pingOpen(l.dst)
      l.host.watch(p1, 21)
      l.host.watch(p2, 22)
      l.reactor.onSocket = (ref, events) => {
        assert.equal(events, READABLE)
        const n = l.host.pingRecv(ref === 21 ? p1 : p2, l.b, 1500)
        assert.equal(l.arena.bytes[l.b], reply)
        got.push(`${ref}:${l.text(l.b + 8, n - 8)}:${l.arena.bytes[l.b + 7]}`)
        assert.equal(l.host.pingRecv(ref === 21 ? p2 : p1, l.b, 1500), -EAGAIN)
      }
      for (const [p, text, seq] of [
        [p1, 'one', 1],
        [p2, 'second', 2],
      ] as const) {
        l.arena.bytes.set([echo, 0, 0, 0, 0, 0, 0, seq], l.a)
        l.put(l.a + 8, text)
        assert.equal(l.host.pingSend(p, l.a, 8 + text.length), 8 + text.length)
      }
      for (let i = 0; i < 1000 && got.length < 2; i++) l.reactor.dispatch(l.reactor.wait(20))
      assert.deepEqual(got.sort(), ['21:one:1', '22:second:2'])
      l.host.close(p1)
      l.host.close(p2)
    })
})
