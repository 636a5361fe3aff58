/**
 * Where backends come from: noid's own, and the plug-ins in the daemon's plug-in directory.
 *
 * What `noid plugins install` and `noid plugins link` have put there is read from that directory's package.json, as oclif writes it. Nothing
 * of a plug-in runs in the daemon: its hook `noid:backends` and its backends run in a process of its own (remote/).
 */
import { readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { BackendDescriptor } from './contract.ts'
import type { Source } from './registry.ts'

const builtin: Source = {
  from: 'noid',
  backends: async () => (await import('./builtin.ts')).default(),
}

/** The backend that needs nothing: what the runtimes' conformance kit plugs VMs into. */
export const userspace = async (): Promise<BackendDescriptor> => (await import('./userspace/index.ts')).descriptor

/** oclif's data directory (its Config.dataDir). */
const pluginsDir = (env: NodeJS.ProcessEnv): string =>
  env.NOID_DATA_DIR ?? join(env.XDG_DATA_HOME ?? join(env.HOME ?? homedir(), '.local', 'share'), 'noid')

interface Installed {
  readonly name: string
  readonly root: string
}

/** The plug-ins of a directory that have the hook. A directory that is not there has none; one that cannot be read is a problem of its own. */
export function installedPlugins(dir: string): Installed[] {
  let text: string
  try {
    text = readFileSync(join(dir, 'package.json'), 'utf8')
  } catch {
    return []
  }
  const { oclif } = JSON.parse(text) as { oclif?: { plugins?: { name: string; type: string; root?: string }[] } }
  return (oclif?.plugins ?? [])
    .map((p) => ({
      name: p.name,
      root: p.type === 'link' && p.root !== undefined ? p.root : join(dir, 'node_modules', p.name),
    }))
    .filter(({ root }) => {
      try {
        return (
          (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { oclif?: { hooks?: object } }).oclif
            ?.hooks?.['noid:backends' as never] !== undefined
        )
      } catch {
        return false
      }
    })
}

/** @param hookMs a plug-in's hook must have answered by then; undefined: its own limit */
export async function backendSources(env: NodeJS.ProcessEnv = process.env, hookMs?: number): Promise<Source[]> {
  try {
    const plugins = installedPlugins(pluginsDir(env))
    if (plugins.length === 0) return [builtin]
    const { Plugin } = await import('./remote/plugin.ts')
    return [
      builtin,
      ...plugins.map(
        ({ name, root }): Source => ({ from: name, backends: () => new Plugin(name, root, hookMs).descriptors() }),
      ),
    ]
  } catch (e) {
    return [builtin, { from: 'plugins', backends: () => Promise.reject(e) }]
  }
}
