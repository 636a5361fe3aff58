/**
 * Big-endian words in a byte array: what every wire file is made of.
 *
 * 32-bit values are signed (int32), so that V8 keeps them as small integers; compare addresses with ===, sequence numbers
 * with wire/tcp's arithmetic. Nothing here checks bounds: `parse` has.
 */
export const be16 = (b: Uint8Array, o: number): number => (b[o] << 8) | b[o + 1]

export const be32 = (b: Uint8Array, o: number): number => (b[o] << 24) | (b[o + 1] << 16) | (b[o + 2] << 8) | b[o + 3]

export const put16 = (b: Uint8Array, o: number, v: number): void => {
  b[o] = v >>> 8
  b[o + 1] = v
}

export const put32 = (b: Uint8Array, o: number, v: number): void => {
  b[o] = v >>> 24
  b[o + 1] = v >>> 16
  b[o + 2] = v >>> 8
  b[o + 3] = v
}

export const le16 = (b: Uint8Array, o: number): number => b[o] | (b[o + 1] << 8)

export const putLe16 = (b: Uint8Array, o: number, v: number): void => {
  b[o] = v
  b[o + 1] = v >>> 8
}
