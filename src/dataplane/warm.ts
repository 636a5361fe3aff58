/**
 * Once more, lighter: a data plane that had to strip types begins again with what it has just compiled.
 *
 * Theory. From a checkout the sources are TypeScript. Node's type stripper takes 30 MB which a process that lives for weeks would keep. With a
 * compile cache (NODE_COMPILE_CACHE, set by whoever starts it) the next start needs neither the stripper nor its memory, so the first
 * one writes the cache and executes itself again: the same process to everybody else, 0.2 s later, once for each version of the sources.
 * What is installed from npm is JavaScript, for which nothing happens here.
 */
import { flushCompileCache } from 'node:module'

/** So that it begins again at most once, whatever became of the cache. */
const MARK = 'NOID_DATAPLANE_AGAIN'

/** Returns if there is nothing to gain. Call before anything is opened. */
export function beginAgainIfHeavy(): void {
  const { env } = process
  const again = env[MARK] !== undefined
  delete env[MARK]
  if (env.NODE_COMPILE_CACHE === undefined || process.execve === undefined) return
  // Later it is somebody who may not write there.
  flushCompileCache()
  const { moduleLoadList } = process as { moduleLoadList?: readonly string[] }
  if (again || !moduleLoadList?.some((name) => name.includes('amaro'))) return
  process.execve(process.execPath, [process.execPath, ...process.execArgv, ...process.argv.slice(1)], {
    ...env,
    [MARK]: '1',
  })
}
