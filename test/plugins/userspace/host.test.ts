/** What the backend reads of the host: name servers, who holds a port. */
import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { holdersIn, procAddress } from '../../../src/plugins/host/holder.ts'
import { addressesOverlap, bindPublished } from '../../../src/plugins/host/publisher.ts'
import { answers, parseResolvConf, Resolvers, readResolvers } from '../../../src/plugins/host/resolvers.ts'
import { close } from '../../../src/sys/fd.ts'
import { eventually } from '../../eventually.ts'

test('resolv.conf: addresses in order, once each; anything else is passed over', () => {
  assert.deepEqual(
    parseResolvConf(
      '# nameserver 9.9.9.9\n nameserver 10.0.0.1 \nnameserver\t2001:db8::1\nnameserver 10.0.0.1\nnameserver fe80::1%nt-none0\nnameserver dns.example\nsearch a b\n;nameserver 1.1.1.1\n',
    ),
    ['10.0.0.1', '2001:db8::1'],
  )
  // A link-local server is its link's, by number; of a link that is not there it cannot be asked.
  const indexOf = (ifname: string) => (ifname === 'eth0' ? 7 : -19)
  const zones = ['fe80::1%eth0', 'fe80::2%wlan0', 'febf::3%12', 'fd00::4%eth0', 'fe80::5', 'fe80::1%7']
  assert.deepEqual(parseResolvConf(zones.map((z) => `nameserver ${z}\n`).join(''), indexOf), [
    'fe80::1%7',
    'febf::3%12',
    'fd00::4',
    'fe80::5',
  ])
  assert.deepEqual(parseResolvConf(''), [])
})

test("systemd-resolved's stub is used while it answers, else the servers behind it", async () => {
  const dir = mkdtempSync(join(tmpdir(), 'nt-resolv-'))
  const files = { conf: join(dir, 'resolv.conf'), behindStub: join(dir, 'behind') }
  writeFileSync(files.conf, 'nameserver 127.0.0.53\noptions edns0\n')
  writeFileSync(files.behindStub, 'nameserver 192.0.2.53\n')
  assert.deepEqual(await readResolvers(files, async () => true), ['127.0.0.53'])
  assert.deepEqual(await readResolvers(files, async () => false), ['192.0.2.53'])
  rmSync(files.behindStub)
  assert.deepEqual(await readResolvers(files, async () => false), ['127.0.0.53'])
  rmSync(dir, { recursive: true })
})

test('a server counts as there when it answers anything', async () => {
  const s = createSocket('udp4')
  s.on('message', (m, from) => s.send(m, from.port, from.address))
  await new Promise<void>((resolve) => s.bind(0, '127.0.0.1', resolve))
  assert.equal(await answers('127.0.0.1', s.address().port, 30_000), true)
  const { port } = s.address()
  s.close()
  assert.equal(await answers('127.0.0.1', port), false, 'refused')
})

test('a resolv.conf that is written, replaced or removed is noticed', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'nt-resolv-'))
  const files = { conf: join(dir, 'resolv.conf'), behindStub: join(dir, 'behind') }
  const seen: string[] = []
  const r = new Resolvers((servers) => seen.push(servers.join()), files)
  try {
    assert.deepEqual(await r.current(), [], 'offline is a state like others')
    const until = (n: number) => eventually(`${n} changes`, () => seen.length >= n)
    writeFileSync(files.conf, 'nameserver 192.0.2.1\n')
    await until(1)
    writeFileSync(`${files.conf}.new`, 'nameserver 192.0.2.2\n')
    renameSync(`${files.conf}.new`, files.conf)
    await until(2)
    rmSync(files.conf)
    await until(3)
    assert.deepEqual(seen, ['192.0.2.1', '192.0.2.2', ''])
  } finally {
    r.close()
    rmSync(dir, { recursive: true })
  }
})

test('/proc/net: whose socket keeps an address from being bound', () => {
  assert.equal(procAddress('192.168.1.5'), '0501A8C0')
  const row = (local: string, state: string, inode: number) =>
    `   0: ${local} 00000000:0000 ${state} 00000000:00000000 00:00000000 00000000  0  0 ${inode} 1 0 100`
  const table = (...rows: string[]) => ['  sl  local_address', ...rows, ''].join('\n')
  const any = row('00000000:1F90', '0A', 1)
  const loopback = row('0100007F:1F90', '0A', 2)
  const connected = row('0100007F:1F90', '01', 3)
  const other = row('00000000:1F91', '0A', 4)
  const six = row('00000000000000000000000000000000:1F90', '0A', 5)
  const all = table(any, loopback, connected, other, six)
  assert.deepEqual(holdersIn(all, 'tcp', '0.0.0.0', 8080), ['1', '2', '5'])
  assert.deepEqual(holdersIn(all, 'tcp', '127.0.0.1', 8080), ['1', '2', '5'])
  assert.deepEqual(holdersIn(all, 'tcp', '192.168.1.5', 8080), ['1', '5'])
  assert.deepEqual(holdersIn(table(row('00000000:0035', '07', 9)), 'udp', '127.0.0.1', 53), ['9'])
  assert.equal(procAddress('fd00::1'), '000000FD000000000000000001000000')
  const own = row(`${procAddress('fd00::1')}:1F90`, '0A', 6)
  const mapped = row('0000000000000000FFFF00000501A8C0:1F90', '0A', 7)
  const six6 = table(six, own, mapped)
  assert.deepEqual(holdersIn(six6, 'tcp', '::', 8080), ['5', '6'])
  assert.deepEqual(holdersIn(six6, 'tcp', 'fd00::1', 8080), ['5', '6'])
  assert.deepEqual(holdersIn(six6, 'tcp', 'fd00::2', 8080), ['5'])
  assert.deepEqual(holdersIn(six6, 'tcp', '0.0.0.0', 8080), ['5', '7'])
  assert.deepEqual(holdersIn(six6, 'tcp', '192.168.1.5', 8080), ['5', '7'])
  assert.deepEqual(holdersIn(six6, 'tcp', '*', 8080), ['5', '6', '7'])
  assert.deepEqual(holdersIn(all, 'tcp', '::', 8080), ['5'])
  assert.deepEqual(holdersIn(all, 'tcp', '*', 8080), ['1', '2', '5'])
})

test('a port is bound and listens; 0 picks a free one', async () => {
  const { fd, hostPort } = bindPublished({ proto: 'tcp', hostAddress: '127.0.0.1', hostPort: 0 })
  assert.ok(hostPort > 0)
  await new Promise<void>((resolve, reject) => {
    const s = connect(hostPort, '127.0.0.1', () => {
      s.destroy()
      resolve()
    }).on('error', reject)
  })
  close(fd)
})

test('a busy port names who holds it: a process, or a VM', async () => {
  const server = createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as AddressInfo
  const wish = { proto: 'tcp', hostAddress: '0.0.0.0', hostPort: port } as const
  assert.throws(() => bindPublished(wish), {
    code: 'PORT_BUSY',
    message: new RegExp(`TCP port ${port} on this host is in use by node \\(pid ${process.pid}\\)`),
  })
  assert.throws(() => bindPublished(wish, () => 'the VM "web"'), { message: /in use by the VM "web"/ })
  server.close()
})

test('a busy UDP port is refused as well', () => {
  const first = bindPublished({ proto: 'udp', hostAddress: '127.0.0.1', hostPort: 0 })
  assert.throws(() => bindPublished({ proto: 'udp', hostAddress: '0.0.0.0', hostPort: first.hostPort }), {
    code: 'PORT_BUSY',
  })
  close(first.fd)
})

test('on all addresses of both families: one socket, and a port busy in either is busy', async () => {
  for (const proto of ['tcp', 'udp'] as const) {
    const both = bindPublished({ proto, hostAddress: '*', hostPort: 0 })
    const port = both.hostPort
    for (const hostAddress of ['0.0.0.0', '::', '127.0.0.1', '::1', '*'])
      assert.throws(() => bindPublished({ proto, hostAddress, hostPort: port }), {
        code: 'PORT_BUSY',
        message: new RegExp(`node \\(pid ${process.pid}\\)`),
      })
    if (proto === 'tcp')
      for (const address of ['127.0.0.1', '::1'])
        await new Promise<void>((resolve, reject) => {
          const s = connect(port, address, () => {
            s.destroy()
            resolve()
          }).on('error', reject)
        })
    close(both.fd)
    // One family leaves the other free; all of both then is not.
    const six = bindPublished({ proto, hostAddress: '::', hostPort: port })
    assert.throws(() => bindPublished({ proto, hostAddress: '*', hostPort: port }), { code: 'PORT_BUSY' })
    const four = bindPublished({ proto, hostAddress: '0.0.0.0', hostPort: port })
    close(six.fd)
    assert.throws(() => bindPublished({ proto, hostAddress: '*', hostPort: port }), { code: 'PORT_BUSY' })
    close(four.fd)
  }
})

test('which wishes for a port meet', () => {
  for (const [a, b, meet] of [
    ['*', '10.0.0.1', true],
    ['::', '*', true],
    ['0.0.0.0', '10.0.0.1', true],
    ['::', 'fd00::1', true],
    ['::', '0.0.0.0', false],
    ['fd00::1', '10.0.0.1', false],
    ['10.0.0.1', '10.0.0.2', false],
    ['fd00::1', '0.0.0.0', false],
  ] as const) {
    assert.equal(addressesOverlap(a, b), meet, `${a} ${b}`)
    assert.equal(addressesOverlap(b, a), meet, `${b} ${a}`)
  }
})

test('an address that the host does not have is said', () => {
  assert.throws(() => bindPublished({ proto: 'tcp', hostAddress: '192.0.2.77', hostPort: 0 }), {
    code: 'INVALID_INPUT',
    message: /192\.0\.2\.77 is not an address of this host/,
  })
})
