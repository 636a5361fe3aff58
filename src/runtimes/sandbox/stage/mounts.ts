/**
 * Directories of the host in a VM (`--mount`), as the stage that has rights places them, and in the words of the one that has none.
 *
 * Root's: an id-mapped bind of the directory's own file system: user N of the VM is user N of the host on these files, and so is root. Set-id
 * programs and devices do not work on them in the VM. A user's: a bind, with everything mounted below it; the VM's root is that user.
 * A target is a path in a root that a guest may have filled: a component that is a symbolic link is refused, never followed.
 * Read-only is a flag of the mount, which is locked in the VM's namespaces because they belong to a less privileged user namespace: the VM's own, or, for a
 * user's VM, one inside another that is made for this.
 */
import { lstatSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { must } from '../../../sys/errno.ts'
import { bindIdMapped } from '../../../sys/mount.ts'
import type { MountSpec } from '../../contract.ts'
import type { FixedView, HostBind } from '../script.ts'
import { lockedFlags, readMounts } from './mountinfo.ts'

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

/** For the scripts that bind without rights; `views` is a directory for those that are read-only. */
export function hostBinds(
  mounts: readonly MountSpec[],
  views: string,
  all = readMounts(),
): { readonly binds: HostBind[]; readonly fixed: FixedView[] } {
  const fixed: FixedView[] = []
  const binds = mounts.map((m, i) => {
    if (!(lstatSync(m.source, { throwIfNoEntry: false })?.isDirectory() ?? false))
      throw new Error(`the mount of ${m.source}: it is not a directory any more`)
    const target = m.target.slice(1)
    if (!m.readonly) return { source: m.source, target }
    const view = join(views, String(i))
    const below = new Set(all.filter((x) => x.path.startsWith(`${m.source}/`)).map((x) => x.path))
    const parts = [m.source, ...below].map((path) => ({
      path: join(view, path.slice(m.source.length)),
      flags: lockedFlags(path, all),
    }))
    fixed.push({ source: m.source, view, parts })
    return { source: view, target }
  })
  return { binds, fixed }
}
