/**
 * QMP, QEMU's control protocol: JSON lines over a unix socket, one client at a time (docs/interop/qmp-spec.txt of QEMU).
 *
 * Owns: one connection, the greeting, commands in flight by id, events. A connection is opened for a few commands and closed again,
 * so that whoever comes next, also another daemon, finds the socket free.
 * Never does: deciding what to say. Nothing a guest sends reaches this socket.
 * Invariants: every command is answered or rejected within its time; after `close` everything in flight is rejected.
 */
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

const OPEN_POLL_MS = 5
const COMMAND_MS = 10_000
/** No answer that is asked for here comes near it. */
const LINE_MAX = 4 * 1024 * 1024

export class QmpError extends Error {}

interface Waiting {
  readonly resolve: (value: unknown) => void
  readonly reject: (e: Error) => void
  readonly timer: NodeJS.Timeout
}

export interface QmpEvent {
  readonly event: string
  readonly data?: Readonly<Record<string, unknown>>
}

export class Qmp {
  readonly #socket: Socket
  readonly #waiting = new Map<number, Waiting>()
  readonly #listeners = new Set<(e: QmpEvent) => void>()
  #next = 1
  #text = ''

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.setEncoding('utf8')
    socket.on('data', (t: string) => this.#take(t))
    socket.on('error', (e) => this.#fail(e))
    socket.on('close', () => this.#fail(new QmpError('QEMU closed its control socket')))
  }

  /** Connects and leaves the capabilities mode. */
  static async connect(path: string, ms = COMMAND_MS): Promise<Qmp> {
    const q = new Qmp(connect({ path }))
    try {
      // Commands before the greeting are taken too: the socket is a stream.
      await q.execute('qmp_capabilities', {}, ms)
      return q
    } catch (e) {
      q.close()
      throw e
    }
  }

  /** Connects as soon as QEMU, which is just being started, listens. */
  static async opening(path: string, signal: AbortSignal): Promise<Qmp> {
    for (;;) {
      signal.throwIfAborted()
      try {
        return await Qmp.connect(path)
      } catch (e) {
        if (!['ENOENT', 'ECONNREFUSED'].includes((e as NodeJS.ErrnoException).code ?? '')) throw e
      }
      await sleep(OPEN_POLL_MS, undefined, { signal })
    }
  }

  execute<T = unknown>(command: string, args: object = {}, ms = COMMAND_MS): Promise<T> {
    const id = this.#next++
    return new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id)
        reject(new QmpError(`QEMU did not answer ${command} within ${ms / 1000} s`))
      }, ms)
      this.#waiting.set(id, { resolve: resolve as (v: unknown) => void, reject, timer })
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`)
    })
  }

  on(listener: (e: QmpEvent) => void): void {
    this.#listeners.add(listener)
  }

  close(): void {
    this.#socket.destroy()
    this.#fail(new QmpError('the control connection was closed'))
  }

  #take(t: string): void {
    this.#text += t
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const line = this.#text.slice(0, end).trim()
      this.#text = this.#text.slice(end + 1)
      if (line !== '') this.#line(line)
    }
    if (this.#text.length > LINE_MAX) this.#socket.destroy(new QmpError('QEMU sent a line without an end'))
  }

  #line(line: string): void {
    let m: { id?: number; return?: unknown; error?: { desc?: string }; event?: string; data?: Record<string, unknown> }
    try {
      m = JSON.parse(line)
    } catch {
      this.#socket.destroy(new QmpError('QEMU sent what is not JSON'))
      return
    }
    if (m.event !== undefined)
      for (const l of this.#listeners) l({ event: m.event, ...(m.data ? { data: m.data } : {}) })
    const w = m.id === undefined ? undefined : this.#waiting.get(m.id)
    if (w === undefined) return
    this.#waiting.delete(m.id as number)
    clearTimeout(w.timer)
    if (m.error !== undefined) w.reject(new QmpError(m.error.desc ?? 'QEMU refused'))
    else w.resolve(m.return)
  }

  #fail(e: Error): void {
    for (const w of this.#waiting.values()) {
      clearTimeout(w.timer)
      w.reject(e)
    }
    this.#waiting.clear()
  }
}
