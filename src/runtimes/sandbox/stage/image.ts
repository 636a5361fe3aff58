/**
 * Images: an unpacked root (a directory, which stays as it is) or an archive of one (unpacked for each VM).
 *
 * An image comes from somewhere else. Nothing of it is executed with rights over the host, and no link in it is followed
 * by a process that has some: an archive is unpacked by the VM's root, and its files are changed from inside (chroot).
 */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { identityFiles } from '../view.ts'
import { seedOnce } from './once.ts'
import type { StageSpec } from './spec.ts'

/** What is mounted on must be directories of the image, or be absent. */
const MOUNT_POINTS = ['proc', 'sys', 'dev', 'run', 'tmp', 'etc'] as const

/** Throws what makes this directory no root of a VM. */
export function checkRoot(root: string): void {
  for (const d of MOUNT_POINTS) {
    const s = lstatSync(join(root, d), { throwIfNoEntry: false })
    if (s !== undefined && !s.isDirectory()) throw new Error(`the image: its /${d} is not a directory`)
  }
  if (lstatSync(join(root, 'bin/sh'), { throwIfNoEntry: false }) === undefined)
    throw new Error('the image: it has no /bin/sh')
}

/** Fill the upper directory over an image: it keeps its files; those that say who the VM is become its own. */
export function seedImage(upper: string, lower: string, owner: number | undefined, name: string): void {
  checkRoot(lower)
  const own = (p: string) => owner !== undefined && chownSync(p, owner, owner)
  const directory = (dir: string) => {
    if (existsSync(join(upper, dir))) return
    mkdirSync(join(upper, dir))
    if (dir === 'tmp') chmodSync(join(upper, dir), 0o1777)
    own(join(upper, dir))
  }
  chmodSync(upper, lstatSync(lower).mode & 0o7777)
  own(upper)
  for (const d of MOUNT_POINTS) directory(d)
  directory('etc/network')
  for (const f of identityFiles(name)) {
    writeFileSync(join(upper, f.path), f.text)
    own(join(upper, f.path))
  }
}

/**
 * Unpack an archive as the VM's root would, so that owners are the VM's; without a range of ids all of it is root's.
 * Returns the root.
 */
export function unpack(spec: StageSpec, owner: number | undefined, ns: string, range: boolean): string {
  const root = join(spec.dir, 'fs', 'root')
  seedOnce(spec.dir, () => {
    mkdirSync(root)
    if (owner !== undefined) chownSync(root, owner, owner)
    const enter = ['--user=/proc/self/fd/3', ...(spec.privileged ? [] : ['--preserve-credentials'])]
    const nsFd = openSync(ns, 'r')
    const archive = spec.image?.path as string
    const tar = openSync(archive, 'r')
    // "." of the child is the new root: it needs no way through directories that are closed to it.
    inside(
      root,
      nsFd,
      [
        ...enter,
        'tar',
        '-x',
        ...compression(archive),
        ...(range ? ['--numeric-owner'] : ['--no-same-owner']),
        '-p',
        ...NO_DEVICES,
        '-f',
        '-',
      ],
      tar,
    )
    checkRoot(root)
    const script =
      'mkdir -p proc sys dev run tmp etc/network; while [ $# -gt 1 ]; do rm -f "$1"; printf %s "$2" > "$1" || exit 1; shift 2; done'
    const words = identityFiles(spec.name).flatMap((f) => [f.path, f.text])
    inside(root, nsFd, [...enter, 'chroot', '.', '/bin/sh', '-c', script, 'sh', ...words], 'ignore')
    closeSync(tar)
    closeSync(nsFd)
  })
  return root
}

const NO_DEVICES = ['--exclude=./dev/*', '--exclude=dev/*']

function inside(root: string, nsFd: number, argv: readonly string[], input: number | 'ignore'): void {
  const r = spawnSync('nsenter', argv, {
    cwd: root,
    stdio: [input, 'ignore', 'pipe', nsFd],
    env: { PATH: process.env.PATH, LC_ALL: 'C' },
    encoding: 'utf8',
    maxBuffer: 16 << 20,
  })
  if (r.status === 0) return
  const why = (r.stderr ?? '').trim().split('\n').slice(-2).join('; ')
  throw new Error(`the image: ${why || 'it cannot be unpacked'}`)
}

const MAGIC: readonly (readonly [magic: string, option: string])[] = [
  ['1f8b', '--gzip'],
  ['425a68', '--bzip2'],
  ['fd377a585a', '--xz'],
  ['28b52ffd', '--zstd'],
]

/** tar looks at the contents of files it opens, but not of what it is given open. */
function compression(path: string): string[] {
  const fd = openSync(path, 'r')
  const head = Buffer.alloc(8)
  readSync(fd, head)
  closeSync(fd)
  const known = MAGIC.find(([magic]) => head.toString('hex').startsWith(magic))
  return known === undefined ? [] : [known[1]]
}
