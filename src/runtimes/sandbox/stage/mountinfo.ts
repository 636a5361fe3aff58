/**
 * What the host has mounted where, from /proc/self/mountinfo (proc_pid_mountinfo(5)).
 *
 * A view of `/` alone does not show file systems mounted below it, and a bind inside a user namespace may not drop the
 * flags of what it binds: both are read here.
 */
import { readFileSync } from 'node:fs'

export interface SystemMount {
  readonly path: string
  readonly type: string
  readonly options: readonly string[]
}

const unescaped = (s: string): string =>
  s.replace(/\\([0-7]{3})/g, (_, o: string) => String.fromCharCode(Number.parseInt(o, 8)))

export function readMounts(text = readFileSync('/proc/self/mountinfo', 'utf8')): SystemMount[] {
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      const f = line.split(' ')
      const dash = f.indexOf('-')
      return { path: unescaped(f[4] as string), type: f[dash + 1] as string, options: (f[5] as string).split(',') }
    })
}

const ON_DISK = /^(ext[234]|xfs|btrfs|zfs|f2fs|squashfs|erofs)$/

/** File systems of their own among the directories a VM sees, outermost first. Of several at one place the last is what is seen. */
export const systemMounts = (mounts = readMounts()): SystemMount[] =>
  [...new Map(mounts.map((m) => [m.path, m])).values()]
    .filter((m) => /^\/(usr|opt|var|etc)(\/|$)/.test(m.path) && ON_DISK.test(m.type))
    .sort((a, b) => a.path.length - b.path.length)

/** The flags that a remount of this path inside a user namespace must repeat. */
export function lockedFlags(path: string, mounts = readMounts()): string[] {
  const on = mounts
    .filter((m) => m.path === path || m.path === '/' || path.startsWith(`${m.path}/`))
    .sort((a, b) => b.path.length - a.path.length)[0]
  return (on?.options ?? []).filter((o) => o === 'nosuid' || o === 'nodev' || o === 'noexec')
}
