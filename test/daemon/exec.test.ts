/** Exec through the daemon, over a fake runtime that runs commands here: streams, codes, signals, backpressure. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import type { Socket } from 'node:net'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { encodeFrame, FrameReader, frameType } from '../../src/api/exec.ts'
import { upgrade } from '../../src/client/http.ts'
import { type ErrorBody, NoidError } from '../../src/errors.ts'
import { eventually } from '../eventually.ts'
import { exited, Lab } from './harness.ts'

interface Outcome {
  readonly code: number | undefined
  readonly error: ErrorBody | undefined
  readonly stdout: Buffer
  readonly stderr: Buffer
}

async function begin(lab: Lab, argv: string[], env: Record<string, string> = {}) {
  const { socket, head } = await upgrade({ socket: lab.paths.socket }, '/v1/vms/web/exec', 'noid-exec/1', { argv, env })
  return { socket, outcome: collect(socket, head) }
}

function collect(socket: Socket, head: Buffer): Promise<Outcome> {
  return new Promise((resolve) => {
    const out: Buffer[] = []
    const err: Buffer[] = []
    let code: number | undefined
    let error: ErrorBody | undefined
    const reader = new FrameReader()
    const take = (d: Buffer): void => {
      for (const f of reader.push(d)) {
        if (f.type === frameType.stdout) out.push(f.payload)
        else if (f.type === frameType.stderr) err.push(f.payload)
        else if (f.type === frameType.exit) code = f.payload.readInt32BE(0)
        else if (f.type === frameType.error) error = JSON.parse(f.payload.toString())
      }
    }
    socket.on('data', take)
    take(head)
    socket.on('error', () => {})
    socket.on('close', () => resolve({ code, error, stdout: Buffer.concat(out), stderr: Buffer.concat(err) }))
  })
}

/** A command that does nothing until it is hung up; then it writes `flag`. */
async function waiting(lab: Lab) {
  const [ready, flag] = ['ready', 'hung-up'].map((f) => `${lab.paths.stateDir}/${f}`) as [string, string]
  const script = `trap 'echo gone > ${flag}; exit' HUP; echo > ${ready}; while :; do sleep 0.05; done`
  const begun = await begin(lab, ['sh', '-c', script])
  await eventually('it waits for the signal', () => existsSync(ready))
  return { ...begun, flag }
}

test('exec: streams, environment, exit code, and what cannot be run', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  const both = await (await begin(lab, ['sh', '-c', 'echo "$GREETING"; echo bad >&2; exit 42'], { GREETING: 'hello' }))
    .outcome
  assert.deepEqual([both.code, both.stdout.toString(), both.stderr.toString()], [42, 'hello\n', 'bad\n'])

  const cat = await begin(lab, ['cat'])
  cat.socket.write(encodeFrame(frameType.stdin, Buffer.from('through')))
  cat.socket.write(encodeFrame(frameType.stdinEnd))
  assert.equal((await cat.outcome).stdout.toString(), 'through')

  const long = await begin(lab, ['sleep', '60'])
  long.socket.write(encodeFrame(frameType.signal, Buffer.from('SIGTERM')))
  assert.equal((await long.outcome).code, 143)

  await assert.rejects(begin(lab, ['/nonexistent']), (e) => e instanceof NoidError && e.code === 'EXEC_FAILED')
  await lab.client.stop('web')
  await assert.rejects(begin(lab, ['true']), (e) => e instanceof NoidError && e.code === 'VM_NOT_RUNNING')
})

test('exec: 32 MiB there and back is the same bytes', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  const cat = await begin(lab, ['cat'])
  const sent = createHash('sha256')
  for (let i = 0; i < 512; i++) {
    const block = randomBytes(64 * 1024)
    sent.update(block)
    if (!cat.socket.write(encodeFrame(frameType.stdin, block))) await new Promise((r) => cat.socket.once('drain', r))
  }
  cat.socket.write(encodeFrame(frameType.stdinEnd))
  const { stdout, code } = await cat.outcome
  assert.equal(code, 0)
  assert.equal(createHash('sha256').update(stdout).digest('hex'), sent.digest('hex'))
})

test('exec: a client that does not read holds up its command, and costs the daemon no memory', async (t) => {
  const lab = new Lab(t)
  const p = await lab.up()
  await lab.create('web')
  const { socket } = await upgrade({ socket: lab.paths.socket }, '/v1/vms/web/exec', 'noid-exec/1', {
    argv: ['sh', '-c', 'exec cat /dev/zero'],
  })
  socket.pause()
  await sleep(700)
  const { readFileSync } = await import('node:fs')
  const rss = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${p.pid}/status`, 'latin1'))?.[1]) / 1024
  assert.ok(rss < 400, `${rss} MB`)
  socket.destroy()
  assert.equal((await lab.client.vm('web')).state, 'running')
})

test('exec: a client that dies hangs up its command', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  const { socket } = await begin(lab, ['sh', '-c', `echo $$ > ${lab.home}/pid; exec sleep 60`])
  const { existsSync, readFileSync } = await import('node:fs')
  await eventually('it runs', () => existsSync(`${lab.home}/pid`) && readFileSync(`${lab.home}/pid`, 'utf8') !== '')
  const pid = Number(readFileSync(`${lab.home}/pid`, 'utf8'))
  socket.destroy()
  await eventually('it is gone', () => {
    try {
      return readFileSync(`/proc/${pid}/stat`, 'latin1').includes(') Z ')
    } catch {
      return true
    }
  })
})

test('exec: a daemon that ends hangs up its commands and ends in time', async (t) => {
  const lab = new Lab(t)
  const p = await lab.up()
  await lab.create('web')
  const { outcome, flag } = await waiting(lab)
  await lab.client.stopDaemon()
  assert.deepEqual([(await outcome).code, (await outcome).error], [undefined, undefined])
  await exited(p)
  assert.equal(p.exitCode, 0)
  await eventually('it was told', () => existsSync(flag))
})

test('logs: the last lines, all of them, and what follows until the caller leaves', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const { id } = await lab.create('web')
  const read = async (lines: number): Promise<string> => {
    let text = ''
    for await (const chunk of await lab.client.logs('web', false, lines)) text += chunk
    return text
  }
  assert.equal(await read(100), 'first\nsecond\nthird\n')
  assert.equal(await read(2), 'second\nthird\n')
  assert.equal(await read(0), '')
  const stream = (await lab.client.logs('web', true, 1)) as NodeJS.ReadableStream & { destroy(): void }
  let text = ''
  stream.on('data', (d) => {
    text += d
  })
  await eventually('the last line', () => text === 'third\n')
  const { appendFileSync } = await import('node:fs')
  appendFileSync(`${lab.paths.stateDir}/vms/${id}/log`, 'fourth\n')
  await eventually('what follows', () => text === 'third\nfourth\n')
  stream.destroy()
})

test('exec: a client that goes while the command does not read its stdin hangs the command up', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  const { socket, flag } = await waiting(lab)
  const block = encodeFrame(frameType.stdin, Buffer.alloc(1 << 20))
  for (let i = 0; i < 8; i++) socket.write(block)
  let left = 0
  await eventually('nobody takes the rest', () => {
    const was = left
    left = socket.writableLength
    return left > 0 && left === was
  })
  socket.destroy()
  await eventually('the command is hung up', () => existsSync(flag))
})
