/** Ordinary users of this machine, for tests that root runs as one. */
import { spawnSync } from 'node:child_process'

/**
 * Why tests cannot run as this user, or false: it must be able to read this checkout, which may lie below a home that is closed, and to
 * make namespaces.
 */
export function runsAs(id: number): string | false {
  const as = (...argv: string[]) =>
    spawnSync('setpriv', ['--reuid', String(id), '--regid', String(id), '--clear-groups', '--', ...argv], { cwd: '/' })
  const node = [process.execPath, '--input-type=module', '-e', `await import(${JSON.stringify(import.meta.url)})`]
  if (as(...node).status !== 0) return 'an ordinary user cannot read this checkout'
  if (as('unshare', '--user', '--map-root-user', '--net', 'true').status !== 0)
    return 'ordinary users may not make namespaces here'
  return false
}
