/**
 * A plug-in as the daemon sees it: a process that answers for its backends, and stand-ins for them that keep the contract.
 *
 * Owns: the process (started when somebody asks, started again after it died), calls that wait for their answer, the networks each backend was
 * told of, which are told again to a new process. Never does: running any code of the plug-in's in the daemon.
 *
 * A backend is loaded once in each process, by the first call that wants it. A load that failed is tried again by the next call, in a process of its own
 * when nothing else of the plug-in lives in this one: what it failed by may be mended on the disk by then, and code that was read is not read again.
 *
 * What it can do to the daemon is bounded: a call that is not answered in time is aborted, and when that is not answered either the process is
 * killed; messages that are no answers are ignored.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { type ErrorBody, NoidError } from '../../errors.ts'
import type {
  BackendContext,
  BackendDescriptor,
  NetworkBackend,
  NetworkId,
  NetworkSpec,
  NetworkStats,
} from '../contract.ts'
import type { FromChild, PlainDescriptor, PlainError, ToChild } from './messages.ts'

/** The hook must have answered by then. */
const HOOK_MS = 4_000
/** No verb takes longer; the daemon's own limits are shorter. */
const CALL_MS = 60_000
/** After an abort: this long to undo, then the process is ended. */
const GRACE_MS = 5_000
const ENTRY = fileURLToPath(new URL(`./child${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url))

const NO_STATS: NetworkStats = { flows: [], leases: [], drops: [], ports: [], warnings: [] }

/** `call` names the pair of messages. */
type Asked = Extract<ToChild, { type: 'load' | 'call' }>
type WithoutCall<T> = T extends unknown ? Omit<T, 'call'> : never

interface Waiting {
  /** Who was asked: a new process does not answer for an old one. */
  readonly of: ChildProcess
  readonly resolve: (v: unknown) => void
  readonly reject: (e: Error) => void
}

/** What a backend was told, for the next process. */
interface Told {
  readonly backend: string
  readonly context: BackendContext
  readonly networks: Map<NetworkId, NetworkSpec>
  /** In which process it was loaded, or is being loaded. */
  readonly loads: WeakMap<ChildProcess, Promise<unknown>>
}

export class Plugin {
  readonly name: string
  readonly #root: string
  readonly #hookMs: number
  readonly #waiting = new Map<number, Waiting>()
  readonly #told = new Map<string, Told>()
  #child: Promise<ChildProcess> | undefined
  #running: ChildProcess | undefined
  #calls = 0
  #list: unknown

  constructor(name: string, root: string, hookMs = HOOK_MS) {
    this.name = name
    this.#root = root
    this.#hookMs = hookMs
  }

  /** What its hook returns, with `load` put back: descriptors, unchecked. */
  async descriptors(): Promise<unknown> {
    await this.#up()
    if (!Array.isArray(this.#list)) return this.#list
    return this.#list.map((d: PlainDescriptor & { loads?: boolean }) => {
      if (d === null || typeof d !== 'object') return d
      const { loads, ...rest } = d
      return loads === false ? rest : ({ ...rest, load: () => this.#load(rest) } satisfies BackendDescriptor)
    })
  }

  /** End the process; the next call starts another. */
  close(): void {
    const child = this.#running
    this.#running = this.#child = undefined
    if (child?.connected) child.disconnect()
  }

  // -- the process ---------------------------------------------------------------------------------------------------

  #up(): Promise<ChildProcess> {
    if (this.#child !== undefined) return this.#child
    const child = this.#start()
    this.#child = child
    // Not one that was started in the meantime.
    child.catch(() => {
      if (this.#child === child) this.#child = undefined
    })
    return child
  }

  async #start(): Promise<ChildProcess> {
    const child = fork(ENTRY, [this.#root], {
      execArgv: ['--disable-warning=ExperimentalWarning'],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      serialization: 'json',
    })
    const { promise, resolve, reject } = Promise.withResolvers<ChildProcess>()
    const ms = this.#hookMs
    const late = setTimeout(() => reject(new Error(`its hook gave no answer within ${ms / 1000} s`)), ms)
    child.on('error', reject)
    child.on('exit', (code, signal) => {
      reject(new Error(`its process ended (${signal ?? code})`))
      if (this.#running === child) this.#running = this.#child = undefined
      for (const [call, w] of this.#waiting) {
        if (w.of !== child) continue
        this.#waiting.delete(call)
        w.reject(unavailable(this.name, `its process ended (${signal ?? code})`))
      }
    })
    child.on('message', (m: FromChild) => {
      if (m?.type === 'descriptors') {
        this.#list = m.list
        resolve(child)
      } else if (m?.type === 'failed') reject(revive(m.error))
      else this.#message(m)
    })
    try {
      await promise
      this.#running = child
      // It must not keep the daemon alive.
      child.unref()
      child.channel?.unref()
      await this.#tellAgain(child)
      return child
    } catch (e) {
      // Nobody knows it: it would live on for ever.
      child.kill('SIGKILL')
      if (this.#running === child) this.#running = undefined
      throw e
    } finally {
      clearTimeout(late)
    }
  }

  /** A new process knows nothing: load what was loaded, create what was created. Throws when there is nothing of it that can be loaded. */
  async #tellAgain(child: ChildProcess): Promise<void> {
    const faults: unknown[] = []
    for (const t of this.#told.values()) await this.#loadIn(child, t).catch((e: unknown) => faults.push(e))
    if (faults.length > 0 && faults.length === this.#told.size) throw faults[0]
  }

  /** Once for each process. */
  #loadIn(child: ChildProcess, t: Told): Promise<unknown> {
    const known = t.loads.get(child)
    if (known !== undefined) return known
    const loading = this.#tell(child, t)
    t.loads.set(child, loading)
    loading.catch(() => t.loads.delete(child))
    return loading
  }

  async #tell(child: ChildProcess, { backend, context, networks }: Told): Promise<void> {
    await this.#ask(child, { type: 'load', backend, context: plainContext(context) }).catch((e: Error) => {
      throw e instanceof NoidError ? e : unavailable(backend, `it could not be loaded: ${e.message}`)
    })
    for (const n of networks.values())
      await this.#ask(child, { type: 'call', backend, method: 'createNetwork', args: [n], signal: true }).catch(
        (e: Error) => context.log('warn', `${backend} could not take up the network ${n.name} again: ${e.message}`),
      )
  }

  /** A process in which nothing is loaded is of no use: the next one reads the plug-in's files anew. */
  #unlessUsed(child: ChildProcess): void {
    if (this.#running === child && ![...this.#told.values()].some((t) => t.loads.has(child))) this.close()
  }

  #message(m: FromChild): void {
    if (m?.type === 'log') {
      for (const t of this.#told.values()) {
        t.context.log(m.level, `${this.name}: ${m.message}`)
        break
      }
    } else if (m?.type === 'event') this.#told.get(m.backend)?.context.notify(m.event)
    else if (m?.type === 'result' || m?.type === 'error') {
      const w = this.#waiting.get(m.call)
      this.#waiting.delete(m.call)
      if (m.type === 'result') w?.resolve(m.value)
      else w?.reject(revive(m.error))
    }
  }

  #ask(child: ChildProcess, m: WithoutCall<Asked>, signal?: AbortSignal): Promise<unknown> {
    const call = ++this.#calls
    const { promise, resolve, reject } = Promise.withResolvers<unknown>()
    this.#waiting.set(call, { of: child, resolve, reject })
    let grace: NodeJS.Timeout | undefined
    const abort = (): void => {
      if (child.connected) child.send({ type: 'abort', call } satisfies ToChild)
      // It has a moment to undo; then nobody waits for it, and it is not trusted with more.
      grace = setTimeout(() => child.kill('SIGKILL'), GRACE_MS)
    }
    const late = setTimeout(abort, CALL_MS)
    signal?.addEventListener('abort', abort, { once: true })
    child.send({ ...m, call } satisfies ToChild, (e) => e && reject(unavailable(this.name, e.message)))
    if (signal?.aborted) abort()
    return promise.finally(() => {
      clearTimeout(late)
      clearTimeout(grace)
      signal?.removeEventListener('abort', abort)
      this.#waiting.delete(call)
    })
  }

  // -- a backend's stand-in ------------------------------------------------------------------------------------------

  async #load(d: PlainDescriptor): Promise<(ctx: BackendContext) => NetworkBackend> {
    await this.#up()
    return (ctx) => this.#standIn(d.name, d.capabilities.publish, ctx)
  }

  #standIn(backend: string, publish: boolean, ctx: BackendContext): NetworkBackend {
    const told: Told = { backend, context: ctx, networks: new Map(), loads: new WeakMap() }
    const { networks } = told
    this.#told.set(backend, told)
    const call = async (method: string, args: readonly unknown[], signal?: AbortSignal): Promise<never> => {
      const child = await this.#up()
      await this.#loadIn(child, told).catch((e: unknown) => {
        this.#unlessUsed(child)
        throw e
      })
      return (await this.#ask(
        child,
        { type: 'call', backend, method, args, signal: signal !== undefined },
        signal,
      )) as never
    }
    return {
      parseConfig: (raw) => call('parseConfig', [raw ?? null]),
      status: (s) => call('status', [], s),
      createNetwork: async (n, s) => {
        await call('createNetwork', [n], s)
        networks.set(n.id, n)
      },
      deleteNetwork: async (id, s) => {
        await call('deleteNetwork', [id], s)
        networks.delete(id)
      },
      attach: (r, s) => call('attach', [r], s),
      detach: (id, last, s) => call('detach', [id, last ?? null], s),
      check: (a, s) => call('check', [a], s),
      gc: (n, valid, s) => call('gc', [n, valid], s),
      close: async () => {
        await call('close', []).catch(() => {})
        this.#told.delete(backend)
        if (this.#told.size === 0) this.close()
      },
      ...(publish
        ? {
            ports: {
              publish: (p, s) => call('ports.publish', [p], s),
              unpublish: (id, s) => call('ports.unpublish', [id], s),
            },
          }
        : {}),
      stats: async (n) => ((await call('stats', [n])) as NetworkStats | null) ?? NO_STATS,
    }
  }
}

const plainContext = ({ runDir, stateDir, privileged }: BackendContext) => ({ runDir, stateDir, privileged })

const unavailable = (name: string, why: string): NoidError => new NoidError('BACKEND_UNAVAILABLE', { name, why })

const revive = (e: PlainError): Error =>
  e.body?.code === undefined ? new Error(e.message) : NoidError.from(e.body as ErrorBody)
