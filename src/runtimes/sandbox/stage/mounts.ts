/**
 * Directories of the host in a VM (`--mount`), as the stage that has rights places them, and in the words of the one that has none.
 *
 * Root's: an id-mapped bind of the directory's own file system: user N of the VM is user N of the host on these files, and so is root. Set-id
 * programs and devices do not work on them in the VM. A user's: a bind, with everything mounted below it; the VM's root is that user.
 * A target is a path in a root that a guest may have filled: a component that is a symbolic link is refused, never followed.
 * Read-only is a flag of the mount, which is locked in the VM's namespaces because they belong to less privileged ones. A user's VM has no such
 * step between: its root could lift the flag, so that it is refused there (sandbox.ts).
 */
import { lstatSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { must } from '../../../sys/errno.ts'
import { bindIdMapped } from '../../../sys/mount.ts'
import type { MountSpec } from '../../contract.ts'
import type { HostBind } from '../script.ts'

/** Into a root that is mounted at `root`, before anything of the VM runs. */
export function placeMounts(mounts: readonly MountSpec[], root: string, owner: number, userns: number): void {
  for (const m of mounts) {
    if (!(lstatSync(m.source, { throwIfNoEntry: false })?.isDirectory() ?? false))
      throw new Error(`the mount of ${m.source}: it is not a directory any more`)
    const target = within(root, m.target, owner)
    must(
      `the mount of ${m.source} (its file system must know id-mapped mounts)`,
      bindIdMapped(m.source, target, userns, m.readonly ? 'ro' : 'rw'),
    )
  }
}

/** The directory of that name below a root; what is missing is made. */
function within(root: string, target: string, owner: number): string {
  let at = root
  for (const c of target.split('/').filter(Boolean)) {
    at = join(at, c)
    const s = lstatSync(at, { throwIfNoEntry: false })
    if (s === undefined) makeAs(owner, at)
    else if (!s.isDirectory())
      throw new Error(
        `the mount at ${target}: ${at.slice(root.length)} is ${s.isSymbolicLink() ? 'a symbolic link' : 'not a directory'} in this VM`,
      )
  }
  return at
}

/** As the VM's root: within another mount of the VM the host's root is nobody. */
function makeAs(owner: number, path: string): void {
  process.setegid?.(owner)
  process.seteuid?.(owner)
  try {
    mkdirSync(path, 0o755)
  } finally {
    process.seteuid?.(0)
    process.setegid?.(0)
  }
}

/** For the script that binds without rights. */
export function hostBinds(mounts: readonly MountSpec[]): HostBind[] {
  return mounts.map((m) => {
    if (!(lstatSync(m.source, { throwIfNoEntry: false })?.isDirectory() ?? false))
      throw new Error(`the mount of ${m.source}: it is not a directory any more`)
    return { source: m.source, target: m.target.slice(1) }
  })
}
