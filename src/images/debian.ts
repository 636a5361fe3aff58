/**
 * The disk of the image `debian`: a minimal Debian with the network's tools, put together by mmdebstrap and mke2fs.
 *
 * Neither root nor a loop device is needed: mmdebstrap works in a user namespace (as root, in a mount namespace), mke2fs fills
 * the file system from a directory, and for an ordinary user fakeroot remembers who owns what in between. The packages come
 * from this machine's own sources, which the image keeps, without credentials, so that apt works in the VM.
 * Invariants: the disk of the same inputs (sources, their state, options, the script below) is not made twice. Its bytes are its own, though:
 * mke2fs takes over when each file was made. Nothing runs in the VM that was not asked for: there is no init in it, noid's own is in the initrd.
 */
import { chmodSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../errors.ts'
import type { Base } from './base.ts'
import { need, run } from './run.ts'
import { aptSettings, type Sources, sourcesOf } from './sources.ts'
import { hashText } from './store.ts'
import { DISK_TOOLS, USER_DISK_TOOLS } from './tools.ts'

/** Beside what a minimal Debian has; perl is in it already. */
const INCLUDE = [
  'iproute2',
  'net-tools',
  'iptables',
  'iputils-ping',
  'curl',
  'ca-certificates',
  'bind9-dnsutils',
  'iperf3',
  'python3',
  'kmod',
  'netbase',
  'procps',
]

/** What apt may fill; the layer of a VM and the image's file take only what is written. */
const DISK_BYTES = 8 * 2 ** 30
const BOOTSTRAP_MS = 20 * 60_000
const DISK_MS = 5 * 60_000

/** For one file system of which there are many copies, all of them seen by one guest each. */
const UUID = 'e5b1f0c2-6e6f-4964-8d65-6269616e3031'

const LEFT_OUT = ['/usr/share/man/*', '/usr/share/locale/*', '/usr/share/info/*', '/usr/share/doc/*']
const KEPT = ['/usr/share/doc/*/copyright']

export interface DebianDisk {
  readonly path: string
  readonly virtualBytes: number
  readonly inputs: string
  readonly packages: readonly string[]
}

export interface DiskContext {
  readonly say: (text: string) => void
  readonly signal: AbortSignal | undefined
}

/** undefined when `built`, the inputs of the last one, are the same again. */
export async function buildDebian(
  base: Base,
  debs: string,
  work: string,
  c: DiskContext,
  built: string | undefined,
): Promise<DebianDisk | undefined> {
  const root = process.getuid?.() === 0
  need('building the image debian', [...DISK_TOOLS, ...(root ? [] : USER_DISK_TOOLS)])
  const sources = await sourcesOf(c.signal)
  const settings = await aptSettings(c.signal)
  const inputs = hashText(base.inputs, sources.state, ...sources.lines, ...options(settings), SCRIPT)
  if (built === inputs) return undefined

  const tar = join(work, 'root.tar')
  await bootstrap(tar, sources, settings, c)
  c.say('making its disk')
  const disk = join(work, 'disk.qcow2')
  await makeDisk(disk, base, join(debs, base.kernelDeb), work, root, c.signal)
  const packages = readFileSync(join(work, 'packages'), 'utf8')
    .split('\n')
    .filter((l) => l !== '')
  return { path: disk, virtualBytes: DISK_BYTES, inputs, packages }
}

/** mmdebstrap's arguments, but for what is built with. */
const options = (settings: string): string[] => [
  '--variant=minbase',
  `--include=${INCLUDE.join(',')}`,
  // apt's lists stay, packed: a first apt-get install needs no apt-get update.
  '--skip=cleanup/apt/lists',
  '--aptopt=Acquire::GzipIndexes "true"',
  '--aptopt=Acquire::Languages "none"',
  ...settings
    .split('\n')
    .filter((l) => l !== '')
    .map((l) => `--aptopt=${l}`),
  // The tree is thrown away when the disk is made of it: nothing needs to reach this machine's disk.
  '--dpkgopt=force-unsafe-io',
  ...LEFT_OUT.map((p) => `--dpkgopt=path-exclude=${p}`),
  ...KEPT.map((p) => `--dpkgopt=path-include=${p}`),
  '--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$1"/etc/hostname "$1"/etc/resolv.conf',
]

async function bootstrap(tar: string, sources: Sources, settings: string, c: DiskContext): Promise<void> {
  const args = [...options(settings), sources.suite, tar, ...sources.lines]
  const onLine = (line: string): void => {
    const text = /^I: ((?:downloading|extracting|installing) .*?)\.*$/.exec(line)?.[1]
    if (text !== undefined) c.say(text)
  }
  const scratch = await scratchFor(tar)
  try {
    await run('mmdebstrap', args, {
      signal: c.signal,
      timeoutMs: BOOTSTRAP_MS,
      onLine,
      env: {
        TMPDIR: scratch,
        DEBIAN_FRONTEND: 'noninteractive',
      },
    })
  } catch (e) {
    c.signal?.throwIfAborted()
    throw new NoidError('IMAGE_BUILD_FAILED', {
      image: 'debian',
      why: (e as Error).message,
      hint: 'a package source of Debian must answer; noid doctor tells what is missing, and --image tiny needs none of it',
    })
  } finally {
    await sweep(scratch)
  }
}

/**
 * Where mmdebstrap unpacks: not below the store, which its other users (/etc/subuid) cannot enter. Always the same for one build, so that the
 * next one clears what a killed one left.
 */
async function scratchFor(tar: string): Promise<string> {
  const dir = `/var/tmp/noid-build-${process.getuid?.()}-${hashText(tar).slice(0, 12)}`
  const s = lstatSync(dir, { throwIfNoEntry: false })
  if (s !== undefined && (!s.isDirectory() || s.uid !== process.getuid?.()))
    throw new Error(`${dir} belongs to somebody else`)
  if (s !== undefined) await sweep(dir)
  mkdirSync(dir)
  chmodSync(dir, 0o711)
  return dir
}

async function sweep(dir: string): Promise<void> {
  const inside = readdirSync(dir).map((f) => join(dir, f))
  const theirs = inside.filter((path) => {
    try {
      rmSync(path, { recursive: true, force: true })
      return false
    } catch {
      return true
    }
  })
  if (theirs.length > 0) {
    // What its other users own goes as them: they must be able to write here for that.
    chmodSync(dir, 0o777)
    await run('mmdebstrap', ['--unshare-helper', 'rm', '-rf', '--', ...theirs], { timeoutMs: DISK_MS })
  }
  rmSync(dir, { recursive: true, force: true })
}

/** busybox's poweroff tells noid's process 1; see src/runtimes/qemu/guest/pid1. */
const ENDS = ['poweroff', 'reboot', 'halt']

/** From root.tar to disk.raw in one shell, because fakeroot forgets who owns what with the last process under it. */
const SCRIPT = `set -e
mkdir root
# Devices are devtmpfs's; making them here would need rights.
tar --extract --file root.tar --directory root --exclude './dev/*' --numeric-owner
rm root.tar
mkdir kernel
dpkg-deb --extract "$KERNEL_DEB" kernel
for modules in kernel/lib/modules kernel/usr/lib/modules; do [ -d $modules ] && mv $modules root/usr/lib/; done
rm -r kernel
libraries=$PWD/root/lib/x86_64-linux-gnu:$PWD/root/usr/lib/x86_64-linux-gnu
# The image's own depmod, by its own loader and libraries: this machine's may be missing or older. It goes by its name.
ln -s root/usr/bin/kmod depmod
env -u LD_PRELOAD root/lib64/ld-linux-x86-64.so.2 --library-path "$libraries" ./depmod -b "$PWD/root" "$KERNEL_VERSION"
for end in ${ENDS.join(' ')}; do
  [ -e root/usr/sbin/$end ] && continue
  printf '#!/bin/sh\\n# The VM has noid'"'"'s own process 1.\\nexec /run/noid/busybox %s "$@"\\n' $end >root/usr/sbin/$end
  chmod 755 root/usr/sbin/$end
done
: >root/etc/machine-id
rm -rf root/var/cache/apt/*.bin root/var/log/*.log root/var/log/apt
mkdir -p root/dev root/proc root/sys root/run root/tmp
sed -n '/^Package: /{s///;h};/^Version: /{s///;H;x;s/\\n/=/p}' root/var/lib/dpkg/status >packages
mke2fs -q -t ext4 -L noid -U ${UUID} -m 1 -J size=32 \\
  -E hash_seed=${UUID},lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0 -d root disk.raw ${DISK_BYTES / 1024}k
`

/** `root.tar` is in the work directory. */
async function makeDisk(
  disk: string,
  base: Base,
  kernelDeb: string,
  work: string,
  root: boolean,
  signal: AbortSignal | undefined,
): Promise<void> {
  const env = {
    KERNEL_DEB: kernelDeb,
    KERNEL_VERSION: base.kernelVersion,
  }
  const o = { cwd: work, signal, timeoutMs: DISK_MS, env }
  if (root) await run('sh', ['-c', SCRIPT], o)
  else await run('fakeroot', ['--', 'sh', '-c', SCRIPT], o)
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', disk], {
    cwd: work,
    signal,
    timeoutMs: DISK_MS,
  })
}
