/**
 * A kernel as QEMU's direct boot takes it quickest: the ELF file with a PVH entry (Linux Documentation/x86/boot.rst;
 * include/xen/interface/elfnote.h), taken out of a bzImage, or as it is.
 *
 * Never trusts the file: it may be the user's own. What it is not is said in words.
 */
import { gunzipSync, zstdDecompressSync } from 'node:zlib'
import { unlz4 } from './lz4.ts'
import { unxz } from './run.ts'

// boot.rst, "The Real-Mode Kernel Header".
const SETUP_SECTS = 0x1f1
const HEADER_MAGIC = 0x202
const VERSION = 0x206
const PAYLOAD_OFFSET = 0x248
const PAYLOAD_LENGTH = 0x24c
const ELF = 0x464c457f
const PT_NOTE = 4
const XEN_ELFNOTE_PHYS32_ENTRY = 18
const MAX_BYTES = 512 << 20

/** The vmlinux in a bzImage or vmlinux. Throws a sentence when there is none. */
export function vmlinuxOf(file: Buffer): Buffer {
  const elf = file.length > 4 && file.readUInt32LE(0) === ELF ? file : unpack(file)
  if (!hasPvhEntry(elf)) throw new Error('the kernel has no PVH entry (CONFIG_PVH)')
  return elf
}

function unpack(file: Buffer): Buffer {
  if (file.length < 0x260 || file.toString('latin1', HEADER_MAGIC, HEADER_MAGIC + 4) !== 'HdrS')
    throw new Error('it is neither a bzImage nor a vmlinux for x86')
  if (file.readUInt16LE(VERSION) < 0x208) throw new Error('it is a bzImage older than Linux 2.6.26')
  const at = ((file[SETUP_SECTS] || 4) + 1) * 512 + file.readUInt32LE(PAYLOAD_OFFSET)
  const payload = file.subarray(at, at + file.readUInt32LE(PAYLOAD_LENGTH))
  if (payload.length < 16) throw new Error('it is a bzImage that was cut off')
  // Its build puts the unpacked length behind the packed bytes (scripts/Makefile.lib, size_append).
  const size = payload.readUInt32LE(payload.length - 4)
  if (size > MAX_BYTES) throw new Error('it is a bzImage with a kernel of more than 512 MiB')
  const elf = decompress(payload, size)
  if (elf.length < 64 || elf.readUInt32LE(0) !== ELF) throw new Error('what is packed in the bzImage is no ELF file')
  return elf
}

function decompress(payload: Buffer, size: number): Buffer {
  const body = payload.subarray(0, payload.length - 4)
  const limit = { maxOutputLength: MAX_BYTES }
  switch (payload.readUInt16BE(0)) {
    case 0x1f8b:
      return gunzipSync(body, limit)
    case 0x28b5:
      return zstdDecompressSync(body, limit)
    case 0x0221:
      return unlz4(body, size)
    case 0xfd37:
      return unxz(body, ['--single-stream'])
    case 0x5d00:
      return unxz(body, ['--format=lzma'])
    default:
      throw new Error('it is a bzImage packed in a way that is not known here (known: gzip, zstd, lz4, xz, lzma)')
  }
}

/** elf(5): a note of the name "Xen" and the type that carries the entry's address. */
function hasPvhEntry(elf: Buffer): boolean {
  const is64 = elf[4] === 2
  if (!is64 || elf.length < 64) return false
  const phoff = Number(elf.readBigUInt64LE(0x20))
  const size = elf.readUInt16LE(0x36)
  const count = elf.readUInt16LE(0x38)
  for (let i = 0; i < count; i++) {
    const p = phoff + i * size
    if (p + 56 > elf.length) return false
    if (elf.readUInt32LE(p) !== PT_NOTE) continue
    const from = Number(elf.readBigUInt64LE(p + 8))
    if (noteOf(elf.subarray(from, from + Number(elf.readBigUInt64LE(p + 32))))) return true
  }
  return false
}

function noteOf(notes: Buffer): boolean {
  const round = (n: number): number => (n + 3) & ~3
  for (let at = 0; at + 12 <= notes.length; ) {
    const name = notes.readUInt32LE(at)
    const desc = notes.readUInt32LE(at + 4)
    const type = notes.readUInt32LE(at + 8)
    if (type === XEN_ELFNOTE_PHYS32_ENTRY && notes.toString('latin1', at + 12, at + 15) === 'Xen') return true
    at += 12 + round(name) + round(desc)
  }
  return false
}
