/**
 * Kernels and disks of the user's own on their way into the store: checked, unpacked, copied; what was given is not touched.
 *
 * A disk is somebody else's bytes. It is never probed by what will write to it later: qemu-img is told the format that was
 * found here, and a qcow2 that names another file (a backing file, a data file) is refused: it would show the guest
 * a file of this host.
 */
import { closeSync, existsSync, openSync, readFileSync, readSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../errors.ts'
import { modulesPart } from './initrd.ts'
import { need, run } from './run.ts'
import type { BlobKind } from './store.ts'
import { IMPORT_TOOLS } from './tools.ts'
import { vmlinuxOf } from './vmlinux.ts'

const COPY_MS = 30 * 60_000
const INFO_MS = 60_000
/** qemu-img(1), check: clusters that nobody uses, as after a power cut. Copying leaves them behind. */
const CHECK_LEAKS = 3
const KERNEL_MAX = 256 << 20

export interface ImportedParts {
  /** The kernel, its modules, the disk: in this order, where they are. */
  readonly files: readonly { readonly path: string; readonly kind: BlobKind }[]
  /** What kernel it says it is. */
  readonly kernel?: string
  /** A third file: the part of the initrd with its modules. */
  readonly modules?: true
  readonly disk?: { readonly format: 'qcow2' | 'squashfs'; readonly virtualBytes: number }
}

export async function importParts(
  r: { readonly kernel?: string; readonly modules?: string; readonly disk?: string },
  work: string,
  say: (text: string) => void,
  signal: AbortSignal | undefined,
): Promise<ImportedParts> {
  const files: { path: string; kind: BlobKind }[] = []
  let kernel: string | undefined
  if (r.kernel !== undefined) {
    say('checking the kernel')
    const to = join(work, 'vmlinux')
    kernel = takeKernel(r.kernel, to)
    files.push({ path: to, kind: 'vmlinux' })
  }
  if (kernel !== undefined && r.modules !== undefined) {
    const to = join(work, 'modules')
    takeModules(r.modules, kernel, to)
    files.push({ path: to, kind: 'cpio' })
  }
  const modules = r.modules === undefined ? undefined : true
  if (r.disk === undefined) return { files, kernel, modules }
  say('copying the disk')
  const disk = await takeDisk(r.disk, join(work, 'disk'), signal)
  files.push({ path: join(work, 'disk'), kind: disk.format })
  return { files, kernel, modules, disk }
}

/** Writes the vmlinux; the version it says it is. */
function takeKernel(file: string, to: string): string {
  try {
    if (regular(file) > KERNEL_MAX) throw new Error('it is larger than 256 MiB')
    const elf = vmlinuxOf(readFileSync(file))
    writeFileSync(to, elf)
    // init/version-timestamp.c, linux_banner
    return /Linux version (\S+)/.exec(elf.toString('latin1'))?.[1] ?? 'unknown'
  } catch (e) {
    throw invalid(file, e)
  }
}

function takeModules(dir: string, version: string, to: string): void {
  try {
    writeFileSync(to, modulesPart({ dir, version }))
  } catch (e) {
    throw invalid(dir, e)
  }
}

async function takeDisk(
  file: string,
  to: string,
  signal: AbortSignal | undefined,
): Promise<{ format: 'qcow2' | 'squashfs'; virtualBytes: number }> {
  need('importing a disk', IMPORT_TOOLS)
  try {
    const size = regular(file)
    const format = formatOf(file)
    if (format === 'squashfs') {
      await run('cp', ['--reflink=auto', '--sparse=auto', '--', file, to], { signal, timeoutMs: COPY_MS })
      return { format, virtualBytes: size }
    }
    const info = JSON.parse(
      await run('qemu-img', ['info', '--output=json', '-f', format, file], { signal, timeoutMs: INFO_MS }),
    ) as {
      'virtual-size': number
      'backing-filename'?: string
      encrypted?: boolean
      'format-specific'?: { data?: Record<string, unknown> }
    }
    if (info['backing-filename'] !== undefined)
      throw new Error(`it is a layer over ${info['backing-filename']}: flatten it with qemu-img convert first`)
    if (info['format-specific']?.data?.['data-file'] !== undefined)
      throw new Error('its contents are in another file: flatten it with qemu-img convert first')
    if (info.encrypted) throw new Error('it is encrypted')
    if (format === 'qcow2') await whole(file, size, signal)
    await run('qemu-img', ['convert', '-f', format, '-O', 'qcow2', file, to], { signal, timeoutMs: COPY_MS })
    return { format: 'qcow2', virtualBytes: info['virtual-size'] }
  } catch (e) {
    signal?.throwIfAborted()
    throw invalid(file, e)
  }
}

/** What lies behind the end of a file that was cut off would be zeros to whoever reads it. */
async function whole(file: string, size: number, signal: AbortSignal | undefined): Promise<void> {
  const check = JSON.parse(
    await run('qemu-img', ['check', '--output=json', '-f', 'qcow2', file], {
      signal,
      timeoutMs: COPY_MS,
      accepts: [CHECK_LEAKS],
    }),
  ) as { 'image-end-offset'?: number }
  if ((check['image-end-offset'] ?? 0) > size) throw new Error('it was cut off')
}

/** Its size. Devices, pipes and directories are no files of an image. */
function regular(file: string): number {
  if (!existsSync(file)) throw new Error('there is no such file')
  const s = statSync(file)
  if (!s.isFile()) throw new Error('it is not a file')
  if (s.size === 0) throw new Error('it is empty')
  return s.size
}

/** By the first bytes: "QFI\xfb" (qcow2), "hsqs" (squashfs); others that are no plain disks are told by name. */
function formatOf(file: string): 'qcow2' | 'squashfs' | 'raw' {
  const head = bytesAt(file, 0, 8)
  const magic = head.toString('latin1', 0, 4)
  if (magic === 'QFI\xfb') return 'qcow2'
  if (magic === 'hsqs') return 'squashfs'
  const packed = head.toString('hex')
  if (/^(1f8b|28b52ffd|fd377a58|425a68|504b0304)/.test(packed)) throw new Error('it is packed: unpack it first')
  if (/^(4b444d|3c3c3c20|76686478|636f6e6563746978)/.test(packed))
    throw new Error('it is a disk of another program: make it qcow2 with qemu-img convert first')
  if (!KNOWN.some(([at, magic]) => bytesAt(file, at, magic.length).equals(magic)))
    throw new Error('there is neither a partition table nor a file system on it that is known here')
  return 'raw'
}

/** What tells that a raw disk is one: a partition table's signature, or a file system's superblock, at its offset. */
const KNOWN: readonly (readonly [at: number, magic: Buffer])[] = [
  [510, Buffer.from([0x55, 0xaa])],
  [1024 + 56, Buffer.from([0x53, 0xef])],
  [0, Buffer.from('XFSB')],
  [65536 + 64, Buffer.from('_BHRfS_M')],
  [1024, Buffer.from([0xe2, 0xe1, 0xf5, 0xe0])],
  [1024, Buffer.from([0x10, 0x20, 0xf5, 0xf2])],
]

function bytesAt(file: string, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  const fd = openSync(file, 'r')
  try {
    readSync(fd, bytes, 0, length, at)
  } finally {
    closeSync(fd)
  }
  return bytes
}

function invalid(file: string, e: unknown): NoidError {
  return e instanceof NoidError
    ? e
    : new NoidError('IMAGE_FILE_INVALID', { file, why: (e as Error).message }, { cause: e })
}
