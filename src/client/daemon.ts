/**
 * Which daemon a command speaks to, and a daemon for it when there is none.
 *
 * Choice: `--host` or NOID_HOST; else, for an ordinary user, root's socket when this user may write to it; else the
 * user's own. Only the own daemon is started on demand: a named host that is silent is an error, never a second daemon.
 * One whose installation was removed, a deleted checkout say, can start nothing any more: the own one is replaced (VMs go on), another's is an error.
 * The daemon is detached, in a session of its own; what it prints goes to its log, whose end is told when it does not
 * come up. Two commands that start one at the same moment both wait for whichever answers.
 */
import { spawn } from 'node:child_process'
import { accessSync, closeSync, constants, existsSync, mkdirSync, openSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { VersionInfo } from '../api/contract.ts'
import { API_VERSION } from '../api/routes.ts'
import { NoidError } from '../errors.ts'
import { ownPaths, type Paths, rootPaths } from '../paths.ts'
import { Client } from './client.ts'

export interface Target {
  readonly socket: string
  /** The daemon this user starts when nobody listens; absent for a daemon of somebody else. */
  readonly own: Paths | undefined
}

/** Parse `--host`: a path, or unix://PATH. */
export function hostSocket(host: string): string {
  const path = host.startsWith('unix://') ? host.slice('unix://'.length) : host
  if (!path.startsWith('/')) {
    throw new NoidError('INVALID_INPUT', {
      what: `"${host}" is not a daemon's address`,
      hint: "give the path of the daemon's socket, such as /run/noid/noid.sock",
    })
  }
  return path
}

export function chooseTarget(host: string | undefined, env: NodeJS.ProcessEnv = process.env): Target {
  const own = ownPaths(env)
  if (host) {
    const socket = hostSocket(host)
    return { socket, own: socket === own.socket ? own : undefined }
  }
  const root = rootPaths()
  if (!env.NOID_HOME && root.socket !== own.socket && mayUse(root.socket))
    return { socket: root.socket, own: undefined }
  return { socket: own.socket, own }
}

function mayUse(socket: string): boolean {
  try {
    accessSync(socket, constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** How long a daemon may take to answer after it was started; adopting VMs after a crash is part of it. */
const START_MS = 20_000

/** A daemon that is there says its version at once; one that is stopped or hung never does. */
const PROBE_MS = 5_000

export interface Connected {
  readonly client: Client
  readonly version: VersionInfo
  readonly started: boolean
}

/** A client whose daemon answers and speaks this command's API; starts it when it is this user's own. */
export async function connect(target: Target, cliVersion: string): Promise<Connected> {
  const client = new Client(target.socket)
  let version = await probe(client).catch((e: unknown) => {
    // Not this user's socket to use, although it is where this user's own would be.
    if (target.own !== undefined && e instanceof NoidError && e.code === 'DAEMON_FORBIDDEN') {
      throw noPlace(dirname(target.socket), e.cause)
    }
    throw e
  })
  if (version?.uprooted) {
    if (target.own === undefined) throw new NoidError('DAEMON_UPROOTED', { daemon: version.version })
    await stopDaemon(client, version.pid)
    version = undefined
  }
  const started = version === undefined
  if (version === undefined) {
    if (target.own === undefined) throw new NoidError('DAEMON_UNREACHABLE', { socket: target.socket })
    version = await startDaemon(client, target.own)
  }
  if (version.api !== API_VERSION) {
    throw new NoidError('DAEMON_VERSION', { daemon: version.version, cli: cliVersion })
  }
  return { client, version, started }
}

/** The daemon's answer, or undefined when nobody listens. One that listens and does not answer is an error. */
export async function probe(client: Client): Promise<VersionInfo | undefined> {
  try {
    return await client.version(AbortSignal.timeout(PROBE_MS))
  } catch (e) {
    if (e instanceof NoidError && NOBODY.has(String((e.cause as NodeJS.ErrnoException | undefined)?.code)))
      return undefined
    throw e
  }
}

/** connect(2) on a path: there is no such socket, or nobody listens on it any more (or not yet). */
const NOBODY = new Set(['ENOENT', 'ECONNREFUSED', 'ECONNRESET', 'ENOTDIR'])

const STOP_MS = 10_000

/** Stop the daemon and wait until its process has ended; its VMs go on. */
export async function stopDaemon(client: Client, pid: number): Promise<void> {
  await client.stopDaemon()
  for (const end = Date.now() + STOP_MS; Date.now() < end && alive(pid); ) await sleep(20)
  if (alive(pid)) throw new NoidError('DAEMON_UNREACHABLE', { socket: client.socket })
}

/** Signal 0 asks without touching; EPERM still means that it is there. */
function alive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (e) {
    return (e as NodeJS.ErrnoException).code === 'EPERM'
  }
}

export function daemonEntry(): string {
  const suffix = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
  return fileURLToPath(new URL(`../daemon/main.${suffix}`, import.meta.url))
}

async function startDaemon(client: Client, paths: Paths): Promise<VersionInfo> {
  const log = openLog(paths.daemonLog)
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', daemonEntry()], {
    cwd: '/',
    detached: true,
    stdio: ['ignore', log, log],
  })
  closeSync(log)
  child.unref()
  let gone = false
  child.once('error', () => {
    gone = true
  })
  child.once('exit', () => {
    gone = true
  })

  const deadline = Date.now() + START_MS
  let grace = 20
  while (Date.now() < deadline) {
    await sleep(25)
    const version = await probe(client)
    if (version !== undefined) return version
    // It may have ended because another command's daemon holds the lock: then that one answers shortly.
    if (gone && grace-- === 0) break
  }
  throw new NoidError('DAEMON_UNREACHABLE', { socket: paths.socket, log: logTail(paths.daemonLog, 8) })
}

/** The log's descriptor; its directory is made. A place that cannot be written to is told as what it is. */
function openLog(file: string): number {
  try {
    makeDirs(dirname(file))
    return openSync(file, 'a', 0o600)
  } catch (e) {
    throw noPlace(dirname(file), e)
  }
}

function noPlace(dir: string, cause: unknown): NoidError {
  const code = (cause as NodeJS.ErrnoException).code
  const details = { what: `noid cannot use ${dir} (${code})`, hint: 'set NOID_HOME to a directory you may write to' }
  return new NoidError('INVALID_INPUT', details, { cause })
}

/** One level at a time: mkdir's `recursive` never ends where the file system refuses new names (/proc). */
function makeDirs(dir: string): void {
  if (existsSync(dir)) return
  if (dirname(dir) !== dir) makeDirs(dirname(dir))
  try {
    mkdirSync(dir, { mode: 0o700 })
  } catch (e) {
    // Another command may have been quicker.
    if ((e as NodeJS.ErrnoException).code !== 'EEXIST') throw e
  }
}

export function logTail(file: string, lines: number): string[] {
  if (!existsSync(file)) return []
  return readFileSync(file, 'utf8').trimEnd().split('\n').slice(-lines)
}
