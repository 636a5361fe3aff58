/**
 * The first stage of a sandbox: a short-lived process that outlives the daemon if it must, builds the VM's root and
 * becomes (execve) the chain `nsenter → unshare → sh → init`, keeping its pid, which is the VM's outer process.
 *
 * argv[2] is a StageSpec, argv[3] the mark. Descriptor 3 is a socket to the daemon: a line `error TEXT` when something is refused, `up`
 * when init is about to run; its end without `up` says that the stage died. If the daemon is gone before the root is
 * built, nothing is started.
 * What it mounts lies in a mount namespace of its own and ends with it. Its arguments carry the VM's mark (mark.ts), and so
 * do those of everything it becomes, so that a daemon which was killed meanwhile finds it.
 * Never does: networking, waiting, anything after execve.
 */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { must } from '../../../sys/errno.ts'
import { bindIdMapped, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_REC, mknodChar, mount } from '../../../sys/mount.ts'
import { CLONE_NEWNS, dup2, keepOnExec, unshare } from '../../../sys/process.ts'
import { holdNamespace, type IdMap, rootMap, userMap } from '../identity.ts'
import { markOf } from '../mark.ts'
import { type BoundPart, initScript, overlayPath, type RootPlan, stageScript } from '../script.ts'
import { type Bind, identityFiles, seedDirectory, seedUpper } from '../view.ts'
import { lockedFlags, systemMounts } from './mountinfo.ts'
import { growSkeleton } from './skeleton.ts'

export interface StageSpec {
  readonly id: string
  readonly name: string
  readonly dir: string
  readonly privileged: boolean
  /** Absolute; absent for the host's own system. */
  readonly image?: { readonly kind: 'directory' | 'tar'; readonly path: string }
  /** Absolute paths that no VM sees. */
  readonly hide: readonly string[]
  /** Shared by a user's VMs: skeleton.ts. */
  readonly skeleton: string
}

const CONTROL = 3
const say = (line: string): void => {
  writeSync(CONTROL, `${line}\n`)
}
async function main(spec: StageSpec): Promise<void> {
  const held = await holdNamespace(spec.privileged ? rootMap(spec.id) : userMap(), spec.privileged)
  const ns = openSync(held.path, 'r')
  const base = pickBase([spec.dir, spec.skeleton])
  const plan = spec.privileged ? privilegedPlan(spec, held.map, ns, base) : userPlan(spec, held.path)
  // Whom this process leaves unreaped would be a child of the VM's outer process for ever.
  await held.release()
  if (!held.map.range) console.log('noid: only root exists in this VM: no usable range in /etc/subuid')
  must('dup2', dup2(ns, 0))
  must('fcntl', keepOnExec(CONTROL))
  // Fails, and ends everything, when the daemon that asked is gone.
  say('built')
  become(spec, plan, held.map, base)
}

/** A directory that every Linux has, for the assembly; not one that the VM's own files lie under. */
function pickBase(used: readonly string[]): string {
  const base = ['/mnt', '/media', '/srv', '/opt', '/tmp'].find(
    (p) => existsSync(p) && !used.some((u) => u.startsWith(`${p}/`)),
  )
  if (base === undefined) throw new Error('none of /mnt, /media, /srv, /opt, /tmp exists')
  return base
}

function privilegedPlan(spec: StageSpec, map: IdMap, ns: number, base: string): RootPlan {
  const owner = map.uids[0]?.[1] as number
  must('unshare of mounts', unshare(CLONE_NEWNS))
  must('private mounts', mount('none', '/', null, MS_REC | MS_PRIVATE))
  if (spec.image?.kind === 'tar') {
    const root = unpack(spec, owner, `/proc/self/fd/${ns}`)
    assembly(base)
    must('bind of the image', mount(root, join(base, 'root'), null, 0x1000))
  } else {
    const lower = spec.image?.path ?? '/'
    const own = join(spec.dir, 'fs')
    const [upper, work] = [join(own, 'upper'), join(own, 'work')]
    seedOnce(spec.dir, () => {
      mkdirSync(join(own, 'upper'), { recursive: true })
      mkdirSync(join(own, 'work'), { recursive: true })
      if (spec.image === undefined) seedUpper(upper, owner, spec.name, spec.hide)
      else seedImage(upper, lower, owner, spec.name)
    })
    assembly(base)
    overlay(lower, upper, work, join(base, 'root'), join(base, 'lower'), ns)
    if (spec.image === undefined)
      for (const [i, part] of systemMounts().entries()) addPart(part.path, i, own, base, owner, ns)
  }
  devices(join(base, 'root/dev'), owner)
  return { kind: 'mounted' }
}

function assembly(base: string): void {
  must(`tmpfs on ${base}`, mount('noid', base, 'tmpfs', MS_NOSUID | MS_NODEV, 'mode=0755,size=1m'))
  mkdirSync(join(base, 'root'))
}

function overlay(lower: string, upper: string, work: string, target: string, shifted: string, ns: number): void {
  mkdirSync(shifted)
  must(`id-mapped view of ${lower}`, bindIdMapped(lower, shifted, ns))
  const options = `index=off,lowerdir=${overlayPath(shifted)},upperdir=${overlayPath(upper)},workdir=${overlayPath(work)}`
  must('overlay', mount('noid', target, 'overlay', 0, options))
}

/** A part of the system on a file system of its own (/usr, /var): one more overlay, over the same upper directory. */
function addPart(path: string, i: number, own: string, base: string, owner: number, ns: number): void {
  const upper = join(own, 'upper', path)
  const work = join(own, `work.${i}`)
  if (!existsSync(upper)) {
    const s = lstatSync(path)
    mkdirSync(upper, { recursive: true })
    chownSync(upper, owner + s.uid, owner + s.gid)
    chmodSync(upper, s.mode & 0o7777)
  }
  mkdirSync(work, { recursive: true })
  overlay(path, upper, work, join(base, 'root', path), join(base, `lower.${i}`), ns)
}

/** A seed that was interrupted is made again; one that was finished is the VM's own and stays. */
function seedOnce(dir: string, seed: () => void): void {
  const mark = join(dir, 'fs', 'seeded')
  if (existsSync(mark)) return
  rmSync(join(dir, 'fs'), { recursive: true, force: true })
  mkdirSync(join(dir, 'fs'), { recursive: true })
  seed()
  writeFileSync(mark, '')
}

/** An image keeps its files; only those that say who the VM is become its own. */
function seedImage(upper: string, lower: string, owner: number | undefined, name: string): void {
  const own = (p: string) => owner !== undefined && chownSync(p, owner, owner)
  chmodSync(upper, lstatSync(lower).mode & 0o7777)
  own(upper)
  for (const f of identityFiles(name)) {
    let dir = ''
    for (const part of f.path.split('/').slice(0, -1)) {
      dir = join(dir, part)
      if (existsSync(join(upper, dir))) continue
      mkdirSync(join(upper, dir))
      own(join(upper, dir))
    }
    writeFileSync(join(upper, f.path), f.text)
    own(join(upper, f.path))
  }
}

/** Unpack a tar as the VM's root would, so that owners are the VM's and nothing runs with rights over the host. */
function unpack(spec: StageSpec, owner: number | undefined, ns: string): string {
  const root = join(spec.dir, 'fs', 'root')
  seedOnce(spec.dir, () => {
    mkdirSync(root)
    if (owner !== undefined) chownSync(root, owner, owner)
    const tar = openSync(spec.image?.path as string, 'r')
    const nsFd = openSync(ns, 'r')
    const enter = ['--user=/proc/self/fd/3', ...(spec.privileged ? [] : ['--preserve-credentials'])]
    // "." of the child is the new root: it needs no way through directories that are closed to it.
    const r = spawnSync(
      'nsenter',
      [
        ...enter,
        'tar',
        '-x',
        '--auto-compress',
        '--numeric-owner',
        '-p',
        '--exclude=./dev/*',
        '--exclude=dev/*',
        '-f',
        '-',
      ],
      { cwd: root, stdio: [tar, 'ignore', 'pipe', nsFd], encoding: 'utf8', maxBuffer: 16 << 20 },
    )
    if (r.status !== 0) throw new Error(`the image: ${r.stderr.trim().split('\n').slice(-2).join('; ')}`)
    for (const f of identityFiles(spec.name)) identityInto(root, f.path, f.text, enter, nsFd)
  })
  if (!existsSync(join(root, 'bin/sh')) && !lstatSync(join(root, 'bin/sh'), { throwIfNoEntry: false }))
    throw new Error('the image: it has no /bin/sh')
  return root
}

function identityInto(root: string, path: string, text: string, enter: readonly string[], ns: number): void {
  const script = 'mkdir -p "$(dirname "$1")" && rm -f "$1" && cat > "$1"'
  const r = spawnSync('nsenter', [...enter, 'sh', '-c', script, 'sh', `./${path}`], {
    cwd: root,
    input: text,
    stdio: ['pipe', 'ignore', 'pipe', ns],
    encoding: 'utf8',
  })
  if (r.status !== 0) throw new Error(`the image: ${r.stderr.trim()}`)
}

function devices(dir: string, owner: number): void {
  must('dev', mount('dev', dir, 'tmpfs', MS_NOSUID, 'mode=0755,size=1m'))
  const own = (p: string) => chownSync(p, owner, owner)
  own(dir)
  const nodes: readonly [string, number, number][] = [
    ['null', 1, 3],
    ['zero', 1, 5],
    ['full', 1, 7],
    ['random', 1, 8],
    ['urandom', 1, 9],
    ['tty', 5, 0],
    ['net/tun', 10, 200],
  ]
  for (const d of ['net', 'pts', 'shm', 'mqueue']) {
    mkdirSync(join(dir, d))
    own(join(dir, d))
  }
  for (const [name, major, minor] of nodes) {
    must(`mknod ${name}`, mknodChar(join(dir, name), 0o666, major, minor))
    chmodSync(join(dir, name), 0o666)
    own(join(dir, name))
  }
  const r = spawnSync(
    'sh',
    ['-c', 'ln -s /proc/self/fd fd; ln -s fd/0 stdin; ln -s fd/1 stdout; ln -s fd/2 stderr; ln -s pts/ptmx ptmx'],
    { cwd: dir },
  )
  must('links of dev', r.status === 0 ? 0 : -1)
}

function userPlan(spec: StageSpec, ns: string): RootPlan {
  const fs = join(spec.dir, 'fs')
  if (spec.image?.kind === 'tar') return { kind: 'directory', path: unpack(spec, undefined, ns), binds: [] }
  if (spec.image !== undefined) {
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
    writeFileSync(`${list}.new`, JSON.stringify(parts))
    renameSync(`${list}.new`, list)
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

/** dpkg makes hard links to its own tables, which only their owner may: these are the VM's from the beginning. */
function copyDatabase(part: Bind, upper: string): void {
  for (const e of readdirSync(`/${part.path}`, { withFileTypes: true })) {
    if (!e.isFile() || e.name.startsWith('lock')) continue
    copyFileSync(join('/', part.path, e.name), join(upper, e.name))
    chmodSync(join(upper, e.name), 0o644)
  }
}

/** Never returns. Descriptor 0 is the user namespace, 3 goes on to the script. */
function become(spec: StageSpec, plan: RootPlan, map: IdMap, base: string): never {
  const script = stageScript({ name: spec.name, base, plan, range: map.range })
  const credentials = spec.privileged ? [] : ['--preserve-credentials']
  // The outer process of a user's VM holds the namespace in which the far end of its cable may lie.
  const wire = spec.privileged ? [] : ['--net']
  const env = { PATH: process.env.PATH ?? '/usr/sbin:/usr/bin:/sbin:/bin', LANG: 'C.UTF-8' }
  const argv = [
    ...['nsenter', '--user=/proc/self/fd/0', ...credentials],
    ...['unshare', ...wire, '--pid', '--fork'],
    ...['unshare', '--mount', '--net', '--uts', '--ipc', '--propagation', 'private'],
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
