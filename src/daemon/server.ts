/**
 * The API of src/api/contract.ts over HTTP on the daemon's unix socket.
 *
 * Owns: validation at the edge (zod, unknown keys are errors), errors as ErrorBody with their status, NDJSON progress, log
 * streams, the exec upgrade. Who may connect is the socket file's mode; nothing is asked here.
 * Invariants: nothing that a client sends or omits ends the daemon; a stack trace leaves it only under NOID_DEBUG.
 * Requests wait until the daemon has reconciled, except the version: that is how a client sees that it is up.
 */
import { once } from 'node:events'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { type Duplex, Readable } from 'node:stream'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import { z } from 'zod'
import {
  attach,
  type Backend,
  createNetwork,
  createVm,
  execStart,
  type ProgressLine,
  pruneRequest,
  type Removed,
  type VersionInfo,
  type Vm,
} from '../api/contract.ts'
import { EXEC_PROTOCOL } from '../api/exec.ts'
import { CAPTURE_SNAP_MAX, CAPTURE_SNAP_MIN, CAPTURE_TYPE, routes } from '../api/routes.ts'
import { NoidError } from '../errors.ts'
import type { Images } from '../images/index.ts'
import { tail } from '../logs.ts'
import type { ExecRequest, ExecSession } from '../runtimes/contract.ts'
import { asNoidError, bounded, Cancelled, limitMs } from './bounded.ts'
import { openConsole } from './console.ts'
import { type Control, type Progress, specOf } from './control.ts'
import { joinExec } from './exec.ts'
import type { Foreign } from './foreign.ts'
import { imageRoutes } from './images.ts'
import type { Networks } from './networks.ts'
import type { Prune } from './prune.ts'
import type { Publishes } from './publishes.ts'
import type { NetworkRecord } from './store.ts'
import { MAX_GRACE_MS, type Vms } from './vms.ts'

const MAX_BODY = 1 << 20
const MAX_HEADER_MS = 10_000
const MAX_REQUEST_MS = 30_000

const stopBody = z.strictObject({ graceMs: z.number().int().min(0).max(MAX_GRACE_MS).optional() })
const portsBody = z.strictObject({ ports: z.array(z.string()).min(1) })
const empty = z.union([z.undefined(), z.null(), z.strictObject({})])
const checkQuery = z.strictObject({ check: z.enum(['0', '1']).default('0') })
const logsQuery = z.strictObject({
  follow: z.enum(['0', '1']).default('0'),
  lines: z.coerce.number().int().min(0).max(1_000_000).default(200),
})
const captureQuery = z.strictObject({
  snap: z.coerce.number().int().min(CAPTURE_SNAP_MIN).max(CAPTURE_SNAP_MAX).optional(),
})

export interface ServerParts {
  readonly control: Control
  readonly vms: Vms
  readonly networks: Networks
  readonly publishes: Publishes
  readonly foreign: Foreign
  readonly prune: Prune
  readonly images: Images
  readonly version: () => VersionInfo
  /** Resolves when the store and the world agree. */
  readonly ready: Promise<void>
  readonly stop: () => void
  readonly debug: boolean
}
/** A command whose VM does not answer must not keep the daemon. */
const HANG_UP_MS = 2_000

export function buildServer(p: ServerParts): FastifyInstance {
  const app = Fastify({
    bodyLimit: MAX_BODY,
    requestTimeout: MAX_REQUEST_MS,
    // Close what is idle when the daemon ends; streams are ended by their own means.
    forceCloseConnections: true,
  })
  ;(app.server as Server).headersTimeout = MAX_HEADER_MS
  app.setErrorHandler((e, _req, reply) => answer(p, reply, e))
  app.setNotFoundHandler((req, reply) =>
    answer(p, reply, new NoidError('INVALID_INPUT', { what: `there is no ${req.method} ${req.url}` }), 404),
  )
  app.addHook('preHandler', async (req) => {
    if (req.routeOptions.url !== routes.version && req.routeOptions.url !== routes.daemonStop) await p.ready
  })

  app.get(routes.version, async () => p.version())
  app.post(routes.daemonStop, async (req) => {
    parse(empty, req.body)
    p.stop()
    return {}
  })
  app.post(routes.prune, (req) => p.prune.run(parse(pruneRequest, req.body ?? {})))
  app.get(routes.backends, () => backends(p.control))
  vmRoutes(app, p)
  networkRoutes(app, p)
  attachmentRoutes(app, p)
  imageRoutes(app, {
    images: p.images,
    store: p.control.store,
    parse,
    progress: (reply, run) => told(p, reply, run),
  })
  // Upgraded connections are no longer the HTTP server's: it would wait for them for ever. Their commands are hung up before the daemon is gone.
  const upgraded = new Set<Duplex>()
  const joined = new Set<Promise<void>>()
  app.server.on('upgrade', (req: IncomingMessage, socket: Duplex, head: Buffer) => {
    upgraded.add(socket)
    socket.on('error', () => {}).on('close', () => upgraded.delete(socket))
    const join = upgrade(p, req, socket, head)
      .catch((e: unknown) => refuse(p, socket, e))
      .finally(() => joined.delete(join))
    joined.add(join)
  })
  app.addHook('preClose', async () => {
    for (const socket of upgraded) socket.destroy()
    const late = new Promise((r) => setTimeout(r, HANG_UP_MS).unref())
    await Promise.race([Promise.all(joined), late])
  })
  return app
}

type Named = FastifyRequest<{ Params: { name: string } }>

function vmRoutes(app: FastifyInstance, p: ServerParts): void {
  const { vms, publishes } = p
  const one = `${routes.vms}/:name`
  app.get(routes.vms, async () => p.control.store.vms().map((v) => vms.view(v)))
  app.post(routes.vms, (req, reply) => {
    const body = parse(createVm, req.body)
    return progress(p, reply, (say, cancel) => vms.create(body, say, cancel))
  })
  app.get(one, async (req: Named) => vms.view(vms.find(req.params.name)))
  app.delete(one, async (req: Named) => {
    return { note: await vms.destroy(req.params.name) } satisfies Removed
  })
  app.post(`${one}/start`, (req: Named, reply) =>
    progress(p, reply, (say, cancel) => vms.start(req.params.name, say, cancel)),
  )
  app.post(`${one}/restart`, (req: Named, reply) => progress(p, reply, (say) => vms.restart(req.params.name, say)))
  app.post(`${one}/stop`, async (req: Named) => vms.stop(req.params.name, parse(stopBody, req.body ?? {}).graceMs))
  app.get(`${one}/logs`, (req: Named, reply) => logs(p, req, reply))
  app.get(`${one}/capture`, (req: Named, reply) => {
    const v = vms.find(req.params.name)
    if (v.phase !== 'running') throw new NoidError('VM_NOT_RUNNING', { name: v.name })
    const n = p.control.store.network(v.network)
    return capture(p, req, reply, n, v.id)
  })
  app.post(`${one}/exec`, async () => {
    throw new NoidError('INVALID_INPUT', { what: `exec needs a connection upgraded to ${EXEC_PROTOCOL}` })
  })
  app.get(`${one}/ports`, async (req: Named) => publishes.of(req.params.name))
  app.post(`${one}/ports`, async (req: Named) => publishes.add(req.params.name, parse(portsBody, req.body).ports))
  app.delete(`${one}/ports`, async (req: Named) => publishes.remove(req.params.name, parse(portsBody, req.body).ports))
}

function networkRoutes(app: FastifyInstance, p: ServerParts): void {
  const { networks } = p
  const one = `${routes.networks}/:name`
  app.get(routes.networks, async () => p.control.store.networks().map((n) => networks.view(n)))
  app.post(routes.networks, async (req) => networks.create(parse(createNetwork, req.body)))
  app.get(one, async (req: Named) => networks.view(networks.find(req.params.name)))
  app.delete(one, async (req: Named) => {
    return { note: await networks.remove(req.params.name) } satisfies Removed
  })
  app.get(`${one}/stats`, async (req: Named) => networks.stats(req.params.name))
  app.get(`${one}/capture`, (req: Named, reply) => capture(p, req, reply, networks.find(req.params.name)))
}

type NamedPart = FastifyRequest<{ Params: { name: string; id: string } }>

function attachmentRoutes(app: FastifyInstance, { foreign }: ServerParts): void {
  const all = `${routes.networks}/:name/attachments`
  const one = `${all}/:id`
  app.get(all, async (req: Named) => foreign.list(req.params.name))
  app.post(all, async (req: Named) => foreign.attach(req.params.name, parse(attach, req.body)))
  app.get(one, async (req: NamedPart) =>
    foreign.get(req.params.name, req.params.id, parse(checkQuery, req.query).check === '1'),
  )
  app.delete(one, async (req: NamedPart) => {
    await foreign.detach(req.params.id)
    return {}
  })
}

/** Every backend with whether it can attach now, and plug-ins that could not be taken. */
async function backends({ registry }: Control): Promise<Backend[]> {
  const found = await Promise.all(
    registry.descriptors().map(async (d): Promise<Backend> => {
      const status = await bounded(`asking the backend ${d.name}`, limitMs.status, async (s) =>
        (await registry.backend(d.name)).status(s),
      ).catch((e: unknown) => ({ ok: false, problems: [{ what: asNoidError(e).message }] }))
      return {
        name: d.name,
        summary: d.summary,
        provides: [...d.provides],
        capabilities: { ...d.capabilities, privileges: [...d.capabilities.privileges] },
        ok: status.ok,
        problems: status.problems.map((x) => ({ ...x })),
      }
    }),
  )
  const none = { addressing: 'noid', privileges: [], publish: false, dns: false, isolation: false, ipv6: false }
  const broken = registry.problems.map(
    ({ from, what }): Backend => ({
      name: from,
      summary: 'a plug-in that could not be used',
      provides: [],
      capabilities: none,
      ok: false,
      problems: [{ what }],
    }),
  )
  return [...found, ...broken]
}

/** Parse at the edge; the first flaw is told with where it is. */
function parse<T>(schema: z.ZodType<T>, value: unknown): T {
  const r = schema.safeParse(value)
  if (r.success) return r.data
  const issue = r.error.issues[0]
  const where = issue?.path.join('.') ?? ''
  throw new NoidError('INVALID_INPUT', {
    what: `the request is not valid: ${where === '' ? '' : `${where}: `}${issue?.message}`,
  })
}

/** An operation that tells how it goes. An error before the first line has its status; a client that leaves cancels. */
async function progress(
  p: ServerParts,
  reply: FastifyReply,
  run: (say: Progress, cancel: AbortSignal) => Promise<Vm>,
): Promise<FastifyReply> {
  return told(p, reply, async (say, cancel) => ({ vm: await run(say, cancel) }))
}

/** The same for whatever is there at the end. */
async function told<T extends object>(
  p: ServerParts,
  reply: FastifyReply,
  run: (say: Progress, cancel: AbortSignal) => Promise<T>,
): Promise<FastifyReply> {
  const out: ServerResponse = reply.raw
  const left = new AbortController()
  let answered = false
  const line = (l: ProgressLine<T>): void => {
    if (!out.headersSent) {
      reply.hijack()
      out.writeHead(200, { 'content-type': 'application/x-ndjson', 'cache-control': 'no-store' })
    }
    if (out.writable) out.write(`${JSON.stringify(l)}\n`)
  }
  out.on('close', () => {
    if (!answered) left.abort()
  })
  try {
    const done = await run((type, text) => line({ type, text }), left.signal)
    line({ type: 'done', ...done })
  } catch (e) {
    if (!out.headersSent) throw e
    line({ type: 'error', error: body(p, e) })
  } finally {
    answered = true
  }
  out.end()
  return reply
}

async function logs(p: ServerParts, req: Named, reply: FastifyReply): Promise<FastifyReply> {
  const q = parse(logsQuery, req.query)
  const v = p.vms.find(req.params.name)
  const runtime = await p.control.runtimes.get(v.runtime)
  const gone = new AbortController()
  reply.raw.on('close', () => gone.abort())
  const follow = q.follow === '1'
  const chunks = tail(runtime.logFile(specOf(p.control.paths, v)), q.lines, follow, gone.signal)
  return reply.type('text/plain; charset=utf-8').send(Readable.from(chunks, { objectMode: false }))
}

/** Frames as long as the client takes them. Nothing is kept here: what the client does not take stays with the data plane. */
async function capture(
  p: ServerParts,
  req: Named,
  reply: FastifyReply,
  n: NetworkRecord,
  attachment?: string,
): Promise<FastifyReply> {
  const { snap: snapLength } = parse(captureQuery, req.query)
  const gone = new AbortController()
  reply.raw.on('close', () => gone.abort())
  const frames = await p.networks.capture(n, { attachment, snapLength }, gone.signal)
  // However the client goes, the capture ends with it.
  reply.raw.on('close', () => frames.destroy())
  if (reply.raw.destroyed) frames.destroy()
  return reply.type(CAPTURE_TYPE).header('cache-control', 'no-store').send(frames)
}

/** POST /v1/vms/NAME/exec or console with `upgrade: noid-exec/1`. */
async function upgrade(p: ServerParts, req: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
  const [, name, kind] = /^\/v1\/vms\/([^/?]+)\/(exec|console)$/.exec(req.url ?? '') ?? []
  if (req.method !== 'POST' || name === undefined || req.headers.upgrade !== EXEC_PROTOCOL)
    throw new NoidError('INVALID_INPUT', { what: `there is no ${req.method} ${req.url} for ${req.headers.upgrade}` })
  const asked = await readJson(req)
  await p.ready
  const session =
    kind === 'exec'
      ? await enter(p, decode(name), parse(execStart, asked))
      : await openConsole(p.control, p.vms.find(decode(name)))
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${EXEC_PROTOCOL}\r\n\r\n`)
  await joinExec(socket, head, session)
}

async function enter(p: ServerParts, name: string, want: ExecRequest): Promise<ExecSession> {
  const { control, vms } = p
  const v = vms.find(name)
  if (v.phase !== 'running' || v.handle === null) throw new NoidError('VM_NOT_RUNNING', { name: v.name })
  const runtime = await control.runtimes.get(v.runtime)
  const handle = v.handle
  return bounded('entering the VM', limitMs.enter, () => runtime.exec(specOf(control.paths, v), handle, want))
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

async function readJson(req: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = []
  let size = 0
  const timer = setTimeout(() => req.destroy(new Error('the body did not arrive')), MAX_REQUEST_MS)
  try {
    req.on('data', (c: Buffer) => {
      size += c.length
      chunks.push(c)
      if (size > MAX_BODY) req.destroy(new Error('the body is too large'))
    })
    await once(req, 'end')
    return JSON.parse(Buffer.concat(chunks).toString('utf8'))
  } catch (e) {
    throw new NoidError('INVALID_INPUT', { what: `the request's body cannot be read: ${asNoidError(e).details.why}` })
  } finally {
    clearTimeout(timer)
  }
}

/** An error on a connection that was to be upgraded. */
function refuse(p: ServerParts, socket: Duplex, e: unknown): void {
  const error = asNoidError(e)
  const text = JSON.stringify(body(p, e))
  if (!socket.writable) {
    socket.destroy()
    return
  }
  socket.end(
    `HTTP/1.1 ${error.status} Refused\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\nConnection: close\r\n\r\n${text}`,
  )
  setTimeout(() => socket.destroy(), 1_000).unref()
}

/** ErrorBody; what was no NoidError is logged with its stack and told without. */
function body(p: ServerParts, e: unknown): ReturnType<NoidError['toJSON']> & { stack?: string } {
  const error = asNoidError(e)
  const cause = e instanceof NoidError ? e.cause : e
  if (error.code === 'INTERNAL' && !(e instanceof Cancelled))
    p.control.log('error', cause instanceof Error ? (cause.stack ?? cause.message) : error.message)
  const trace = (cause instanceof Error ? cause : error).stack
  return { ...error.toJSON(), ...(p.debug && trace !== undefined ? { stack: trace } : {}) }
}

function answer(p: ServerParts, reply: FastifyReply, e: unknown, status?: number): FastifyReply {
  // fastify's own refusals: bad JSON, a body too large, an unknown content type, a bad URL.
  const own = (e as { statusCode?: number }).statusCode
  const error =
    e instanceof NoidError || own === undefined || own >= 500
      ? e
      : new NoidError('INVALID_INPUT', { what: `the request is not valid: ${(e as Error).message}` })
  return reply.code(status ?? (e instanceof NoidError ? e.status : (own ?? 500))).send(body(p, error))
}
