/**
 * What of the host a VM sees when it has no image of its own: the system's software, and nothing that is anybody's.
 *
 * The rule, in this order:
 *   1. Of the top level only bin, sbin, lib*, usr, etc, opt and var are the host's. Homes, data, whatever a machine has
 *      besides (/root, /home, /srv, /mnt, /boot, /work ...) does not exist, or is empty and the VM's own.
 *   2. In etc, var, opt and usr/local, what others than its owner may not read on the host is not there: a file is gone
 *      (shadow, private keys, tokens), a directory is empty. So the VM sees at most what any user of the host may see.
 *   3. Besides: ssh's host keys, logs, spools, backups, mail, machine-id, /var/tmp, noid's own directories.
 * Account files are made anew without passwords; sudoers stay readable because they hold no secret and sudo needs them.
 *
 * As root the rule is written into the overlay's upper directory: whiteouts hide files, opaque directories hide contents, and neither can
 * be undone from inside. It is read from the very view that is laid under the VM (stage/main.ts), so that no file system is shown that was not looked through,
 * and it is written again at each start, because the view is the host as it is: what became secret since is added, and what the VM has made
 * itself stays. What becomes secret while the VM runs is seen until it starts again. The upper directory is a guest's by then: no link in it is followed.
 * As a user the same rule chooses what is copied (etc) or laid under the VM's own files (usr).
 */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { errnoText } from '../../sys/errno.ts'
import { getxattr, mknodChar, setxattr } from '../../sys/mount.ts'
import { hostname, hosts, interfaces, lockedGshadow, lockedShadow, resolvConf } from './files.ts'

const SYSTEM = /^(bin|sbin|lib|lib32|lib64|libx32|usr|etc|opt|var)$/
/** Exist in every VM, empty: mode each. */
const OWN: ReadonlyMap<string, number> = new Map([
  ['boot', 0o755],
  ['dev', 0o755],
  ['home', 0o755],
  ['media', 0o755],
  ['mnt', 0o755],
  ['proc', 0o555],
  ['root', 0o700],
  ['run', 0o755],
  ['srv', 0o755],
  ['sys', 0o555],
  ['tmp', 0o1777],
])
/** Emptied wherever they are readable or not. */
const EMPTIED = ['var/tmp', 'var/spool', 'var/mail', 'var/backups', 'var/crash', 'var/lib/systemd', 'var/www']
const GONE =
  /^(etc\/ssh\/ssh_host_.*|etc\/machine-id|var\/lib\/dbus\/machine-id|etc\/krb5\.keytab|etc\/.*\.bak|etc\/fstab|etc\/crypttab)$/
const KEPT = /^etc\/sudoers(\.d(\/.*)?)?$/
/** Public by nature and large: not looked through. */
const PUBLIC = ['/var/lib/dpkg/info', '/var/lib/apt/lists', '/var/cache/man', '/etc/alternatives']

interface Hidden {
  /** Relative to the root. */
  readonly path: string
  readonly directory: boolean
}

const LOOKED_THROUGH = ['/etc', '/var', '/opt', '/usr/local']
/** find's words for what others may not read; a directory needs x as well for its contents to be anybody's. */
const UNREADABLE = '! -type l ( ! -perm -004 -o -type d ! -perm -005 ) -printf %y%P\\0%H\\0 -prune'.split(' ')

/**
 * What rules 2 and 3 hide below `roots` of the host's tree as it is seen at `view`, whatever is mounted in it. `also` are absolute paths that are
 * never shown. Throws when it cannot be found out: then nothing may be shown.
 */
export function hiddenPaths(
  also: readonly string[],
  view = '/',
  roots: readonly string[] = LOOKED_THROUGH,
): readonly Hidden[] {
  const found = new Map<string, Hidden>()
  const add = (path: string, directory: boolean) => found.set(path, { path, directory })
  const prune = [...PUBLIC, ...also].flatMap((p) => ['-path', join(view, p), '-prune', '-o'])
  const existing = roots.map((r) => join(view, r)).filter(isDirectory)
  const r = spawnSync('find', [...existing, '-ignore_readdir_race', ...prune, ...UNREADABLE], {
    encoding: 'utf8',
    maxBuffer: 64 << 20,
  })
  // As a user it fails where it may not look, and has still said all that this user could see.
  if (r.error !== undefined || (r.status !== 0 && (r.stdout === '' || process.getuid?.() === 0)))
    throw new Error(
      `the host's secrets cannot be told apart: find: ${r.error?.message ?? r.stderr.trim().split('\n')[0]}`,
    )
  const parts = r.stdout.split('\0')
  for (let i = 0; i + 1 < parts.length; i += 2) {
    const path = relative(view, join(parts[i + 1] as string, (parts[i] as string).slice(1)))
    if (!KEPT.test(path)) add(path, parts[i]?.[0] === 'd')
  }
  for (const dir of ['etc', 'etc/ssh', 'var/lib/dbus'])
    for (const name of list(join(view, dir))) if (GONE.test(`${dir}/${name}`)) add(`${dir}/${name}`, false)
  for (const path of filesBelow(join(view, 'var/log'))) add(relative(view, path), false)
  for (const path of EMPTIED) if (isDirectory(join(view, path))) add(path, true)
  for (const path of also)
    if (SYSTEM.test(path.split('/')[1] ?? '') && isDirectory(join(view, path))) add(path.slice(1), true)
  // What lies in a hidden directory is hidden with it.
  return [...found.values()].filter((h) => !ancestors(h.path).some((a) => found.get(a)?.directory))
}

/**
 * An overlay's upper directory over a view of the host, as root. The owners in the view are those in the VM: `base` is its root.
 * The VM does not run meanwhile.
 */
export class Upper {
  readonly #upper: string
  readonly #view: string
  readonly #base: number

  constructor(upper: string, view: string, base: number) {
    this.#upper = upper
    this.#view = view
    this.#base = base
  }

  /** Fill it while it is empty: what every VM has of its own. */
  seed(name: string): void {
    chownSync(this.#upper, this.#base, this.#base)
    chmodSync(this.#upper, 0o755)
    for (const [dir, mode] of OWN) {
      mkdirSync(join(this.#upper, dir))
      this.#hideContents(dir)
      chownSync(join(this.#upper, dir), this.#base, this.#base)
      chmodSync(join(this.#upper, dir), mode)
    }
    for (const f of ownFiles(name)) this.#file(f)
  }

  /** Write the rule, also over what a VM has made of it. */
  hide(also: readonly string[]): void {
    for (const e of list(this.#view)) if (!SYSTEM.test(e) && !OWN.has(e)) this.#hide({ path: e, directory: false })
    for (const h of hiddenPaths(also, this.#view)) this.#hide(h)
  }

  /** The directory for what is mounted there on the host; undefined where the VM sees nothing of the host's. */
  part(path: string): string | undefined {
    return this.#open(path) ? join(this.#upper, path) : undefined
  }

  #hide(h: Hidden): void {
    // Something of the VM's own is in the way, or its removal: the host's is not seen there.
    if (!this.#open(dirname(h.path))) return
    const p = join(this.#upper, h.path)
    if (!h.directory) {
      const r = lstatSync(p, { throwIfNoEntry: false }) === undefined ? mknodChar(p, 0, 0, 0) : 0
      if (r < 0) throw new Error(`whiteout of /${h.path}: ${errnoText(r)}`)
    } else if (this.#open(h.path)) this.#hideContents(h.path)
  }

  #hideContents(path: string): void {
    const r = setxattr(join(this.#upper, path), OPAQUE, 'y')
    if (r < 0) throw new Error(`opaque directory for /${path}: ${errnoText(r)}`)
  }

  /**
   * Is that a directory through which the host's is seen? What is missing of it is made with the attributes of the host's, as overlayfs's own copy-up
   * does. Step by step: a link that a guest left would lead out of here.
   */
  #open(path: string): boolean {
    if (path === '.' || path === '/') return true
    if (!this.#open(dirname(path))) return false
    const p = join(this.#upper, path)
    const s = lstatSync(p, { throwIfNoEntry: false })
    if (s !== undefined) return s.isDirectory() && getxattr(p, OPAQUE) !== 'y'
    const host = lstatSync(join(this.#view, path), { throwIfNoEntry: false })
    mkdirSync(p)
    chownSync(p, this.#own(host?.uid), this.#own(host?.gid))
    chmodSync(p, (host?.mode ?? 0o755) & 0o7777)
    return true
  }

  /** An id that the VM does not have becomes its root's. */
  #own(id = -1): number {
    return id >= this.#base && id < this.#base + 0x10000 ? id : this.#base
  }

  #file(f: OwnFile): void {
    this.#open(dirname(f.path))
    const p = join(this.#upper, f.path)
    writeFileSync(p, f.text)
    chownSync(p, this.#base, this.#base)
    chmodSync(p, f.mode)
  }
}

const OPAQUE = 'trusted.overlay.opaque'

interface OwnFile {
  readonly path: string
  readonly text: string
  readonly mode: number
}

function ownFiles(name: string): OwnFile[] {
  const accounts = (path: string) => (existsSync(path) ? readFileSync(path, 'utf8') : '')
  return [
    { path: 'etc/shadow', text: lockedShadow(accounts('/etc/passwd')), mode: 0o640 },
    { path: 'etc/gshadow', text: lockedGshadow(accounts('/etc/group')), mode: 0o640 },
    ...identityFiles(name),
  ]
}

/** The files of a VM, whatever its root is. */
export const identityFiles = (name: string): OwnFile[] => [
  { path: 'etc/hostname', text: hostname(name), mode: 0o644 },
  { path: 'etc/hosts', text: hosts(name), mode: 0o644 },
  { path: 'etc/resolv.conf', text: resolvConf(undefined), mode: 0o644 },
  { path: 'etc/network/interfaces', text: interfaces(), mode: 0o644 },
]

/** A part of the host's system in a VM whose root is a directory of its own; relative to the root. */
export interface Bind {
  readonly path: string
}

/** What package tools write to besides, as their packages would make it. */
const PACKAGE_DIRECTORIES = ['var/cache/apt/archives/partial', 'var/cache/debconf', 'var/cache/ldconfig', 'var/log/apt']
const APT_WITHOUT_USERS =
  '// Downloads are done as root: the user _apt need not exist here.\nAPT::Sandbox::User "root";\n'

/**
 * Fill an empty directory as the root of a VM without rights over the host's files: etc is copied (so that it can be
 * changed), usr, opt and the package lists are laid under it by who mounts, var is its own. Returns those parts.
 */
export function seedDirectory(root: string, name: string, also: readonly string[]): Bind[] {
  for (const [dir, mode] of OWN) {
    mkdirSync(join(root, dir), { recursive: true })
    chmodSync(join(root, dir), mode)
  }
  const binds: Bind[] = []
  for (const e of list('/')) {
    if (!SYSTEM.test(e) || e === 'etc' || e === 'var') continue
    if (lstatSync(`/${e}`).isSymbolicLink()) {
      if (!existsSync(join(root, e))) symlinkSync(readlinkSync(`/${e}`), join(root, e))
    } else {
      mkdirSync(join(root, e), { recursive: true })
      binds.push({ path: e })
    }
  }
  const hidden = new Set(hiddenPaths(also, '/', ['/etc']).map((h) => h.path))
  copyReadable('etc', root, hidden)
  for (const d of ['cache', 'lib', 'log', 'spool', 'tmp']) mkdirSync(join(root, 'var', d), { recursive: true })
  chmodSync(join(root, 'var/tmp'), 0o1777)
  link('/run', join(root, 'var/run'))
  link('/run/lock', join(root, 'var/lock'))
  for (const path of [
    'var/lib/dpkg',
    'var/lib/apt',
    'var/lib/rpm',
    'var/cache/fontconfig',
    'var/lib/ca-certificates',
  ]) {
    if (!isDirectory(`/${path}`)) continue
    mkdirSync(join(root, path), { recursive: true })
    binds.push({ path })
  }
  for (const d of PACKAGE_DIRECTORIES) mkdirSync(join(root, d), { recursive: true })
  if (isDirectory('/etc/apt'))
    writeOwn(root, { path: 'etc/apt/apt.conf.d/99noid', text: APT_WITHOUT_USERS, mode: 0o644 })
  for (const f of ownFiles(name)) writeOwn(root, f)
  return binds
}

function writeOwn(root: string, f: OwnFile): void {
  const p = join(root, f.path)
  mkdirSync(dirname(p), { recursive: true })
  // A link, as systemd makes resolv.conf one, would lead out of the VM.
  rmSync(p, { force: true })
  writeFileSync(p, f.text)
  chmodSync(p, f.mode)
}

const link = (to: string, path: string): void => {
  if (!lstatSync(path, { throwIfNoEntry: false })) symlinkSync(to, path)
}

/** Copy what this user may read; modes are kept, owners are the user's. */
function copyReadable(path: string, root: string, hidden: ReadonlySet<string>): void {
  mkdirSync(join(root, path), { recursive: true })
  for (const entry of readdirSync(`/${path}`, { withFileTypes: true })) {
    const child = `${path}/${entry.name}`
    const target = join(root, child)
    try {
      if (entry.isSymbolicLink()) link(readlinkSync(`/${child}`), target)
      else if (hidden.has(child)) continue
      else if (entry.isDirectory()) copyReadable(child, root, hidden)
      else if (entry.isFile()) copyFileSync(`/${child}`, target)
    } catch (e) {
      // Unreadable to this user (a race with the host's own changes, or an ACL): then it is not the VM's either.
      if (!['EACCES', 'EPERM', 'ENOENT'].includes((e as NodeJS.ErrnoException).code ?? '')) throw e
    }
  }
}

const isDirectory = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false

const list = (dir: string): string[] => {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}

function filesBelow(dir: string): string[] {
  return list(dir).flatMap((name) => {
    const path = `${dir}/${name}`
    return isDirectory(path) ? filesBelow(path) : [path]
  })
}

function ancestors(path: string): string[] {
  const out: string[] = []
  for (let d = dirname(path); d !== '.'; d = dirname(d)) out.push(d)
  return out
}
