/**
 * Directories of the host in VMs: what may be asked for.
 *
 * Who may ask for which directory is who may use the daemon: a user's own daemon reads what that user reads; root's daemon shares any directory,
 * because its group equals root. The source is resolved once, here, so that what is stored and shown is what is shared.
 * Never does: mounting; that is the runtimes'.
 */
import { accessSync, constants, realpathSync, statSync } from 'node:fs'
import { posix } from 'node:path'
import { NoidError } from '../errors.ts'
import type { MountSpec } from '../runtimes/contract.ts'

const MAX_MOUNTS = 16
/** The kernel's own, or made anew at each start. */
const TAKEN = /^\/(proc|sys|dev|run)(\/|$)/

/** The mounts as they are stored, outer targets first. Throws MOUNT_INVALID. */
export function checkMounts(asked: readonly MountSpec[]): MountSpec[] {
  if (asked.length > MAX_MOUNTS)
    throw new NoidError('MOUNT_INVALID', { source: 'more', why: `a VM has ${MAX_MOUNTS} mounts at most` })
  const mounts = asked.map(checkMount)
  const twice = mounts.find((m, i) => mounts.findIndex((x) => x.target === m.target) !== i)
  if (twice !== undefined)
    throw new NoidError('MOUNT_INVALID', { source: twice.source, why: `${twice.target} is the target of two mounts` })
  return mounts.sort((a, b) => a.target.length - b.target.length)
}

function checkMount(m: MountSpec): MountSpec {
  const refuse = (why: string): never => {
    throw new NoidError('MOUNT_INVALID', { source: m.source, why })
  }
  // Neither path may break out of the words it becomes a part of.
  if (/[\p{Cc}\\]/u.test(`${m.source}${m.target}`)) refuse('a path has a control character or a backslash')
  if (!m.source.startsWith('/') || !m.target.startsWith('/')) refuse('both paths must be absolute')
  const target = posix.normalize(m.target).replace(/(.)\/$/, '$1')
  if (target === '/' || TAKEN.test(target)) refuse(`${target} of a VM is not free: choose another target`)
  let source = ''
  try {
    source = realpathSync(m.source)
    if (!statSync(source).isDirectory()) refuse('it is not a directory')
    accessSync(source, constants.R_OK | constants.X_OK)
  } catch (e) {
    if (e instanceof NoidError) throw e
    const code = (e as NodeJS.ErrnoException).code
    refuse(code === 'ENOENT' ? 'it does not exist' : code === 'EACCES' ? 'you may not read it' : (e as Error).message)
  }
  if (source === '/') refuse('the whole of the host is not shared')
  return { source, target, readonly: m.readonly }
}
