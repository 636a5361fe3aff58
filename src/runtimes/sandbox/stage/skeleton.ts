/**
 * The skeleton: the host's directories without their files, owned by the user, one for all VMs of that user.
 *
 * As a layer between the host's /usr and a VM's own files it makes `apt-get install` work without rights. In an overlay a
 * directory has the owner of its topmost layer; the host's belong to the host's root, who does not exist in a user's VM,
 * so nothing could be made in them. With the skeleton on top they belong to the VM's root. The host's files stay the
 * host's: they can be hidden or replaced in the VM, which is what a package manager does, and never changed.
 *
 * It only grows: a directory that appears on the host is added when a VM starts next. Running VMs look through it.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { errnoText } from '../../../sys/errno.ts'
import { setxattr } from '../../../sys/mount.ts'
import type { Bind } from '../view.ts'

/** Files that package tools open for writing and only root may read: an empty one of the user's takes their place. */
const LOCKS = [
  'var/lib/dpkg/lock',
  'var/lib/dpkg/lock-frontend',
  'var/lib/dpkg/triggers/Lock',
  'var/lib/apt/lists/lock',
  'var/lib/apt/daily_lock',
]

/** Packages put new things at the beginnings of the tree; all of it may be several times as much. */
const DEPTH = 4

/** Changes when packages were installed or removed on the host. */
function stateOfHost(parts: readonly Bind[]): string {
  const times = ['/usr', '/opt', '/var/lib/dpkg/status', '/var/lib/rpm'].map(
    (p) => statSync(p, { throwIfNoEntry: false })?.mtimeMs ?? 0,
  )
  return JSON.stringify([parts, times])
}

/** Make what is missing: 0.1 s for a user's first VM, nothing after. Two at once do no harm. */
export function growSkeleton(dir: string, parts: readonly Bind[]): void {
  const mark = join(dir, '.state')
  const now = stateOfHost(parts)
  if (existsSync(mark) && readFileSync(mark, 'utf8') === now) return
  for (const part of parts) {
    mkdirSync(join(dir, part.path), { recursive: true })
    for (const path of directories(part)) makeDirectory(join(dir, part.path, path))
    // A directory that this user may not read is the VM's own from here on: the host's cannot be merged into it.
    for (const path of directories(part, '!', '(', '-readable', '-executable', ')')) {
      const r = setxattr(join(dir, part.path, path), 'user.overlay.opaque', 'y')
      if (r < 0) throw new Error(`opaque directory in ${dir}: ${errnoText(r)}`)
    }
  }
  for (const lock of LOCKS)
    if (existsSync(`/${lock}`) && parts.some((p) => lock.startsWith(`${p.path}/`)))
      writeFileSync(join(dir, lock), '', { flag: 'a', mode: 0o640 })
  writeFileSync(`${mark}.${process.pid}`, now)
  renameSync(`${mark}.${process.pid}`, mark)
}

/** The host's directories below a part, relative to it, parents first. */
function directories(part: Bind, ...matching: readonly string[]): string[] {
  const argv = ['.', '-xdev', '-mindepth', '1', '-maxdepth', String(DEPTH), '-type', 'd', ...matching, '-print0']
  const found = spawnSync('find', argv, {
    cwd: `/${part.path}`,
    encoding: 'utf8',
    maxBuffer: 256 << 20,
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  return found.stdout.split('\0').filter((path) => path !== '')
}

function makeDirectory(path: string): void {
  try {
    mkdirSync(path, 0o755)
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code !== 'EEXIST') throw e
  }
}
