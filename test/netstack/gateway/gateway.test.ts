import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as tcpWire from '../../../src/netstack/wire/tcp.ts'
import { arp, GATEWAY_MAC, icmp, packet, TestNet, tcp, udp } from '../net.ts'

test('ARP: the gateway answers for its own addresses, and for the host’s where no interface has it', () => {
  const net = new TestNet()
  const web = net.vm('web')
  for (const target of ['192.168.100.1', '192.168.100.2', '192.168.100.254']) {
    web.send(arp({ target }))
    assert.deepEqual(web.lines(), [`arp is-at ${target} ${GATEWAY_MAC}`])
  }
  web.send(arp({ target: '192.168.100.77' }))
  assert.deepEqual(web.lines(), [])
  net.hostPort()
  web.send(arp({ target: '192.168.100.254' }))
  assert.deepEqual(web.lines(), [])
})

test('ICMP echo to the gateway, to the services and to the host’s address is answered', () => {
  const net = new TestNet()
  const web = net.vm('web')
  for (const to of ['192.168.100.1', '192.168.100.2', '192.168.100.254']) {
    web.send(icmp({ to, id: 9, sequence: 3, data: 'hello' }))
    const [reply] = web.take()
    assert.equal(reply.ip?.src, to)
    assert.deepEqual(
      [reply.icmp?.type, reply.icmp?.id, reply.icmp?.sequence, Buffer.from(reply.icmp!.data).toString()],
      [0, 9, 3, 'hello'],
    )
  }
})

test('a long echo to the gateway comes back in fragments, as it went', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const whole = icmp({ to: '192.168.100.1', data: new Uint8Array(3000).fill(65) })(web).bytes.slice(34)
  web.send(
    packet({ to: '192.168.100.1', proto: 1, payload: whole.slice(0, 1480), id: 5, mf: true }),
    packet({ to: '192.168.100.1', proto: 1, payload: whole.slice(2960), id: 5, offset: 2960 }),
    packet({ to: '192.168.100.1', proto: 1, payload: whole.slice(1480, 2960), id: 5, offset: 1480, mf: true }),
  )
  assert.deepEqual(web.lines(), [
    'ip 192.168.100.1 > 192.168.100.10 proto 1 fragment 0+',
    'ip 192.168.100.1 > 192.168.100.10 proto 1 fragment 1480+',
    'ip 192.168.100.1 > 192.168.100.10 proto 1 fragment 2960',
  ])
})

test('closed ports of the gateway: RST for TCP, port unreachable for UDP', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(tcp({ to: '192.168.100.1:80' }))
  const [rst] = web.take()
  assert.equal(rst.tcp?.flags, tcpWire.RST | tcpWire.ACK)
  assert.equal(rst.tcp?.ack, 1001)
  web.send(udp({ to: '192.168.100.1:80' }))
  assert.deepEqual(web.lines(), ['icmp 192.168.100.1 > 192.168.100.10 3/3'])
  assert.equal(web.drops('closed'), 2)
})

test('a TTL that is used up at the gateway: time exceeded from its address', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(udp({ to: '8.8.8.8:33434', ttl: 1 }))
  assert.deepEqual(web.lines(), ['icmp 192.168.100.1 > 192.168.100.10 11/0'])
  assert.equal(net.host.open('udp').length, 0)
})

test('broadcast and multicast do not leave the network', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(udp({ to: '255.255.255.255:99', dstMac: 'ff:ff:ff:ff:ff:ff' }))
  web.send(udp({ to: '224.0.0.251:5353', dstMac: '01:00:5e:00:00:fb' }))
  web.send(udp({ to: '8.8.8.8:53', dstMac: 'ff:ff:ff:ff:ff:ff' }))
  assert.equal(web.drops('broadcast-leaving'), 3)
  assert.equal(net.host.open().length, 0)
})

test('a protocol other than TCP, UDP and ICMP: protocol unreachable', () => {
  const net = new TestNet()
  const web = net.vm('web')
  web.send(packet({ to: '8.8.8.8', proto: 47, payload: new Uint8Array(16) }))
  assert.deepEqual(web.lines(), ['icmp 192.168.100.1 > 192.168.100.10 3/2'])
})

test('ICMP errors are rationed for each port', () => {
  const net = new TestNet({ limits: { icmpPerSecond: 10 } })
  const web = net.vm('web')
  for (let i = 0; i < 50; i++) web.send(udp({ to: '192.168.100.1:80' }))
  assert.equal(web.take().length, 10)
  assert.equal(web.drops('icmp-rate'), 40)
  net.host.advance(500)
  for (let i = 0; i < 50; i++) web.send(udp({ to: '192.168.100.1:80' }))
  assert.equal(web.take().length, 5)
})
