/**
 * Where compiled code is kept between commands: the user's own cache directory, never a shared one, because what lies
 * there is executed.
 */
import { homedir } from 'node:os'
import { join } from 'node:path'

export function cacheDir(env: NodeJS.ProcessEnv = process.env): string | undefined {
  const base = env.XDG_CACHE_HOME || (env.HOME || homedir() ? join(env.HOME || homedir(), '.cache') : undefined)
  return base === undefined ? undefined : join(base, 'noid')
}
