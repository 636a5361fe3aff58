/**
 * The daemon's process, as src/client/daemon.ts starts it: detached, without a terminal.
 *
 * Prints nothing; everything is in the log. Ends with 0 when it was asked to, or when another daemon serves the store
 * already (then that one answers); with 1 when it cannot start. A fault that nobody caught is logged and survived: VMs
 * of many people may hang on it, and every operation writes down what it does.
 */
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { ownPaths } from '../paths.ts'
import { backendSources } from '../plugins/sources.ts'
import { runtimes } from '../runtimes/index.ts'
import { startDaemon } from './daemon.ts'
import { fileLog } from './log.ts'

const paths = ownPaths()
const debug = process.env.NOID_DEBUG !== undefined && process.env.NOID_DEBUG !== '0'
const log = fileLog(paths.daemonLog, debug)
const text = (e: unknown): string => (e instanceof Error ? (e.stack ?? e.message) : String(e))

/** Root with the rights that networks and namespaces need; root of a bare container has them not. capabilities(7). */
function privileged(): boolean {
  const CAP_NET_ADMIN = 1n << 12n
  const CAP_SYS_ADMIN = 1n << 21n
  const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync('/proc/self/status', 'latin1'))?.[1] ?? '0'
  const needed = CAP_NET_ADMIN | CAP_SYS_ADMIN
  return process.getuid?.() === 0 && (BigInt(`0x${effective}`) & needed) === needed
}

process.title = 'noid-daemon'
process.on('uncaughtException', (e) => log('error', `uncaught: ${text(e)}`))
process.on('unhandledRejection', (e) => log('error', `unhandled: ${text(e)}`))
process.on('SIGHUP', () => {})

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string
}
try {
  const daemon = await startDaemon({
    paths,
    sources: await backendSources(),
    runtimes,
    log,
    version,
    rooted: () => [fileURLToPath(import.meta.url), process.execPath].every((file) => existsSync(file)),
    privileged: privileged(),
    defaultBackend: process.env.NOID_NETWORK_BACKEND,
    debug,
  })
  if (daemon === undefined) log('warn', `another daemon serves ${paths.stateDir}`)
  else {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => void daemon.stop())
    await daemon.ended
  }
  process.exit(0)
} catch (e) {
  // The client shows the end of the log to whoever waited: a sentence there, the rest under NOID_DEBUG.
  log('error', `cannot start: ${e instanceof Error ? e.message : e}`)
  log('debug', text(e))
  process.exit(1)
}
