/**
 * DESIGN 6a, "who may reach what", row by row: for each destination what a VM of an ordinary and of an isolated network gets.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ROUTE, type RouteKind } from '../../../src/netstack/host.ts'
import type { DropName } from '../../../src/netstack/trace/drops.ts'
import { ACK, FIN, RST, SYN } from '../../../src/netstack/wire/tcp.ts'
import { icmp, TestNet, tcp, udp } from '../net.ts'

const ROUTES: Record<string, RouteKind> = {
  '10.0.0.7': ROUTE.host,
  '192.168.101.10': ROUTE.noid,
  '192.168.101.254': ROUTE.noid,
  '198.51.100.1': ROUTE.unreachable,
  '10.0.0.8': ROUTE.loopback,
}

/** Destination, verdict on an ordinary network, verdict on an isolated one. */
const TABLE: readonly (readonly [string, string, 'allow' | DropName, 'allow' | DropName])[] = [
  ['the outside', '93.184.216.34', 'allow', 'allow'],
  ['one of the host’s own addresses', '10.0.0.7', 'allow', 'deny-isolated'],
  ['a VM of another noid network', '192.168.101.10', 'deny-network', 'deny-network'],
  ['the host’s address on another noid network', '192.168.101.254', 'deny-network', 'deny-network'],
  ['another VM, by way of the gateway', '192.168.100.11', 'no-route', 'deny-isolated'],
  ['an address of the subnet that nobody has', '192.168.100.99', 'no-route', 'deny-isolated'],
  ['the host’s loopback at .254', '192.168.100.254', 'deny-loopback', 'deny-isolated'],
  ['loopback itself', '127.0.0.1', 'deny-loopback', 'deny-loopback'],
  ['an address that the host routes to its loopback', '10.0.0.8', 'deny-loopback', 'deny-loopback'],
  ['metadata', '169.254.169.254', 'deny-link-local', 'deny-link-local'],
  ['Azure’s wire server', '168.63.129.16', 'deny-link-local', 'deny-link-local'],
  ['this network', '0.1.2.3', 'deny-reserved', 'deny-reserved'],
  ['reserved', '241.0.0.1', 'deny-reserved', 'deny-reserved'],
  ['nowhere', '198.51.100.1', 'unreachable', 'unreachable'],
]

const SAYS: Partial<Record<DropName, string>> = { 'no-route': '3/1', unreachable: '3/0' }

for (const isolated of [false, true])
  for (const [what, address, ordinary, apart] of TABLE) {
    const verdict = isolated ? apart : ordinary
    test(`${isolated ? 'isolated' : 'ordinary'} → ${what}: ${verdict}`, () => {
      const net = new TestNet({ config: { isolated } })
      net.host.routes = (a) => ROUTES[a] ?? ROUTE.outside
      const web = net.vm('web')
      net.vm('db')
      web.send(tcp({ to: `${address}:80` }))
      const first = web.lines()
      web.send(udp({ to: `${address}:80` }))
      const second = web.lines()
      if (verdict === 'allow') {
        assert.equal(first[0], `tcp ${address}:80 > 192.168.100.10:4000 SYN+ACK`)
        assert.deepEqual(second, [])
        assert.deepEqual(
          net.host.open().map((s) => `${s.kind} ${s.peer}`),
          [`tcp ${address}:80`, `udp ${address}:80`],
        )
        return
      }
      const icmpAnswer = `icmp 192.168.100.1 > 192.168.100.10 ${SAYS[verdict] ?? '3/13'}`
      assert.deepEqual(first, [SAYS[verdict] ? icmpAnswer : `tcp ${address}:80 > 192.168.100.10:4000 RST+ACK`])
      assert.deepEqual(second, [icmpAnswer])
      assert.equal(web.drops(verdict), 2)
      assert.equal(net.host.sockets.size, 0)
      if (address !== '192.168.100.254' || isolated) {
        web.send(icmp({ to: address }))
        assert.deepEqual(web.lines(), [icmpAnswer])
      }
    })
  }

test('--allow-host PORT: .254:PORT is the host’s loopback, at that port alone, and never from isolated', () => {
  const net = new TestNet({ config: { allowHostPorts: [5432] } })
  const web = net.vm('web')
  web.send(tcp({ to: '192.168.100.254:5432' }), udp({ to: '192.168.100.254:5432' }))
  assert.deepEqual(
    net.host.open().map((s) => `${s.kind} ${s.peer}`),
    ['tcp 127.0.0.1:5432', 'udp 127.0.0.1:5432'],
  )
  assert.deepEqual(web.lines(), ['tcp 192.168.100.254:5432 > 192.168.100.10:4000 SYN+ACK'])
  web.send(tcp({ to: '192.168.100.254:5433' }))
  assert.equal(web.drops('deny-loopback'), 1)

  const apart = new TestNet({ config: { allowHostPorts: [5432], isolated: true } })
  const vm = apart.vm('vm')
  vm.send(tcp({ to: '192.168.100.254:5432' }))
  assert.equal(vm.drops('deny-isolated'), 1)
})

test('--allow-host beside a host interface: that port goes to the loopback, the others to the interface', () => {
  const net = new TestNet({ config: { allowHostPorts: [5432] } })
  const web = net.vm('web')
  const host = net.hostPort()
  web.send(tcp({ to: '192.168.100.254:5432', dstMac: host.mac }), tcp({ to: '192.168.100.254:22', dstMac: host.mac }))
  assert.deepEqual(
    net.host.open('tcp').map((s) => s.peer),
    ['127.0.0.1:5432'],
  )
  assert.deepEqual(host.lines(), ['tcp 192.168.100.10:4000 > 192.168.100.254:22 SYN'])
})

test('the list of allowed ports changes while the network runs', () => {
  const net = new TestNet()
  const web = net.vm('web')
  net.network.allowHostPorts([80])
  web.send(udp({ to: '192.168.100.254:80' }))
  assert.equal(net.host.open('udp').length, 1)
  net.network.allowHostPorts([])
  web.send(udp({ to: '192.168.100.254:80', from: 4001 }))
  assert.equal(net.host.open('udp').length, 1)
})

test('isolated: published ports do not reach a VM', () => {
  const net = new TestNet({ config: { isolated: true } })
  const web = net.vm('web')
  const listener = net.host.make('listener', '')
  net.network.publish({
    id: 'p',
    proto: 'tcp',
    sock: listener.id,
    guestAddress: web.ip,
    guestPort: 80,
    hostAddress: '0.0.0.0',
    hostPort: 8080,
  })
  const client = net.host.client(listener.id, '10.0.0.5:999')
  net.deliver()
  assert.equal(client.closed, 'reset')
  assert.deepEqual(web.lines(), [])
})

test('a client of a published port is no server: a guest’s SYN to where one was is judged as any other', () => {
  for (const [client, rule] of [
    ['127.0.0.1:54321', 'deny-loopback'],
    ['192.168.101.10:54321', 'deny-network'],
  ] as const) {
    const net = new TestNet()
    net.host.routes = (address) => ROUTES[address] ?? ROUTE.outside
    const web = net.vm('web')
    const sock = net.host.make('listener', '').id
    const at = { guestAddress: web.ip, guestPort: 80, hostAddress: '0.0.0.0', hostPort: 8080 }
    net.network.publish({ id: 'p', proto: 'tcp', sock, ...at })
    const { id } = net.host.client(sock, client)
    net.deliver()
    const syn = web.take()[0]
    assert.ok(syn?.ip && syn.tcp)
    const to = `${syn.ip.src}:${syn.tcp.srcPort}`
    const ack = syn.tcp.seq + 1
    web.send(tcp({ to, from: 80, flags: SYN | ACK, seq: 5000, ack }))
    net.host.tcpEnd(id)
    net.deliver()
    web.send(tcp({ to, from: 80, flags: FIN | ACK, seq: 5001, ack: ack + 1 }))
    assert.deepEqual(
      net.network.stats().flows.map((f) => f.state),
      ['TIME-WAIT'],
    )
    web.take()
    const sockets = net.host.sockets.size
    web.send(tcp({ to, from: 80, flags: SYN, seq: 9000 }))
    const challenge = web.take()[0]?.tcp
    assert.deepEqual([challenge?.flags, challenge?.ack], [ACK, 5002])
    // What a guest says to an acknowledgment of what it has not sent.
    web.send(tcp({ to, from: 80, flags: RST, seq: 5002 }))
    web.send(tcp({ to, from: 80, flags: SYN, seq: 9000 }))
    assert.deepEqual(web.lines(), [`tcp ${to} > 192.168.100.10:80 RST+ACK`])
    assert.equal(web.drops(rule), 1)
    assert.equal(net.host.sockets.size, sockets)
  }
})
