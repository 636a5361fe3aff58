/** Captures by the process: what is read live, a reader that is slow or dies, several at once, a nic that goes. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Refused } from '../../src/plugins/dataplane/link.ts'
import { close } from '../../src/sys/fd.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { type Guest, Lab, SERVER, skipWithoutRoot } from './lab.ts'

const tshark = spawnSync('tshark', ['--version']).status === 0

/** Enhanced packets of a file, and the frames that its statistics say are missing. */
function count(file: Buffer): { packets: number; missed: number } {
  let packets = 0
  const missed = new Map<number, number>()
  for (let at = 0; at + 12 <= file.length; at += file.readUInt32LE(at + 4)) {
    const type = file.readUInt32LE(at)
    if (type === 6) packets++
    if (type === 5) missed.set(file.readUInt32LE(at + 8), Number(file.readBigUInt64LE(at + 24)))
  }
  return { packets, missed: [...missed.values()].reduce((a, b) => a + b, 0) }
}

class Reader {
  readonly socket: Socket
  readonly #chunks: Buffer[] = []
  readonly ended: Promise<void>

  constructor(fd: number) {
    this.socket = new Socket({ fd, readable: true, writable: false })
    this.ended = new Promise((resolve) => this.socket.once('close', () => resolve()))
    this.socket.on('error', () => {})
  }
  read(): this {
    this.socket.on('data', (c: Buffer) => this.#chunks.push(c))
    return this
  }
  get bytes(): Buffer {
    return Buffer.concat(this.#chunks)
  }
}

describe('captures of a data plane', { skip: skipWithoutRoot }, () => {
  let lab: Lab
  let a: Guest
  let b: Guest
  before(async () => {
    lab = new Lab()
    await lab.start()
    a = await lab.guest('a', 10)
    b = await lab.guest('b', 11)
  })
  after(async () => {
    await lab.close()
  })

  async function capture(o: { id: string; attachment?: string; snapLength?: number }): Promise<Reader> {
    const pair = socketpair()
    assert.ok(typeof pair !== 'number')
    try {
      await lab.link.request({ op: 'capture', fds: 1, ...o }, [pair[1]])
    } catch (e) {
      close(pair[0])
      throw e
    } finally {
      close(pair[1])
    }
    return new Reader(pair[0])
  }
  async function logged(what: RegExp): Promise<RegExpMatchArray> {
    for (let i = 0; i < 2500; i++) {
      const found = what.exec(lab.log)
      if (found !== null) return found
      await sleep(20)
    }
    throw new Error(`the log does not say ${what}: ${lab.log}`)
  }
  /** 32 MiB out through the gateway. */
  async function upload(from = a): Promise<void> {
    const listener = lab.background(lab.host, ['socat', '-u', 'TCP-LISTEN:7300,reuseaddr', 'OPEN:/dev/null'])
    await lab.listening(lab.host, 'tcp', 7300)
    const send = `head -c 33554432 /dev/zero | socat -u - TCP:${SERVER}:7300`
    const [code] = await once(lab.background(from.netns, ['sh', '-c', send]), 'exit')
    assert.equal(code, 0)
    listener.kill()
  }

  test('what is read live is a file tshark reads: both ways, by port, refused frames with their reason', {
    skip: tshark ? false : 'tshark is not installed',
  }, async () => {
    const all = (await capture({ id: 'all' })).read()
    const one = (await capture({ id: 'one', attachment: 'b' })).read()
    lab.in(a.netns, 'ping', '-c', '1', '-W', '20', b.address)
    spawnSync('ip', ['netns', 'exec', a.netns, 'ping', '-c', '1', '-W', '1', '169.254.1.1'])
    const rows = (r: Reader): string[] => {
      const file = join(lab.dir, 'x.pcapng')
      writeFileSync(file, r.bytes)
      const fields = ['frame.interface_name', 'frame.packet_flags_direction', 'icmp.type', 'frame.comment']
      // Not all of it may be there yet: then it is no whole file.
      const { stdout } = spawnSync(
        'tshark',
        ['-r', file, '-Y', 'icmp', '-T', 'fields', '-E', 'separator=|', ...fields.flatMap((f) => ['-e', f])],
        { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], timeout: 60_000 },
      )
      return stdout
        .trim()
        .split('\n')
        .map((row) => row.replace('0x00000001', 'in').replace('0x00000002', 'out').split(':')[0] as string)
    }
    let seen = rows(all)
    for (let i = 0; i < 100 && seen.length < 5; i++) {
      await sleep(100)
      seen = rows(all)
    }
    assert.deepEqual(seen.slice(0, 4), ['a|in|8|', 'b|out|8|', 'b|in|0|', 'a|out|0|'])
    assert.equal(seen[4], 'a|in|8|deny-link-local')
    assert.deepEqual(rows(one), ['b|out|8|', 'b|in|0|'])
    all.socket.destroy()
    one.socket.destroy()
    await logged(/capture all ended, its reader is gone: \d+ frames captured, 0 missed/)
    await logged(/capture one ended, its reader is gone/)
  })

  test('a reader that does not read: the traffic goes on, what was missed is counted, and told when it reads again', async () => {
    const busy = await lab.guest('busy', 13)
    const reader = await capture({ id: 'slow', attachment: 'busy' })
    await upload(busy)
    reader.read()
    // The last statistics follow as soon as the ring is empty.
    let said = count(reader.bytes)
    for (let i = 0; i < 600 && said.missed === 0; i++) {
      await sleep(50)
      said = count(reader.bytes)
    }
    assert.ok(said.missed > 0)
    // A capture whose nic is gone is complete: whatever its guest says meanwhile, the reader has all that was captured.
    await lab.link.request({ op: 'detach', id: 'busy' })
    await reader.ended
    const [, captured, missed] = await logged(
      /capture slow ended, its nic is gone: (\d+) frames captured, (\d+) missed/,
    )
    assert.deepEqual(count(reader.bytes), { packets: Number(captured), missed: Number(missed) })
  })

  test('a reader that dies in the middle of a transfer ends its capture and nothing else', async () => {
    const reader = (await capture({ id: 'dies' })).read()
    reader.socket.once('data', () => reader.socket.destroy())
    await upload()
    await logged(/capture dies ended, its reader is gone/)
    lab.in(a.netns, 'ping', '-c', '1', '-W', '20', b.address)
  })

  test('eight at once, and no more; an unknown nic is refused', async () => {
    const readers: Reader[] = []
    for (let i = 0; i < 8; i++) readers.push(await capture({ id: `many${i}`, snapLength: 96 }))
    await assert.rejects(
      capture({ id: 'ninth' }),
      (e) => e instanceof Refused && /8 captures run already/.test(e.message),
    )
    for (const r of readers) r.socket.destroy()
    await logged(/capture many7 ended/)
    await assert.rejects(capture({ id: 'x', attachment: 'nobody' }), (e) => e instanceof Refused)
  })

  test('the capture of a nic that is detached is complete, and ends', async () => {
    const c = await lab.guest('c', 12)
    const reader = (await capture({ id: 'gone', attachment: 'c' })).read()
    lab.in(c.netns, 'ping', '-c', '1', '-W', '20', '192.168.100.1')
    await lab.link.request({ op: 'detach', id: 'c' })
    await reader.ended
    assert.ok(count(reader.bytes).packets >= 2)
    await logged(/capture gone ended, its nic is gone/)
  })
})
