/**
 * The first stage of a sandbox: a short-lived process that outlives the daemon if it must, builds the VM's root and
 * becomes (execve) the chain `nsenter → unshare → setpriv → sh → init`, keeping its pid, which is the VM's outer process.
 *
 * argv[2] is a StageSpec, argv[3] the mark. Descriptor 3 is a socket to the daemon: a line `error TEXT` when something is refused, `up`
 * when init is about to run; its end without `up` says that the stage died. If the daemon is gone before the root is
 * built, nothing is started.
 * What it mounts lies in a mount namespace of its own and ends with it. Its arguments carry the VM's mark (mark.ts), and so
 * do those of everything it becomes, so that a daemon which was killed meanwhile finds it.
 * Never does: networking, waiting, anything after execve.
 */
import {
  chmodSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { writeState } from '../../../state-file.ts'
import { must } from '../../../sys/errno.ts'
import { bindIdMapped, MS_BIND, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_REC, mount } from '../../../sys/mount.ts'
import { CLONE_NEWNS, closeOnExec, dup2, keepOnExec, unshare } from '../../../sys/process.ts'
import { type HeldNamespace, holdInner, holdNamespace, type IdMap, rootMap, userMap } from '../identity.ts'
import { joinGroups } from '../limits.ts'
import { markOf } from '../mark.ts'
import { limitRights } from '../rights.ts'
import {
  type BoundPart,
  type HostBind,
  initScript,
  lockScript,
  overlayPath,
  type RootPlan,
  stageScript,
} from '../script.ts'
import { type Bind, seedDirectory, Upper } from '../view.ts'
import { devices } from './devices.ts'
import { seedImage, unpack } from './image.ts'
import { lockedFlags, systemMounts } from './mountinfo.ts'
import { hostBinds, placeMounts } from './mounts.ts'
import { seedOnce } from './once.ts'
import { growSkeleton } from './skeleton.ts'
import type { StageSpec } from './spec.ts'

const CONTROL = 3
/** The VM's user namespace, when it is one inside another. */
const INNER = 5
const say = (line: string): void => {
  writeSync(CONTROL, `${line}\n`)
}
async function main(spec: StageSpec): Promise<void> {
  const held = await holdNamespace(spec.privileged ? rootMap(spec.id) : userMap(), spec.privileged)
  const ns = openSync(held.path, 'r')
  const image = spec.image === undefined ? [] : [spec.image.path]
  const base = pickBase([spec.dir, spec.skeleton, ...image, ...spec.mounts.map((m) => m.source)])
  const plan = spec.privileged ? privilegedPlan(spec, held.map, ns, base) : userPlan(spec, held)
  const lock = spec.privileged ? { binds: [] } : await lockedMounts(spec, held, base)
  // Whom this process leaves unreaped would be a child of the VM's outer process for ever.
  await held.release()
  if (!held.map.range) console.log('noid: only root exists in this VM: no usable range in /etc/subuid')
  must('dup2', dup2(ns, 0))
  closeOnExec(3)
  must('fcntl', keepOnExec(CONTROL))
  // Node may use that number itself: from here on nothing waits.
  if (lock.inner !== undefined) must('dup2', dup2(lock.inner, INNER))
  // The making of the root is noid's work; from here on it is the VM's.
  joinGroups(spec.groups, process.pid)
  // Fails, and ends everything, when the daemon that asked is gone.
  say('built')
  become(spec, plan, held.map, base, lock)
}

/** The mounts of a user's VM: what binds them, and what first makes those that are read-only, when there are any. */
interface Lock {
  readonly binds: readonly HostBind[]
  readonly script?: string
  /** The inner user namespace. */
  readonly inner?: number
}

async function lockedMounts(spec: StageSpec, held: HeldNamespace, base: string): Promise<Lock> {
  const used = [spec.dir, spec.skeleton, ...spec.mounts.map((m) => m.source)]
  const views = spec.mounts.some((m) => m.readonly) ? pickBase(used, base) : ''
  const { binds, fixed } = hostBinds(spec.mounts, views)
  if (fixed.length === 0) return { binds }
  const inner = await holdInner(held)
  const ns = openSync(inner.path, 'r')
  await inner.release()
  return { binds, inner: ns, script: lockScript(views, fixed) }
}

/** A directory that every Linux has, for the assembly; not one that the VM's own files lie under. */
function pickBase(used: readonly string[], not?: string): string {
  const base = ['/mnt', '/media', '/srv', '/opt', '/tmp'].find(
    (p) => p !== not && existsSync(p) && !used.some((u) => u === p || u.startsWith(`${p}/`)),
  )
  if (base === undefined) throw new Error('none of /mnt, /media, /srv, /opt, /tmp exists')
  return base
}

function privilegedPlan(spec: StageSpec, map: IdMap, ns: number, base: string): RootPlan {
  const owner = map.uids[0]?.[1] as number
  must('unshare of mounts', unshare(CLONE_NEWNS))
  must('private mounts', mount('none', '/', null, MS_REC | MS_PRIVATE))
  if (spec.image?.kind === 'tar') {
    const root = unpack(spec, owner, `/proc/self/fd/${ns}`, true)
    assembly(base)
    must('bind of the image', mount(root, join(base, 'root'), null, MS_BIND))
  } else {
    assembly(base)
    overlaid(spec, owner, ns, base)
  }
  devices(join(base, 'root/dev'), owner)
  placeMounts(spec.mounts, join(base, 'root'), owner, ns)
  return { kind: 'mounted' }
}

function assembly(base: string): void {
  must(`tmpfs on ${base}`, mount('noid', base, 'tmpfs', MS_NOSUID | MS_NODEV, 'mode=0755,size=1m'))
  mkdirSync(join(base, 'root'))
  mkdirSync(join(base, 'bare'))
}

/** The VM's root: its own files over an image, or over the host's system with the file systems that are parts of it. */
function overlaid(spec: StageSpec, owner: number, ns: number, base: string): void {
  const own = join(spec.dir, 'fs')
  const [root, view, upper] = [join(base, 'root'), join(base, 'view'), join(own, 'upper')]
  const plain = join(own, 'plain')
  mkdirSync(view)
  idMapped(spec.image?.path ?? '/', view, ns)
  const parts = spec.image === undefined ? viewParts(view, ns) : []
  const ours = new Upper(upper, view, owner)
  seedOnce(spec.dir, () => {
    mkdirSync(upper, { recursive: true })
    writeFileSync(plain, '')
    if (spec.image === undefined) ours.seed(spec.name)
    else seedImage(upper, view, owner, spec.name)
  })
  if (spec.image === undefined) ours.hide(spec.hide)
  // A directory that a guest renamed must not take the host's along to where nothing hides it. What a VM has renamed without this stays as it is.
  const still = existsSync(plain) ? 'redirect_dir=off,metacopy=off,' : ''
  overlay(view, upper, join(own, 'work'), root, still)
  for (const [i, path] of parts.entries()) {
    const over = ours.part(path)
    if (over !== undefined) overlay(join(view, path), over, join(own, `work.${i}`), join(root, path), still)
  }
}

/** Lay the host's parts into a view of its root, which shows none of them; those that are there. */
function viewParts(view: string, ns: number): string[] {
  return systemMounts()
    .map((m) => m.path)
    .filter((path) => {
      const at = join(view, path)
      // A container's host binds single files (/etc/resolv.conf): the VM has its own of those. And below what is not shown is nothing.
      if (!isDirectory(path) || !isDirectory(at) || realpathSync(at) !== at) return false
      idMapped(path, at, ns)
      return true
    })
}

const isDirectory = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false

const idMapped = (path: string, target: string, ns: number): void => {
  must(`id-mapped view of ${path}`, bindIdMapped(path, target, ns))
}

function overlay(lower: string, upper: string, work: string, target: string, still: string): void {
  mkdirSync(work, { recursive: true })
  const options = `index=off,${still}lowerdir=${overlayPath(lower)},upperdir=${overlayPath(upper)},workdir=${overlayPath(work)}`
  must('overlay', mount('noid', target, 'overlay', 0, options))
}

function userPlan(spec: StageSpec, held: HeldNamespace): RootPlan {
  const fs = join(spec.dir, 'fs')
  if (spec.image?.kind === 'tar')
    return { kind: 'directory', path: unpack(spec, undefined, held.path, held.map.range), binds: [] }
  if (spec.image !== undefined) {
    if (!mapped(held.map, lstatSync(spec.image.path).uid))
      console.log(
        `noid: ${spec.image.path} is somebody else's, so its files cannot be changed here (apt-get cannot install):` +
          ' unpack it as this user, or give an archive of it',
      )
    const plan = { kind: 'overlay', lower: spec.image.path, upper: join(fs, 'upper'), work: join(fs, 'work') } as const
    seedOnce(spec.dir, () => {
      mkdirSync(plan.upper)
      mkdirSync(plan.work)
      seedImage(plan.upper, plan.lower, undefined, spec.name)
    })
    return plan
  }
  const root = join(fs, 'root')
  const list = join(fs, 'binds.json')
  seedOnce(spec.dir, () => {
    mkdirSync(root)
    const parts = seedDirectory(root, spec.name, spec.hide)
    for (const [i, part] of parts.entries()) {
      mkdirSync(join(fs, `upper.${i}`))
      mkdirSync(join(fs, `work.${i}`))
      if (part.path === 'var/lib/dpkg') copyDatabase(part, join(fs, `upper.${i}`))
    }
    writeState(list, parts)
  })
  const parts = JSON.parse(readFileSync(list, 'utf8')) as Bind[]
  growSkeleton(spec.skeleton, parts)
  const binds = parts.map((part, i): BoundPart => {
    const [upper, work] = [join(fs, `upper.${i}`), join(fs, `work.${i}`)]
    const lower = [join(spec.skeleton, part.path), `/${part.path}`]
    return { ...part, lower, upper, work, flags: lockedFlags(`/${part.path}`) }
  })
  return { kind: 'directory', path: root, binds }
}

/** Is that user of the host one of the VM's? */
const mapped = (map: IdMap, uid: number): boolean =>
  map.uids.some(([, outside, count]) => uid >= outside && uid < outside + count)

/** dpkg makes hard links to its own tables, which only their owner may: these are the VM's from the beginning. */
function copyDatabase(part: Bind, upper: string): void {
  for (const e of readdirSync(`/${part.path}`, { withFileTypes: true })) {
    if (!e.isFile() || e.name.startsWith('lock')) continue
    copyFileSync(join('/', part.path, e.name), join(upper, e.name))
    chmodSync(join(upper, e.name), 0o644)
  }
}

/** Never returns. Descriptor 0 is the user namespace, 3 goes on to the script. */
function become(spec: StageSpec, plan: RootPlan, map: IdMap, base: string, lock: Lock): never {
  const script = stageScript({ name: spec.name, base, plan, range: map.range, binds: lock.binds })
  const inner =
    lock.script === undefined
      ? []
      : ['unshare', '--mount', '--propagation', 'private', 'sh', '-c', lock.script, 'noid-lock']
  const enter = lock.script === undefined ? [] : ['nsenter', '--user=/proc/self/fd/5', '--preserve-credentials']
  const credentials = spec.privileged ? [] : ['--preserve-credentials']
  // The outer process of a user's VM holds the namespace in which the far end of its cable may lie.
  const wire = spec.privileged ? [] : ['--net']
  const env = { PATH: process.env.PATH ?? '/usr/sbin:/usr/bin:/sbin:/bin', LANG: 'C.UTF-8' }
  const argv = [
    ...['nsenter', '--user=/proc/self/fd/0', ...credentials],
    ...inner,
    ...enter,
    ...['unshare', ...wire, '--pid', '--fork'],
    ...['unshare', '--mount', '--net', '--uts', '--ipc', '--propagation', 'private'],
    ...['setpriv', ...limitRights],
    ...['sh', '-c', script, 'noid-stage', initScript, markOf(spec.id)],
  ]
  process.chdir('/')
  process.execve?.(which('nsenter', env.PATH), argv, env)
  throw new Error('execve returned')
}

function which(tool: string, path: string): string {
  const found = path.split(':').find((d) => existsSync(join(d, tool)))
  if (found === undefined) throw new Error(`the program ${tool} is not installed`)
  return join(found, tool)
}

try {
  await main(JSON.parse(process.argv[2] as string) as StageSpec)
} catch (e) {
  const why = (e as Error).message.replaceAll('\n', ' ')
  console.log(`noid: the VM was not made: ${why}`)
  try {
    say(`error ${why}`)
  } catch {
    // The daemon is gone: the log has it.
  }
  process.exit(1)
}
