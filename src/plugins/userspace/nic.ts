/**
 * A VM's nic as the daemon handles it: opened in the VM's namespace, recognised after a restart, removed.
 *
 * A VM that has no namespace gets a socket (sockets.ts). Root enters the network namespace on its own thread; an ordinary user goes through opener.ts. What is remembered (NicRecord)
 * names the namespace by inode, because a path below /proc names whoever has the pid today.
 */
import { execFile, spawn } from 'node:child_process'
import { statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { TunTapError } from '#tun-tap'
import { NoidError } from '../../errors.ts'
import { must } from '../../sys/errno.ts'
import { close, setNonblock } from '../../sys/fd.ts'
import { linkIndex } from '../../sys/netdev.ts'
import { inNetns } from '../../sys/netns.ts'
import { recvWithFds, socketpair } from '../../sys/scm.ts'
import type { Attachment, AttachRequest, NetworkSpec, Nic } from '../contract.ts'
import { type DeviceSpec, IFNAME, type OpenDevice, openDevice } from './device.ts'
import type { OpenerAnswer } from './opener.ts'
import type { NicSockets, SocketRecord } from './sockets.ts'

const run = promisify(execFile)
const OPENER_MS = 15_000
const BUSY_MS = 3000
const BUSY_STEP_MS = 20
const ENTRY = fileURLToPath(new URL(`./opener${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url))

/** What must be known of a nic later. Plain JSON. */
export type NicRecord = DeviceRecord | SocketRecord

export interface DeviceRecord {
  readonly kind: 'tap' | 'packet'
  readonly vnetHdr: boolean
  readonly netns: string
  /** eth0 when absent. */
  readonly ifname?: string
  /** Device and inode of the namespace. */
  readonly netnsId: string
  readonly privileged: boolean
}

export interface OpenedNic {
  readonly fds: readonly number[]
  readonly existed: boolean
  readonly record: NicRecord
}

/** What the nic of this VM will be: a device in its namespace, or the first kind of socket that its runtime names. */
export function chooseKind(r: AttachRequest): 'device' | SocketRecord['kind'] {
  if (r.netns !== undefined && (r.accepts.includes('tap') || r.accepts.includes('netdev'))) return 'device'
  for (const kind of r.accepts) if (kind === 'dgram' || kind === 'vhost-user') return kind
  throw new NoidError('CAPABILITY_MISSING', {
    backend: 'userspace',
    what: `a nic for this runtime (it accepts ${r.accepts.join(', ')})`,
    hint: 'choose the sandbox runtime, or qemu',
  })
}

const isSocket = (r: NicRecord): r is SocketRecord => r.kind === 'dgram' || r.kind === 'vhost-user'

/**
 * Open the nic of `r`. A nic that is there already is opened again.
 * @throws NoidError TUN_UNAVAILABLE, CAPABILITY_MISSING, VM_NOT_RUNNING (its namespace is gone)
 */
export async function openNic(
  n: NetworkSpec,
  r: AttachRequest,
  privileged: boolean,
  sockets: NicSockets,
): Promise<OpenedNic> {
  const kind = chooseKind(r)
  if (kind !== 'device') {
    const record = sockets.record(kind, r.id)
    return { fds: [sockets.open(record)], existed: false, record }
  }
  const netns = r.netns as string
  const netnsId = namespaceId(netns)
  if (netnsId === undefined) throw new NoidError('VM_NOT_RUNNING', { name: r.name })
  const spec: DeviceSpec = { ifname: r.ifname ?? IFNAME, mac: r.mac, mtu: n.mtu, wireNetns: r.wireNetns }
  const opened = await whileBusy(() => (privileged ? openHere(netns, spec) : openThere(netns, spec)))
  const { vnetHdr, existed, fds } = opened
  return { fds, existed, record: { kind: opened.kind, vnetHdr, netns, ifname: spec.ifname, netnsId, privileged } }
}

/**
 * A data plane that was killed holds its TAPs until the last of its threads is gone, a few milliseconds after the process is said to be dead.
 */
async function whileBusy(open: () => OpenDevice | Promise<OpenDevice>): Promise<OpenDevice> {
  for (const until = Date.now() + BUSY_MS; ; await sleep(BUSY_STEP_MS)) {
    try {
      return await open()
    } catch (e) {
      if (!(e instanceof Unavailable && e.reason === 'EBUSY' && Date.now() < until)) throw e
    }
  }
}

/** The namespace that the nic was in is no more (or its path names another). */
export const nicGone = (r: NicRecord): boolean => !isSocket(r) && namespaceId(r.netns) !== r.netnsId

/** Is it as it was handed over? Of a socket this end holds what a new daemon must make again. */
export const nicHeld = (r: NicRecord, sockets: NicSockets): boolean => !isSocket(r) || sockets.holds(r)

/** Is the device still in its namespace, which exists? A guest that is root there may have removed it. */
export async function nicPresent(r: NicRecord, sockets: NicSockets): Promise<boolean> {
  if (isSocket(r)) return sockets.present(r)
  if (r.privileged) return inNetns(r.netns, () => linkIndex(r.ifname ?? IFNAME)) >= 0
  return run('nsenter', [...enter(r.netns, false), 'ip', 'link', 'show', r.ifname ?? IFNAME], { timeout: 5000 }).then(
    () => true,
    () => false,
  )
}

/** Remove the device. Idempotent; nothing to do when the namespace is gone. */
export async function removeNic(r: NicRecord, sockets: NicSockets): Promise<void> {
  if (isSocket(r)) return sockets.remove(r)
  if (nicGone(r)) return
  await run('nsenter', [...enter(r.netns, r.privileged), 'ip', 'link', 'delete', r.ifname ?? IFNAME], {
    timeout: 5000,
  }).catch(() => {})
}

export function attachmentOf(n: NetworkSpec, r: AttachRequest, record: NicRecord): Attachment {
  return {
    id: r.id,
    network: r.network,
    nic: nicOf(record),
    mac: r.mac,
    mtu: n.mtu,
    addresses: r.addresses,
    routes: [
      ...(n.ipv4 === false ? [] : [{ to: '0.0.0.0/0', via: n.gateway }]),
      ...(n.ipv6 === undefined ? [] : [{ to: '::/0', via: n.ipv6.gateway }]),
    ],
    dns: {
      servers: [...(n.ipv4 === false ? [] : [n.services]), ...(n.ipv6 === undefined ? [] : [n.ipv6.services])],
      search: [n.domain],
    },
    configuredBy: 'dhcp',
    state: record,
  }
}

function nicOf(record: NicRecord): Nic {
  switch (record.kind) {
    case 'tap':
      return { kind: 'tap', ifname: record.ifname ?? IFNAME, netns: record.netns, queues: 1, vnetHdr: record.vnetHdr }
    case 'packet':
      return { kind: 'netdev', ifname: record.ifname ?? IFNAME, netns: record.netns }
    case 'dgram':
      return { kind: 'dgram', path: record.path, peer: record.peer }
    case 'vhost-user':
      return { kind: 'vhost-user', path: record.path }
  }
}

function openHere(netns: string, spec: DeviceSpec): OpenDevice {
  try {
    return inNetns(netns, () => openDevice(spec))
  } catch (e) {
    if (e instanceof TunTapError) throw new Unavailable(e.message, e.code)
    throw e
  }
}

async function openThere(netns: string, spec: DeviceSpec): Promise<OpenDevice> {
  const pair = socketpair()
  if (typeof pair === 'number') throw new NoidError('INTERNAL', { why: `no socket pair: ${must('socketpair', pair)}` })
  const [ours, theirs] = pair
  try {
    await new Promise<void>((resolve, reject) => {
      const child = spawn(
        'nsenter',
        [
          ...enter(netns, false),
          process.execPath,
          '--disable-warning=ExperimentalWarning',
          ENTRY,
          JSON.stringify(spec),
        ],
        { stdio: ['ignore', 'ignore', 'pipe', theirs], timeout: OPENER_MS, env: { ...process.env, NODE_OPTIONS: '' } },
      )
      let words = ''
      child.stderr?.on('data', (d: Buffer) => {
        words = (words + d).slice(-2000)
      })
      child.on('error', (e) =>
        reject(
          (e as NodeJS.ErrnoException).code === 'ENOENT'
            ? new NoidError('TOOL_MISSING', { tool: 'nsenter', package: 'util-linux' })
            : e,
        ),
      )
      child.on('close', (code) =>
        code === 0 ? resolve() : reject(new Unavailable(words.trim() || `exit code ${code}`)),
      )
    })
    setNonblock(ours, true)
    const r = recvWithFds(ours, 64 * 1024)
    if (typeof r === 'number') throw new Unavailable('the opener said nothing')
    const answer = JSON.parse(Buffer.from(r.bytes).toString()) as OpenerAnswer
    if ('error' in answer) throw new Unavailable(answer.error, answer.code)
    if (r.fds.length === 0) throw new Unavailable('no descriptor came')
    return { ...answer, fds: r.fds }
  } finally {
    close(ours)
    close(theirs)
  }
}

/** nsenter's arguments. The user namespace that owns a VM's network namespace is its neighbour in /proc. */
const enter = (netns: string, privileged: boolean): string[] =>
  privileged
    ? [`--net=${netns}`]
    : ['--preserve-credentials', `--user=${join(dirname(netns), 'user')}`, `--net=${netns}`]

class Unavailable extends NoidError {
  readonly reason: string

  constructor(why: string, reason = '') {
    super('TUN_UNAVAILABLE', { why })
    this.reason = reason
  }
}

function namespaceId(path: string): string | undefined {
  try {
    const s = statSync(path)
    return `${s.dev}:${s.ino}`
  } catch {
    return undefined
  }
}
