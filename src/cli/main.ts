/**
 * The command line from argv to exit code, under the supported Node (bin/noid.mjs sees to that).
 *
 * Owns: the compile cache, running oclif, and the last word on every error: one sentence, its code, a hint. A stack is
 * shown only when NOID_DEBUG is set. Exit codes: 2 wrong usage, 1 the rest; `exec` ends with its command's own.
 */
import { enableCompileCache } from 'node:module'
import { fileURLToPath } from 'node:url'
import { cacheDir } from './cache.ts'

export async function main(argv: readonly string[]): Promise<void> {
  const cache = cacheDir()
  // Compiled code and stripped types are kept, so that a command starts in half the time.
  if (cache !== undefined && !process.env.NODE_COMPILE_CACHE) enableCompileCache(cache)
  process.stdout.on('error', unwritable)
  const { run } = await import('@oclif/core')
  try {
    await run([...argv], fileURLToPath(new URL('../..', rootUrl())))
  } catch (e) {
    const { report } = await import('./failure.ts')
    process.exitCode = report(e, wantsJson(argv))
  }
}

/** What is followed goes on for ever: nobody reading it any more ends that (cli/base.ts). Nothing else is to be said where nothing can be. */
function unwritable(e: NodeJS.ErrnoException): void {
  if (e.code === 'EPIPE') return
  process.stderr.write(`noid: what it says cannot be written: ${e.message}\n`)
  process.exit(1)
}

/** This file is two levels below the package's root in a checkout, three in what is published (dist/src/cli). */
function rootUrl(): string {
  return import.meta.url.endsWith('.ts') ? import.meta.url : new URL('..', import.meta.url).href
}

/** `--json` before a `--`: what comes after belongs to a command in a VM. */
export function wantsJson(argv: readonly string[]): boolean {
  const end = argv.indexOf('--')
  const json = argv.indexOf('--json')
  return json >= 0 && (end < 0 || json < end)
}
