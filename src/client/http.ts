/**
 * HTTP/1.1 over the daemon's unix socket, and the answers' three shapes: one JSON value, NDJSON lines, a text stream.
 *
 * Owns: connecting, status codes turned back into NoidError, and what a broken connection means.
 * Never does: starting the daemon (daemon.ts), rendering.
 * Each request has its own connection: a command makes two or three, and a connection that is closed with its answer
 * never keeps a finished command alive.
 */
import http from 'node:http'
import type { Socket } from 'node:net'
import { type ErrorBody, NoidError } from '../errors.ts'

export interface Wire {
  readonly socket: string
}

/** A connection that failed, in the words of the catalogue. */
export function connectError(socket: string, e: NodeJS.ErrnoException): NoidError {
  if (e.code === 'EACCES' || e.code === 'EPERM') return new NoidError('DAEMON_FORBIDDEN', { socket }, { cause: e })
  return new NoidError('DAEMON_UNREACHABLE', { socket, why: e.code ?? e.message }, { cause: e })
}

/** Rebuild the daemon's error from its body; what is not ErrorBody becomes INTERNAL. */
export function answerError(status: number, text: string): NoidError {
  try {
    const body = JSON.parse(text) as ErrorBody | { error: ErrorBody }
    const error = 'error' in body && typeof body.error === 'object' ? body.error : (body as ErrorBody)
    if (typeof error.code === 'string' && typeof error.message === 'string') {
      return NoidError.from({ ...error, details: error.details ?? {} })
    }
  } catch {
    // Not JSON: said below with what it was.
  }
  return new NoidError('INTERNAL', { why: `the daemon answered ${status}: ${text.slice(0, 200)}` })
}

async function readAll(m: http.IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  for await (const c of m) chunks.push(c as Buffer)
  return Buffer.concat(chunks).toString('utf8')
}

/** Send one request; resolves with the answer's head, or rejects with what the daemon said was wrong. */
export function send(
  wire: Wire,
  method: string,
  path: string,
  body?: unknown,
  signal?: AbortSignal,
): Promise<http.IncomingMessage> {
  const text = body === undefined ? undefined : JSON.stringify(body)
  return new Promise((resolve, reject) => {
    const req = http.request({
      socketPath: wire.socket,
      method,
      path,
      agent: false,
      signal,
      headers: {
        host: 'noid',
        ...(text === undefined
          ? {}
          : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
      },
    })
    req.on('error', (e: NodeJS.ErrnoException) => reject(connectError(wire.socket, e)))
    req.on('response', (m) => {
      if ((m.statusCode ?? 500) < 400) return resolve(m)
      readAll(m).then(
        (t) => reject(answerError(m.statusCode ?? 500, t)),
        (e) => reject(connectError(wire.socket, e)),
      )
    })
    req.end(text)
  })
}

export async function json<T>(
  wire: Wire,
  method: string,
  path: string,
  body?: unknown,
  signal?: AbortSignal,
): Promise<T> {
  const m = await send(wire, method, path, body, signal)
  const text = await readAll(m)
  return (text === '' ? {} : JSON.parse(text)) as T
}

/** NDJSON, line by line as it arrives. Ends with the answer; a connection lost in between is DAEMON_UNREACHABLE. */
export async function* ndjson<T>(wire: Wire, method: string, path: string, body?: unknown): AsyncGenerator<T> {
  const m = await send(wire, method, path, body)
  m.setEncoding('utf8')
  let held = ''
  try {
    for await (const chunk of m) {
      held += chunk
      for (let nl = held.indexOf('\n'); nl >= 0; nl = held.indexOf('\n')) {
        const line = held.slice(0, nl).trim()
        held = held.slice(nl + 1)
        if (line !== '') yield JSON.parse(line) as T
      }
    }
  } catch (e) {
    throw e instanceof SyntaxError ? e : connectError(wire.socket, e as NodeJS.ErrnoException)
  }
  if (held.trim() !== '') yield JSON.parse(held) as T
}

/** Ask for another protocol on the connection; resolves with the socket and the bytes that came with the answer. */
export function upgrade(
  wire: Wire,
  path: string,
  protocol: string,
  body: unknown,
): Promise<{ socket: Socket; head: Buffer }> {
  const text = JSON.stringify(body)
  return new Promise((resolve, reject) => {
    const req = http.request({
      socketPath: wire.socket,
      method: 'POST',
      path,
      agent: false,
      headers: {
        host: 'noid',
        connection: 'upgrade',
        upgrade: protocol,
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(text),
      },
    })
    req.on('error', (e: NodeJS.ErrnoException) => reject(connectError(wire.socket, e)))
    req.on('upgrade', (_m, socket: Socket, head: Buffer) => {
      socket.removeAllListeners('error')
      resolve({ socket, head })
    })
    req.on('response', (m) => {
      readAll(m).then(
        (t) => reject(answerError(m.statusCode ?? 500, t)),
        (e) => reject(connectError(wire.socket, e)),
      )
    })
    req.end(text)
  })
}
