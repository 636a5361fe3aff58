/**
 * Unpacks the frame that kernels are packed in with LZ4: the legacy one (lz4_Frame_format.md, "Legacy frame"; the blocks,
 * lz4_Block_format.md). Debian's cloud kernel is packed so, and nothing else here needs it.
 *
 * What is read may be anything: every length is checked against both buffers.
 */
const LEGACY_MAGIC = 0x184c2102
const MIN_MATCH = 4

/** `size` is what must come out; more is refused, less is returned as it is. */
export function unlz4(packed: Buffer, size: number): Buffer {
  if (packed.length < 4 || packed.readUInt32LE(0) !== LEGACY_MAGIC) throw new Error('this is no legacy LZ4 frame')
  const out = Buffer.allocUnsafe(size)
  let to = 0
  let from = 4
  while (from + 4 <= packed.length) {
    const length = packed.readUInt32LE(from)
    from += 4
    // Frames may follow each other; what is no block after the last one is the kernel's own trailer.
    if (length === LEGACY_MAGIC) continue
    if (length === 0 || from + length > packed.length) break
    to = block(packed, from, from + length, out, to)
    from += length
  }
  return out.subarray(0, to)
}

function block(src: Buffer, at: number, end: number, out: Buffer, to: number): number {
  const start = to
  const length = (n: number): number => {
    if (n !== 15) return n
    for (let more = 255; more === 255; n += more) {
      if (at >= end) throw new Error('an LZ4 block ends in the middle of a length')
      more = src[at++]
    }
    return n
  }
  while (at < end) {
    const token = src[at++]
    const literals = length(token >> 4)
    if (at + literals > end || to + literals > out.length) throw new Error('an LZ4 block runs over its end')
    src.copy(out, to, at, at + literals)
    at += literals
    to += literals
    if (at === end) return to
    if (at + 2 > end) throw new Error('an LZ4 block ends in the middle of an offset')
    const offset = src[at] | (src[at + 1] << 8)
    at += 2
    const match = length(token & 15) + MIN_MATCH
    // A match lies within what this frame gave already; blocks may refer to earlier ones only in other formats.
    if (offset === 0 || offset > to - start || to + match > out.length)
      throw new Error('an LZ4 block refers to what is not there')
    if (offset >= match) out.copyWithin(to, to - offset, to - offset + match)
    else for (let i = 0; i < match; i++) out[to + i] = out[to + i - offset]
    to += match
  }
  return to
}
