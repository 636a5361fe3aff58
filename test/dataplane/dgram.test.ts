/** Guests behind a unix datagram socket, as QEMU's `-netdev dgram` speaks: between namespaces, with the data plane as a process of its own. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { StatsAnswer } from '../../src/dataplane/protocol.ts'
import { close } from '../../src/sys/fd.ts'
import { addressOf } from '../../src/sys/libc.ts'
import { AF_UNIX, bind, connect, SOCK_DGRAM, send, socket } from '../../src/sys/socket.ts'
import { type Guest, Lab, PATIENCE_MS, SERVER, skipWithoutRoot } from './lab.ts'

describe('guests over datagram sockets', { skip: skipWithoutRoot }, () => {
  let lab: Lab
  let a: Guest
  let b: Guest
  let c: Guest
  before(async () => {
    lab = new Lab()
    await lab.start()
    a = await lab.guest('a', 10, 'dgram')
    b = await lab.guest('b', 11, 'dgram')
    c = await lab.guest('c', 12, 'tap')
  })
  after(async () => {
    await lab.close()
  })

  const reaches = (from: Guest, to: string) => lab.in(from.netns, 'ping', '-c', '1', '-w', '20', to)
  const drops = async () => (await lab.link.request<StatsAnswer>({ op: 'stats' })).drops

  test('they reach the gateway, each other, a guest with offloads and back', () => {
    for (const [from, to] of [
      [a, '192.168.100.1'],
      [a, b.address],
      [a, c.address],
      [c, a.address],
    ] as const)
      reaches(from, to)
  })

  test('32 MiB arrive with the same hash: out, in, between them, and from a guest that leaves segments and checksums to us', async () => {
    const bytes = Buffer.alloc(32 << 20)
    for (let i = 0; i < bytes.length; i += 4) bytes.writeUInt32LE(Math.imul(i, 0x9e3779b1) >>> 0, i)
    const hash = createHash('sha256').update(bytes).digest('hex')
    const file = join(lab.dir, 'bytes')
    writeFileSync(file, bytes)
    const from = (netns: string, port: number) =>
      lab.background(netns, ['socat', '-u', `OPEN:${file}`, `TCP-LISTEN:${port},reuseaddr`])
    const hashed = (g: Guest, address: string, port: number) =>
      lab.in(g.netns, 'sh', '-c', `socat -u TCP:${address}:${port},retry=100,interval=0.1 - | sha256sum`).slice(0, 64)
    from(lab.host, 7001)
    assert.equal(hashed(a, SERVER, 7001), hash, 'in')
    from(b.netns, 7002)
    assert.equal(hashed(a, b.address, 7002), hash, 'between them')
    from(c.netns, 7003)
    assert.equal(hashed(a, c.address, 7003), hash, 'from a guest with offloads')
    from(a.netns, 7004)
    assert.equal(hashed(c, a.address, 7004), hash, 'to a guest with offloads')
    const out = join(lab.dir, 'out')
    lab.background(lab.host, ['socat', '-u', 'TCP-LISTEN:7005,reuseaddr', `CREATE:${out}`])
    lab.in(a.netns, 'socat', '-u', `OPEN:${file}`, `TCP:${SERVER}:7005,retry=100,interval=0.1`)
    for (const end = Date.now() + PATIENCE_MS; statSync(out).size < bytes.length && Date.now() < end; ) await sleep(20)
    assert.equal(createHash('sha256').update(readFileSync(out)).digest('hex'), hash, 'out')
  })

  test('UDP whose segments and checksums were left to us arrives', async () => {
    lab.background(a.netns, ['iperf3', '-s', '-1', '-p', '5301'])
    await lab.listening(a.netns, 'tcp', 5301)
    // So few fit into the receiver's buffer: it loses none of them when it does not come to read.
    const said = JSON.parse(
      lab.in(c.netns, 'iperf3', '-J', '-u', '-c', a.address, '-p', '5301', '-b', '20M', '-l', '1400', '-n', '80K'),
    ) as { end: { sum: { packets: number; lost_packets: number } } }
    assert.ok(said.end.sum.packets > 50)
    assert.ok(said.end.sum.lost_packets < said.end.sum.packets / 10, JSON.stringify(said.end.sum))
  })

  test('nobody but its own guest speaks through a socket', () => {
    const stranger = socket(AF_UNIX, SOCK_DGRAM)
    bind(stranger, { family: 'unix', path: join(lab.dir, 'stranger') })
    // EPERM: the kernel asks whom the receiver is connected to.
    assert.equal(connect(stranger, { family: 'unix', path: lab.sockets.record('dgram', 'a').path }), -1)
    const bytes = new Uint8Array(64)
    assert.ok(send(stranger, addressOf(bytes), 64) < 0)
    close(stranger)
  })

  test('a guest that is off costs its own frames only, and is back with its next process', async () => {
    const d = await lab.guest('d', 13, 'dgram')
    reaches(d, a.address)
    lab.background(a.netns, ['ping', '-i', '0.2', '-W', '1', d.address])
    const wires = lab.wires.get('d')
    wires?.kill('SIGKILL')
    for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await sleep(50))
      if ((await drops()).some((r) => r.vm === 'd' && r.reason === 'port-absent')) break
    assert.ok((await drops()).some((r) => r.vm === 'd' && r.reason === 'port-absent'))
    reaches(a, c.address)
    await lab.wire(d)
    lab.configure(d)
    reaches(d, a.address)
    reaches(a, d.address)
  })

  test('another data plane takes over: the guests’ processes go on, and so do their frames', async () => {
    const { process: was, link } = lab
    was.kill('SIGKILL')
    await new Promise((resolve) => was.once('exit', resolve))
    link.close()
    await lab.start()
    for (const g of [a, b]) await lab.attach(g)
    reaches(a, '192.168.100.1')
    reaches(a, b.address)
  })
})
