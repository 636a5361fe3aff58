/**
 * Where noid keeps things: root's under /run/noid and /var/lib/noid, a user's under $XDG_RUNTIME_DIR (or ~/.noid/run)
 * and ~/.noid. `NOID_HOME=DIR` puts all of it below one directory (tests, several daemons side by side).
 *
 * Never does: creating anything.
 */
import { homedir } from 'node:os'
import { join } from 'node:path'

export interface Paths {
  /** Sockets, pid files: gone with a reboot. */
  readonly runDir: string
  /** The store, VM directories, images, plug-ins. */
  readonly stateDir: string
  readonly socket: string
  readonly store: string
  readonly daemonLog: string
}

const below = (runDir: string, stateDir: string): Paths => ({
  runDir,
  stateDir,
  socket: join(runDir, 'noid.sock'),
  store: join(stateDir, 'noid.db'),
  daemonLog: join(stateDir, 'daemon.log'),
})

export const rootPaths = (): Paths => below('/run/noid', '/var/lib/noid')

/** The paths of the daemon that this user's own commands start. */
export function ownPaths(env: NodeJS.ProcessEnv = process.env, uid = process.getuid?.() ?? 0): Paths {
  if (env.NOID_HOME) return below(join(env.NOID_HOME, 'run'), join(env.NOID_HOME, 'state'))
  if (uid === 0) return rootPaths()
  const home = env.HOME || homedir()
  return below(
    env.XDG_RUNTIME_DIR ? join(env.XDG_RUNTIME_DIR, 'noid') : join(home, '.noid', 'run'),
    join(home, '.noid'),
  )
}
