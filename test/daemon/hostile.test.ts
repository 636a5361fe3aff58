/** Clients that mean ill, or are broken: the daemon answers what can be answered and goes on. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import { encodeFrame, FrameReader, frameType } from '../../src/api/exec.ts'
import { json, upgrade } from '../../src/client/http.ts'
import { NoidError } from '../../src/errors.ts'
import { eventually } from '../eventually.ts'
import { Lab } from './harness.ts'

const invalid = (text: RegExp) => (e: unknown) =>
  e instanceof NoidError && e.code === 'INVALID_INPUT' && text.test(e.message)

/** Everything the daemon says to some bytes, until it closes, or is silent for a while: most of these have no answer. */
const say = (path: string, text: string): Promise<string> => tell(path, text, 150)
/** What it answers to bytes that have an answer. */
const answer = (path: string, text: string): Promise<string> => tell(path, text, 30_000)

async function tell(path: string, bytes: string, ms: number): Promise<string> {
  const s: Socket = connect(path)
  let text = ''
  const answered = new Promise<void>((resolve) => {
    s.on('data', (d) => {
      text += d.toString('latin1')
      const [head = '', body] = text.split('\r\n\r\n')
      if (body !== undefined && body.length >= Number(/content-length: (\d+)/i.exec(head)?.[1])) resolve()
    })
  })
  s.on('error', () => {})
  s.write(bytes)
  await Promise.race([once(s, 'close'), answered, sleep(ms, undefined, { ref: false })])
  s.destroy()
  return text
}

test('requests that are wrong are refused with a reason', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const wire = { socket: lab.paths.socket }
  await assert.rejects(json(wire, 'POST', '/v1/vms', {}), invalid(/name/))
  await assert.rejects(json(wire, 'POST', '/v1/vms', { name: 'a', extra: 1 }), invalid(/extra/))
  await assert.rejects(json(wire, 'POST', '/v1/vms', { name: 'a', cpus: 1e9 }), invalid(/cpus/))
  await assert.rejects(json(wire, 'POST', '/v1/vms', []), invalid(/./))
  await assert.rejects(json(wire, 'POST', '/v1/networks', { name: 'a', mtu: -1 }), invalid(/mtu/))
  await assert.rejects(json(wire, 'GET', '/v1/vms/a/logs?lines=-1'), invalid(/lines/))
  await assert.rejects(json(wire, 'GET', '/v1/nothing'), invalid(/there is no GET/))
  await assert.rejects(json(wire, 'GET', '/v1/vms/%'), (e) => e instanceof NoidError)
  await assert.rejects(
    json(wire, 'GET', `/v1/vms/${encodeURIComponent('../../etc')}`),
    (e) => e instanceof NoidError && e.code === 'VM_UNKNOWN',
  )
  await assert.rejects(json(wire, 'POST', '/v1/vms/a/exec', { argv: ['true'] }), invalid(/upgraded/))
  const big = answer(
    lab.paths.socket,
    `POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n{`,
  )
  assert.match(await big, /^HTTP\/1.1 413/)
  const broken = await answer(
    lab.paths.socket,
    'POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n{"n',
  )
  assert.match(broken, /^HTTP\/1.1 400.*INVALID_INPUT/s)
  assert.doesNotMatch(broken, /stack|node_modules|\.ts:/)
  assert.deepEqual(await lab.client.vms(), [])
})

test('bytes that are no HTTP, half a request, and upgrades to nothing leave the daemon as it was', async (t) => {
  const lab = new Lab(t)
  const p = await lab.up()
  await lab.create('web')
  const head = 'Host: x\r\nConnection: upgrade\r\n'
  for (const text of [
    '\0\0\0\0\0\0',
    'GET',
    'GET /v1/vms HTTP/1.1\r\nHost: x\r\nX: ',
    `GET / HTTP/1.1\r\n${head}Upgrade: websocket\r\n\r\n`,
    `POST /v1/vms/web/exec HTTP/1.1\r\n${head}Upgrade: noid-exec/1\r\nContent-Length: 0\r\n\r\n`,
    `POST /v1/vms/web/exec HTTP/1.1\r\n${head}Upgrade: noid-exec/1\r\nContent-Length: 2\r\n\r\n{}`,
    `POST /v1/vms/web/exec HTTP/1.1\r\n${head}Upgrade: noid-exec/1\r\nContent-Length: 999\r\n\r\n{"argv":`,
    `POST /v1/vms/%ff/exec HTTP/1.1\r\n${head}Upgrade: noid-exec/1\r\nContent-Length: 15\r\n\r\n{"argv":["id"]}`,
    `POST /v1/vms/none/exec HTTP/1.1\r\n${head}Upgrade: noid-exec/1\r\nContent-Length: 15\r\n\r\n{"argv":["id"]}`,
    `POST /v1/vms/web/exec HTTP/1.1\r\n${head}Upgrade: noid-exec/1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n`,
  ]) {
    const answer = await say(lab.paths.socket, text)
    assert.ok(answer === '' || /^HTTP\/1.1 4\d\d /.test(answer), answer)
  }
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 200 }), async (bytes) => {
      const s = connect(lab.paths.socket)
      s.on('error', () => {})
      s.end(Buffer.from(bytes))
      await Promise.race([once(s, 'close'), sleep(100)])
      s.destroy()
    }),
    { numRuns: 25 },
  )
  const idle = Array.from({ length: 100 }, () => connect(lab.paths.socket).on('error', () => {}))
  assert.equal((await lab.client.version()).pid, p.pid)
  for (const s of idle) s.destroy()
  assert.equal((await lab.client.vm('web')).state, 'running')
})

test('exec frames that are none end that exec, hang up its command, and nothing else', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  const flag = `${lab.home}/hup`
  const argv = ['sh', '-c', `trap 'echo hup > ${flag}; exit' HUP; echo ready; while :; do sleep 0.05; done`]
  const huge = Buffer.from([frameType.stdin, 0xff, 0xff, 0xff, 0xff])
  for (const bytes of [huge, encodeFrame(77 as never), encodeFrame(frameType.resize, Buffer.alloc(3))]) {
    const wire = { socket: lab.paths.socket }
    const { socket, head } = await upgrade(wire, '/v1/vms/web/exec', 'noid-exec/1', { argv })
    const frames: { type: number; text: string }[] = []
    const reader = new FrameReader()
    const take = (d: Buffer) => {
      for (const f of reader.push(d)) frames.push({ type: f.type, text: f.payload.toString() })
    }
    socket.on('data', take)
    // A busy daemon's first frames come in one piece with its answer.
    take(head)
    await eventually('it runs', () => frames.some((f) => f.text.includes('ready')))
    socket.write(bytes)
    await once(socket, 'close')
    assert.equal(frames.at(-1)?.type, frameType.error)
    await eventually('SIGHUP', async () => (await import('node:fs')).existsSync(flag))
    ;(await import('node:fs')).rmSync(flag)
  }
  assert.equal((await lab.client.vm('web')).state, 'running')
})

test('a backend that hangs delays its own callers for a bounded time, and nobody else', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  lab.world.mood = { hangStatus: true }
  const hung = assert.rejects(
    lab.create('late'),
    (e) => e instanceof NoidError && /took longer than 10 s/.test(e.message),
  )
  assert.equal((await lab.client.vms()).length, 1)
  await lab.client.stop('web')
  await lab.client.destroy('web')
  await hung
  assert.deepEqual(lab.world.list(), [])
})
