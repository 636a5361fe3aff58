/**
 * The daemon, composed: lock → store → registry → server → reconcile → watch; the only wiring file of the control plane.
 *
 * The socket answers before reconciling is done (requests wait, the version does not), so that a start on demand is quick
 * and a hung backend cannot make the daemon look dead. Ending it leaves VMs and networks as they are.
 */
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { VersionInfo } from '../api/contract.ts'
import { API_VERSION } from '../api/routes.ts'
import { Images, imagesDir } from '../images/index.ts'
import { Lock } from '../lock.ts'
import type { Paths } from '../paths.ts'
import { Registry, type Source } from '../plugins/registry.ts'
import type { RuntimeDescriptor } from '../runtimes/contract.ts'
import { parseRoutes, type TakenSubnet } from './addressing.ts'
import { parseRoutes6, type TakenPrefix6 } from './addressing6.ts'
import { bootId, type Control, type Log, Runtimes } from './control.ts'
import { Foreign } from './foreign.ts'
import { KeyedMutex } from './mutex.ts'
import { Networks } from './networks.ts'
import { Prune } from './prune.ts'
import { Publishes } from './publishes.ts'
import { Reconciler } from './reconcile.ts'
import { Reserve } from './reserve.ts'
import { BACKOFF, type Backoff } from './restarts.ts'
import { buildServer } from './server.ts'
import { SCHEMA_VERSION, Store } from './store.ts'
import { Vms } from './vms.ts'

/** How long running operations may take to finish when the daemon is asked to end. */
const DRAIN_MS = 15_000
/** How long requests wait for what a former daemon left to be put in order. */
const RECONCILE_MS = 10_000
const SOCKET_GROUP = 'noid'
/** sockaddr_un.sun_path without its NUL; unix(7). */
const SUN_PATH_MAX = 107

export interface DaemonOptions {
  readonly paths: Paths
  readonly sources: readonly Source[]
  readonly runtimes: readonly RuntimeDescriptor[]
  readonly log: Log
  readonly version: string
  /** Are the files that it runs from still there? */
  readonly rooted?: () => boolean
  readonly privileged: boolean
  readonly defaultBackend?: string
  readonly debug?: boolean
  readonly hostRoutes?: () => readonly TakenSubnet[]
  readonly hostRoutes6?: () => readonly TakenPrefix6[] | undefined
  readonly checkpoint?: (point: string) => void
  readonly backoff?: Backoff
}

export interface Daemon {
  /** Resolves when the store and the world agree. */
  readonly ready: Promise<void>
  /** Ends the daemon; VMs go on. */
  stop(): Promise<void>
  /** Resolves when it has ended, by stop() or by a client's wish. */
  readonly ended: Promise<void>
}

/** Starts a daemon, or returns undefined when another one serves this store. */
export async function startDaemon(o: DaemonOptions): Promise<Daemon | undefined> {
  const { paths, log } = o
  const began = Date.now()
  if (Buffer.byteLength(paths.socket) > SUN_PATH_MAX)
    throw new Error(
      `${paths.socket} is longer than ${SUN_PATH_MAX} bytes, too long for a unix socket: choose a shorter NOID_HOME`,
    )
  makeDirs(paths)
  const lock = Lock.take(join(paths.stateDir, 'daemon.lock'))
  if (lock === undefined) return undefined

  // On a disk that is full it is what the start needs.
  const reserve = new Reserve(join(paths.stateDir, 'reserve'))
  reserve.lend()
  const store = new Store(paths.store, reserve)
  reserve.keep()
  // Events may come while backends are loaded; by then the reconciler exists.
  let reconciler: Reconciler | undefined
  const registry = await Registry.collect(o.sources, (name) => ({
    ...privateDirs(paths, name),
    privileged: o.privileged,
    log: (level, message) => log(level, `${name}: ${message}`),
    notify: (e) => reconciler?.event(e),
  }))
  for (const p of registry.problems) log('warn', `backends of ${p.from}: ${p.what}`)
  const control: Control = {
    store,
    reserve,
    registry,
    runtimes: new Runtimes(o.runtimes, {
      privileged: o.privileged,
      runDir: paths.runDir,
      stateDir: paths.stateDir,
      log,
    }),
    locks: new KeyedMutex(),
    paths,
    log,
    defaultBackend: o.defaultBackend ?? 'userspace',
    bootId: bootId(),
    privileged: o.privileged,
    hostRoutes6: o.hostRoutes6 ?? hostRoutes6,
    hostRoutes: o.hostRoutes ?? hostRoutes,
    backoff: o.backoff ?? BACKOFF,
    checkpoint: o.checkpoint ?? (() => {}),
  }
  const networks = new Networks(control)
  const vms = new Vms(control, networks)
  reconciler = new Reconciler(control, networks, vms)

  const pidFile = join(paths.runDir, 'daemon.pid')
  const { promise: ended, resolve: tellEnded } = Promise.withResolvers<void>()
  let stopping: Promise<void> | undefined
  const stop = (): Promise<void> => {
    stopping ??= (async () => {
      log('info', 'ending; VMs go on')
      reconciler.close()
      const late = new Promise((r) => setTimeout(r, DRAIN_MS).unref())
      await Promise.race([control.locks.idle(), late])
      await app.close()
      await control.runtimes.close()
      await registry.close()
      store.close()
      rmSync(pidFile, { force: true })
      rmSync(paths.socket, { force: true })
      lock.release()
      tellEnded()
    })()
    return stopping
  }
  const { promise: ready, resolve: tellReady } = Promise.withResolvers<void>()
  const version = (): VersionInfo => ({
    api: API_VERSION,
    version: o.version,
    schema: SCHEMA_VERSION,
    pid: process.pid,
    uptimeMs: Date.now() - began,
    vms: store.countVms(),
    stateDir: paths.stateDir,
    uprooted: o.rooted?.() === false,
  })
  // The answer to the wish leaves first.
  const wish = (): void => void setTimeout(() => void stop(), 50)
  const publishes = new Publishes(control, vms)
  const foreign = new Foreign(control, networks, vms)
  const app = buildServer({
    control,
    vms,
    networks,
    publishes,
    foreign,
    prune: new Prune(control, networks, vms),
    images: new Images(imagesDir(paths.stateDir), log),
    version,
    ready,
    stop: wish,
    debug: o.debug ?? false,
  })
  await listen(app, paths)
  writeFileSync(pidFile, `${process.pid}\n`)
  log('info', `noid ${o.version} serves ${paths.socket}, pid ${process.pid}`)

  // A network that hangs must not keep people from the others: after a while they are served, it is not.
  const patience = setTimeout(tellReady, RECONCILE_MS)
  void reconciler.start().then(() => {
    clearTimeout(patience)
    tellReady()
    if (stopping === undefined) reconciler.watch()
  })
  return { ready, stop, ended }
}

/** The sockets of a user's daemon are the user's; root's directory may be entered, its socket's mode decides. */
function makeDirs(paths: Paths): void {
  mkdirSync(paths.runDir, { recursive: true, mode: process.getuid?.() === 0 ? 0o755 : 0o700 })
  mkdirSync(paths.stateDir, { recursive: true, mode: 0o700 })
}

function privateDirs(paths: Paths, backend: string): { runDir: string; stateDir: string } {
  const dirs = { runDir: join(paths.runDir, backend), stateDir: join(paths.stateDir, 'backends', backend) }
  for (const d of Object.values(dirs)) mkdirSync(d, { recursive: true, mode: 0o700 })
  return dirs
}

/** A socket that is left from a daemon that died is replaced: the lock says that nobody serves it. */
async function listen(app: { listen(o: { path: string }): Promise<unknown> }, paths: Paths): Promise<void> {
  mkdirSync(dirname(paths.socket), { recursive: true })
  rmSync(paths.socket, { force: true })
  const mask = process.umask(0o177)
  try {
    await app.listen({ path: paths.socket })
  } finally {
    process.umask(mask)
  }
  const gid = process.getuid?.() === 0 ? groupId(SOCKET_GROUP) : undefined
  if (gid === undefined) return
  chownSync(paths.socket, 0, gid)
  chmodSync(paths.socket, 0o660)
}

/** From /etc/group; group(5). */
function groupId(name: string): number | undefined {
  if (!existsSync('/etc/group')) return undefined
  const line = readFileSync('/etc/group', 'utf8')
    .split('\n')
    .find((l) => l.startsWith(`${name}:`))
  return line === undefined ? undefined : Number(line.split(':')[2])
}

const hostRoutes = (): readonly TakenSubnet[] => {
  try {
    return parseRoutes(readFileSync('/proc/net/route', 'latin1'))
  } catch {
    return []
  }
}

const hostRoutes6 = (): readonly TakenPrefix6[] | undefined => {
  try {
    return parseRoutes6(readFileSync('/proc/net/ipv6_route', 'latin1'))
  } catch {
    return undefined
  }
}
