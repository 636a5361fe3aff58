/**
 * The initial RAM file system that every image boots with: busybox, the kernel's virtio drivers, the agent with an
 * interpreter of its own, and the programs of src/runtimes/qemu/guest. It alone is the image `tiny`.
 *
 * Invariants: the same packages and the same guest files give the same bytes. Everything of noid's own is in /run/noid,
 * which goes along to the root of an image's disk; the rest (/bin, /etc) is what `tiny` needs to be pleasant.
 */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Cpio } from './cpio.ts'
import { Modules } from './modules.ts'
import { run } from './run.ts'

/** What goes into the guest as it is. */
export const GUEST_DIR = fileURLToPath(new URL('../runtimes/qemu/guest/', import.meta.url))

export const GUEST_PACKAGES = ['busybox-static', 'perl-base', 'libc6', 'libcrypt1'] as const

/** Loaded when their devices are there, or asked for by the guest: disks, nics, ports, entropy, file systems of the host's. */
const MODULES = [
  'virtio_mmio',
  'virtio_pci',
  'virtio_console',
  'virtio_blk',
  'virtio_net',
  'virtio_rng',
  'virtio_balloon',
  'squashfs',
  'overlay',
  'fuse',
  'virtiofs',
  'tun',
]

const LIB = 'usr/lib/x86_64-linux-gnu'
/** Of perl-base: the agent needs the interpreter alone. */
const PERL_MODULES = /^(strict|warnings)\.pm$/

/** The guest's programs by name: everything in GUEST_DIR but notes and tests. */
export function guestFiles(): Map<string, Buffer> {
  const names = readdirSync(GUEST_DIR)
    .filter((n) => statSync(join(GUEST_DIR, n)).isFile() && !/\.(ts|js|d\.ts|md)$/.test(n))
    .sort()
  return new Map(names.map((n) => [n, readFileSync(join(GUEST_DIR, n))]))
}

/** busybox, the agent's interpreter, directories and files of `tiny`: the part that knows no kernel. */
export async function runtimePart(
  unpacked: (name: string) => string,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  const c = new Cpio()
  for (const dir of ['dev', 'proc', 'sys', 'run', 'tmp', 'root', 'mnt', 'usr', 'etc/network', 'var/log'])
    c.dir(dir, dir === 'tmp' ? 0o1777 : dir === 'root' ? 0o700 : 0o755)
  // The kernel opens it for its first process, before /dev is mounted.
  c.device('dev/console', 0o600, 5, 1)
  await busybox(c, unpacked('busybox-static'), signal)
  interpreter(c, unpacked('perl-base'), unpacked('libc6'), unpacked('libcrypt1'))
  etc(c)
  return c.end()
}

/** The modules of one kernel, of its lib/modules/VERSION. */
export function modulesPart({ dir, version }: { readonly dir: string; readonly version: string }): Buffer {
  const c = new Cpio()
  const all = new Modules(dir)
  const names = all.closure(MODULES)
  for (const n of names) c.file(`lib/modules/${version}/${all.path(n)}`, 0o644, all.read(n))
  c.file(`lib/modules/${version}/modules.dep`, 0o644, all.dep(names))
  return c.end()
}

/** noid's own programs: the part that changes with noid's version, and is put in again when it does. */
export function guestPart(): Buffer {
  const c = new Cpio()
  for (const [name, data] of guestFiles())
    c.file(name === 'init' ? 'init' : `run/noid/${name}`, name.endsWith('.pl') ? 0o644 : 0o755, data)
  return c.end()
}

/** The kernel unpacks archives that follow each other, each at a multiple of four bytes. */
export function joinParts(parts: readonly Uint8Array[]): Buffer {
  return Buffer.concat(parts.flatMap((p) => [p, Buffer.alloc(-p.length & 3)]))
}

async function busybox(c: Cpio, from: string, signal: AbortSignal | undefined): Promise<void> {
  const program = join(from, existsSync(join(from, 'bin/busybox')) ? 'bin/busybox' : 'usr/bin/busybox')
  c.file('run/noid/busybox', 0o755, readFileSync(program))
  const applets = await run(program, ['--list-full'], { signal, timeoutMs: 10_000 })
  c.link('bin/busybox', '/run/noid/busybox')
  for (const path of applets.split('\n').filter((p) => p !== '' && p !== 'bin/busybox' && p !== 'linuxrc'))
    if (!c.has(path)) c.link(path, '/run/noid/busybox')
}

/** Perl with its libraries side by side: started by their own loader, so that the image's libc plays no part. */
function interpreter(c: Cpio, perl: string, libc: string, crypt: string): void {
  c.file('run/noid/perl', 0o755, readFileSync(join(perl, 'usr/bin/perl')))
  const real = (dir: string, name: string): Buffer => {
    for (const base of ['lib/x86_64-linux-gnu', LIB]) {
      const path = join(dir, base, name)
      if (existsSync(path)) return readFileSync(path)
    }
    throw new Error(`${name} is in none of the packages`)
  }
  c.file('run/noid/lib/ld.so', 0o755, real(libc, 'ld-linux-x86-64.so.2'))
  for (const name of ['libc.so.6', 'libm.so.6']) c.file(`run/noid/lib/${name}`, 0o644, real(libc, name))
  c.file('run/noid/lib/libcrypt.so.1', 0o644, real(crypt, 'libcrypt.so.1'))
  const base = join(perl, LIB, 'perl-base')
  for (const path of readdirSync(base, { recursive: true, encoding: 'utf8' }).sort()) {
    if (!PERL_MODULES.test(path)) continue
    const s = statSync(join(base, path))
    if (s.isFile()) c.file(`run/noid/perl5/${path}`, 0o644, readFileSync(join(base, path)))
  }
}

/** What programs look for; who the VM is comes with it (guest/identity). */
function etc(c: Cpio): void {
  c.file('etc/passwd', 0o644, 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n')
  c.file('etc/group', 0o644, 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n')
  c.file('etc/shadow', 0o640, 'root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n')
  c.file(
    'etc/profile',
    0o644,
    "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPS1='\\u@\\h:\\w\\$ '\n",
  )
  c.file('etc/os-release', 0o644, 'ID=noid-tiny\nNAME="noid tiny"\nPRETTY_NAME="noid tiny (busybox)"\n')
  c.file('etc/services', 0o644, 'ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nntp 123/udp\nhttps 443/tcp\n')
}
