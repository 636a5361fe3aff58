/**
 * The option table, and the option area of a message: options ⇄ tagged bytes.
 *
 * Owns: which code has which name and type; joining options that come in parts and splitting those longer than 255 bytes
 * (RFC 3396); laying options out over the option area and, where that is full, the `file` and `sname` fields (option 52).
 * Invariants: an option whose value is not of its type is handed over raw in `other`, never refused (a client with an odd
 * host name still gets its lease); nothing is read twice; parts join in the order options, file, sname.
 */
import { DhcpError } from './error.ts'
import * as v from './values.ts'

export interface RawOption {
  code: number
  data: Uint8Array
}

interface Entry<T> {
  readonly code: number
  readonly type: v.ValueType<T>
}

const option = <T>(code: number, type: v.ValueType<T>): Entry<T> => ({ code, type })

/** In the order in which they are written: what tells a message's meaning comes first. */
const table = {
  messageType: option(53, v.messageType),
  serverId: option(54, v.address),
  leaseTime: option(51, v.uint32),
  renewalTime: option(58, v.uint32),
  rebindingTime: option(59, v.uint32),
  clientId: option(61, v.bytes),
  requestedAddress: option(50, v.address),
  rapidCommit: option(80, v.flag),
  parameterRequestList: option(55, v.codeList),
  maxMessageSize: option(57, v.messageSize),
  subnetMask: option(1, v.address),
  classlessRoutes: option(121, v.classlessRoutes),
  routers: option(3, v.addresses),
  dnsServers: option(6, v.addresses),
  hostname: option(12, v.text),
  domainName: option(15, v.text),
  searchDomains: option(119, v.domainList),
  mtu: option(26, v.mtu),
  broadcastAddress: option(28, v.address),
  ntpServers: option(42, v.addresses),
  tftpServer: option(66, v.text),
  bootFile: option(67, v.text),
  clientFqdn: option(81, v.clientFqdn),
  vendorClass: option(60, v.text),
  vendorInfo: option(43, v.bytes),
  userClass: option(77, v.bytes),
  ipv6OnlyWait: option(108, v.uint32),
  autoConfigure: option(116, v.uint8),
  microsoftRoutes: option(249, v.classlessRoutes),
  message: option(56, v.text),
  relayInfo: option(82, v.bytes),
} as const

export type OptionName = keyof typeof table
type ValueOf<E> = E extends Entry<infer T> ? T : never

export type Options = { [K in OptionName]?: ValueOf<(typeof table)[K]> } & {
  /** Options without a name here, and those whose bytes are not of their type. Ascending by code on decode. */
  other?: RawOption[]
}

/** Option codes by name, for a parameter request list. */
export const optionCodes = Object.fromEntries(Object.entries(table).map(([k, e]) => [k, e.code])) as {
  readonly [K in OptionName]: number
}

const names: (OptionName | undefined)[] = new Array(256)
for (const [name, e] of Object.entries(table)) names[e.code] = name as OptionName

const PAD = 0
const END = 255
const OVERLOAD = 52
export const OVERLOAD_FILE = 1
export const OVERLOAD_SNAME = 2

/** Options as they came: parts by code. `overload` is 0 to 3. */
export interface Parts {
  readonly byCode: (Uint8Array[] | undefined)[]
  overload: number
}

/** Collect the tagged bytes of one area. Throws ERR_DHCP_OPTION when an option runs past its end. */
export function readArea(parts: Parts, b: Uint8Array, from: number, to: number): void {
  let o = from
  while (o < to) {
    const code = b[o++]
    if (code === PAD) continue
    if (code === END) return
    if (o >= to || o + 1 + b[o] > to) throw new DhcpError('ERR_DHCP_OPTION', `option ${code}`)
    const end = o + 1 + b[o]
    if (code === OVERLOAD) {
      // Framing, and handled here alone; an impossible value means nothing.
      if (end === o + 2 && b[o + 1] >= 1 && b[o + 1] <= 3) parts.overload |= b[o + 1]
    } else (parts.byCode[code] ??= []).push(b.subarray(o + 1, end))
    o = end
  }
}

export function decodeOptions(parts: Parts): Options {
  const options: Options = {}
  const other: RawOption[] = []
  for (let code = 1; code < END; code++) {
    const chunks = parts.byCode[code]
    if (chunks === undefined) continue
    const data = join(chunks)
    const name = names[code]
    const value = name === undefined ? undefined : table[name].type.decode(data)
    if (value === undefined) other.push({ code, data })
    else (options as Record<string, unknown>)[name!] = value
  }
  if (other.length > 0) options.other = other
  return options
}

/** Every option's bytes, in order; an empty list is no option. Throws ERR_DHCP_VALUE. */
export function encodeOptions(options: Options): RawOption[] {
  const raw: RawOption[] = []
  for (const [name, e] of Object.entries(table) as [OptionName, Entry<unknown>][]) {
    const value = options[name]
    if (name === 'relayInfo' || value === undefined || (Array.isArray(value) && value.length === 0)) continue
    raw.push({ code: e.code, data: e.type.encode(value) })
  }
  const seen = new Set(raw.map((r) => r.code))
  for (const r of options.other ?? []) {
    if (
      !Number.isInteger(r.code) ||
      r.code <= PAD ||
      r.code >= END ||
      r.code === OVERLOAD ||
      seen.has(r.code) ||
      (r.code === table.relayInfo.code && options.relayInfo !== undefined)
    )
      throw new DhcpError('ERR_DHCP_VALUE', `option ${r.code} is framing, or given twice`)
    seen.add(r.code)
    raw.push(r)
  }
  // RFC 3046 §2.1: the relay's option comes last.
  if (options.relayInfo !== undefined) raw.push({ code: table.relayInfo.code, data: options.relayInfo })
  return raw
}

/** Bytes of the options with their headers, without END. */
export function optionsLength(raw: readonly RawOption[]): number {
  let n = 0
  for (const r of raw) n += r.data.length + 2 * Math.max(1, Math.ceil(r.data.length / 255))
  return n
}

/** Write options and END; the caller made sure they fit. Returns the offset behind END. */
export function writeArea(raw: readonly RawOption[], b: Uint8Array, o: number): number {
  for (const r of raw) {
    let at = 0
    do {
      const n = Math.min(255, r.data.length - at)
      b[o++] = r.code
      b[o++] = n
      b.set(r.data.subarray(at, at + n), o)
      o += n
      at += n
    } while (at < r.data.length)
  }
  b[o++] = END
  return o
}

/**
 * Lay options out over areas of the given sizes (options, file, sname), each of which keeps a byte for END. An option stays
 * whole where one area can take it; otherwise it is split, its parts in the areas' order. undefined: they do not fit.
 */
export function layOut(raw: readonly RawOption[], sizes: readonly number[]): RawOption[][] | undefined {
  const areas: RawOption[][] = sizes.map(() => [])
  const room = sizes.map((s) => s - 1)
  for (const r of raw) {
    const whole = r.data.length <= 255 ? room.findIndex((free) => free >= r.data.length + 2) : -1
    if (whole >= 0) {
      areas[whole].push(r)
      room[whole] -= r.data.length + 2
      continue
    }
    let at = 0
    for (let a = 0; a < sizes.length && at < r.data.length; a++) {
      while (room[a] >= 3 && at < r.data.length) {
        const n = Math.min(255, room[a] - 2, r.data.length - at)
        areas[a].push({ code: r.code, data: r.data.subarray(at, at + n) })
        room[a] -= n + 2
        at += n
      }
    }
    if (at < r.data.length || r.data.length === 0) return undefined
  }
  return areas
}

export const overloadOption = (value: number): RawOption => ({ code: OVERLOAD, data: Uint8Array.of(value) })

function join(chunks: readonly Uint8Array[]): Uint8Array {
  let n = 0
  for (const c of chunks) n += c.length
  const b = new Uint8Array(n)
  let o = 0
  for (const c of chunks) {
    b.set(c, o)
    o += c.length
  }
  return b
}
