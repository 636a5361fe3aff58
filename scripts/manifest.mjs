/**
 * Write oclif.manifest.json: the commands as data, so that a call loads one command file and not all of them.
 * Run it after a command's flags, arguments or texts change; a test compares it with the sources.
 */
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/** The manifest of the package below `at`, read from its command files. */
export async function manifestOf(at = root) {
  const { Plugin } = await import('@oclif/core')
  const plugin = new Plugin({ root: at, type: 'core', ignoreManifest: true, errorOnManifestCreate: true })
  await plugin.load()
  const sorted = Object.entries(plugin.manifest.commands).sort(([a], [b]) => (a < b ? -1 : 1))
  return `${JSON.stringify({ commands: Object.fromEntries(sorted), version: plugin.manifest.version }, null, 2)}\n`
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  writeFileSync(new URL('../oclif.manifest.json', import.meta.url), await manifestOf())
}
