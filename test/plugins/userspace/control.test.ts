/** The two ends of the control protocol against each other, in one process: a reactor that polls stands for the data plane's. */
import assert from 'node:assert/strict'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createConnection } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Control, type ControlHandler, type ControlReactor } from '../../../src/dataplane/control.ts'
import type { Request } from '../../../src/dataplane/protocol.ts'
import { Link, Refused } from '../../../src/plugins/dataplane/link.ts'
import { DataPlaneProcess } from '../../../src/plugins/dataplane/process.ts'
import { isOpen } from '../../../src/sys/scm.ts'

/** Level-triggered by asking everybody again and again. */
class Polling implements ControlReactor {
  readonly watched = new Map<number, (readable: boolean, writable: boolean) => void>()
  readonly #timer = setInterval(() => {
    for (const [fd, ready] of [...this.watched]) if (this.watched.has(fd)) ready(true, true)
  }, 1)
  watch(fd: number, ready: (readable: boolean, writable: boolean) => void): void {
    this.watched.set(fd, ready)
  }
  wantWrite(): void {}
  unwatch(fd: number): void {
    this.watched.delete(fd)
  }
  stop(): void {
    clearInterval(this.#timer)
  }
}

let dir = ''
let reactor: Polling
let control: Control
let handle: ControlHandler
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'nt-control-'))
  reactor = new Polling()
  handle = () => undefined
  control = new Control(join(dir, 'control.sock'), reactor, (r, fds) => handle(r, fds))
})
afterEach(() => {
  control.close()
  reactor.stop()
  rmSync(dir, { recursive: true })
})
const link = () => new Link(control.path, 'net')

test('a request is answered, with its result or with its reason', async () => {
  handle = (r) => {
    if (r.op === 'stats') throw new Error('no figures')
    return { op: r.op }
  }
  const l = link()
  assert.deepEqual(await l.request({ op: 'hello' }), { op: 'hello' })
  await assert.rejects(l.request({ op: 'stats' }), (e) => e instanceof Refused && e.message === 'no figures')
  l.close()
})

test('closed twice it closes nothing of anybody else’s', () => {
  control.close()
  // The numbers that are free now are given out again.
  const others = Array.from({ length: 8 }, () => openSync('/dev/null', 'r'))
  control.close()
  for (const fd of others) closeSync(fd)
})

test('the socket is for its owner alone', () => {
  assert.equal(statSync(control.path).mode & 0o777, 0o600)
})

test('descriptors arrive with the request that names them, in order', async () => {
  const files = ['a', 'b', 'c'].map((name) => {
    writeFileSync(join(dir, name), name)
    return openSync(join(dir, name), 'r')
  })
  const seen: string[] = []
  handle = (r, fds) => {
    seen.push(`${'id' in r ? r.id : r.op}:${fds.map((fd) => readFileSync(fd, 'utf8')).join('')}`)
    for (const fd of fds) closeSync(fd)
  }
  const l = link()
  const attach = (id: string): Request => ({
    op: 'publish',
    fds: 1,
    id,
    proto: 'tcp',
    hostAddress: '0.0.0.0',
    hostPort: 1,
    guestAddress: '10.0.0.1',
    guestPort: 1,
  })
  await Promise.all([
    l.request(attach('a'), [files[0] as number]),
    l.request({ op: 'hello' }),
    l.request(attach('b'), [files[1] as number]),
    l.request(attach('c'), [files[2] as number]),
  ])
  assert.deepEqual(seen, ['a:a', 'hello:', 'b:b', 'c:c'])
  for (const fd of files) closeSync(fd)
  l.close()
})

test('a request whose descriptors did not come is refused', async () => {
  const l = link()
  await assert.rejects(l.request({ op: 'rawIcmp', fds: 1 }), /descriptors: 1 named, 0 came/)
  l.close()
})

test('events reach every daemon', async () => {
  const links = [link(), link()]
  await Promise.all(links.map((l) => l.request({ op: 'hello' })))
  const got = links.map(
    (l) =>
      new Promise((resolve) => {
        l.onEvent = resolve
      }),
  )
  control.notify({ event: 'warning', message: 'two of them' })
  assert.deepEqual(await Promise.all(got), Array(2).fill({ event: 'warning', message: 'two of them' }))
  for (const l of links) l.close()
})

test('a client that speaks nonsense, or without end, is cut; the others are served', async () => {
  for (const words of ['no json\n', '{"op":"hello"}\n', 'x'.repeat(300_000)]) {
    const bad = createConnection(control.path)
    bad.on('error', () => {})
    bad.resume()
    bad.write(words)
    await new Promise((resolve) => bad.on('close', resolve))
  }
  const l = link()
  assert.equal(await l.request({ op: 'hello' }), undefined)
  l.close()
})

test('a client that does not read is cut when its queue is full', async () => {
  const deaf = createConnection(control.path)
  deaf.on('error', () => {})
  deaf.pause()
  await new Promise((resolve) => deaf.on('connect', resolve))
  await sleep(20)
  const clients = reactor.watched.size
  const message = 'x'.repeat(1 << 20)
  for (let i = 0; i < 20; i++) control.notify({ event: 'warning', message })
  assert.equal(reactor.watched.size, clients - 1)
  deaf.destroy()
})

test('descriptors that nobody claimed are closed with their client', async () => {
  const taken: number[] = []
  handle = (_, fds) => {
    taken.push(...fds)
  }
  const l = link()
  const fd = openSync('/dev/null', 'r')
  await l.request({ op: 'rawIcmp', fds: 1 }, [fd])
  assert.ok(isOpen(taken[0] as number), 'the handler owns what it took')
  closeSync(taken[0] as number)
  closeSync(fd)
  l.close()
})

test('a lost data plane rejects what waits, and says so once', async () => {
  handle = () => {
    control.close()
  }
  const l = link()
  let closes = 0
  l.onClose = () => closes++
  await assert.rejects(l.request({ op: 'stop' }), { code: 'DATAPLANE_LOST' })
  await assert.rejects(l.request({ op: 'hello' }), { code: 'DATAPLANE_LOST' })
  assert.equal(closes, 1)
})

test('a control socket that was replaced or removed is not reachable', () => {
  assert.ok(control.reachable())
  rmSync(control.path)
  assert.ok(!control.reachable())
  writeFileSync(control.path, '')
  assert.ok(!control.reachable())
})

test('a data plane of another version is told to end, and the log says what that means', async () => {
  const asked: string[] = []
  handle = (r) => {
    asked.push(r.op)
    return r.op === 'hello'
      ? { version: 1, pid: process.pid, attachments: [], publishes: [], configured: true }
      : undefined
  }
  const said: string[] = []
  const old = new DataPlaneProcess(dir, 'net', (_, message) => said.push(message))
  assert.equal(await old.adopt(new AbortController().signal), undefined)
  assert.deepEqual(asked, ['hello', 'stop'])
  assert.match(said.join(), /of net speaks version 1.*flows end/)
})
