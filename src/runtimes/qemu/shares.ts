/**
 * Directories of the host in a VM with its own kernel (`--mount`): virtio-fs, one virtiofsd for each (QEMU's or the Rust one).
 *
 * Debian's cloud kernel has virtiofs and no 9p. A virtiofsd is started before QEMU, in a mount and a pid namespace of its own, sees the
 * directory by a bind (read-only where it was asked for: nobody in the VM can change that), and ends with its QEMU; it carries the VM's name as an
 * argument, as QEMU does, so that it is ended with it whatever was killed. The daemon may die meanwhile: nothing of it is needed.
 * Root's serves the VM's users as the host's users of the same numbers, root as root, but makes no devices. A user's runs in a user namespace with
 * the user's range of subordinate ids, and needs one: virtiofsd becomes the guest's user for each file it makes.
 * Never does: mounting in the guest; the agent does that.
 */
import { closeSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../../errors.ts'
import { errnoText } from '../../sys/errno.ts'
import { AF_UNIX, bind, listen, SOCK_STREAM, socket } from '../../sys/socket.ts'
import type { VmSpec } from '../contract.ts'
import { userMap } from '../sandbox/identity.ts'
import { launch, markOf } from './process.ts'

const SERVERS = ['/usr/libexec/virtiofsd', '/usr/lib/qemu/virtiofsd', '/usr/lib/virtiofsd']
/** QEMU's microvm has eight places for devices, and four are taken. */
export const MICROVM_SHARES = 4
/** The listening socket, in the server. */
const FD = 3

const SCRIPT = `
mount --bind "$1" "$1" || exit 1
mount -o "remount,bind,$2" "$1" || exit 1
source=$1; shift 2
exec "$@" -o "source=$source"
`

export interface Shares {
  /** For QEMU's command line. */
  readonly argv: readonly string[]
  /** For the agent. */
  readonly mounts: readonly { readonly tag: string; readonly target: string; readonly readonly: boolean }[]
}

/** Throws MOUNT_INVALID when this machine cannot share directories with a VM. */
export function mustShare(vm: VmSpec, privileged: boolean): void {
  const first = vm.mounts?.[0]
  if (first === undefined) return
  const refuse = (why: string): never => {
    throw new NoidError('MOUNT_INVALID', { source: first.source, why })
  }
  if (server() === undefined) refuse('virtiofsd is not installed: apt-get install qemu-system-common')
  if (!privileged && !userMap().range)
    refuse(
      'a VM of qemu needs a range for your user in /etc/subuid and newuidmap to share directories (noid doctor tells more)',
    )
}

const server = (): string | undefined => SERVERS.find((p) => existsSync(p))

/** Starts the servers; what QEMU and the guest must be told. `run` is the VM's run directory, `device` virtio's suffix. */
export function openShares(
  vm: VmSpec,
  run: string,
  log: string,
  device: 'device' | 'pci',
  privileged: boolean,
): Shares {
  const mounts = (vm.mounts ?? []).map((m, i) => ({ ...m, tag: `noid${i}`, path: `fs${i}` }))
  for (const m of mounts) {
    const fd = listening(join(run, m.path))
    try {
      launch({ program: 'unshare', argv: serverCommand(markOf(vm.id), m, privileged), cwd: '/', log, fds: [fd] })
    } finally {
      closeSync(fd)
    }
  }
  return {
    argv: mounts.flatMap((m) => [
      ...['-chardev', `socket,id=${m.path},path=${m.path}`],
      ...['-device', `vhost-user-fs-${device},chardev=${m.path},tag=${m.tag}`],
    ]),
    mounts: mounts.map(({ tag, target, readonly }) => ({ tag, target, readonly })),
  }
}

function serverCommand(mark: string, m: { source: string; readonly: boolean }, privileged: boolean): string[] {
  const identity = privileged ? [] : ['--user', '--map-auto', '--map-root-user']
  return [
    ...identity,
    ...['--mount', '--propagation', 'private', '--pid', '--fork', '--kill-child', '--mount-proc'],
    ...['sh', '-c', SCRIPT, mark, m.source, m.readonly ? 'ro' : 'rw'],
    ...[
      server() as string,
      `--fd=${FD}`,
      '--rlimit-nofile=0',
      '-o',
      'modcaps=-mknod',
      '-o',
      'cache=auto',
      '-o',
      'log_level=warn',
    ],
  ]
}

/** Blocking, as virtiofsd wants it. */
function listening(path: string): number {
  const fd = socket(AF_UNIX, SOCK_STREAM)
  const r = fd < 0 ? fd : bind(fd, { family: 'unix', path })
  const l = r < 0 ? r : listen(fd, 1)
  if (l < 0) throw new Error(`${path}: ${errnoText(l)}`)
  return fd
}
