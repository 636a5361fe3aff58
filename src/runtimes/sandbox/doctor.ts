/**
 * What this machine has of what sandboxes need: for `noid doctor`, and for the runtime's status.
 *
 * Each check tries the thing itself (makes a namespace, mounts an overlay) where that leaves nothing behind.
 */
import { spawnSync } from 'node:child_process'
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { subordinate, userName } from './identity.ts'
import { unenforced } from './limits.ts'

export interface Check {
  readonly name: string
  readonly ok: boolean
  readonly detail: string
  readonly hint?: string
  /** Without it no sandbox runs; otherwise something is less than it could be. */
  readonly required: boolean
}

const TOOLS: readonly (readonly [tool: string, packageName: string])[] = [
  ['unshare', 'util-linux'],
  ['nsenter', 'util-linux'],
  ['setsid', 'util-linux'],
  ['setpriv', 'util-linux'],
  ['pivot_root', 'util-linux'],
  ['mount', 'mount'],
  ['hostname', 'hostname'],
  ['ip', 'iproute2'],
  ['find', 'findutils'],
]

/** Run every check; takes about 50 ms. */
export async function checkMachine(): Promise<Check[]> {
  const root = process.getuid?.() === 0
  return [
    ...tools(),
    userNamespaces(),
    procAndSys(),
    ...(root ? [overlay()] : [subordinateIds()]),
    await limits(root),
    tun(root),
  ]
}

const has = (tool: string): boolean =>
  [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/usr/bin', '/sbin', '/bin'].some(
    (d) => d !== '' && existsSync(`${d}/${tool}`),
  )

function tools(): Check[] {
  const missing = TOOLS.filter(([t]) => !has(t))
  if (missing.length === 0)
    return [{ name: 'system tools', ok: true, required: true, detail: TOOLS.map(([t]) => t).join(', ') }]
  return missing.map(([t, p]) => ({
    name: `system tool ${t}`,
    ok: false,
    required: true,
    detail: 'not installed',
    hint: `apt-get install ${p}`,
  }))
}

const read = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return undefined
  }
}

/** Why a user namespace is refused, as far as the kernel's switches tell. */
function refusal(): { detail: string; hint: string } | undefined {
  if (read('/proc/sys/user/max_user_namespaces') === '0')
    return { detail: 'user.max_user_namespaces is 0', hint: 'as root: sysctl -w user.max_user_namespaces=10000' }
  if (read('/proc/sys/kernel/unprivileged_userns_clone') === '0')
    return {
      detail: 'kernel.unprivileged_userns_clone is 0',
      hint: 'as root: sysctl -w kernel.unprivileged_userns_clone=1',
    }
  if (read('/proc/sys/kernel/apparmor_restrict_unprivileged_userns') === '1')
    return {
      detail: 'AppArmor restricts user namespaces of ordinary users',
      hint: 'as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0',
    }
  return undefined
}

function userNamespaces(): Check {
  const name = 'user namespaces'
  const r = spawnSync('unshare', ['--user', '--map-root-user', '--net', '--uts', '--ipc', '--mount', '--', 'true'], {
    encoding: 'utf8',
    timeout: 5000,
  })
  if (r.status === 0) return { name, ok: true, required: true, detail: 'can be made' }
  const why = refusal()
  return {
    name,
    ok: false,
    required: true,
    detail: why?.detail ?? ((r.stderr ?? '').trim() || 'unshare failed'),
    hint: why?.hint ?? 'inside a container, start it with rights for namespaces (docker: --privileged)',
  }
}

/** A masked /proc, as containers have it, forbids mounting a new one. */
function procAndSys(): Check {
  const name = 'own /proc and /sys'
  const script = 'mount -t proc proc /proc && mount -t sysfs -o ro sys /sys'
  const ns = ['--user', '--map-root-user', '--net', '--pid', '--fork', '--mount', '--', 'sh', '-c', script]
  const r = spawnSync('unshare', ns, { encoding: 'utf8', timeout: 5000 })
  if (r.status === 0) return { name, ok: true, required: true, detail: 'can be mounted' }
  return {
    name,
    ok: false,
    required: true,
    detail: (r.stderr ?? '').trim().split('\n')[0] || 'cannot be mounted',
    hint: 'inside a container its masks forbid it (docker: --security-opt systempaths=unconfined or --privileged)',
  }
}

function overlay(): Check {
  const name = 'copy-on-write root'
  const known = (read('/proc/filesystems') ?? '').split('\n').some((l) => l.trim().endsWith('overlay'))
  const type = spawnSync('stat', ['-f', '-c', '%T', '/'], { encoding: 'utf8' }).stdout?.trim()
  if (!known && spawnSync('modprobe', ['overlay'], { stdio: 'ignore' }).status !== 0)
    return { name, ok: false, required: true, detail: 'the kernel has no overlayfs', hint: 'modprobe overlay' }
  if (type === 'overlayfs')
    return {
      name,
      ok: false,
      required: true,
      detail: 'the root file system is an overlay itself, as in a container, and cannot be id-mapped',
      hint: 'use --image with an unpacked root on another file system, or run noid as an ordinary user',
    }
  return { name, ok: true, required: true, detail: `overlayfs over ${type ?? 'the root file system'}` }
}

function subordinateIds(): Check {
  const name = 'more users than root in a VM'
  const uid = process.getuid?.() ?? 0
  const username = userName(uid)
  const add = `as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ${username}`
  const base = { name, required: false } as const
  if (!has('newuidmap'))
    return { ...base, ok: false, detail: 'newuidmap is not installed', hint: 'apt-get install uidmap' }
  if (!subordinate('/etc/subuid', username, uid) || !subordinate('/etc/subgid', username, uid))
    return { ...base, ok: false, detail: `no range for ${username} in /etc/subuid and /etc/subgid`, hint: add }
  return { ...base, ok: true, detail: 'a range of ids is there' }
}

async function limits(root: boolean): Promise<Check> {
  const missing = await unenforced()
  const base = { name: 'limits of VMs', required: false } as const
  if (missing === undefined) return { ...base, ok: true, detail: 'processors, memory and processes, by control groups' }
  return {
    ...base,
    ok: false,
    detail: `nothing enforces ${missing}`,
    hint: root
      ? 'the control groups of cpu, memory and pids must be mounted and writable below /sys/fs/cgroup'
      : 'run the daemon in a part of the control groups that is yours: systemd-run --user --scope -p Delegate=yes noid daemon start',
  }
}

function tun(root: boolean): Check {
  const name = '/dev/net/tun'
  const base = { name, required: false } as const
  try {
    accessSync('/dev/net/tun', constants.R_OK | constants.W_OK)
    return { ...base, ok: true, detail: 'may be opened' }
  } catch (e) {
    const absent = (e as NodeJS.ErrnoException).code === 'ENOENT'
    return {
      ...base,
      ok: false,
      detail: absent ? 'does not exist' : 'may not be opened by this user; a veth takes its place',
      hint: root || absent ? 'modprobe tun; mknod /dev/net/tun c 10 200' : 'as root: chmod 0666 /dev/net/tun',
    }
  }
}
