/**
 * Whose users a VM's users are: the mapping of its user namespace, and a process that holds such a namespace while
 * others join it.
 *
 * Root's VMs get 65536 ids of their own each, inside the range that systemd reserves for containers (0x00080000 to
 * 0x6FFFFFFF), so that they are nobody on the host and nobody to each other. Which ones is a hash of the VM's id, known without a record; the daemon
 * chooses ids so that no two of its VMs have the same (RuntimeDescriptor.usersOf). A user's VMs map root to the user, and the
 * rest to the user's range in /etc/subuid when there is one and newuidmap may write it; else root alone exists.
 * Read: user_namespaces(7), subuid(5), newuidmap(1).
 */
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import { processStat } from '../../sys/process.ts'

/** inside, outside, how many: a line of uid_map. */
export type Extent = readonly [inside: number, outside: number, count: number]

export interface IdMap {
  readonly uids: readonly Extent[]
  readonly gids: readonly Extent[]
  /** Whether users other than root exist inside (apt and dpkg need them). */
  readonly range: boolean
}

const FIRST_SLOT = 0x2000
const SLOTS = 0x4f00
const IDS = 0x10000

/** The first uid and gid on the host of a VM that root's daemon runs. */
export function rootBase(vmId: string): number {
  const slot = createHash('sha256').update(vmId).digest().readUInt32BE(0) % SLOTS
  return (FIRST_SLOT + slot) * IDS
}

/** Is that user of the host one of those of a VM that root's daemon runs? */
export const isUserOf = (vmId: string, uid: number): boolean => uid >= rootBase(vmId) && uid < rootBase(vmId) + IDS

export function rootMap(vmId: string): IdMap {
  const extent: Extent = [0, rootBase(vmId), IDS]
  return { uids: [extent], gids: [extent], range: true }
}

/** A user's first range of at least 65535 subordinate ids: [start, count]. */
export function subordinate(file: string, user: string, uid: number): readonly [number, number] | undefined {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
  for (const line of text.split('\n')) {
    const [who, start, count] = line.split(':')
    if ((who === user || who === String(uid)) && Number(count) >= IDS - 1) return [Number(start), Number(count)]
  }
  return undefined
}

/** The user's name, or the number where the machine knows no name. */
export function userName(uid: number): string {
  try {
    return userInfo().username
  } catch {
    return String(uid)
  }
}

/** The mapping of a user's VMs. */
export function userMap(uid = process.getuid?.() ?? 0, gid = process.getgid?.() ?? 0): IdMap {
  const single: IdMap = { uids: [[0, uid, 1]], gids: [[0, gid, 1]], range: false }
  const user = userName(uid)
  const u = subordinate('/etc/subuid', user, uid)
  const g = subordinate('/etc/subgid', user, uid)
  if (u === undefined || g === undefined) return single
  return {
    uids: [
      [0, uid, 1],
      [1, u[0], IDS - 1],
    ],
    gids: [
      [0, gid, 1],
      [1, g[0], IDS - 1],
    ],
    range: true,
  }
}

export interface HeldNamespace {
  readonly pid: number
  readonly path: string
  /** What was mapped in the end: a range that newuidmap refuses becomes root alone. */
  readonly map: IdMap
  /** Resolves when the holder is gone, and no zombie of this process either. */
  release(): Promise<void>
}

/**
 * Make a user namespace and hold it until `release`, or until this process ends.
 * Throws an Error whose message says what the kernel or newuidmap refused.
 */
export function holdNamespace(wanted: IdMap, privileged: boolean): Promise<HeldNamespace> {
  return hold([], (pid) => (privileged ? writeMap(pid, wanted) : writeUserMap(pid, wanted)))
}

/** One inside another, with the same users: what is mounted in the outer one is locked in it. */
export function holdInner(outer: HeldNamespace): Promise<HeldNamespace> {
  const inside = ['nsenter', `--user=${outer.path}`, '--preserve-credentials']
  // Each extent must lie within one of the outer namespace's.
  const same = (extents: readonly Extent[]): string => lines(extents.map(([i, , n]) => [i, i, n]))
  return hold(inside, (pid) => {
    const write = `printf '%s' "$1" > /proc/${pid}/uid_map && printf '%s' "$2" > /proc/${pid}/gid_map`
    const words = ['sh', '-c', write, 'noid-map', same(outer.map.uids), same(outer.map.gids)]
    const r = spawnSync(inside[0] as string, [...inside.slice(1), ...words], { encoding: 'utf8' })
    if (r.status !== 0) throw new Error(`an inner user namespace: ${r.error?.message ?? r.stderr.trim()}`)
    return outer.map
  })
}

async function hold(way: readonly string[], mapped: (pid: number) => IdMap): Promise<HeldNamespace> {
  const [program, ...words] = [...way, 'unshare', '--user', 'sh', '-c', 'echo; read -r end'] as readonly string[] as [
    string,
    ...string[],
  ]
  const child = spawn(program, words, { stdio: ['pipe', 'pipe', 'pipe'] })
  let refusal = ''
  child.stderr.setEncoding('utf8').on('data', (t: string) => {
    refusal += t
  })
  const pid = await new Promise<number>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', () => reject(new Error(refusal.trim() || 'unshare --user ended at once')))
    child.stdout.once('data', () => resolve(child.pid as number))
  })
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  const release = () => {
    child.stdin.destroy()
    return gone
  }
  child.stdin.on('error', () => {})
  try {
    const map = mapped(pid)
    if (processStat(pid) === undefined) throw new Error('the holder of the user namespace ended')
    return { pid, path: `/proc/${pid}/ns/user`, map, release }
  } catch (e) {
    await release()
    throw e
  }
}

const lines = (extents: readonly Extent[]): string => extents.map((e) => e.join(' ')).join('\n')

function writeMap(pid: number, map: IdMap): IdMap {
  writeFileSync(`/proc/${pid}/uid_map`, lines(map.uids))
  writeFileSync(`/proc/${pid}/gid_map`, lines(map.gids))
  return map
}

function writeUserMap(pid: number, map: IdMap): IdMap {
  if (map.range && newidmap('newuidmap', pid, map.uids) && newidmap('newgidmap', pid, map.gids)) return map
  const single: IdMap = { uids: [map.uids[0] as Extent], gids: [map.gids[0] as Extent], range: false }
  writeFileSync(`/proc/${pid}/setgroups`, 'deny')
  // newuidmap may have written one of the two before the other was refused.
  if (readFileSync(`/proc/${pid}/uid_map`, 'utf8') === '') writeFileSync(`/proc/${pid}/uid_map`, lines(single.uids))
  writeFileSync(`/proc/${pid}/gid_map`, lines(single.gids))
  return single
}

const newidmap = (tool: string, pid: number, extents: readonly Extent[]): boolean =>
  spawnSync(tool, [String(pid), ...extents.flat().map(String)], { stdio: 'ignore' }).status === 0
