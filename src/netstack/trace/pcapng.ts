/**
 * pcapng blocks (draft-ietf-opsawg-pcapng): what Wireshark and tshark read.
 *
 * Owns: the layout of the blocks a live capture needs: section header (§4.1), interface description (§4.2), enhanced packet (§4.3)
 * and interface statistics (§4.6). Little endian; every block is a multiple of 4 bytes and repeats its length at its end.
 * Never does: keeping packets (capture.ts), reading a clock.
 */

const SECTION_HEADER = 0x0a0d0d0a
const BYTE_ORDER_MAGIC = 0x1a2b3c4d
const INTERFACE_DESCRIPTION = 1
const INTERFACE_STATISTICS = 5
const ENHANCED_PACKET = 6
const LINKTYPE_ETHERNET = 1

const OPT_END = 0
const OPT_COMMENT = 1
const SHB_USERAPPL = 4
const IF_NAME = 2
const IF_DESCRIPTION = 3
const IF_TSRESOL = 9
const EPB_FLAGS = 2
const ISB_IFDROP = 5

/** Direction of a packet as its interface (the switch port) saw it: epb_flags bits 0–1. */
export const INBOUND = 1
export const OUTBOUND = 2

const TWO32 = 0x100000000
const pad = (n: number): number => (n + 3) & ~3
const text = (s: string): Uint8Array => Uint8Array.from(s, (c) => (c.charCodeAt(0) < 128 ? c.charCodeAt(0) : 63))

type Option = readonly [code: number, value: Uint8Array]

function block(type: number, fixed: Uint8Array, options: readonly Option[]): Uint8Array {
  let length = 12 + pad(fixed.length)
  for (const [, value] of options) length += 4 + pad(value.length)
  if (options.length > 0) length += 4
  const out = new Uint8Array(length)
  const view = new DataView(out.buffer)
  view.setUint32(0, type, true)
  view.setUint32(4, length, true)
  out.set(fixed, 8)
  let at = 8 + pad(fixed.length)
  for (const [code, value] of options) {
    view.setUint16(at, code, true)
    view.setUint16(at + 2, value.length, true)
    out.set(value, at + 4)
    at += 4 + pad(value.length)
  }
  if (options.length > 0) view.setUint32(at, OPT_END, true)
  view.setUint32(length - 4, length, true)
  return out
}

export function sectionHeader(application: string): Uint8Array {
  const fixed = new Uint8Array(16)
  const view = new DataView(fixed.buffer)
  view.setUint32(0, BYTE_ORDER_MAGIC, true)
  view.setUint16(4, 1, true)
  // Length of the section: not known, −1.
  fixed.fill(255, 8, 16)
  return block(SECTION_HEADER, fixed, [[SHB_USERAPPL, text(application)]])
}

/** Interfaces are numbered in the order of their descriptions. Timestamps are in microseconds. */
export function interfaceDescription(name: string, description: string, snapLength: number): Uint8Array {
  const fixed = new Uint8Array(8)
  const view = new DataView(fixed.buffer)
  view.setUint16(0, LINKTYPE_ETHERNET, true)
  view.setUint32(4, snapLength, true)
  return block(INTERFACE_DESCRIPTION, fixed, [
    [IF_NAME, text(name)],
    [IF_DESCRIPTION, text(description)],
    [IF_TSRESOL, Uint8Array.of(6)],
  ])
}

/** Bytes of an interface statistics block. */
export const INTERFACE_STATISTICS_LENGTH = 40

/** How many packets of an interface are missing from the file so far. */
export function interfaceStatistics(interfaceId: number, microseconds: number, missed: number): Uint8Array {
  const fixed = new Uint8Array(12)
  const view = new DataView(fixed.buffer)
  view.setUint32(0, interfaceId, true)
  view.setUint32(4, Math.floor(microseconds / TWO32), true)
  view.setUint32(8, microseconds % TWO32, true)
  const count = new Uint8Array(8)
  new DataView(count.buffer).setBigUint64(0, BigInt(missed), true)
  return block(INTERFACE_STATISTICS, fixed, [[ISB_IFDROP, count]])
}

/** Bytes of an enhanced packet block with `captured` packet bytes and a comment of `comment` bytes (0: none). */
export function packetLength(captured: number, comment: number): number {
  return 32 + pad(captured) + 8 + (comment > 0 ? 4 + pad(comment) : 0) + 4
}

/**
 * Write an enhanced packet block to `out` at `at`, without allocating. The caller has made room for `packetLength`.
 * @param original bytes of the packet on the wire; `captured` of them lie at `off` of `bytes`
 * @returns where it ends
 */
export function putPacket(
  out: Uint8Array,
  view: DataView,
  at: number,
  interfaceId: number,
  microseconds: number,
  bytes: Uint8Array,
  off: number,
  captured: number,
  original: number,
  direction: number,
  comment: Uint8Array | undefined,
): number {
  const said = comment === undefined ? 0 : comment.length
  const length = packetLength(captured, said)
  view.setUint32(at, ENHANCED_PACKET, true)
  view.setUint32(at + 4, length, true)
  view.setUint32(at + 8, interfaceId, true)
  view.setUint32(at + 12, Math.floor(microseconds / TWO32), true)
  view.setUint32(at + 16, microseconds % TWO32, true)
  view.setUint32(at + 20, captured, true)
  view.setUint32(at + 24, original, true)
  out.set(bytes.subarray(off, off + captured), at + 28)
  let to = at + 28 + captured
  const aligned = at + 28 + pad(captured)
  while (to < aligned) out[to++] = 0
  view.setUint16(to, EPB_FLAGS, true)
  view.setUint16(to + 2, 4, true)
  view.setUint32(to + 4, direction, true)
  to += 8
  if (comment !== undefined && said > 0) {
    view.setUint16(to, OPT_COMMENT, true)
    view.setUint16(to + 2, said, true)
    out.set(comment, to + 4)
    for (let i = said; i < pad(said); i++) out[to + 4 + i] = 0
    to += 4 + pad(said)
  }
  view.setUint32(to, OPT_END, true)
  view.setUint32(to + 4, length, true)
  return to + 8
}
