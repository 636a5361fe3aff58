/** The serial line: one client for QEMU, any number of viewers. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { describe, it } from 'node:test'
import { SerialLine } from '../../../src/runtimes/qemu/agent/serial.ts'
import { eventually } from '../../eventually.ts'

/** As QEMU's chardev: what is said is logged, to whoever is connected, one at a time. */
async function chardev() {
  const dir = mkdtempSync(join(tmpdir(), 'noid-serial-'))
  const [path, log] = [join(dir, 'console'), join(dir, 'log')]
  writeFileSync(log, '')
  const server = createServer().listen(path)
  await once(server, 'listening')
  const state = { clients: 0, now: undefined as Socket | undefined, typed: '' }
  server.on('connection', (s) => {
    assert.equal(state.now, undefined, 'one client at a time')
    state.clients += 1
    state.now = s
    s.on('error', () => {}).on('data', (b) => (state.typed += b))
    s.on('close', () => (state.now = undefined))
  })
  return {
    path,
    log,
    state,
    say: (text: string | Buffer) => {
      appendFileSync(log, text)
      state.now?.write(text)
    },
    [Symbol.asyncDispose]: async () => {
      state.now?.destroy()
      server.close()
      rmSync(dir, { recursive: true, force: true })
    },
  }
}

function view(d: Duplex): () => string {
  let seen = ''
  d.setEncoding('utf8').on('data', (t: string) => (seen += t))
  return () => seen
}

describe('the serial line', { timeout: 240_000 }, () => {
  it('shows the log’s end first, then what comes, to all; and is let go with the last', async () => {
    await using c = await chardev()
    c.say(`${'old line\n'.repeat(20_000)}login: `)
    const line = new SerialLine(c.path, c.log)
    const a = await line.open()
    const seenA = view(a)
    await eventually('the scrollback', () => seenA().endsWith('login: '))
    assert.ok(seenA().length <= 64 * 1024 && seenA().startsWith('old line\n'))
    const b = await line.open()
    const seenB = view(b)
    await eventually('one client', () => c.state.now !== undefined)
    c.say('hello\n')
    await eventually('both see it', () => seenA().endsWith('hello\n') && seenB().endsWith('hello\n'))
    a.write('from a\n')
    b.write('from b\n')
    await eventually('both are heard', () => /from a\n/.test(c.state.typed) && /from b\n/.test(c.state.typed))
    a.destroy()
    c.say('more\n')
    await eventually('the other goes on', () => seenB().endsWith('more\n'))
    b.destroy()
    await eventually('nobody is connected', () => c.state.now === undefined)
    assert.equal(c.state.clients, 1)
    // And again.
    const again = await line.open()
    const seen = view(again)
    await eventually('it is connected again', () => c.state.clients === 2 && seen().endsWith('more\n'))
    c.state.now?.destroy()
    await once(again, 'end')
  })

  it('is read whether or not a viewer takes it, and says what the slow one missed', async () => {
    await using c = await chardev()
    const line = new SerialLine(c.path, c.log)
    const slow = await line.open()
    const fast = view(await line.open())
    await eventually('it is connected', () => c.state.now !== undefined)
    const block = Buffer.alloc(64 * 1024, 'x')
    for (let i = 0; i < 64; i++) {
      c.say(block)
      const size = (i + 1) * block.length
      await eventually('the fast one has it', () => fast().length >= size)
    }
    assert.ok(slow.readableLength <= 1024 * 1024)
    const seen = view(slow)
    await eventually('the slow one has the beginning', () => seen().length >= 1_000_000)
    c.say('end')
    await eventually('and knows', () => /\[noid: \d+ bytes were left out.*\]\r\nend$/s.test(seen()))
  })

  it('that is not there is an error', async () => {
    await assert.rejects(new SerialLine('/nonexistent/console', '/nonexistent/log').open(), { code: 'ENOENT' })
  })
})
