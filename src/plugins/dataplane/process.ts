/**
 * The data-plane process of one network: started, adopted, watched by its connection, ended.
 *
 * Owns: the directory <runDir>/<network id> with control.sock, pid and dataplane.log.
 * Never does: deciding when a process should be there (its backend).
 *
 * Theory. The data plane outlives the daemon. What a later daemon finds is told by the socket: it connects, or it does not. The
 * pid file (pid and start time, so that a reused number is never taken for it) serves to end a process that no longer answers. Neither a pid file that
 * cannot be written (a full disk) nor a socket that cannot be made here (too many open files) says anything about the process: it is never ended for that.
 * The process ends by itself when its socket's file is gone, so a directory that was removed leaves nothing behind.
 */
import { spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type HelloAnswer, PROTOCOL_VERSION } from '../../dataplane/protocol.ts'
import { NoidError } from '../../errors.ts'
import { readState, writeState } from '../../state-file.ts'
import { errnoName, SysError } from '../../sys/errno.ts'
import { isRunning, processStat, signalExactly } from '../../sys/process.ts'
import { Link } from './link.ts'

const START_MS = 15_000
const POLL_MS = 10
const LOG_MAX = 1 << 20
const SIGKILL = 9
/** What a call fails with for want of something of this process, or of the machine. */
const OWN_LACK: ReadonlySet<string> = new Set(['EMFILE', 'ENFILE', 'ENOMEM', 'ENOBUFS'])
const ENTRY = fileURLToPath(
  new URL(`../../dataplane/main${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url),
)

type Log = (level: 'debug' | 'info' | 'warn' | 'error', message: string) => void

interface Identity {
  readonly pid: number
  readonly startTime: string
}

export interface Running {
  readonly link: Link
  readonly hello: HelloAnswer
  readonly identity: Identity | undefined
  /** False: it was there already, with what hello names. */
  readonly started: boolean
}

export class DataPlaneProcess {
  readonly dir: string
  readonly network: string
  readonly #log: Log
  /** What was found or started last: the file may have had no room for it. */
  #known: Identity | undefined

  constructor(dir: string, network: string, log: Log) {
    this.dir = dir
    this.network = network
    this.#log = log
  }

  get #socket(): string {
    return join(this.dir, 'control.sock')
  }
  get #pidFile(): string {
    return join(this.dir, 'pid')
  }
  get logFile(): string {
    return join(this.dir, 'dataplane.log')
  }

  /** The one that runs, or a new one. @throws NoidError DATAPLANE_FAILED when it does not come up */
  async ensure(signal: AbortSignal): Promise<Running> {
    return (await this.adopt(signal)) ?? (await this.#start(signal))
  }

  /** The one that runs, if it answers and speaks our version; one that does not is ended. */
  async adopt(signal: AbortSignal): Promise<Running | undefined> {
    signal.throwIfAborted()
    const link = this.#connect()
    if (link) {
      try {
        const hello = await link.request<HelloAnswer>({ op: 'hello' })
        if (hello.version === PROTOCOL_VERSION)
          return { link, hello, identity: this.#identity(hello.pid), started: false }
        this.#log(
          'warn',
          `the data plane of ${this.network} speaks version ${hello.version}: it is replaced, its flows end`,
        )
        await link.request({ op: 'stop' }).catch(() => {})
      } catch (e) {
        const { message } = e as Error
        this.#log(
          'warn',
          e instanceof NoidError ? message : `the data plane of ${this.network} does not answer: ${message}`,
        )
      }
      link.close()
    }
    await this.kill()
    return undefined
  }

  /** End it, by message or by signal, and remove its directory. Idempotent. */
  async end(link: Link | undefined): Promise<void> {
    let connection = link?.open ? link : undefined
    try {
      connection ??= this.#connect()
    } catch {
      // By signal, then.
    }
    await connection?.request({ op: 'stop' }).catch(() => {})
    connection?.close()
    const id = this.#recorded()
    for (let t = 0; id && t < 1000 && isRunning(id.pid, id.startTime); t += POLL_MS) await sleep(POLL_MS)
    await this.kill()
    rmSync(this.dir, { recursive: true, force: true })
  }

  /** undefined: nobody takes connections there. @throws SysError when this process has no socket to ask with */
  #connect(): Link | undefined {
    try {
      return new Link(this.#socket, this.network)
    } catch (e) {
      if (e instanceof SysError && OWN_LACK.has(e.code)) throw e
      return undefined
    }
  }

  async #start(signal: AbortSignal): Promise<Running> {
    signal.throwIfAborted()
    mkdirSync(this.dir, { recursive: true, mode: 0o700 })
    rmSync(this.#socket, { force: true })
    if ((statSync(this.logFile, { throwIfNoEntry: false })?.size ?? 0) > LOG_MAX)
      renameSync(this.logFile, `${this.logFile}.old`)
    const log = openSync(this.logFile, 'a', 0o600)
    const begin = statSync(this.logFile).size
    // Flags that this process was started with (--inspect, --test) are not for it.
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', ENTRY, this.dir], {
      detached: true,
      stdio: ['ignore', log, log],
      cwd: '/',
      env: {
        ...process.env,
        NODE_OPTIONS: '',
        NODE_TEST_CONTEXT: undefined,
        NODE_CHANNEL_FD: undefined,
        // Beside the networks' directories, so that all data planes share it: without, one that runs from a checkout keeps the
        // type stripper's memory (30 MB).
        NODE_COMPILE_CACHE: join(dirname(dirname(this.dir)), 'compiled'),
      },
    })
    closeSync(log)
    let ended: string | undefined
    child.on('error', (e) => {
      ended = e.message
    })
    child.on('exit', (code, by) => {
      ended = by ?? `exit code ${code}`
    })
    child.unref()
    const startTime = child.pid === undefined ? undefined : processStat(child.pid)?.startTime
    if (child.pid !== undefined && startTime !== undefined) this.#record({ pid: child.pid, startTime })
    try {
      for (const until = Date.now() + START_MS; Date.now() < until && ended === undefined; ) {
        await sleep(POLL_MS, undefined, { signal })
        const link = this.#connect()
        if (!link) continue
        const hello = await link.request<HelloAnswer>({ op: 'hello' })
        return { link, hello, identity: this.#identity(hello.pid), started: true }
      }
    } catch (e) {
      await this.kill()
      throw e
    }
    await this.kill()
    const why = this.#lastWords(begin) ?? ended ?? 'it did not open its socket'
    this.#log('error', `the data plane of ${this.network} did not start: ${why}`)
    throw new NoidError('DATAPLANE_FAILED', { network: this.network, why, log: this.logFile })
  }

  /** The error that it wrote last since `begin`, without its stack. */
  #lastWords(begin: number): string | undefined {
    const text = readFileSync(this.logFile).subarray(begin).toString()
    return text
      .match(/^.*\b\w*Error\b.*$/gm)
      ?.at(-1)
      ?.trim()
  }

  #identity(pid: number): Identity | undefined {
    const startTime = processStat(pid)?.startTime
    if (startTime === undefined) return undefined
    const id: Identity = { pid, startTime }
    this.#record(id)
    return id
  }

  #record(id: Identity): void {
    this.#known = id
    const was = readState<Identity>(this.#pidFile)
    if (was?.pid === id.pid && was.startTime === id.startTime) return
    try {
      writeState(this.#pidFile, id)
    } catch (e) {
      this.#log(
        'warn',
        `the pid ${id.pid} of the data plane of ${this.network} could not be written down: ${(e as Error).message}`,
      )
    }
  }

  #recorded(): Identity | undefined {
    return this.#known ?? readState<Identity>(this.#pidFile)
  }

  /** End it by signal. Idempotent. */
  async kill(): Promise<void> {
    const id = this.#recorded()
    if (!id || !isRunning(id.pid, id.startTime)) return
    const r = signalExactly(id.pid, id.startTime, SIGKILL)
    if (r < 0 && errnoName(r) !== 'ESRCH')
      this.#log('warn', `the data plane ${id.pid} cannot be ended: ${errnoName(r)}`)
    for (let t = 0; t < 1000 && isRunning(id.pid, id.startTime); t += POLL_MS) await sleep(POLL_MS)
  }
}
