import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AGEING } from '../../../src/netstack/switch/fdb.ts'
import { WAY, type Way } from '../../../src/netstack/switch/port.ts'
import { arp, BROADCAST_MAC, GATEWAY_MAC, icmp, packet, raw, TestNet, tcp, udp } from '../net.ts'

const lan = () => {
  const net = new TestNet()
  return { net, web: net.vm('web'), db: net.vm('db'), log: net.vm('log') }
}

test('a frame for a known MAC leaves by its port alone, as it came', () => {
  const { web, db, log } = lan()
  web.send(udp({ to: db.ip, dstMac: db.mac, data: 'hello' }))
  assert.deepEqual(db.lines(), ['udp 192.168.100.10:4000 > 192.168.100.11:0 hello'])
  assert.deepEqual([...web.lines(), ...log.lines()], [])
})

test('broadcasts and unknown addresses are flooded to everybody else', () => {
  const { web, db, log } = lan()
  web.send(arp({ target: log.ip }))
  assert.deepEqual(
    [db.lines(), log.lines(), web.lines()],
    [['arp who-has 192.168.100.12'], ['arp who-has 192.168.100.12'], []],
  )
  web.send(udp({ to: '192.168.100.12:1', dstMac: '02:99:00:00:00:01' }))
  assert.equal(db.take().length + log.take().length, 2)
  web.send(udp({ to: '239.1.2.3:1', dstMac: '01:00:5e:01:02:03' }))
  assert.equal(db.take().length + log.take().length, 2)
})

test('offloads pass from port to port; a port without them gets segments with finished checksums', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const db = net.vm('db')
  const old = net.vm('old', { offload: false })
  const data = new Uint8Array(4000).map((_, i) => i)
  web.send(tcp({ to: `${db.ip}:80`, dstMac: db.mac, flags: 0x19, data, segment: 1460 }))
  const [whole] = db.take()
  assert.deepEqual([whole.gso, whole.tcp?.data.length], [{ type: 1, size: 1460 }, 4000])
  web.send(tcp({ to: `${old.ip}:80`, dstMac: old.mac, seq: -1460, flags: 0x19, data, segment: 1460 }))
  const parts = old.take()
  assert.deepEqual(
    parts.map((r) => [r.tcp?.seq, r.tcp?.flags, r.tcp?.data.length, r.ip?.id]),
    [
      [-1460, 0x10, 1460, 1],
      [0, 0x10, 1460, 2],
      [1460, 0x19, 1080, 3],
    ],
  )
  assert.deepEqual(Buffer.concat(parts.map((r) => r.tcp!.data)), Buffer.from(data))
  web.send((from) => ({ ...udp({ to: `${old.ip}:80`, dstMac: old.mac, data: 'x' })(from), partial: true }))
  assert.equal(old.take().length, 1)
})

test('the guard: a VM speaks for itself only', () => {
  const { net, web, db, log } = lan()
  const refused = (reason: Parameters<typeof web.drops>[0], ...builds: Parameters<typeof web.send>) => {
    const before = web.drops(reason)
    web.send(...builds)
    assert.equal(web.drops(reason) - before, builds.length, reason)
    assert.deepEqual([...web.lines(), ...db.lines(), ...log.lines()], [])
  }
  const to = { to: `${db.ip}:1`, dstMac: db.mac }
  refused(
    'guard-mac',
    udp({ ...to, srcMac: db.mac }),
    udp({ ...to, srcMac: GATEWAY_MAC }),
    udp({ ...to, srcMac: BROADCAST_MAC }),
  )
  refused(
    'guard-address',
    udp({ ...to, from: '192.168.100.12:1' }),
    udp({ ...to, from: '192.168.100.1:53' }),
    udp({ ...to, from: '8.8.8.8:53' }),
    udp({ ...to, from: '0.0.0.0:53' }),
    icmp({ to: '8.8.8.8', from: '192.168.100.11' }),
  )
  refused(
    'guard-arp',
    arp({ target: web.ip, senderIp: '192.168.100.1', op: 2 }),
    arp({ target: db.ip, senderMac: log.mac }),
    arp({ target: db.ip, senderIp: log.ip }),
  )
  refused('guard-dhcp-server', udp({ from: 67, to: `${db.ip}:68`, dstMac: BROADCAST_MAC }))
  refused('guard-redirect', icmp({ to: db.ip, dstMac: db.mac, type: 5 }), icmp({ to: db.ip, dstMac: db.mac, type: 9 }))
  // Probes (RFC 5227) and DHCP requests come from nobody.
  web.send(arp({ target: web.ip, senderIp: '0.0.0.0' }))
  assert.equal(db.take().length, 1)
  assert.equal(net.drops('guard-arp'), 3)
})

test('more MACs than a port may have', () => {
  const net = new TestNet({ limits: { macsPerPort: 3 } })
  const web = net.vm('web')
  for (let n = 0; n < 5; n++)
    web.send(arp({ target: '192.168.100.1', srcMac: `02:aa:00:00:00:0${n}`, senderMac: `02:aa:00:00:00:0${n}` }))
  assert.equal(web.take().length, 2)
  assert.equal(web.drops('guard-mac-limit'), 3)
})

test('a MAC used twice is refused and reported once a minute, naming both', () => {
  const net = new TestNet()
  const web = net.vm('web')
  const clone = net.vm('clone', { mac: web.mac })
  const warnings = () =>
    net.host.events.filter((e) => e.type === 'warning').map((e) => (e as { message: string }).message)
  assert.equal(warnings().length, 1)
  assert.match(warnings()[0], /^clone .*02:00:00:00:00:11.* web/)
  for (let n = 0; n < 10; n++) clone.send(udp({ to: '8.8.8.8:1' }))
  assert.equal(clone.drops('guard-mac'), 10)
  assert.equal(warnings().length, 1)
  net.host.advance(61_000)
  clone.send(udp({ to: '8.8.8.8:1' }))
  assert.equal(warnings().length, 2)
  web.send(udp({ to: '8.8.8.8:1' }))
  assert.equal(web.drops('guard-mac'), 0)
  // The original goes: the MAC is the clone's.
  net.network.detach(web.index)
  clone.send(udp({ to: '8.8.8.8:1' }))
  assert.equal(clone.drops('guard-mac'), 11)
})

test('what was learned ages, and can then be learned elsewhere', () => {
  const { net, web, db } = lan()
  const mac = '02:bb:00:00:00:01'
  web.send(udp({ to: '8.8.8.8:1', srcMac: mac }))
  db.send(udp({ to: '8.8.8.8:1', srcMac: mac }))
  assert.equal(db.drops('guard-mac'), 1)
  net.host.advance(AGEING + 1)
  db.send(udp({ to: '8.8.8.8:1', srcMac: mac }))
  assert.equal(db.drops('guard-mac'), 1)
  web.send(udp({ to: `${db.ip}:1`, dstMac: mac }))
  assert.equal(db.take().length, 1)
})

test('the host’s port: only from .254, only to .254', () => {
  const { net, web, db } = lan()
  const host = net.hostPort()
  host.send(udp({ to: `${web.ip}:80`, dstMac: web.mac, data: 'hi' }))
  assert.deepEqual(web.lines(), ['udp 192.168.100.254:4000 > 192.168.100.10:80 hi'])
  host.send(
    udp({ to: `${web.ip}:80`, dstMac: web.mac, from: '10.0.0.1:9' }),
    udp({ to: `${web.ip}:80`, dstMac: web.mac, srcMac: '02:00:00:00:00:fd' }),
    arp({ target: web.ip, senderIp: db.ip }),
  )
  assert.deepEqual(web.lines(), [])
  assert.equal(host.drops('guard-host'), 3)
  host.send(udp({ to: '8.8.8.8:53' }))
  assert.equal(host.drops('host-through'), 1)

  web.send(udp({ to: '192.168.100.254:22', dstMac: host.mac, data: 'in' }))
  assert.deepEqual(host.lines(), ['udp 192.168.100.10:4000 > 192.168.100.254:22 in'])
  // The host must not route for a guest.
  web.send(
    udp({ to: '8.8.8.8:53', dstMac: host.mac }),
    udp({ to: `${db.ip}:1`, dstMac: host.mac }),
    udp({ to: '127.0.0.1:1', dstMac: host.mac }),
    udp({ to: '239.1.2.3:1', dstMac: '01:00:5e:01:02:03' }),
  )
  assert.deepEqual(host.lines(), [])
  assert.equal(web.drops('host-foreign'), 3)
  web.send(arp({ target: '192.168.100.254' }), udp({ to: '192.168.100.255:9', dstMac: BROADCAST_MAC }))
  assert.equal(host.take().length, 2)
  // By a stale ARP entry the gateway is asked for .254: it hands on.
  web.send(udp({ to: '192.168.100.254:22', data: 'stale' }))
  assert.deepEqual(
    host.take().map((r) => [r.dstMac, r.udp?.dstPort]),
    [[host.mac, 22]],
  )
})

test('on an isolated network nothing passes between VMs, nor to or from the host', () => {
  const net = new TestNet({ config: { isolated: true } })
  const web = net.vm('web')
  const db = net.vm('db')
  const host = net.hostPort()
  web.send(
    udp({ to: `${db.ip}:1`, dstMac: db.mac }),
    udp({ to: `${db.ip}:1`, dstMac: '02:99:00:00:00:01' }),
    udp({ to: `${host.ip}:1`, dstMac: host.mac }),
    udp({ to: '239.1.2.3:1', dstMac: '01:00:5e:01:02:03' }),
    arp({ target: db.ip }),
  )
  host.send(udp({ to: `${db.ip}:1`, dstMac: db.mac }), arp({ target: db.ip }))
  assert.deepEqual([...db.lines(), ...host.lines(), ...web.lines()], [])
  web.send(icmp({ to: '192.168.100.1' }))
  assert.deepEqual(web.lines(), ['icmp 192.168.100.1 > 192.168.100.10 0/0'])
  web.send(udp({ to: '8.8.8.8:53' }))
  assert.equal(net.host.open('udp').length, 1)
})

test('DHCP requests are seen by the gateway alone', () => {
  const { web, db } = lan()
  web.send(udp({ from: '0.0.0.0:68', to: '255.255.255.255:67', dstMac: BROADCAST_MAC, data: new Uint8Array(300) }))
  assert.deepEqual(db.lines(), [])
})

test('a full port, a broken one, and one that is not up are counted for whom the frame was', () => {
  const { web, db } = lan()
  db.port.failure = -105
  web.send(udp({ to: `${db.ip}:1`, dstMac: db.mac }))
  db.port.failure = -14
  web.send(udp({ to: `${db.ip}:1`, dstMac: db.mac }))
  // ENOTCONN: nobody at the socket; EIO, ENETDOWN: the interface of a TAP, of a veth.
  for (const errno of [107, 5, 100]) {
    db.port.failure = -errno
    web.send(udp({ to: `${db.ip}:1`, dstMac: db.mac }))
  }
  assert.deepEqual([db.drops('port-busy'), db.drops('port-error'), db.drops('port-absent')], [1, 1, 3])
})

test('malformed frames are counted by reason', () => {
  const { net, web } = lan()
  web.send(raw(new Uint8Array(5)))
  const bad = (reason: Parameters<typeof net.drops>[0]) => assert.equal(net.drops(reason), 1, reason)
  bad('frame-short')
  web.send((from) => {
    const built = udp({ to: '8.8.8.8:53' })(from)
    built.bytes[24] ^= 1
    return built
  })
  bad('ipv4-malformed')
  web.send(packet({ to: '8.8.8.8', proto: 6, payload: new Uint8Array(12) }))
  bad('tcp-malformed')
  web.send(packet({ to: '8.8.8.8', proto: 17, payload: Uint8Array.of(1, 2, 3, 4, 0, 99, 0, 0) }))
  bad('udp-malformed')
  web.send(packet({ to: '8.8.8.8', proto: 1, payload: new Uint8Array(4) }))
  bad('icmp-malformed')
  web.send(udp({ to: '8.8.8.8:53', options: Uint8Array.of(131, 7, 4, 8, 8, 8, 8, 0) }))
  bad('ipv4-source-route')
  web.send(raw(Uint8Array.from([...new Uint8Array(12), 0x86, 0xdd, ...new Uint8Array(40)])))
  bad('ipv6')
  web.send(raw(Uint8Array.from([...new Uint8Array(12), 0x81, 0, ...new Uint8Array(40)])))
  bad('ethertype')
  web.send((from) => ({ ...tcp({ to: '8.8.8.8:53' })(from), gso: { type: 5, size: 100 } }))
  bad('vnet-header')
  // Segments so small that they would only make work.
  web.send(udp({ to: '8.8.8.8:53', data: new Uint8Array(1290), segment: 10 }))
  web.send(tcp({ to: '8.8.8.8:53', data: new Uint8Array(1000), segment: 8 }))
  assert.equal(net.drops('vnet-header'), 3)
})

test('attach again: the port is replaced, flows stay; with another address they end', () => {
  const { net, web, db } = lan()
  web.send(udp({ to: '8.8.8.8:53' }))
  const again = net.vm('web', { mac: web.mac, address: web.ip })
  assert.equal(again.index, web.index)
  net.host.arrive(net.host.open('udp')[0].id, Buffer.from('answer'))
  net.deliver()
  assert.deepEqual([web.lines(), again.lines()], [[], ['udp 8.8.8.8:53 > 192.168.100.10:4000 answer']])
  net.vm('web', { mac: web.mac, address: '192.168.100.99' })
  assert.equal(net.host.open('udp').length, 0)
  net.network.detach(web.index)
  net.network.detach(web.index)
  db.send(udp({ to: `${web.ip}:1`, dstMac: web.mac }))
  web.send(udp({ to: '8.8.8.8:53' }))
  assert.equal(net.drops('port-gone'), 1)
})

test('what one port may make the switch copy is bounded; frames for one VM and the gateway’s answers are not', () => {
  // A quarter of a second's copies at once: ten, and each broadcast makes two.
  const net = new TestNet({ limits: { floodCopiesPerSecond: 40 } })
  const [web, db, log] = [net.vm('web'), net.vm('db'), net.vm('log')]
  for (let i = 0; i < 8; i++) web.send(udp({ to: '192.168.100.255:9', dstMac: BROADCAST_MAC }))
  assert.deepEqual([db.take().length, log.take().length, web.drops('storm')], [5, 5, 3])
  web.send(arp({ target: '192.168.100.1' }))
  assert.deepEqual([web.take().length, db.take().length, web.drops('storm')], [1, 0, 4])
  web.send(udp({ to: db.ip, dstMac: db.mac }))
  assert.equal(db.take().length, 1)
  db.send(udp({ to: '192.168.100.255:9', dstMac: BROADCAST_MAC }))
  assert.equal(web.take().length, 1, 'another port has its own')
  net.advance(50)
  for (let i = 0; i < 2; i++) web.send(udp({ to: '192.168.100.255:9', dstMac: BROADCAST_MAC }))
  assert.deepEqual([db.take().length, web.drops('storm')], [1, 5])
})

test('only a frame for one VM stays as it is; what a port put off and lost is counted for it', () => {
  const { net, web, db } = lan()
  const ways: (Way | undefined)[] = []
  const { port } = db
  const { transmit } = port
  port.transmit = (off: number, len: number, way?: Way) => {
    ways.push(way)
    return transmit.call(port, off, len)
  }
  web.send(udp({ to: db.ip, dstMac: db.mac }))
  web.send(udp({ to: '192.168.100.255:9', dstMac: BROADCAST_MAC }))
  db.send(arp({ target: '192.168.100.1' }))
  assert.deepEqual(ways, [WAY.stays, WAY.now, WAY.now])
  const rows = () => net.network.stats().ports.find((p) => p.vm === 'db')
  const before = rows()?.framesOut ?? 0
  net.network.lost(db.index, -11, 60)
  net.network.lost(db.index, -14, 60)
  assert.deepEqual([db.drops('port-busy'), db.drops('port-error'), rows()?.framesOut], [1, 1, before - 2])
})
