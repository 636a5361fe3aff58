/**
 * Where tests keep the images that they boot: one directory for all of them and for the next run, because building Debian's takes a minute. Contents are
 * found by their hash and one build of a name runs at a time, so that test files may share it. `rm -rf` it to have them built anew.
 */
import { cpSync, mkdirSync, readdirSync, symlinkSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { find } from '../../src/images/run.ts'

/** NOID_IMAGES_DIR of a test's daemons; below a home, because what lies there is executed. */
export const sharedImages = (): string =>
  process.env.NOID_IMAGES_DIR || join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'noid', 'test-images')

/** A store of a test's own in an empty directory, with what all images share taken over: nothing is fetched or unpacked for it. `tiny` must be in the shared one. */
export function ownStore(dir: string): string {
  const shared = sharedImages()
  for (const d of ['names', 'blobs']) mkdirSync(join(dir, d), { recursive: true })
  for (const part of ['base.json', 'names/tiny.json']) cpSync(join(shared, part), join(dir, part))
  for (const b of readdirSync(join(shared, 'blobs')))
    if (/\.(vmlinux|cpio)$/.test(b)) symlinkSync(join(shared, 'blobs', b), join(dir, 'blobs', b))
  return dir
}

/** Why Debian's image cannot be built here, or false. */
export function debianSkip(): string | false {
  const missing = ['apt-get', 'mmdebstrap', 'mke2fs', 'qemu-img'].filter((tool) => find(tool) === undefined)
  return missing.length > 0 && `needs ${missing.join(', ')}`
}

/** The smallest ELF file with a PVH note, or without; elf(5). */
export function kernelElf(pvh = true): Buffer {
  const b = Buffer.alloc(64 + 56 + 32)
  b.writeUInt32LE(0x464c457f, 0)
  b[4] = 2
  b.writeBigUInt64LE(64n, 0x20)
  b.writeUInt16LE(56, 0x36)
  b.writeUInt16LE(1, 0x38)
  b.writeUInt32LE(4, 64)
  b.writeBigUInt64LE(120n, 64 + 8)
  b.writeBigUInt64LE(24n, 64 + 32)
  b.writeUInt32LE(4, 120)
  b.writeUInt32LE(8, 124)
  b.writeUInt32LE(pvh ? 18 : 1, 128)
  b.write('Xen\0', 132, 'latin1')
  return b
}
