/** The process as a whole, between namespaces: it starts, gives up its rights, carries traffic, idles, ends. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { HelloAnswer, StatsAnswer } from '../../src/dataplane/protocol.ts'
import { type Guest, Lab, SERVER, skipWithoutRoot } from './lab.ts'

const status = (pid: number): string => readFileSync(`/proc/${pid}/status`, 'utf8')
/** Clock ticks of CPU, user and system (proc(5)). */
const ticks = (pid: number): number => {
  const f = readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1].split(' ')
  return Number(f[11]) + Number(f[12])
}

/** Whether there is a time in which it takes 1 % of a CPU at most: 2 ticks of 200, the resolution of this clock. Others' work may be told as its own. */
async function sleeps(pid: number, ms: number): Promise<boolean> {
  for (let i = 0; i < 10; i++) {
    const before = ticks(pid)
    await sleep(ms)
    if (ticks(pid) - before <= 2) return true
  }
  return false
}

describe('the data-plane process', { skip: skipWithoutRoot }, () => {
  let lab: Lab
  let a: Guest
  let b: Guest
  let pid = 0
  before(async () => {
    lab = new Lab()
    await lab.start()
    pid = (await lab.link.request<HelloAnswer>({ op: 'hello' })).pid
    a = await lab.guest('a', 10)
    b = await lab.guest('b', 11, 'packet')
  })
  after(async () => {
    await lab.close()
  })

  test('no thread has a privilege or root’s id', () => {
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const s = readFileSync(`/proc/${pid}/task/${thread}/status`, 'utf8')
      for (const set of ['CapPrm', 'CapEff', 'CapAmb']) assert.match(s, new RegExp(`${set}:\\t0+\\n`))
      assert.doesNotMatch(s, /^(Uid|Gid):.*\t0(\t|$)/m)
      assert.match(s, /^Groups:\t\s*$/m)
    }
    assert.match(status(pid), /NoNewPrivs:\t1/)
  })

  test('it takes less than 90 MiB of memory, most of it shared with every other Node', () => {
    const kib = Number(/VmRSS:\s*(\d+)/.exec(status(pid))?.[1])
    assert.ok(kib < 90 * 1024, `${kib} KiB`)
  })

  test('guests reach the gateway, each other by TAP and by packet socket, and the host’s address', async () => {
    for (const [from, to] of [
      [a, '192.168.100.1'],
      [a, b.address],
      [b, a.address],
    ] as const)
      lab.in(from.netns, 'ping', '-c', '1', '-w', '20', to)
    await lab.rawIcmp()
    lab.in(a.netns, 'ping', '-c', '1', '-w', '20', SERVER)
  })

  test('64 MiB arrive with the same hash, out and in, over a TAP and over a packet socket', async () => {
    const bytes = Buffer.alloc(64 << 20)
    for (let i = 0; i < bytes.length; i += 4) bytes.writeUInt32LE(Math.imul(i, 0x9e3779b1) >>> 0, i)
    const hash = createHash('sha256').update(bytes).digest('hex')
    const file = join(lab.dir, 'bytes')
    writeFileSync(file, bytes)
    let port = 7000
    for (const guest of [a, b]) {
      port++
      lab.background(lab.host, [
        'socat',
        '-u',
        `TCP-LISTEN:${port},reuseaddr,fork`,
        `SYSTEM:"sha256sum > ${lab.dir}/out-${port}"`,
      ])
      lab.background(lab.host, ['socat', '-U', `TCP-LISTEN:${port + 100},reuseaddr,fork`, `OPEN:${file},rdonly`])
      await lab.listening(lab.host, 'tcp', port, port + 100)
      lab.in(guest.netns, 'socat', '-u', `OPEN:${file},rdonly`, `TCP:${SERVER}:${port}`)
      const back = lab.in(guest.netns, 'sh', '-c', `socat -u TCP:${SERVER}:${port + 100} - | sha256sum`)
      assert.equal(back.split(' ')[0], hash)
      let out = ''
      for (let i = 0; i < 1000 && out === ''; i++) {
        await sleep(20)
        try {
          out = readFileSync(`${lab.dir}/out-${port}`, 'utf8')
        } catch {}
      }
      assert.equal(out.split(' ')[0], hash)
    }
  })

  test('a guest that opens many connections uses its ports again, as timestamps allow it to (RFC 6191)', async () => {
    lab.background(lab.host, ['socat', 'TCP-LISTEN:7020,reuseaddr,fork', 'EXEC:cat'])
    await lab.listening(lab.host, 'tcp', 7020)
    lab.in(a.netns, 'sysctl', '-qw', 'net.ipv4.ip_local_port_range=20000 20003', 'net.ipv4.tcp_tw_reuse=1')
    const one = () => lab.in(a.netns, 'sh', '-c', `echo x | socat -t 4 - TCP:${SERVER}:7020`)
    // The guest's end is the first: its ports are in TIME-WAIT for a minute, but after a second a newer timestamp tells them apart.
    for (let n = 0; n < 12; n++) {
      if (n % 4 === 0) await sleep(1200)
      assert.equal(one(), 'x\n')
    }
    // All twelve came from four ports. How many of them it used is the kernel's: even ones first, and one again as soon as it may.
    const waiting = lab.in(a.netns, 'ss', '-Htan', 'state', 'time-wait', 'dport = :7020').match(/:2000\d /g) ?? []
    assert.ok(waiting.length > 0 && waiting.length <= 4, `${waiting}`)
    lab.in(a.netns, 'sysctl', '-qw', 'net.ipv4.ip_local_port_range=32768 60999')
  })

  test('published TCP and UDP ports reach the guest, again after unpublish and publish', async () => {
    lab.background(a.netns, ['socat', 'TCP-LISTEN:80,reuseaddr,fork', 'EXEC:cat'])
    lab.background(a.netns, ['socat', 'UDP-LISTEN:53,reuseaddr,fork', 'EXEC:cat'])
    await lab.listening(a.netns, 'tcp', 80)
    await lab.listening(a.netns, 'udp', 53)
    for (let round = 0; round < 2; round++) {
      await lab.publish('tcp', 8080, a, 80)
      await lab.publish('udp', 8053, a, 53)
      const say = (to: string) => lab.in(lab.host, 'sh', '-c', `echo hello ${round} | socat -t 4 - ${to}`)
      assert.equal(say(`TCP:${SERVER}:8080`), `hello ${round}\n`)
      assert.equal(say(`UDP:${SERVER}:8053`), `hello ${round}\n`)
      await lab.link.request({ op: 'unpublish', id: 'tcp8080' })
      await lab.link.request({ op: 'unpublish', id: 'udp8053' })
      assert.throws(() => say(`TCP:${SERVER}:8080`), /refused/)
    }
  })

  test('a request that makes no sense is refused, and nothing else happens', async () => {
    await assert.rejects(lab.link.request({ op: 'nonsense' } as never), /unknown operation/)
    await assert.rejects(
      lab.link.request({
        op: 'attach',
        fds: 1,
        id: 'x',
        role: 'vm',
        kind: 'tap',
        vnetHdr: true,
        name: 'x',
        mac: '02:00:00:00:00:77',
        address: '192.168.100.77',
        bound: false,
      }),
      /descriptors/,
    )
    const hello = await lab.link.request<HelloAnswer>({ op: 'hello' })
    assert.deepEqual(hello.attachments, ['a', 'b'])
    const stats = await lab.link.request<StatsAnswer>({ op: 'stats' })
    assert.deepEqual(
      stats.drops.filter((d) => d.reason === 'fault'),
      [],
    )
  })

  test('idle it sleeps', async () => {
    assert.ok(await sleeps(pid, 2000))
  })

  test('killed and started again, guests go on with what they have once their nics are handed over', async () => {
    process.kill(pid, 'SIGKILL')
    lab.link.close()
    await sleep(100)
    await lab.start()
    for (const guest of [a, b]) await lab.attach(guest)
    lab.in(a.netns, 'ping', '-c', '1', '-w', '20', b.address)
    lab.in(b.netns, 'ping', '-c', '1', '-w', '20', '192.168.100.1')
  })

  test('a nic that is gone is left alone, and the others go on', async () => {
    const c = await lab.guest('c', 12)
    lab.in(c.netns, 'ip', 'link', 'delete', 'eth0')
    await sleep(100)
    lab.in(a.netns, 'ping', '-c', '1', '-w', '20', b.address)
    const id = (await lab.link.request<HelloAnswer>({ op: 'hello' })).pid
    assert.ok(await sleeps(id, 500))
    await lab.link.request({ op: 'detach', id: 'c' })
  })

  test('when its socket’s file is gone it ends by itself', async () => {
    unlinkSync(join(lab.dir, 'control.sock'))
    for (let i = 0; i < 2000 && lab.process.exitCode === null; i++) await sleep(20)
    assert.equal(lab.process.exitCode, 0)
  })
})
