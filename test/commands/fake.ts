/**
 * A daemon that only speaks: src/api's routes over a unix socket, answers from memory, and exec runs the command on
 * this machine. For what the client and the commands do by themselves: rendering, errors, streams.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import http from 'node:http'
import type { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { CreateVm, ExecStart, Network, Vm } from '../../src/api/contract.ts'
import { EXEC_PROTOCOL, encodeFrame, FrameReader, frameType } from '../../src/api/exec.ts'
import { API_VERSION } from '../../src/api/routes.ts'
import { NoidError } from '../../src/errors.ts'
import type { NetworkStats } from '../../src/plugins/contract.ts'

export const BIN = fileURLToPath(new URL('../../bin/noid.mjs', import.meta.url))

export function fakeVm(name: string, over: Partial<Vm> = {}): Vm {
  return {
    id: `id-${name}`,
    name,
    state: 'running',
    problem: null,
    runtime: 'sandbox',
    network: 'default',
    backend: 'userspace',
    address: '192.168.100.100',
    address6: null,
    mac: '52:54:00:00:00:01',
    cpus: 1,
    memMib: 512,
    image: null,
    mounts: [],
    ports: [],
    pid: 42,
    createdAt: '2026-01-01T00:00:00.000Z',
    startedAt: new Date(Date.now() - 90_000).toISOString(),
    restart: 'no',
    restarts: 0,
    restartAt: null,
    ...over,
  }
}

export const fakeNetwork: Network = {
  id: 'n1',
  name: 'default',
  backend: 'userspace',
  subnet: '192.168.100.0/24',
  gateway: '192.168.100.1',
  services: '192.168.100.2',
  hostAddress: '192.168.100.254',
  ipv4: true,
  subnet6: null,
  gateway6: null,
  services6: null,
  hostAddress6: null,
  addressing: 'noid',
  hostReach: false,
  domain: 'noid.internal',
  mtu: 1500,
  isolated: false,
  allowHostPorts: [],
  vms: [],
  warnings: [],
  createdAt: '2026-01-01T00:00:00.000Z',
}

export interface Fake {
  readonly dir: string
  readonly socket: string
  readonly vms: Map<string, Vm>
  stats: NetworkStats
  /** What /v1/version answers beside the ordinary. */
  version: Record<string, unknown>
  /** Signals that exec was sent. */
  readonly signals: string[]
  /** Cut every exec connection; how many there were. */
  cut(): number
  close(): Promise<void>
}

type Answer = { status: number; body: unknown } | { lines: unknown[] } | { text: string }

export async function fakeDaemon(): Promise<Fake> {
  const dir = mkdtempSync(join(tmpdir(), 'noid-fake-'))
  const socket = join(dir, 'fake.sock')
  const sockets = new Set<Socket>()
  const execs = new Set<Socket>()
  const fake: Fake = {
    dir,
    socket,
    vms: new Map(),
    stats: { flows: [], leases: [], drops: [], ports: [], warnings: [] },
    version: {},
    signals: [],
    cut: () => {
      const n = execs.size
      for (const s of execs) s.destroy()
      return n
    },
    close: async () => {
      for (const s of sockets) s.destroy()
      await new Promise((r) => server.close(r))
      rmSync(dir, { recursive: true, force: true })
    },
  }
  const server = http.createServer(async (req, res) => {
    let text = ''
    for await (const c of req) text += c
    let answer: Answer
    try {
      answer = route(fake, req.method ?? '', req.url ?? '', text === '' ? {} : JSON.parse(text))
    } catch (e) {
      if (!(e instanceof NoidError)) throw e
      answer = { status: e.status, body: e.toJSON() }
    }
    if ('lines' in answer) {
      res.writeHead(200, { 'content-type': 'application/x-ndjson' })
      for (const l of answer.lines) res.write(`${JSON.stringify(l)}\n`)
      res.end()
    } else if ('text' in answer) res.end(answer.text)
    else {
      res.writeHead(answer.status, { 'content-type': 'application/json' })
      res.end(JSON.stringify(answer.body))
    }
  })
  server.on('connection', (s) => {
    sockets.add(s)
    s.on('close', () => sockets.delete(s))
  })
  server.on('upgrade', async (req, s: Socket, head: Buffer) => {
    sockets.add(s)
    s.on('error', () => {})
    s.on('close', () => execs.delete(s))
    // The body of an upgrade comes on the request, what follows it on the socket.
    let text = ''
    for await (const c of req) text += c
    runExec(fake, s, JSON.parse(text), head)
    execs.add(s)
  })
  await new Promise<void>((r) => server.listen(socket, r))
  return fake
}

function route(fake: Fake, method: string, url: string, body: Record<string, unknown>): Answer {
  const [, , kind, name, verb] = (url.split('?')[0] ?? '').split('/')
  const ok = (b: unknown): Answer => ({ status: 200, body: b })
  const find = (): Vm => {
    const vm = fake.vms.get(name ?? '')
    if (vm === undefined) throw new NoidError('VM_UNKNOWN', { name })
    return vm
  }
  if (kind === 'version') {
    const v = { api: API_VERSION, version: '0.1.0', schema: 1, pid: process.pid, uptimeMs: 1, vms: fake.vms.size }
    return ok({ ...v, stateDir: fake.dir, ...fake.version })
  }
  if (kind === 'networks') {
    if (verb === 'stats') return ok(fake.stats)
    if (method === 'DELETE' && name === 'nobody') throw new NoidError('NETWORK_UNKNOWN', { name })
    return ok(name === undefined ? [] : fakeNetwork)
  }
  if (kind === 'vms' && name === undefined) {
    if (method === 'GET') return ok([...fake.vms.values()])
    const spec = body as CreateVm
    if (fake.vms.has(spec.name)) throw new NoidError('NAME_TAKEN', { name: spec.name })
    const vm = fakeVm(spec.name)
    fake.vms.set(spec.name, vm)
    return {
      lines: [
        { type: 'step', text: 'attaching' },
        { type: 'note', text: 'made it' },
        { type: 'done', vm },
      ],
    }
  }
  if (verb === 'logs') return { text: `log of ${find().name}\n` }
  if (verb === 'start') {
    const error = new NoidError('VM_START_FAILED', { name, why: 'it is a fake' }).toJSON()
    return { lines: [{ type: 'error', error }] }
  }
  if (method === 'DELETE') {
    fake.vms.delete(find().name)
    return ok({})
  }
  return ok(find())
}

function runExec(fake: Fake, s: Socket, start: ExecStart, rest: Buffer): void {
  s.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${EXEC_PROTOCOL}\r\n\r\n`)
  const [program = '', ...args] = start.argv
  const child: ChildProcess = spawn(program, args, { env: { ...process.env, ...start.env }, cwd: start.cwd })
  const reader = new FrameReader()
  const take = (chunk: Buffer): void => {
    for (const f of reader.push(chunk)) {
      if (f.type === frameType.stdin && child.stdin?.write(f.payload) === false) {
        s.pause()
        child.stdin.once('drain', () => s.resume())
      } else if (f.type === frameType.stdinEnd) child.stdin?.end()
      else if (f.type === frameType.signal) {
        fake.signals.push(f.payload.toString())
        child.kill(f.payload.toString() as NodeJS.Signals)
      }
    }
  }
  child.stdin?.on('error', () => {})
  for (const [stream, type] of [
    [child.stdout, frameType.stdout],
    [child.stderr, frameType.stderr],
  ] as const) {
    stream?.on('data', (c: Buffer) => {
      if (s.write(encodeFrame(type, c))) return
      stream.pause()
      s.once('drain', () => stream.resume())
    })
  }
  child.on('error', (e) => {
    const error = new NoidError('EXEC_FAILED', { vm: 'fake', why: e.message }).toJSON()
    s.end(encodeFrame(frameType.error, Buffer.from(JSON.stringify(error))))
  })
  child.on('close', (code, signal) => {
    const b = Buffer.alloc(4)
    b.writeInt32BE(signal === null ? (code ?? 0) : 130)
    s.end(encodeFrame(frameType.exit, b))
  })
  s.on('data', take)
  s.on('close', () => child.kill('SIGKILL'))
  if (rest.length > 0) take(rest)
}

export interface Run {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Run the command line as a user would; NOID_HOST is the fake's socket. */
export function noid(
  fake: Fake | undefined,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  cwd?: string,
): Promise<Run> {
  return new Promise((resolve) => {
    const own: NodeJS.ProcessEnv = { ...process.env, NOID_DEBUG: '', ...env }
    if (fake !== undefined) own.NOID_HOST ??= fake.socket
    delete own.NODE_TEST_CONTEXT
    const child = execFile(
      process.execPath,
      [BIN, ...args],
      { env: own, cwd: cwd ?? fake?.dir, maxBuffer: 1 << 28, timeout: 120_000 },
      (e, stdout, stderr) => resolve({ code: e === null ? 0 : Number(e.code ?? 1), stdout, stderr }),
    )
    child.stdin?.end()
  })
}
