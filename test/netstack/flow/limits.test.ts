/**
 * Limits: what happens at each of them, that it is counted, and that one VM's limit is not another's.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import * as errno from '../../../src/netstack/host.ts'
import { MemoryHost } from '../memory-host.ts'
import { icmp, packet, TestNet, tcp, udp } from '../net.ts'

test('flows of one VM: pings and datagrams make room for each other, connections are refused', () => {
  const net = new TestNet({ limits: { flowsPerVm: 6, udpFlowsPerVm: 4, pingFlowsPerVm: 2 } })
  const web = net.vm('web')
  for (let id = 1; id <= 5; id++) web.send(icmp({ to: '8.8.8.8', id }))
  assert.equal(web.drops('ping-evicted'), 3)
  for (let p = 1; p <= 5; p++) web.send(udp({ to: `8.8.8.8:${p}` }))
  assert.equal(web.drops('udp-evicted'), 1)
  web.send(tcp({ to: '8.8.8.8:80' }))
  assert.equal(web.drops('flow-limit'), 1)
  assert.equal(net.network.stats().flows.length, 6)
  const db = net.vm('db')
  db.send(tcp({ to: '8.8.8.8:80' }))
  assert.equal(db.drops('flow-limit'), 0)
  assert.equal(net.host.open('tcp').length, 1)
})

test('nothing to give up: new flows are refused', () => {
  const net = new TestNet({ limits: { flowsPerVm: 2 } })
  const web = net.vm('web')
  web.send(tcp({ to: '8.8.8.8:80' }), tcp({ to: '8.8.8.8:81' }), udp({ to: '8.8.8.8:53' }), icmp({ to: '8.8.8.8' }))
  assert.equal(web.drops('flow-limit'), 2)
})

/** A published UDP port, and what sends to it from elsewhere: the k-th stranger. */
function publishUdp(net: TestNet, guestAddress: string): (k: number) => void {
  const s = net.host.make('udp-bound', '')
  const spec = { id: 'p', proto: 'udp', sock: s.id, guestAddress, guestPort: 5353 } as const
  net.network.publish({ ...spec, hostAddress: '0.0.0.0', hostPort: 5353 })
  return (k) => {
    net.host.arrive(s.id, Buffer.from('x'), { peer: `203.0.113.${k}:1000` })
    net.deliver()
  }
}

test('strangers at a published port: what the VM has begun stays, and whom it answered stays longer than others', () => {
  const net = new TestNet({ limits: { udpFlowsPerVm: 4 } })
  const web = net.vm('web')
  const stranger = publishUdp(net, web.ip)
  const peers = (): string[] => net.network.stats().flows.map((f) => f.peer)
  web.send(udp({ to: '8.8.8.8:9000' }))
  const [own] = net.host.open('udp')
  stranger(1)
  web.send(udp({ from: 5353, to: '203.0.113.1:1000' }))
  for (let k = 2; k <= 20; k++) stranger(k)
  assert.equal(own.closed, false)
  assert.equal(web.drops('udp-evicted'), 16)
  assert.deepEqual(peers().sort(), [
    '203.0.113.18:1000',
    '203.0.113.19:1000',
    '203.0.113.1:1000',
    '203.0.113.20:1000',
    '8.8.8.8:9000',
  ])
  // Where all were answered, the oldest goes.
  for (let k = 18; k <= 20; k++) web.send(udp({ from: 5353, to: `203.0.113.${k}:1000` }))
  stranger(21)
  assert.ok(!peers().includes('203.0.113.1:1000'))
})

test('strangers fill all that a VM may have: its own next flow takes the place of one of theirs', () => {
  const net = new TestNet({ limits: { flowsPerVm: 4 } })
  const web = net.vm('web')
  const stranger = publishUdp(net, web.ip)
  web.send(tcp({ to: '8.8.8.8:80' }), udp({ to: '8.8.8.8:9000' }))
  for (let k = 1; k <= 5; k++) stranger(k)
  web.send(udp({ to: '8.8.8.8:9001' }))
  assert.deepEqual(
    net.network
      .stats()
      .flows.map((f) => `${f.direction} ${f.peer}`)
      .sort(),
    ['in 203.0.113.5:1000', 'out 8.8.8.8:80', 'out 8.8.8.8:9000', 'out 8.8.8.8:9001'],
  )
})

test('the network’s table is full: datagrams make room for the VM’s own, connections are refused', () => {
  const net = new TestNet({ limits: { flows: 4 } })
  const web = net.vm('web')
  for (let p = 1; p <= 6; p++) web.send(udp({ to: `8.8.8.8:${p}` }))
  assert.equal(web.drops('udp-evicted'), 2)
  web.send(tcp({ to: '8.8.8.8:80' }))
  assert.equal(web.drops('flow-table-full'), 1)
  const db = net.vm('db')
  db.send(udp({ to: '8.8.8.8:53' }))
  assert.equal(db.drops('flow-table-full'), 1)
  assert.equal(net.network.stats().flows.length, 4)
})

test('some VMs with very many flows leave the others theirs', () => {
  const net = new TestNet({ limits: { flows: 512, halfOpenPerVm: 512 } })
  const [busy, busier] = [net.vm('busy'), net.vm('busier')]
  for (let p = 1; p <= 100; p++) busy.send(udp({ to: `8.8.8.8:${1000 + p}` }))
  for (let p = 1; p <= 400; p++) busier.send(tcp({ to: `8.8.8.8:${p}` }))
  assert.equal(busier.drops('flow-table-full'), 400 - (512 - 64 - 100))
  // Datagrams of who has many take the place of its own.
  busy.send(udp({ to: '8.8.8.8:1000' }))
  assert.equal(busy.drops('udp-evicted'), 1)
  // Who has few has what it asks for, names over TCP among it.
  const calm = net.vm('calm')
  for (let p = 1; p <= 30; p++) calm.send(tcp({ to: `8.8.8.8:${p}` }))
  calm.send(udp({ to: '8.8.8.8:1' }), tcp({ from: 5000, to: '192.168.100.2:53' }))
  assert.equal(calm.drops('flow-table-full'), 0)
  assert.equal(net.network.stats().flows.length, 512 - 64 + 32)
  calm.send(tcp({ to: '8.8.8.8:31' }))
  assert.equal(calm.drops('flow-table-full'), 1)
  // Clients of a published port are flows of the VM.
  const listener = net.host.make('listener', '')
  const spec = {
    id: 'p',
    proto: 'tcp',
    sock: listener.id,
    guestPort: 80,
    hostAddress: '0.0.0.0',
    hostPort: 8080,
  } as const
  net.network.publish({ ...spec, guestAddress: busy.ip })
  const refused = net.host.client(listener.id, '203.0.113.9:1')
  net.deliver()
  assert.equal(refused.closed, 'reset')
  assert.equal(busy.drops('flow-table-full'), 1)
})

test('the host gives no socket: counted, and nothing is left', () => {
  const net = new TestNet()
  net.host.socketsFail = 24
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:53' }), icmp({ to: '8.8.8.8' }), tcp({ to: '8.8.8.8:80' }))
  assert.equal(web.drops('host-socket'), 3)
  assert.equal(net.network.stats().flows.length, 0)
  net.host.socketsFail = errno.ENETUNREACH
  web.take()
  web.send(udp({ to: '8.8.8.8:53' }))
  assert.deepEqual(web.lines(), ['icmp 192.168.100.1 > 192.168.100.10 3/0'])
})

test('more switch ports than there are', () => {
  const net = new TestNet({ limits: { ports: 2 } })
  net.vm('a')
  const b = net.vm('b')
  assert.throws(() => net.vm('c'), /2 ports/)
  net.network.detach(b.index)
  assert.equal(net.vm('c').index, b.index)
})

test('a client that uses one port of its own for two published ones is shown apart', () => {
  const net = new TestNet()
  const web = net.vm('web')
  for (const proto of ['tcp', 'udp'] as const) {
    const sockets = [1, 2].map((n) => {
      const s = net.host.make(proto === 'tcp' ? 'listener' : 'udp-bound', '')
      net.network.publish({
        id: `${proto}${n}`,
        proto,
        sock: s.id,
        guestAddress: web.ip,
        guestPort: 80,
        hostAddress: '0.0.0.0',
        hostPort: 8080 + n,
      })
      return s
    })
    for (const s of sockets)
      if (proto === 'tcp') net.host.client(s.id, '203.0.113.9:5555')
      else net.host.arrive(s.id, Buffer.from('x'), { peer: '203.0.113.9:5555' })
    net.deliver()
    assert.deepEqual(
      web.take().map((r) => r.ip?.src),
      ['203.0.113.9', '192.168.100.254'],
    )
  }
})

test('a client that connects again from the same port: the old connection gives way', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const listener = net.host.make('listener', '')
  const spec = { id: 'p', proto: 'tcp', sock: listener.id, guestAddress: web.ip, guestPort: 80 } as const
  net.network.publish({ ...spec, hostAddress: '0.0.0.0', hostPort: 8080 })
  const first = net.host.client(listener.id, '203.0.113.9:5555')
  net.deliver()
  net.host.client(listener.id, '203.0.113.9:5555')
  net.deliver()
  assert.equal(first.closed, 'reset')
  assert.deepEqual(web.lines(), [
    'tcp 203.0.113.9:5555 > 192.168.100.10:80 SYN',
    'tcp 203.0.113.9:5555 > 192.168.100.10:80 RST+ACK',
    'tcp 203.0.113.9:5555 > 192.168.100.10:80 SYN',
  ])
})

/** A host that has nothing to accept with, or turns each client away. */
class ShortHost extends MemoryHost {
  short = 0
  override tcpAccept(listener: number, peer: number): number {
    if (this.short === 0 || (this.sockets.get(listener)?.backlog.length ?? 0) === 0)
      return super.tcpAccept(listener, peer)
    if (this.short === errno.ECONNABORTED) this.close(super.tcpAccept(listener, peer))
    return -this.short
  }
}

test('clients of a published port while the host is short of descriptors', () => {
  const host = new ShortHost()
  const net = new TestNet({ host })
  const web = net.vm('web')
  const listener = host.make('listener', '')
  const spec = { id: 'p', proto: 'tcp', sock: listener.id, guestAddress: web.ip, guestPort: 80 } as const
  net.network.publish({ ...spec, hostAddress: '0.0.0.0', hostPort: 8080 })
  const clients = (...ports: number[]) => {
    const all = ports.map((port) => host.client(listener.id, `203.0.113.9:${port}`))
    net.deliver()
    return all
  }
  host.short = errno.ECONNABORTED
  assert.deepEqual(
    clients(1, 2, 3).map((c) => c.closed),
    ['close', 'close', 'close'],
  )
  assert.equal(web.drops('host-socket'), 3)
  host.short = 24
  const waiting = clients(4, 5, 6)
  net.advance(3000)
  assert.equal(net.network.stats().flows.length, 0)
  host.short = 0
  net.advance(1000)
  assert.deepEqual(
    waiting.map((c) => c.closed),
    [false, false, false],
  )
  assert.equal(net.network.stats().flows.length, 3)
})

test('one turn of a busy socket is bounded', () => {
  const net = new TestNet({ limits: { datagramsPerTurn: 8 } })
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:9000' }))
  const [s] = net.host.open('udp')
  for (let n = 0; n < 20; n++) net.host.arrive(s.id, Buffer.from('x'))
  assert.equal(net.network.ready(s.ref, errno.READABLE), true)
  assert.equal(web.take().length, 8)
  net.deliver()
  assert.equal(web.take().length, 12)
})

/** Calls fail at random, with errors at random. */
class FaultyHost extends MemoryHost {
  faults = 0
  #fault(): number {
    const r = this.random32()
    if ((r & 3) !== 0) return 0
    this.faults++
    const list = [1, 11, 13, 24, 32, 90, 101, 104, 105, 110, 111, 113]
    return -list[(r >>> 8) % list.length]
  }
  override udpConnect(d: number, p: number) {
    return this.#fault() || super.udpConnect(d, p)
  }
  override udpSend(s: number, o: number, l: number, g: number) {
    return this.#fault() || super.udpSend(s, o, l, g)
  }
  override udpRecv(s: number, o: number, m: number) {
    return this.#fault() || super.udpRecv(s, o, m)
  }
  override udpSendTo(s: number, a: number, p: number, o: number, l: number, g: number) {
    return this.#fault() || super.udpSendTo(s, a, p, o, l, g)
  }
  override pingOpen(d: number) {
    return this.#fault() || super.pingOpen(d)
  }
  override pingSend(s: number, o: number, l: number) {
    return this.#fault() || super.pingSend(s, o, l)
  }
  override pingRecv(s: number, o: number, m: number) {
    return this.#fault() || super.pingRecv(s, o, m)
  }
  override tcpConnect(d: number, p: number) {
    return this.#fault() || super.tcpConnect(d, p)
  }
  override tcpSend(s: number, o: number, l: number) {
    return this.#fault() || super.tcpSend(s, o, l)
  }
}

test('a host whose calls fail at random: nothing throws, nothing is left behind', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1 }), (seed) => {
      const host = new FaultyHost({ seed })
      const net = new TestNet({ host, limits: { udpFlowsPerVm: 8, pingFlowsPerVm: 4 } })
      const web = net.vm('web')
      for (let n = 0; n < 60; n++) {
        const p = 1 + (n % 12)
        web.send(
          udp({ to: `8.8.8.8:${p}`, data: 'x', ttl: 2 + (n % 60), df: true }),
          udp({ to: `8.8.8.8:${p}`, data: new Uint8Array(500), segment: 100 }),
          icmp({ to: '8.8.8.8', id: p, sequence: n }),
          tcp({ to: `8.8.8.8:${p}` }),
          tcp({ to: `8.8.8.8:${p}`, flags: 0x10, seq: 1001, data: 'y' }),
          packet({ to: '8.8.8.8', proto: 17, payload: new Uint8Array(16), mf: true, id: n }),
        )
        for (const s of host.open()) {
          if (n % 5 === 0 && s.kind !== 'tcp')
            host.report(s.id, { type: 3, code: n % 14, errno: 113, from: '10.0.0.1', mtu: 900 })
          if (n % 7 === 0 && s.kind !== 'tcp') host.arrive(s.id, new Uint8Array(20))
        }
        net.advance(50)
      }
      assert.ok(host.faults > 0)
      net.network.detach(web.index)
      assert.equal(host.open().length, 0)
      assert.equal(net.network.stats().flows.length, 0)
    }),
    { numRuns: 25 },
  )
})
