/** Both ends against garbage: seeded, so that what failed once fails again. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { describe, it } from 'node:test'
import { AgentClient } from '../../../src/runtimes/qemu/agent/client.ts'
import {
  ask,
  BrokenWire,
  frame,
  GuestReader,
  hello,
  readTexts,
  tell,
  texts,
  WINDOW,
} from '../../../src/runtimes/qemu/agent/protocol.ts'
import { Random } from '../../sim/random.ts'
import { hasPerl, Port } from './port.ts'

const HELLO_BYTES = 26
const welcome = (epoch: Buffer): Buffer => Buffer.concat([Buffer.from('noid-agent-reply'), epoch, Buffer.from([0, 1])])
const number = (n: number): Buffer => {
  const b = Buffer.alloc(4)
  b.writeUInt32BE(n)
  return b
}

/** A guest of the test's own, that has said WELCOME. */
class Guest implements AsyncDisposable {
  readonly #dir = mkdtempSync(join(tmpdir(), 'noid-guest-'))
  readonly #server: Server = createServer()
  readonly path = join(this.#dir, 'agent')
  epoch: Buffer = Buffer.alloc(8)
  socket!: Socket
  /** What the host has said since its HELLO. */
  heard: Buffer = Buffer.alloc(0)

  static async open(before: Buffer = Buffer.alloc(0)): Promise<{ guest: Guest; client: AgentClient }> {
    const guest = new Guest()
    guest.#server.listen(guest.path)
    await once(guest.#server, 'listening')
    guest.#server.on('connection', (s) => {
      guest.socket = s
      s.on('error', () => {})
      s.on('data', (b: Buffer) => {
        guest.heard = Buffer.concat([guest.heard, b])
        if (guest.heard.length >= HELLO_BYTES && guest.epoch.every((x) => x === 0)) {
          guest.epoch = Buffer.from(guest.heard.subarray(16, 24))
          guest.heard = guest.heard.subarray(HELLO_BYTES)
          s.write(Buffer.concat([before, welcome(guest.epoch)]))
        }
      })
    })
    return { guest, client: await AgentClient.connect(guest.path, AbortSignal.timeout(10_000), 'test') }
  }

  say(type: number, stream: number, payload: Uint8Array = Buffer.alloc(0)): void {
    this.socket.write(frame(this.epoch, type, stream, payload))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.socket?.destroy()
    this.#server.close()
    rmSync(this.#dir, { recursive: true, force: true })
  }
}

/** A command that runs; its stream number is 1. */
async function running(guest: Guest, client: AgentClient) {
  const s = client.exec({ argv: ['x'], env: {}, tty: false })
  guest.say(tell.started, 1, number(7))
  return s
}

describe('the host against its guest', { timeout: 240_000 }, () => {
  const broken: Record<string, (g: Guest) => void> = {
    'an unknown frame': (g) => g.say(200, 1),
    'a frame of the host’s own kind': (g) => g.say(ask.exec, 1),
    'a frame that is too long': (g) => {
      const b = frame(g.epoch, tell.stdout, 1, Buffer.alloc(10))
      b.writeUInt32BE(0x7fffffff, 12)
      g.socket.write(b)
    },
    'a frame of another conversation': (g) =>
      g.socket.write(frame(Buffer.alloc(8, 9), tell.stdout, 1, Buffer.alloc(9))),
    'a frame with a wrong end': (g) => {
      const b = frame(g.epoch, tell.stdout, 1, Buffer.alloc(10))
      b[b.length - 1] = (b.at(-1) as number) ^ 1
      g.socket.write(b)
    },
    'more output than it has credit for': (g) => {
      for (let i = 0; i < WINDOW / 32768 + 1; i++) g.say(tell.stdout, 1, Buffer.alloc(32768))
    },
    'output after its end': (g) => {
      g.say(tell.end, 1, Buffer.from([1]))
      g.say(tell.stdout, 1, Buffer.from('x'))
    },
    'an end twice': (g) => {
      g.say(tell.end, 1, Buffer.from([2]))
      g.say(tell.end, 1, Buffer.from([2]))
    },
    'an end of nothing': (g) => g.say(tell.end, 1, Buffer.from([9])),
    'credit without measure': (g) => g.say(tell.grant, 1, number(0xffffffff)),
    'an exit twice': (g) => {
      g.say(tell.exit, 1, number(0))
      g.say(tell.exit, 1, number(0))
    },
    'an answer that is cut off': (g) => g.say(tell.reply, 5, Buffer.from([1, 0, 0, 0, 9, 1])),
    garbage: (g) => g.socket.write(Buffer.from('login: root\r\nPassword: \r\n#')),
  }
  for (const [what, say] of Object.entries(broken))
    it(`ends the conversation over ${what}, with a clear error`, async () => {
      const { guest, client } = await Guest.open()
      await using _ = guest
      const s = await running(guest, client)
      say(guest)
      const lost = { code: 'AGENT_LOST', message: /^the channel to the agent in "test" was lost: it sent / }
      // The exit may have been told before the conversation broke.
      if (what !== 'an exit twice') await assert.rejects(s.exit, lost)
      await client.closed
      assert.equal(client.alive, false)
      await assert.rejects(client.info(), lost)
    })

  it('skips what a dead conversation left behind, but not without end', async () => {
    const left = Buffer.concat([
      Buffer.alloc(100_000, 0x6e),
      frame(Buffer.alloc(8, 3), tell.stdout, 1, Buffer.alloc(500)),
      welcome(Buffer.alloc(8, 3)),
    ])
    const { guest, client } = await Guest.open(left)
    await using _ = guest
    const s = await running(guest, client)
    guest.say(tell.stdout, 1, Buffer.from('x'))
    guest.say(tell.end, 1, Buffer.from([1]))
    guest.say(tell.end, 1, Buffer.from([2]))
    guest.say(tell.exit, 1, number(300))
    assert.equal(await text(s.stdout), 'x')
    assert.equal(await s.exit, 300)
    const endless = new GuestReader(Buffer.alloc(8, 1))
    assert.throws(() => {
      for (let i = 0; i < 100; i++) for (const _f of endless.push(Buffer.alloc(65536, 0x6e)));
    }, BrokenWire)
  })

  it('believes nothing a guest says of itself but its form', async () => {
    const { guest, client } = await Guest.open()
    await using _ = guest
    const info = client.info()
    const lies = {
      address: '1.2.3.4; rm -rf /',
      address6: `fd00::1/64 nonsense ${'fe80::1/64 '.repeat(1000)}`,
      hostname: 'a\u001b]0;title\u0007b'.repeat(1000),
      osrelease: '\r\nX',
      uptime: 'Infinity',
      __proto__: 'x',
    }
    guest.say(tell.reply, 1, Buffer.concat([Buffer.from([1]), texts(Object.entries(lies).flat())]))
    const i = await info
    assert.equal(i.address, undefined)
    assert.equal(i.addresses6[0], 'fd00::1/64')
    assert.ok(i.addresses6.length <= 32 && i.hostname.length <= 300)
    assert.doesNotMatch(`${i.hostname}${i.kernel}`, /\p{Cc}/u)
    assert.equal(i.uptimeMs, 0)
  })

  it('survives seeded garbage, whole or between frames', async () => {
    for (let seed = 1; seed <= 60; seed++) {
      const r = new Random(seed)
      const epoch = Buffer.from('EPOCH-8!')
      const reader = new GuestReader(epoch)
      const bytes: Buffer[] = [welcome(epoch)]
      for (let i = 0; i < 20; i++) {
        const f = frame(
          epoch,
          r.between(0, 256 - 1),
          r.between(0, 0x10000 - 1),
          Buffer.from(Array.from({ length: r.between(0, 300 - 1) }, () => r.between(0, 256 - 1))),
        )
        if (r.between(0, 4 - 1) === 0) f[r.between(0, f.length - 1)] = r.between(0, 256 - 1)
        bytes.push(r.between(0, 10 - 1) === 0 ? f.subarray(0, r.between(0, f.length - 1)) : f)
      }
      const all = Buffer.concat(bytes)
      try {
        for (let at = 0; at < all.length; ) {
          const n = 1 + r.between(0, 200 - 1)
          for (const f of reader.push(all.subarray(at, at + n))) readTextsOrNot(f.payload)
          at += n
        }
      } catch (e) {
        assert.ok(e instanceof BrokenWire, `seed ${seed}: ${e}`)
      }
    }
  })
})

function readTextsOrNot(b: Buffer): void {
  try {
    readTexts(b)
  } catch (e) {
    if (!(e instanceof BrokenWire)) throw e
  }
}

describe('the agent against its host', { skip: hasPerl ? false : 'needs perl', timeout: 400_000 }, () => {
  it('lives through seeded garbage and answers the next one', async () => {
    await using p = await Port.open()
    p.wire.resume()
    const r = new Random(7)
    for (let round = 0; round < 40; round++) {
      const epoch = Buffer.from(Array.from({ length: 8 }, () => 1 + r.between(0, 255 - 1)))
      p.wire.write(hello(epoch))
      for (let i = 0; i < 10; i++) {
        const f = frame(
          epoch,
          r.between(0, 12 - 1),
          r.between(0, 4 - 1),
          Buffer.from(Array.from({ length: r.between(0, 200 - 1) }, () => r.between(0, 256 - 1))),
        )
        const kind = r.between(0, 5 - 1)
        if (kind === 0) f[r.between(0, f.length - 1)] = r.between(0, 256 - 1)
        // Commands it is asked for by accident are few and short: exec needs words that garbage seldom has.
        p.wire.write(kind === 1 ? f.subarray(0, r.between(0, f.length - 1)) : f)
      }
    }
    const c = await p.connect(20_000)
    const s = await c.exec({ argv: ['echo', 'alive'], env: {}, tty: false })
    s.stdin.end()
    assert.equal(await text(s.stdout), 'alive\n')
    assert.equal(p.agent.exitCode, null)
  })

  it('never delivers a frame that was cut', async () => {
    await using p = await Port.open()
    const first = await p.connect()
    const dir = mkdtempSync(join(tmpdir(), 'nt-cut-'))
    try {
      const s = await first.exec({
        argv: ['sh', '-c', `trap "" HUP; cat > ${dir}/got; echo > ${dir}/done`],
        env: {},
        tty: false,
      })
      s.stdin.write('whole')
      // Then half a frame, as a host that dies while it writes one. Its epoch is nobody's business, so it is taken from the wire.
      const epoch = await epochOf(p, () => s.stdin.write('.'))
      const half = frame(epoch, ask.stdin, 1, Buffer.alloc(1000, 0x78))
      p.wire.write(half.subarray(0, 500))
      p.cut()
      const second = await p.connect()
      const look = await second.exec({
        argv: ['sh', '-c', `while [ ! -e ${dir}/done ]; do sleep 0.02; done; cat ${dir}/got`],
        env: {},
        tty: false,
      })
      look.stdin.end()
      assert.equal(await text(look.stdout), 'whole.')
    } finally {
      rmSync(dir, { recursive: true })
    }
  })
})

/** The epoch of the conversation, seen in what the host writes next. */
async function epochOf(p: Port, act: () => void): Promise<Buffer> {
  const write = p.wire.write.bind(p.wire)
  const seen = new Promise<Buffer>((resolve) => {
    p.wire.write = ((b: Buffer) => {
      resolve(Buffer.from(b.subarray(0, 8)))
      p.wire.write = write as typeof p.wire.write
      return write(b)
    }) as typeof p.wire.write
  })
  act()
  return seen
}
