/**
 * Domain names as DNS writes them (RFC 1035 §3.1, §4.1.4), for option 119 (RFC 3397) and option 81 (RFC 4702).
 *
 * Compression pointers count from the start of the option's value, after long options were joined (RFC 3397 §3).
 * Invariants: a pointer only ever goes backwards, a name never exceeds 255 bytes, and what a list expands to is bounded, so
 * that no input loops or explodes. Labels are byte strings (Latin-1); one that holds a dot or a NUL is refused, because the
 * text form could not tell it apart.
 */
import { DhcpError } from './error.ts'

const MAX_LABEL = 63
const MAX_NAME = 255
/** Bytes of names, after expansion, that one option may hold. */
const MAX_EXPANDED = 16384
const POINTER = 0xc0

/** Split "a.b" or "a.b." into labels; throws ERR_DHCP_VALUE when it is no domain name. */
export function labelsOf(name: string): string[] {
  const bare = name.endsWith('.') ? name.slice(0, -1) : name
  if (bare === '') return []
  const labels = bare.split('.')
  let length = 1
  for (const label of labels) {
    length += label.length + 1
    if (label === '' || label.length > MAX_LABEL || length > MAX_NAME || !isLatin1(label) || label.includes('\0'))
      throw new DhcpError('ERR_DHCP_VALUE', `"${name}" is not a domain name`)
  }
  return labels
}

/** Names one after the other, later ones pointing into earlier ones. */
export function encodeNames(names: readonly string[]): Uint8Array {
  const out: number[] = []
  const seen = new Map<string, number>()
  for (const name of names) {
    const labels = labelsOf(name)
    if (labels.length === 0) throw new DhcpError('ERR_DHCP_VALUE', 'the root is not a search domain')
    let ended = false
    for (let i = 0; i < labels.length; i++) {
      const suffix = labels.slice(i).join('.').toLowerCase()
      const at = seen.get(suffix)
      if (at !== undefined) {
        out.push(POINTER | (at >> 8), at & 0xff)
        ended = true
        break
      }
      if (out.length < 0x4000) seen.set(suffix, out.length)
      pushLabel(out, labels[i])
    }
    if (!ended) out.push(0)
  }
  return Uint8Array.from(out)
}

/** The reverse of encodeNames; undefined when the bytes are not a list of names. */
export function decodeNames(b: Uint8Array): string[] | undefined {
  const names: string[] = []
  let o = 0
  let expanded = 0
  while (o < b.length) {
    const labels: string[] = []
    let at = o
    let end = -1
    let length = 1
    for (;;) {
      if (at >= b.length) return undefined
      const n = b[at]
      if (n === 0) {
        if (end < 0) end = at + 1
        break
      }
      if ((n & POINTER) === POINTER) {
        if (at + 1 >= b.length) return undefined
        const to = ((n & 0x3f) << 8) | b[at + 1]
        // Backwards only, and the length of the name bounds every way round that leads over a label.
        if (to >= at || to >= o) return undefined
        if (end < 0) end = at + 2
        at = to
        continue
      }
      if ((n & POINTER) !== 0 || at + 1 + n > b.length) return undefined
      length += n + 1
      if (length > MAX_NAME) return undefined
      const label = latin1(b, at + 1, at + 1 + n)
      if (label.includes('.') || label.includes('\0')) return undefined
      labels.push(label)
      at += 1 + n
    }
    expanded += length
    if (labels.length === 0 || expanded > MAX_EXPANDED) return undefined
    names.push(labels.join('.'))
    o = end
  }
  return names.length > 0 ? names : undefined
}

/** One uncompressed name; without a final dot it is partial and carries no root label (RFC 4702 §2.3.1). */
export function encodePartial(name: string): Uint8Array {
  const out: number[] = []
  for (const label of labelsOf(name)) pushLabel(out, label)
  if (name.endsWith('.')) out.push(0)
  return Uint8Array.from(out)
}

export function decodePartial(b: Uint8Array): string | undefined {
  const labels: string[] = []
  let o = 0
  while (o < b.length) {
    const n = b[o]
    if (n === 0) return o + 1 === b.length ? `${labels.join('.')}.` : undefined
    if (n > MAX_LABEL || o + 1 + n > b.length || o + 1 + n > MAX_NAME - 1) return undefined
    const label = latin1(b, o + 1, o + 1 + n)
    if (label.includes('.') || label.includes('\0')) return undefined
    labels.push(label)
    o += 1 + n
  }
  return labels.join('.')
}

/** Bytes as text, one character each, so that nothing is lost. */
export function latin1(b: Uint8Array, from: number, to: number): string {
  let s = ''
  for (let i = from; i < to; i++) s += String.fromCharCode(b[i])
  return s
}

export const isLatin1 = (s: string): boolean => {
  for (let i = 0; i < s.length; i++) if (s.charCodeAt(i) > 0xff) return false
  return true
}

function pushLabel(out: number[], label: string): void {
  out.push(label.length)
  for (let i = 0; i < label.length; i++) out.push(label.charCodeAt(i))
}
