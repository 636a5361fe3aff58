/**
 * Value types of DHCP options: each decodes bytes and encodes a value.
 *
 * `decode` answers undefined when the bytes are not a value of the type (the option is then handed over raw); it never
 * throws. `encode` throws ERR_DHCP_VALUE when the value cannot be expressed. Text exists here and nowhere deeper.
 */
import { DhcpError } from './error.ts'
import { decodeNames, decodePartial, encodeNames, encodePartial, isLatin1, latin1 } from './names.ts'

export interface ValueType<T> {
  decode(b: Uint8Array): T | undefined
  encode(v: T): Uint8Array
}

/** RFC 3442: where to, through whom. "0.0.0.0/0" is the default route; via "0.0.0.0" means on the link. */
export interface ClasslessRoute {
  to: string
  via: string
}

/** RFC 4702. */
export interface ClientFqdn {
  /** S: the server should do the A record; O: the server overrode S; N: no updates by the server. */
  serverUpdates: boolean
  override: boolean
  noServerUpdates: boolean
  /** E: the name travels in DNS form; otherwise in the deprecated ASCII form. */
  canonical: boolean
  /** With a final dot when it is fully qualified (canonical form only). */
  name: string
}

const bad = (what: string): DhcpError => new DhcpError('ERR_DHCP_VALUE', what)

export function readAddress(b: Uint8Array, o: number): string {
  return `${b[o]}.${b[o + 1]}.${b[o + 2]}.${b[o + 3]}`
}

export function writeAddress(b: Uint8Array, o: number, text: string): void {
  const parts = text.split('.')
  if (parts.length !== 4) throw bad(`"${text}" is not an IPv4 address`)
  for (let i = 0; i < 4; i++) {
    const n = Number(parts[i])
    if (!/^\d{1,3}$/.test(parts[i]) || n > 255) throw bad(`"${text}" is not an IPv4 address`)
    b[o + i] = n
  }
}

const uint = (size: 1 | 2 | 4, min = 0): ValueType<number> => ({
  decode(b) {
    if (b.length !== size) return undefined
    let v = 0
    for (let i = 0; i < size; i++) v = v * 256 + b[i]
    return v < min ? undefined : v
  },
  encode(v) {
    if (!Number.isInteger(v) || v < min || v >= 256 ** size) throw bad(`${v} is not an integer of ${size} bytes`)
    const b = new Uint8Array(size)
    for (let i = size - 1; i >= 0; i--) {
      b[i] = v % 256
      v = Math.floor(v / 256)
    }
    return b
  },
})

export const uint8 = uint(1)
/** RFC 2132 §5.1: an MTU has at least 68 bytes. */
export const mtu = uint(2, 68)
/** RFC 2132 §9.10: a message of at least 576 bytes can be received. */
export const messageSize = uint(2, 576)
export const uint32 = uint(4)

export const address: ValueType<string> = {
  decode: (b) => (b.length === 4 ? readAddress(b, 0) : undefined),
  encode(v) {
    const b = new Uint8Array(4)
    writeAddress(b, 0, v)
    return b
  },
}

export const addresses: ValueType<string[]> = {
  decode(b) {
    if (b.length === 0 || b.length % 4 !== 0) return undefined
    const list: string[] = []
    for (let o = 0; o < b.length; o += 4) list.push(readAddress(b, o))
    return list
  },
  encode(v) {
    const b = new Uint8Array(v.length * 4)
    for (let i = 0; i < v.length; i++) writeAddress(b, i * 4, v[i])
    return b
  },
}

/** Latin-1; trailing NULs are dropped, as RFC 2132 §2 asks of receivers. */
export const text: ValueType<string> = {
  decode(b) {
    let end = b.length
    while (end > 0 && b[end - 1] === 0) end--
    return latin1(b, 0, end)
  },
  encode(v) {
    if (!isLatin1(v)) throw bad(`"${v}" has characters that are not one byte each`)
    return Uint8Array.from(v, (c) => c.charCodeAt(0))
  },
}

export const bytes: ValueType<Uint8Array> = {
  decode: (b) => b,
  encode: (v) => v,
}

/** A list of option codes. */
export const codeList: ValueType<number[]> = {
  decode: (b) => (b.length > 0 ? Array.from(b) : undefined),
  encode(v) {
    for (const c of v) if (!Number.isInteger(c) || c < 0 || c > 255) throw bad(`${c} is not an option code`)
    return Uint8Array.from(v)
  },
}

/** Present or not: no value. */
export const flag: ValueType<true> = {
  decode: (b) => (b.length === 0 ? true : undefined),
  encode: () => new Uint8Array(0),
}

export const messageTypes = [
  'DISCOVER',
  'OFFER',
  'REQUEST',
  'DECLINE',
  'ACK',
  'NAK',
  'RELEASE',
  'INFORM',
  'FORCERENEW',
] as const
export type MessageType = (typeof messageTypes)[number]

export const messageType: ValueType<MessageType> = {
  decode: (b) => (b.length === 1 ? messageTypes[b[0] - 1] : undefined),
  encode(v) {
    const at = messageTypes.indexOf(v)
    if (at < 0) throw bad(`${v} is not a DHCP message type`)
    return Uint8Array.of(at + 1)
  },
}

export const domainList: ValueType<string[]> = { decode: decodeNames, encode: encodeNames }

export const classlessRoutes: ValueType<ClasslessRoute[]> = {
  decode(b) {
    const routes: ClasslessRoute[] = []
    let o = 0
    while (o < b.length) {
      const width = b[o++]
      const octets = (width + 7) >> 3
      if (width > 32 || o + octets + 4 > b.length) return undefined
      const to = [0, 0, 0, 0]
      for (let i = 0; i < octets; i++) to[i] = b[o + i]
      // Bits beyond the width do not count (RFC 3442: the client masks them).
      for (let i = 0; i < 4; i++) to[i] &= maskOctet(width, i)
      routes.push({ to: `${to.join('.')}/${width}`, via: readAddress(b, o + octets) })
      o += octets + 4
    }
    return routes.length > 0 ? routes : undefined
  },
  encode(v) {
    const out: number[] = []
    const a = new Uint8Array(4)
    for (const route of v) {
      const [net, size, ...rest] = route.to.split('/')
      const width = Number(size)
      if (rest.length > 0 || !/^\d{1,2}$/.test(size ?? '') || width > 32) throw bad(`"${route.to}" is not a prefix`)
      writeAddress(a, 0, net)
      out.push(width)
      for (let i = 0; i < (width + 7) >> 3; i++) out.push(a[i] & maskOctet(width, i))
      writeAddress(a, 0, route.via)
      out.push(a[0], a[1], a[2], a[3])
    }
    return Uint8Array.from(out)
  },
}

const maskOctet = (width: number, i: number): number => {
  const bits = Math.min(8, Math.max(0, width - i * 8))
  return (0xff00 >> bits) & 0xff
}

const [S, O, E, N] = [1, 2, 4, 8]

export const clientFqdn: ValueType<ClientFqdn> = {
  decode(b) {
    if (b.length < 3) return undefined
    const rest = b.subarray(3)
    const canonical = (b[0] & E) !== 0
    const name = canonical ? decodePartial(rest) : text.decode(rest)
    if (name === undefined) return undefined
    return {
      serverUpdates: (b[0] & S) !== 0,
      override: (b[0] & O) !== 0,
      noServerUpdates: (b[0] & N) !== 0,
      canonical,
      name,
    }
  },
  encode(v) {
    const name = v.canonical ? encodePartial(v.name) : text.encode(v.name)
    const b = new Uint8Array(3 + name.length)
    b[0] = (v.serverUpdates ? S : 0) | (v.override ? O : 0) | (v.canonical ? E : 0) | (v.noServerUpdates ? N : 0)
    // The two RCODE octets are deprecated: a sender writes 255 (RFC 4702 §2.2).
    b[1] = b[2] = 255
    b.set(name, 3)
    return b
  },
}
