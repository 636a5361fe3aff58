/**
 * IPv6 addresses between text and 16 bytes: RFC 4291 §2.2 in, RFC 5952 §4 out. No zones, no dotted quads in what is written.
 */
import { DhcpError } from './error.ts'

export function readAddress6(b: Uint8Array, o: number): string {
  const groups = Array.from({ length: 8 }, (_, i) => (b[o + 2 * i] << 8) | b[o + 2 * i + 1])
  let start = -1
  let length = 1
  for (let i = 0; i < 8; i++) {
    let n = 0
    while (i + n < 8 && groups[i + n] === 0) n++
    if (n > length) {
      start = i
      length = n
    }
    i += n
  }
  const hex = (from: number, to: number): string =>
    groups
      .slice(from, to)
      .map((g) => g.toString(16))
      .join(':')
  return start < 0 ? hex(0, 8) : `${hex(0, start)}::${hex(start + length, 8)}`
}

/** Throws ERR_DHCP_VALUE when the text is no IPv6 address. */
export function writeAddress6(b: Uint8Array, o: number, text: string): void {
  const bad = (): never => {
    throw new DhcpError('ERR_DHCP_VALUE', `"${text}" is not an IPv6 address`)
  }
  let source = text
  const dotted = /^(.*:)(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text)
  if (dotted !== null) {
    const q = dotted.slice(2).map(Number)
    if (q.some((n) => n > 255)) bad()
    source = `${dotted[1]}${(q[0] * 256 + q[1]).toString(16)}:${(q[2] * 256 + q[3]).toString(16)}`
  }
  const halves = source.split('::')
  if (halves.length > 2) bad()
  const [head, tail] = halves.map((h) => (h === '' ? [] : h.split(':')))
  const missing = 8 - head.length - (tail?.length ?? 0)
  if (tail === undefined ? missing !== 0 : missing < 1) bad()
  const groups = [...head, ...new Array<string>(missing).fill('0'), ...(tail ?? [])]
  if (!groups.every((g) => /^[0-9a-fA-F]{1,4}$/.test(g))) bad()
  groups.forEach((g, i) => {
    const n = Number.parseInt(g, 16)
    b[o + 2 * i] = n >> 8
    b[o + 2 * i + 1] = n
  })
}
