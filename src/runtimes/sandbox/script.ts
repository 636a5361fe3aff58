/**
 * The two shell programs of a sandbox.
 *
 * `stageScript` runs with the host's tools, as root of the new user namespace, alone in the new mount namespace: it
 * completes the root (proc, sys, dev, run), enters it and becomes init. Whatever fails ends it, and with it every
 * namespace and mount.
 * Leaving the old root takes two programs, pivot_root and umount, and the second is found in the new root: a guest may have
 * put anything there. So it is left twice: first for a bare root of the host's software alone, with the host's umount, then for the VM's.
 * Whatever runs as umount there sees that bare root, in which nothing is anybody's.
 * `initScript` is process 1 of the VM: it reaps, and ends the others when it is told to. No other program of noid runs
 * in a VM that is idle.
 *
 * Both speak POSIX sh (dash, busybox) and get their words as arguments, never pasted into the text.
 */
import type { Bind } from './view.ts'

/** Environment of everything in a VM that says nothing else. */
export const VM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

export const initScript = `
finish() {
  trap '' TERM INT
  echo "noid: $name is stopping"
  kill -TERM -1 2>/dev/null
  while :; do
    set -- /proc/[0-9]*
    [ $# -le 1 ] && break
    sleep 0.02
  done
  echo "noid: $name has stopped"
  exit 0
}
name=$1
trap finish TERM INT
trap '' HUP
cd /
umask 022
echo "noid: $name is up, process 1 on $(uname -sr)"
while :; do
  sleep 2147483647 &
  wait $!
done
`

/** How the root comes to be, seen from the stage. */
export type RootPlan =
  /** Mounted already, with dev, by a stage with rights. */
  | { readonly kind: 'mounted' }
  /** A directory that is the root as it is. */
  | { readonly kind: 'directory'; readonly path: string; readonly binds: readonly BoundPart[] }
  /** An overlay over an image's directory, without rights (userxattr). */
  | { readonly kind: 'overlay'; readonly lower: string; readonly upper: string; readonly work: string }

/**
 * A part of the host's system in a VM whose root is a directory of its own: an overlay, or bound read-only where the
 * kernel refuses one.
 */
export interface BoundPart extends Bind {
  /** Topmost first. */
  readonly lower: readonly string[]
  readonly upper: string
  readonly work: string
  /** The mount flags that may not be dropped inside a user namespace. */
  readonly flags: readonly string[]
}

const quote = (s: string): string => `'${s.replaceAll("'", "'\\''")}'`

/** Colons and commas end a word in overlayfs's options. */
export const overlayPath = (s: string): string =>
  s.replaceAll('\\', '\\\\').replaceAll(':', '\\:').replaceAll(',', '\\,')

const overlayOptions = (o: { lower: readonly string[]; upper: string; work: string }): string =>
  quote(
    `userxattr,lowerdir=${o.lower.map(overlayPath).join(':')},upperdir=${overlayPath(o.upper)},workdir=${overlayPath(o.work)}`,
  )

/** A directory of the host for a VM whose stage has no rights. */
export interface HostBind {
  readonly source: string
  /** Relative to the root. */
  readonly target: string
}

/**
 * In a mount namespace of the outer user namespace: read-only views of directories, each where its `view` says, so that in the inner one, where
 * the VM is, they are locked. $1... are the words of what follows; descriptor 5 is the inner namespace.
 */
export function lockScript(views: string, fixed: readonly FixedView[]): string {
  const v = quote(views)
  return [
    'set -e',
    `mount -t tmpfs -o mode=0755,size=1m noid ${v}`,
    ...fixed.flatMap((f) => [
      `mkdir ${quote(f.view)}`,
      `mount --rbind ${quote(f.source)} ${quote(f.view)}`,
      ...f.parts.map((part) => `mount -o ${['remount', 'bind', 'ro', ...part.flags].join(',')} ${quote(part.path)}`),
    ]),
    'exec "$@"',
  ].join('\n')
}

export interface FixedView {
  readonly source: string
  readonly view: string
  /** It and what is mounted below it, with the flags that may not be dropped. */
  readonly parts: readonly { readonly path: string; readonly flags: readonly string[] }[]
}

export interface StageWords {
  readonly name: string
  /** An existing directory in which the root is assembled; hidden from the host by the mount namespace. */
  readonly base: string
  readonly plan: RootPlan
  /** Whether groups other than 0 are mapped (tty is 5). */
  readonly range: boolean
  readonly binds: readonly HostBind[]
}

/** Where a host has its programs and what they need. */
const SOFTWARE = ['bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32', 'usr', 'nix', 'gnu']

const DEVICES = ['null', 'zero', 'full', 'random', 'urandom', 'tty']
/** Kernel files that say too much of the host, or reach it. The kernel's own checks are what protects. */
const MASKED_FILES = ['kcore', 'keys', 'timer_list', 'sysrq-trigger', 'kmsg', 'sched_debug', 'config.gz']
const MASKED_DIRECTORIES = [
  'proc/acpi',
  'proc/scsi',
  'proc/asound',
  'sys/firmware',
  'sys/kernel/debug',
  'sys/kernel/security',
]

export function stageScript(w: StageWords): string {
  const b = quote(w.base)
  const out: string[] = ['set -e', 'exec </dev/null 5<&-', 'export LC_ALL=C']
  if (w.plan.kind === 'mounted') {
    // The stage's mounts are locked together in this less privileged namespace: bound once more they can be entered.
    out.push(`mount --rbind ${b}/root ${b}/root`)
  } else {
    // Opened first: the directory of assembly may cover the way to it.
    if (w.plan.kind === 'directory') out.push(`exec 4<${quote(w.plan.path)}`)
    out.push(`mount -t tmpfs -o mode=0755 noid ${b}`, `mkdir ${b}/root ${b}/bare`)
    if (w.plan.kind === 'directory') out.push(`mount --bind /proc/self/fd/4 ${b}/root`, 'exec 4<&-')
    else out.push(`mount -t overlay -o ${overlayOptions({ ...w.plan, lower: [w.plan.lower] })} noid ${b}/root`)
  }
  out.push(`cd ${b}/root`)
  if (w.plan.kind === 'directory')
    for (const part of w.plan.binds) {
      const p = quote(part.path)
      const overlay = `mount -t overlay -o ${overlayOptions(part)} noid ${p} 2>/dev/null`
      const bind = `mount --rbind /${p} ${p}; mount -o ${['remount', 'bind', 'ro', ...part.flags].join(',')} ${p}`
      const said = quote(`noid: /${part.path} is read-only in this VM: the kernel refuses an overlay`)
      out.push(`${overlay} || { ${bind}; echo ${said}; }`)
    }
  for (const h of w.binds) {
    // Step by step: a link that a guest left would lead out of its root.
    out.push(`cd ${b}/root`)
    for (const c of h.target.split('/').map(quote))
      out.push(
        `if [ -L ${c} ]; then echo ${quote(`error the mount at /${h.target}: a part of it is a symbolic link in this VM`)} >&3; exit 1; fi`,
        `[ -d ${c} ] || mkdir ${c}`,
        `cd ${c}`,
      )
    out.push(`cd ${b}/root`, `mount --rbind ${quote(h.source)} ${quote(h.target)}`)
  }
  out.push('mkdir -p proc sys dev run tmp etc', 'mount -t proc -o nosuid,nodev,noexec proc proc')
  if (w.plan.kind !== 'mounted') {
    out.push(
      'mount -t tmpfs -o nosuid,noexec,mode=0755,size=1m dev dev',
      `for d in ${DEVICES.join(' ')}; do : > dev/$d; mount --bind /dev/$d dev/$d; done`,
      'mkdir dev/pts dev/shm dev/mqueue',
      'ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr; ln -s pts/ptmx dev/ptmx',
      'if [ -w /dev/net/tun ]; then mkdir dev/net; : > dev/net/tun; mount --bind /dev/net/tun dev/net/tun; fi',
    )
  }
  out.push(
    `mount -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=0620${w.range ? ',gid=5' : ''} devpts dev/pts`,
    'mount -t tmpfs -o nosuid,nodev,mode=1777 shm dev/shm',
    'mount -t mqueue -o nosuid,nodev,noexec mqueue dev/mqueue || :',
    'mount -t tmpfs -o nosuid,nodev,mode=0755 run run',
    'mkdir -m 1777 run/lock; mkdir run/network',
    // A nic that appears is usable while its addresses are probed (RFC 4429): before the second that this takes.
    'for k in optimistic_dad use_optimistic; do echo 1 2>/dev/null > proc/sys/net/ipv6/conf/default/$k || :; done',
    'mount -t sysfs -o ro,nosuid,nodev,noexec sys sys',
    `for f in ${MASKED_FILES.join(' ')}; do [ ! -e proc/$f ] || mount --bind /dev/null proc/$f; done`,
    `for d in ${MASKED_DIRECTORIES.join(' ')}; do [ ! -d $d ] || mount -t tmpfs -o ro,nosuid,nodev,noexec,size=0,mode=0555 none $d; done`,
    `hostname ${quote(w.name)}`,
    'ip link set lo up',
    `mount -t tmpfs -o mode=0755,size=1m noid ${b}/bare`,
    `cd ${b}/bare`,
    `for d in ${SOFTWARE.join(' ')}; do`,
    '  if [ -L /$d ]; then ln -s "$(readlink /$d)" $d',
    '  elif [ -d /$d ]; then mkdir $d; mount --rbind /$d $d',
    '  fi',
    'done',
    'mkdir proc vm',
    `mount --bind ${b}/root/proc proc`,
    `mount --rbind ${b}/root vm`,
    // man pivot_root(2): the old root is stacked on the new one, and "." then names it.
    'pivot_root . .',
    'umount -l .',
    'cd /vm',
    'pivot_root . .',
    'umount -l .',
    'cd /',
    'echo up >&3',
    'exec 3>&-',
    `exec env -i PATH=${VM_PATH} HOME=/root LANG=C.UTF-8 /bin/sh -c "$1" noid-init ${quote(w.name)} "$2"`,
  )
  return out.join('\n')
}
