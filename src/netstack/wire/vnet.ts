/**
 * struct virtio_net_hdr (linux/virtio_net.h; virtio 1.2 §5.1.6), 10 bytes, little endian, directly before the frame.
 * `o` is the header's own offset: the frame's, less VNET.
 */
import { le16, putLe16 } from './bytes.ts'

const FLAGS = 0
const GSO_TYPE = 1
const HEADER_LENGTH = 2
const GSO_SIZE = 4
const CSUM_START = 6
const CSUM_OFFSET = 8

/** VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum at csumStart + csumOffset is to be finished over csumStart … end. */
export const NEEDS_CSUM = 1

export const GSO_NONE = 0
export const GSO_TCPV4 = 1
export const GSO_TCPV6 = 4
export const GSO_UDP_L4 = 5
export const GSO_ECN = 0x80

export const flags = (b: Uint8Array, o: number): number => b[o + FLAGS]
export const gsoType = (b: Uint8Array, o: number): number => b[o + GSO_TYPE]
export const headerLength = (b: Uint8Array, o: number): number => le16(b, o + HEADER_LENGTH)
export const gsoSize = (b: Uint8Array, o: number): number => le16(b, o + GSO_SIZE)
export const csumStart = (b: Uint8Array, o: number): number => le16(b, o + CSUM_START)
export const csumOffset = (b: Uint8Array, o: number): number => le16(b, o + CSUM_OFFSET)

export const setFlags = (b: Uint8Array, o: number, v: number): void => {
  b[o + FLAGS] = v
}
export const setGsoType = (b: Uint8Array, o: number, v: number): void => {
  b[o + GSO_TYPE] = v
}
export const setHeaderLength = (b: Uint8Array, o: number, v: number): void => putLe16(b, o + HEADER_LENGTH, v)
export const setGsoSize = (b: Uint8Array, o: number, v: number): void => putLe16(b, o + GSO_SIZE, v)
export const setCsumStart = (b: Uint8Array, o: number, v: number): void => putLe16(b, o + CSUM_START, v)
export const setCsumOffset = (b: Uint8Array, o: number, v: number): void => putLe16(b, o + CSUM_OFFSET, v)

/** Write all of it. */
export function write(
  b: Uint8Array,
  o: number,
  flag: number,
  gso: number,
  hdrLen: number,
  size: number,
  start: number,
  offset: number,
): void {
  b[o + FLAGS] = flag
  b[o + GSO_TYPE] = gso
  putLe16(b, o + HEADER_LENGTH, hdrLen)
  putLe16(b, o + GSO_SIZE, size)
  putLe16(b, o + CSUM_START, start)
  putLe16(b, o + CSUM_OFFSET, offset)
}

/** Nothing unfinished, nothing to split. */
export const clear = (b: Uint8Array, o: number): void => write(b, o, 0, GSO_NONE, 0, 0, 0, 0)
