/**
 * What the data plane assumes of the kernel, each assumption alone, so that a kernel which is otherwise says so by name.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { OFFLOAD, openTap, removeTap, TunTapError } from '../../packages/tun-tap/index.ts'
import { EPOLLET, EPOLLIN, EPOLLOUT, Epoll } from '../../src/sys/epoll.ts'
import { close, read, write } from '../../src/sys/fd.ts'
import { Scratch } from '../../src/sys/libc.ts'
import { addRoute, linkIndex, setLinkAddress, setLinkMac, setLinkUp } from '../../src/sys/netdev.ts'
import { inNetns } from '../../src/sys/netns.ts'
import { openPacket } from '../../src/sys/packet.ts'
import { socketpair } from '../../src/sys/scm.ts'
import {
  AF_INET,
  bind,
  connect,
  IPPROTO_UDP,
  recv,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  send,
  setOption,
  socket,
  UDP_SEGMENT,
} from '../../src/sys/socket.ts'
import { eventually } from '../eventually.ts'

const root = process.getuid?.() === 0
const skip = root ? false : 'needs root for namespaces and devices'
const VNET = 10
const GSO_UDP_L4 = 5
const NEEDS_CSUM = 1
const EAGAIN = 11
const MAC = '02:00:00:00:00:02'
const macBytes = (text: string) => Uint8Array.from(text.split(':'), (p) => Number.parseInt(p, 16))
const ip = (...args: string[]) => execFileSync('ip', args, { stdio: ['ignore', 'pipe', 'pipe'] })

/** Read until a frame that `want` accepts, for at most a second. */
function frameFrom(fd: number, s: Scratch, get: typeof read, want: (length: number) => boolean): number {
  const ep = new Epoll(1)
  ep.add(fd, EPOLLIN)
  try {
    for (let i = 0; i < 100; i++) {
      const n = get(fd, s.address, s.bytes.length)
      if (n === -EAGAIN) ep.wait(10)
      else if (n > 0 && want(n)) return n
    }
    return -EAGAIN
  } finally {
    close(ep.fd)
  }
}

/** Send `total` bytes as datagrams of `each`, to 10.1.1.9 port 9 of the current namespace's network. */
function sendSegmented(total: number, each: number): void {
  const fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
  assert.equal(connect(fd, { family: 'inet', address: '10.1.1.9', port: 9 }), 0)
  assert.equal(setOption(fd, IPPROTO_UDP, UDP_SEGMENT, each), 0)
  const s = new Scratch(total)
  assert.equal(send(fd, s.address, total), total)
  close(fd)
}

describe('devices in namespaces', { skip }, () => {
  const a = `nt${randomBytes(4).toString('hex')}`
  const b = `nt${randomBytes(4).toString('hex')}`
  const inside = `/run/netns/${a}`
  before(() => {
    ip('netns', 'add', a)
    ip('netns', 'add', b)
  })
  after(() => {
    for (const ns of [a, b])
      try {
        ip('netns', 'delete', ns)
      } catch {}
  })

  test('setns goes there and comes back', () => {
    const here = linkIndex('lo')
    const device = inNetns(inside, () => openTap({ name: 'nt0' }))
    assert.equal(linkIndex('nt0') < 0, true)
    assert.equal(linkIndex('lo'), here)
    assert.ok(inNetns(inside, () => linkIndex('nt0')) > 0)
    assert.throws(
      () =>
        inNetns(inside, () => {
          throw new Error('in there')
        }),
      /in there/,
    )
    assert.equal(linkIndex('nt0') < 0, true)
    close(device.fd)
    assert.throws(() => inNetns('/run/netns/nosuch', () => 0), /ENOENT/)
  })

  test('a TAP hands over 20 datagrams as one frame, and takes them back as one', () => {
    const tap = inNetns(inside, () =>
      openTap({ name: 'nt1', vnetHdr: true, mac: MAC, mtu: 1500, address: '10.1.1.1/24', up: true, txQueueLen: 100 }),
    )
    assert.equal(tap.offloads, OFFLOAD.CSUM | OFFLOAD.TSO4 | OFFLOAD.TSO6 | OFFLOAD.USO4 | OFFLOAD.USO6)
    ip('netns', 'exec', a, 'ip', 'neigh', 'add', '10.1.1.9', 'lladdr', '02:00:00:00:00:09', 'dev', 'nt1')
    inNetns(inside, () => sendSegmented(20_000, 1000))
    const s = new Scratch(70_000)
    const n = frameFrom(tap.fd, s, read, (n) => n > 20_000)
    assert.equal(n, VNET + 14 + 20 + 8 + 20_000)
    assert.equal(s.bytes[0], NEEDS_CSUM)
    assert.equal(s.bytes[1], GSO_UDP_L4)
    assert.equal(s.u16(4), 1000)
    // Back: to 10.1.1.1, from 10.1.1.9; addresses and MACs change places, sums stay what they were.
    inNetns(inside, () => {
      const fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
      const e = s.bytes.slice(VNET, VNET + 12)
      s.bytes.set(e.subarray(6), VNET)
      s.bytes.set(e.subarray(0, 6), VNET + 6)
      const addresses = s.bytes.slice(VNET + 26, VNET + 34)
      s.bytes.set(addresses.subarray(4), VNET + 26)
      s.bytes.set(addresses.subarray(0, 4), VNET + 30)
      const ports = s.bytes.slice(VNET + 34, VNET + 38)
      s.bytes.set(ports.subarray(2), VNET + 34)
      s.bytes.set(ports.subarray(0, 2), VNET + 36)
      const port = s.view.getUint16(VNET + 36)
      assert.equal(bind(fd, { family: 'inet', address: '0.0.0.0', port }), 0)
      assert.equal(write(tap.fd, s.address, n), n)
      let got = 0
      for (let n = recv(fd, s.address, 65_536); n >= 0; n = recv(fd, s.address, 65_536)) got += n
      assert.equal(got, 20_000)
      close(fd)
    })
    close(tap.fd)
  })

  test('a persistent TAP stays without its descriptor, and is opened and removed again', () => {
    inNetns(inside, () => {
      close(openTap({ name: 'nt2', persist: true, mac: MAC }).fd)
      assert.ok(linkIndex('nt2') > 0)
      const again = openTap({ name: 'nt2', vnetHdr: true })
      assert.throws(
        () => removeTap('nt2'),
        (e) => e instanceof TunTapError && e.code === 'EBUSY',
      )
      close(again.fd)
      assert.equal(removeTap('nt2'), true)
      assert.equal(removeTap('nt2'), false)
      assert.ok(linkIndex('nt2') < 0)
      // Nothing stays of one that could not be configured.
      assert.throws(() => openTap({ name: 'nt3', persist: true, mtu: 9 }), TunTapError)
      assert.ok(linkIndex('nt3') < 0)
      assert.throws(() => openTap({ name: 'a name with blanks' }), TunTapError)
    })
  })

  test('a packet socket on a veth passes gso metadata both ways and does not see its own frames', async () => {
    ip('link', 'add', 'eth0', 'netns', a, 'type', 'veth', 'peer', 'name', 'far', 'netns', b)
    const outside = `/run/netns/${b}`
    const { fd, own } = inNetns(outside, () => {
      setLinkUp('far')
      return { fd: openPacket(linkIndex('far'), true), own: linkIndex('far') }
    })
    assert.ok(fd >= 0 && own > 0)
    inNetns(inside, () => {
      assert.equal(setLinkMac('eth0', macBytes(MAC)), 0)
      assert.equal(setLinkAddress('eth0', '10.1.1.1', 24), 0)
      assert.equal(setLinkUp('eth0'), 0)
      assert.equal(addRoute('eth0', '0.0.0.0', 0, '10.1.1.254'), 0)
    })
    // Until the kernel has noticed the carrier, in its own time, it throws away what is sent.
    for (const [ns, link] of [
      [a, 'eth0'],
      [b, 'far'],
    ] as const)
      await eventually(`${link} has a carrier`, () => ip('-n', ns, 'link', 'show', link).includes('state UP'))
    ip('netns', 'exec', a, 'ip', 'neigh', 'add', '10.1.1.9', 'lladdr', '02:00:00:00:00:09', 'dev', 'eth0')
    inNetns(inside, () => sendSegmented(20_000, 1000))
    const s = new Scratch(70_000)
    const n = frameFrom(fd, s, recv, (n) => n > 20_000)
    assert.equal(n, VNET + 14 + 20 + 8 + 20_000)
    assert.deepEqual([s.bytes[0], s.bytes[1], s.u16(4)], [NEEDS_CSUM, GSO_UDP_L4, 1000])
    const other = inNetns(inside, () => openPacket(linkIndex('eth0'), true))
    assert.equal(send(fd, s.address, n), n)
    assert.equal(
      frameFrom(other, s, recv, (m) => m > 20_000),
      n,
    )
    assert.equal(s.bytes[1], GSO_UDP_L4)
    assert.equal(
      frameFrom(fd, s, recv, (m) => m > 20_000),
      -EAGAIN,
    )
    close(fd)
    close(other)
  })
})

describe('edge-triggered epoll', () => {
  test('EPOLL_CTL_MOD reports again what is ready, without a new edge', () => {
    const p = socketpair(SOCK_STREAM, true)
    assert.ok(typeof p !== 'number')
    const ep = new Epoll(4)
    const events = EPOLLIN | EPOLLOUT | EPOLLET
    ep.add(p[0], events, 1)
    assert.equal(ep.wait(0), 1)
    assert.equal(ep.wait(0), 0)
    ep.modify(p[0], events, 1)
    assert.equal(ep.wait(0), 1)
    assert.equal(ep.eventsOf(0), EPOLLOUT)
    for (const fd of [...p, ep.fd]) close(fd)
  })
})
