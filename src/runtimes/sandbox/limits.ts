/**
 * How much of the machine a VM may use: control groups named noid/<vm id>, of both versions of cgroups.
 *
 * A VM's stage joins its groups just before it becomes the VM; whatever runs in the VM is born in them, and `exec` joins them before it enters.
 * Too much memory ends processes of the VM (the kernel's OOM killer of the group) and no others; processor time is a share
 * of each period; processes and threads are counted, so that a fork bomb fills its VM only.
 *
 * Where groups can be made: as root in every hierarchy that this process sees, from its top; as a user in the part of the
 * unified hierarchy that was delegated to it (systemd does that for user@UID.service), which is one it runs in itself.
 * Nothing is recorded: a group is found by the VM's id, so that it is removed also after a daemon that died.
 * Read: cgroups(7), the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
 */
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const CONTROLLERS = ['cpu', 'memory', 'pids'] as const
export type Controller = (typeof CONTROLLERS)[number]

/** A directory in which groups can be made, and what they then limit. */
export interface Hierarchy {
  readonly version: 1 | 2
  readonly top: string
  readonly controllers: readonly Controller[]
}

export interface Limits {
  readonly cpus: number
  readonly memMib: number
}

/** Processes and threads of a VM at once. */
export const MOST_TASKS = 4096
/** Of processor time, in microseconds: the kernel's own default. */
const PERIOD_US = 100_000
const OURS = 'noid'
const GONE_MS = 10_000

const read = (path: string): string => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

const isOurs = (c: string): c is Controller => (CONTROLLERS as readonly string[]).includes(c)

/** The hierarchies that /proc/self/mountinfo and /proc/self/cgroup name, as far as they have controllers of interest. */
export function hierarchies(
  mountinfo = read('/proc/self/mountinfo'),
  own = read('/proc/self/cgroup'),
  root = process.getuid?.() === 0,
): Hierarchy[] {
  const found: Hierarchy[] = []
  const taken = new Set<Controller>()
  const add = (version: 1 | 2, top: string, all: readonly string[]) => {
    const controllers = all.filter(isOurs).filter((c) => !taken.has(c))
    for (const c of controllers) taken.add(c)
    if (controllers.length > 0) found.push({ version, top, controllers })
  }
  const mounts = mountinfo
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      const f = line.split(' ')
      const dash = f.indexOf('-')
      return { at: f[4] as string, type: f[dash + 1], options: (f[dash + 3] ?? '').split(',') }
    })
  if (root) for (const m of mounts) if (m.type === 'cgroup') add(1, m.at, m.options)
  const unified = mounts.find((m) => m.type === 'cgroup2')?.at
  const path = /^0::(\/.*)$/m.exec(own)?.[1]
  if (unified === undefined || path === undefined || path.startsWith('/..')) return found
  const top = root ? unified : delegated(unified, path)
  if (top !== undefined) add(2, top, read(join(top, 'cgroup.controllers')).trim().split(' '))
  return found
}

/** The outermost group above this process's own that belongs to this user, without processes of its own. */
function delegated(unified: string, path: string): string | undefined {
  let best: string | undefined
  for (let at = path; at !== '/' && at !== '.'; at = dirname(at)) {
    const dir = join(unified, at)
    if (!writable(dir) || !writable(join(dir, 'cgroup.procs')) || !writable(join(dir, 'cgroup.subtree_control'))) break
    if (read(join(dir, 'cgroup.procs')) === '') best = dir
  }
  return best
}

function writable(path: string): boolean {
  try {
    accessSync(path, constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** One level only: below a hierarchy that another mount hides, Node's recursive mkdir never returns. */
function makeLevel(path: string): void {
  try {
    mkdirSync(path)
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code !== 'EEXIST') throw e
  }
}

type Setting = readonly [file: string, value: string, must: boolean]

/** As much of a contended machine as that many tasks, or groups, that say nothing. */
const weight = (version: 1 | 2, cpus: number): Setting =>
  version === 1
    ? ['cpu.shares', String(1024 * cpus), false]
    : ['cpu.weight', String(Math.min(10_000, 100 * cpus)), false]

/** What is written into a VM's group. Swap is no memory: where it is counted there is none. */
function settings(version: 1 | 2, controller: Controller, l: Limits): readonly Setting[] {
  const bytes = String(l.memMib * 2 ** 20)
  const quota = String(l.cpus * PERIOD_US)
  switch (controller) {
    case 'pids':
      return [['pids.max', String(MOST_TASKS), true]]
    case 'memory':
      return version === 1
        ? [
            ['memory.limit_in_bytes', bytes, true],
            ['memory.memsw.limit_in_bytes', bytes, false],
          ]
        : [
            ['memory.max', bytes, true],
            ['memory.swap.max', '0', false],
          ]
    case 'cpu':
      return version === 1
        ? [['cpu.cfs_period_us', String(PERIOD_US), true], ['cpu.cfs_quota_us', quota, true], weight(1, l.cpus)]
        : [['cpu.max', `${quota} ${PERIOD_US}`, true], weight(2, l.cpus)]
  }
}

export interface Groups {
  /** The files that a process writes its number into to join. */
  readonly procs: readonly string[]
  readonly enforced: readonly Controller[]
}

/** Make a VM's groups, or find them, with these limits. What cannot be had is left out; nothing throws for it. */
export function makeGroups(vmId: string, l: Limits, all: readonly Hierarchy[] = hierarchies()): Groups {
  const procs: string[] = []
  const enforced = new Set<Controller>()
  for (const h of all) {
    const group = makeGroup(h, vmId)
    if (group === undefined) continue
    const here = h.controllers.filter((c) =>
      settings(h.version, c, l).every(([file, value, must]) => write(join(group, file), value) || !must),
    )
    for (const c of here) enforced.add(c)
    if (here.length > 0) procs.push(join(group, 'cgroup.procs'))
    else remove(group)
  }
  return { procs, enforced: [...enforced] }
}

function makeGroup(h: Hierarchy, vmId: string): string | undefined {
  const parent = join(h.top, OURS)
  const group = join(parent, vmId)
  // Another VM's end may remove the parent at any moment.
  for (let tries = 0; tries < 5; tries++)
    try {
      makeLevel(parent)
      if (h.version === 2) for (const dir of [h.top, parent]) enable(dir, h.controllers)
      if (h.controllers.includes('cpu')) {
        // All VMs together would weigh as one task of the host's.
        const [file, value] = weight(h.version, availableParallelism())
        write(join(parent, file), value)
      }
      makeLevel(group)
      return group
    } catch (e) {
      if ((e as NodeJS.ErrnoException).code !== 'ENOENT') return undefined
    }
  return undefined
}

/** One by one: one that is refused does not take the others with it. */
function enable(dir: string, controllers: readonly Controller[]): void {
  const file = join(dir, 'cgroup.subtree_control')
  for (const c of controllers) if (!read(file).trim().split(' ').includes(c)) write(file, `+${c}`)
}

function write(path: string, value: string): boolean {
  try {
    // Never creates: a file that is not there is a limit that cannot be had.
    if (!existsSync(path)) return false
    writeFileSync(path, value, { flag: 'r+' })
    return true
  } catch {
    return false
  }
}

/** The process joins: for the stage. Throws when it cannot. */
export function joinGroups(procs: readonly string[], pid: number): void {
  for (const p of procs) writeFileSync(p, String(pid), { flag: 'r+' })
}

/** Remove a VM's groups; its processes are gone or are just going. True when nothing is left of them. */
export async function removeGroups(vmId: string, all: readonly Hierarchy[] = hierarchies()): Promise<boolean> {
  const until = Date.now() + GONE_MS
  for (;;) {
    const left = all.map((h) => join(h.top, OURS, vmId)).filter((g) => existsSync(g) && !remove(g))
    if (left.length === 0 || Date.now() > until) {
      // The last one takes the parent along; while others are there it stays.
      for (const h of all) remove(join(h.top, OURS), false)
      return left.length === 0
    }
    await sleep(10)
  }
}

function remove(dir: string, below = true): boolean {
  try {
    // What a VM with a part of the hierarchy of its own has made there.
    if (below) for (const e of readdirSync(dir, { withFileTypes: true })) if (e.isDirectory()) remove(join(dir, e.name))
    rmdirSync(dir)
    return true
  } catch (e) {
    return (e as NodeJS.ErrnoException).code === 'ENOENT'
  }
}

const SAID: Readonly<Record<Controller, string>> = {
  cpu: 'processors (--cpus)',
  memory: 'memory (--mem)',
  pids: 'the number of processes',
}

/** What of a VM's limits nobody enforces here, in words; undefined when all of it is enforced. Tries it with a group of its own. */
export async function unenforced(): Promise<string | undefined> {
  const probe = `probe-${process.pid}`
  const all = hierarchies()
  const { enforced } = makeGroups(probe, { cpus: 1, memMib: 64 }, all)
  await removeGroups(probe, all)
  const missing = CONTROLLERS.filter((c) => !enforced.includes(c))
  return missing.length === 0 ? undefined : missing.map((c) => SAID[c]).join(', ')
}
