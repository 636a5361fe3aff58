/**
 * Where backends come from: noid's own, and the oclif plug-ins that are installed.
 *
 * oclif is loaded only when its data directory has plug-ins (it costs 90 ms); its hook `noid:backends` is run once, each
 * plug-in bounded, and what each returned becomes a source of its own, so that a bad one is told by its name.
 */
import { existsSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Source } from './registry.ts'

const HOOK_MS = 4_000

const builtin: Source = {
  from: 'noid',
  backends: async () => (await import('./builtin.ts')).default(),
}

/** oclif's data directory (its Config.dataDir), where `noid plugins install` keeps what it installed. */
const pluginsFile = (env: NodeJS.ProcessEnv): string =>
  join(
    env.NOID_DATA_DIR ?? join(env.XDG_DATA_HOME ?? join(env.HOME ?? homedir(), '.local', 'share'), 'noid'),
    'package.json',
  )

export async function backendSources(env: NodeJS.ProcessEnv = process.env): Promise<Source[]> {
  if (!existsSync(pluginsFile(env))) return [builtin]
  const installed = await installedSources().catch((e: unknown) => [
    { from: 'plugins', backends: () => Promise.reject(e) } satisfies Source,
  ])
  return [builtin, ...installed]
}

async function installedSources(): Promise<Source[]> {
  const { Config } = await import('@oclif/core')
  const config = await Config.load(fileURLToPath(new URL('../../', import.meta.url)))
  const { successes, failures } = await config.runHook('noid:backends', {}, HOOK_MS, true)
  return [
    ...successes.map((s): Source => ({ from: s.plugin.name, backends: async () => s.result })),
    ...failures.map((f): Source => ({ from: f.plugin.name, backends: () => Promise.reject(f.error) })),
  ]
}
