/**
 * A live capture as it arrives: pcapng (draft-ietf-opsawg-pcapng) cut into blocks, and what the blocks say.
 *
 * Owns: bytes of a block that is not whole yet, the interfaces' names, what was missed. Never does: more than noid's own captures need: little endian,
 * one section, timestamps in microseconds.
 */
import { NoidError } from '../../errors.ts'

const INTERFACE_DESCRIPTION = 1
const INTERFACE_STATISTICS = 5
const ENHANCED_PACKET = 6
const OPT_END = 0
const OPT_COMMENT = 1
const IF_NAME = 2
const EPB_FLAGS = 2
const ISB_IFDROP = 5
/** A frame of 256 KiB and its options; anything longer is no capture of ours. */
const BLOCK_MAX = 1 << 20

export interface CapturedFrame {
  /** Microseconds since 1970. */
  readonly at: number
  /** Whose switch port: the VM's name, or `host`. */
  readonly port: string
  /** As the VM sees it: it sent the frame, or received it. */
  readonly direction: 'sent' | 'received'
  /** What was kept of it. */
  readonly bytes: Buffer
  /** Its whole length. */
  readonly length: number
  /** "reason: meaning", when the network refused it. */
  readonly refused: string | undefined
}

export class CaptureReader {
  captured = 0
  /** When the last frame so far passed, in microseconds since 1970. */
  lastAt = 0
  #held: Buffer = Buffer.alloc(0)
  readonly #names: string[] = []
  readonly #missed: number[] = []

  /** Frames that are missing from what has been read. */
  get missed(): number {
    return this.#missed.reduce((sum, n) => sum + (n ?? 0), 0)
  }

  /**
   * Take bytes in, and give whole blocks out.
   * @param limit of frames in all: blocks behind the last one are left out
   * @param frame called for each frame; leave it out when only the bytes matter
   */
  push(chunk: Buffer, limit: number, frame?: (f: CapturedFrame) => void): Buffer {
    const bytes = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk])
    let at = 0
    while (this.captured < limit && bytes.length - at >= 12) {
      const length = bytes.readUInt32LE(at + 4)
      if (length < 12 || length % 4 !== 0 || length > BLOCK_MAX)
        throw new NoidError('INTERNAL', { why: `a block of ${length} bytes in the capture` })
      if (bytes.length - at < length) break
      this.#block(bytes.subarray(at, at + length), frame)
      at += length
    }
    this.#held = bytes.subarray(at)
    return bytes.subarray(0, at)
  }

  #block(b: Buffer, frame: ((f: CapturedFrame) => void) | undefined): void {
    const type = b.readUInt32LE(0)
    if (type === INTERFACE_DESCRIPTION) {
      this.#names.push(option(b, 16, IF_NAME)?.toString() ?? '?')
    } else if (type === INTERFACE_STATISTICS) {
      const drops = option(b, 20, ISB_IFDROP)
      if (drops !== undefined) this.#missed[b.readUInt32LE(8)] = Number(drops.readBigUInt64LE(0))
    } else if (type === ENHANCED_PACKET) {
      this.captured++
      this.lastAt = timeOf(b)
      frame?.(this.#frame(b))
    }
  }

  #frame(b: Buffer): CapturedFrame {
    const kept = b.readUInt32LE(20)
    const options = 28 + ((kept + 3) & ~3)
    const flags = option(b, options, EPB_FLAGS)?.readUInt32LE(0) ?? 0
    return {
      at: timeOf(b),
      port: this.#names[b.readUInt32LE(8)] ?? '?',
      // The flags are the switch's: what comes in there, the VM has sent.
      direction: (flags & 3) === 1 ? 'sent' : 'received',
      bytes: b.subarray(28, 28 + kept),
      length: b.readUInt32LE(24),
      refused: option(b, options, OPT_COMMENT)?.toString(),
    }
  }
}

const timeOf = (packet: Buffer): number => packet.readUInt32LE(12) * 2 ** 32 + packet.readUInt32LE(16)

/** The first option of a kind, from where options begin; the block ends with its length. */
function option(b: Buffer, from: number, code: number): Buffer | undefined {
  for (let at = from; at + 4 <= b.length - 4; ) {
    const found = b.readUInt16LE(at)
    const length = b.readUInt16LE(at + 2)
    if (found === OPT_END || at + 4 + length > b.length) return undefined
    if (found === code) return b.subarray(at + 4, at + 4 + length)
    at += 4 + ((length + 3) & ~3)
  }
  return undefined
}
