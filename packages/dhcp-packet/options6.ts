/**
 * The options of DHCPv6: a code and a length in 16 bits each (RFC 8415 §21.1), the value behind them; identity associations hold options
 * of their own.
 *
 * Invariants, as in options.ts: an option whose value is not of its type is handed over raw in `other`, never refused, and so is a second one
 * where only one may be; only one that runs past the end of its area is an error. Options are nested to a fixed depth, so that no input recurses.
 */
import { readAddress6, writeAddress6 } from './address6.ts'
import { DhcpError } from './error.ts'
import { decodeNames, decodePartial, encodePartial } from './names.ts'

/** RFC 8415 §21.13; the rest of IANA's list is plain numbers. */
export const statusCodes = {
  success: 0,
  unspecFail: 1,
  noAddrsAvail: 2,
  noBinding: 3,
  notOnLink: 4,
  useMulticast: 5,
  noPrefixAvail: 6,
} as const

export interface Status {
  code: number
  message: string
}
export interface Address6 {
  address: string
  /** Seconds. */
  preferred: number
  valid: number
  status?: Status
}
export interface Prefix6 {
  /** "fd00:1::/56" */
  prefix: string
  preferred: number
  valid: number
  status?: Status
}
/** IA_NA (§21.4). What is in it beside addresses and a status is not kept. */
export interface Ia {
  iaid: number
  t1: number
  t2: number
  addresses: Address6[]
  status?: Status
}
/** IA_TA (§21.5). */
export interface IaTemporary {
  iaid: number
  addresses: Address6[]
  status?: Status
}
/** IA_PD (§21.21). */
export interface IaPrefix {
  iaid: number
  t1: number
  t2: number
  prefixes: Prefix6[]
  status?: Status
}
/** RFC 4704. */
export interface Fqdn6 {
  serverUpdates: boolean
  override: boolean
  noServerUpdates: boolean
  /** With a final dot when it is fully qualified. */
  name: string
}
export interface Raw6 {
  code: number
  data: Uint8Array
}

interface ValueType<T> {
  decode(b: Uint8Array): T | undefined
  encode(v: T): Uint8Array
}
interface Entry<T> {
  readonly code: number
  readonly type: ValueType<T>
  /** Several of them are a list. */
  readonly many: boolean
}
const one = <T>(code: number, type: ValueType<T>): Entry<T> => ({ code, type, many: false })
const many = <T>(code: number, type: ValueType<T>): Entry<T> => ({ code, type, many: true })

const ADDRESS = 16
const IA_ADDRESS = 5
const STATUS = 13
const IA_PREFIX = 26
const bad = (what: string): DhcpError => new DhcpError('ERR_DHCP_VALUE', what)

// -- values ----------------------------------------------------------------------------------------------------------

const uint = (size: 1 | 2 | 4): ValueType<number> => ({
  decode: (b) => (b.length === size ? b.reduce((n, byte) => n * 256 + byte, 0) : undefined),
  encode(v) {
    const b = new Uint8Array(size)
    write(b, 0, size, v)
    return b
  },
})
const bytes: ValueType<Uint8Array> = {
  decode: (b) => b.slice(),
  encode(v) {
    if (!(v instanceof Uint8Array)) throw bad('bytes are a Uint8Array')
    return v
  },
}
/** RFC 8415 §11.1: a type in two bytes, and 1 to 128 more. */
const duid: ValueType<Uint8Array> = {
  decode: (b) => (b.length >= 3 && b.length <= 130 ? b.slice() : undefined),
  encode(v) {
    if (!(v instanceof Uint8Array) || v.length < 3 || v.length > 130) throw bad('a DUID has 3 to 130 bytes')
    return v
  },
}
const flag: ValueType<true> = {
  decode: (b) => (b.length === 0 ? true : undefined),
  encode: () => new Uint8Array(0),
}
const codes: ValueType<number[]> = {
  decode: (b) =>
    b.length % 2 === 0 ? Array.from({ length: b.length / 2 }, (_, i) => (b[2 * i] << 8) | b[2 * i + 1]) : undefined,
  encode(v) {
    const b = new Uint8Array(v.length * 2)
    v.forEach((code, i) => {
      write(b, 2 * i, 2, code)
    })
    return b
  },
}
const addresses: ValueType<string[]> = {
  decode: (b) =>
    b.length > 0 && b.length % ADDRESS === 0
      ? Array.from({ length: b.length / ADDRESS }, (_, i) => readAddress6(b, i * ADDRESS))
      : undefined,
  encode(v) {
    const b = new Uint8Array(v.length * ADDRESS)
    v.forEach((a, i) => {
      writeAddress6(b, i * ADDRESS, a)
    })
    return b
  },
}
/** §10: names one behind the other, without compression. */
const domains: ValueType<string[]> = {
  decode: (b) => decodeNames(b),
  encode: (v) => join(v.map((name) => encodePartial(name.endsWith('.') ? name : `${name}.`))),
}
const status: ValueType<Status> = {
  decode: (b) => (b.length >= 2 ? { code: (b[0] << 8) | b[1], message: utf8(b.subarray(2)) } : undefined),
  encode(v) {
    const text = new TextEncoder().encode(v.message)
    const b = new Uint8Array(2 + text.length)
    write(b, 0, 2, v.code)
    b.set(text, 2)
    return b
  },
}
const fqdn: ValueType<Fqdn6> = {
  decode(b) {
    const name = b.length >= 1 ? decodePartial(b.subarray(1)) : undefined
    if (name === undefined) return undefined
    return { serverUpdates: (b[0] & 1) !== 0, override: (b[0] & 2) !== 0, noServerUpdates: (b[0] & 4) !== 0, name }
  },
  encode(v) {
    const flags = (v.serverUpdates ? 1 : 0) | (v.override ? 2 : 0) | (v.noServerUpdates ? 4 : 0)
    return join([Uint8Array.of(flags), encodePartial(v.name)])
  },
}

// -- identity associations ---------------------------------------------------------------------------------------------

/** An address or prefix inside an association: `head` bytes, two lifetimes in it, a status behind it. */
function decodeAddress(b: Uint8Array): Address6 | undefined {
  if (b.length < 24) return undefined
  const inner = split(b, 24, b.length)
  if (inner === undefined) return undefined
  return { address: readAddress6(b, 0), preferred: read(b, 16, 4), valid: read(b, 20, 4), ...statusOf(inner) }
}
function encodeAddress(a: Address6): Raw6 {
  const b = new Uint8Array(24)
  writeAddress6(b, 0, a.address)
  write(b, 16, 4, a.preferred)
  write(b, 20, 4, a.valid)
  return { code: IA_ADDRESS, data: join([b, encodeStatus(a.status)]) }
}
function decodePrefix(b: Uint8Array): Prefix6 | undefined {
  if (b.length < 25 || b[8] > 128) return undefined
  const inner = split(b, 25, b.length)
  if (inner === undefined) return undefined
  const prefix = `${readAddress6(b, 9)}/${b[8]}`
  return { prefix, preferred: read(b, 0, 4), valid: read(b, 4, 4), ...statusOf(inner) }
}
function encodePrefix(p: Prefix6): Raw6 {
  const [address, length] = p.prefix.split('/')
  const b = new Uint8Array(25)
  write(b, 0, 4, p.preferred)
  write(b, 4, 4, p.valid)
  if (!/^\d{1,3}$/.test(length ?? '') || Number(length) > 128) throw bad(`"${p.prefix}" is not an IPv6 prefix`)
  b[8] = Number(length)
  writeAddress6(b, 9, address)
  return { code: IA_PREFIX, data: join([b, encodeStatus(p.status)]) }
}

/** The values inside of one code; undefined when one of them is malformed: the whole association is then handed over raw. */
function inside<T>(inner: readonly Raw6[], code: number, decode: (b: Uint8Array) => T | undefined): T[] | undefined {
  const values: T[] = []
  for (const r of inner) {
    if (r.code !== code) continue
    const v = decode(r.data)
    if (v === undefined) return undefined
    values.push(v)
  }
  return values
}

const association: ValueType<Ia> = {
  decode(b) {
    const inner = b.length >= 12 ? split(b, 12, b.length) : undefined
    const list = inner && inside(inner, IA_ADDRESS, decodeAddress)
    if (inner === undefined || list === undefined) return undefined
    return { iaid: read(b, 0, 4), t1: read(b, 4, 4), t2: read(b, 8, 4), addresses: list, ...statusOf(inner) }
  },
  encode: (v) => join([words(v.iaid, v.t1, v.t2), wire(v.addresses.map(encodeAddress)), encodeStatus(v.status)]),
}
const temporary: ValueType<IaTemporary> = {
  decode(b) {
    const inner = b.length >= 4 ? split(b, 4, b.length) : undefined
    const list = inner && inside(inner, IA_ADDRESS, decodeAddress)
    if (inner === undefined || list === undefined) return undefined
    return { iaid: read(b, 0, 4), addresses: list, ...statusOf(inner) }
  },
  encode: (v) => join([words(v.iaid), wire(v.addresses.map(encodeAddress)), encodeStatus(v.status)]),
}
const delegation: ValueType<IaPrefix> = {
  decode(b) {
    const inner = b.length >= 12 ? split(b, 12, b.length) : undefined
    const list = inner && inside(inner, IA_PREFIX, decodePrefix)
    if (inner === undefined || list === undefined) return undefined
    return { iaid: read(b, 0, 4), t1: read(b, 4, 4), t2: read(b, 8, 4), prefixes: list, ...statusOf(inner) }
  },
  encode: (v) => join([words(v.iaid, v.t1, v.t2), wire(v.prefixes.map(encodePrefix)), encodeStatus(v.status)]),
}

function statusOf(inner: readonly Raw6[]): { status?: Status } {
  const raw = inner.find((r) => r.code === STATUS)
  const value = raw && status.decode(raw.data)
  return value === undefined ? {} : { status: value }
}
const encodeStatus = (s: Status | undefined): Uint8Array =>
  s === undefined ? new Uint8Array(0) : wire([{ code: STATUS, data: status.encode(s) }])

// -- the table ---------------------------------------------------------------------------------------------------------

/** In the order in which they are written. */
const table = {
  clientId: one(1, duid),
  serverId: one(2, duid),
  status: one(STATUS, status),
  preference: one(7, uint(1)),
  rapidCommit: one(14, flag),
  ia: many(3, association),
  iaTemporary: many(4, temporary),
  iaPrefix: many(25, delegation),
  optionRequest: one(6, codes),
  elapsedTime: one(8, uint(2)),
  reconfigureAccept: one(20, flag),
  dnsServers: one(23, addresses),
  searchDomains: one(24, domains),
  informationRefreshTime: one(32, uint(4)),
  clientFqdn: one(39, fqdn),
  solicitMaxRt: one(82, uint(4)),
  informationMaxRt: one(83, uint(4)),
  userClass: one(15, bytes),
  vendorClass: one(16, bytes),
} as const

export type OptionName6 = keyof typeof table
type ValueOf<E> = E extends Entry<infer T> ? T : never
type Listed = 'ia' | 'iaTemporary' | 'iaPrefix'

export type Options6 = { [K in Exclude<OptionName6, Listed>]?: ValueOf<(typeof table)[K]> } & {
  ia?: Ia[]
  iaTemporary?: IaTemporary[]
  iaPrefix?: IaPrefix[]
  /** Options without a name here, those whose bytes are not of their type, and second ones, in their order. */
  other?: Raw6[]
}

/** Option codes by name, for an option request. */
export const optionCodes6 = Object.fromEntries(Object.entries(table).map(([k, e]) => [k, e.code])) as {
  readonly [K in OptionName6]: number
}
const names = new Map<number, OptionName6>(
  Object.entries(table).map(([name, e]) => [e.code, name as OptionName6] as const),
)

/** Throws ERR_DHCP_OPTION when an option runs past the end. */
export function decodeOptions6(b: Uint8Array, from: number, to: number): Options6 {
  const raw = split(b, from, to)
  if (raw === undefined) throw new DhcpError('ERR_DHCP_OPTION')
  const options: Record<string, unknown> = {}
  const other: Raw6[] = []
  for (const r of raw) {
    const name = names.get(r.code)
    const e = name === undefined ? undefined : (table[name] as Entry<unknown>)
    const value = e !== undefined && (e.many || options[name!] === undefined) ? e.type.decode(r.data) : undefined
    if (e === undefined || value === undefined) other.push({ code: r.code, data: r.data.slice() })
    else if (e.many) ((options[name!] ??= []) as unknown[]).push(value)
    else options[name!] = value
  }
  if (other.length > 0) options.other = other
  return options as Options6
}

/** Every option's bytes, in order; an empty list is no option. Throws ERR_DHCP_VALUE. */
export function encodeOptions6(options: Options6): Raw6[] {
  const raw: Raw6[] = []
  for (const [name, e] of Object.entries(table) as [OptionName6, Entry<unknown>][]) {
    const value = options[name]
    if (value === undefined) continue
    if (e.many) for (const v of value as unknown[]) raw.push({ code: e.code, data: e.type.encode(v) })
    else if (!Array.isArray(value) || value.length > 0) raw.push({ code: e.code, data: e.type.encode(value) })
  }
  for (const r of options.other ?? []) {
    if (!Number.isInteger(r.code) || r.code < 0 || r.code > 0xffff) throw bad(`option ${r.code}`)
    raw.push(r)
  }
  for (const r of raw) if (r.data.length > 0xffff) throw bad(`option ${r.code} has ${r.data.length} bytes`)
  return raw
}

export const optionsLength6 = (raw: readonly Raw6[]): number => raw.reduce((n, r) => n + 4 + r.data.length, 0)

export function writeOptions6(raw: readonly Raw6[], b: Uint8Array, o: number): void {
  for (const r of raw) {
    write(b, o, 2, r.code)
    write(b, o + 2, 2, r.data.length)
    b.set(r.data, o + 4)
    o += 4 + r.data.length
  }
}

// -- bytes -------------------------------------------------------------------------------------------------------------

/** The options between two offsets, without copying; undefined when one runs past the end. */
function split(b: Uint8Array, from: number, to: number): Raw6[] | undefined {
  const raw: Raw6[] = []
  for (let o = from; o < to; ) {
    const end = o + 4 <= to ? o + 4 + ((b[o + 2] << 8) | b[o + 3]) : to + 1
    if (end > to) return undefined
    raw.push({ code: (b[o] << 8) | b[o + 1], data: b.subarray(o + 4, end) })
    o = end
  }
  return raw
}

function wire(raw: readonly Raw6[]): Uint8Array {
  const b = new Uint8Array(optionsLength6(raw))
  writeOptions6(raw, b, 0)
  return b
}

function words(...values: number[]): Uint8Array {
  const b = new Uint8Array(4 * values.length)
  values.forEach((v, i) => {
    write(b, 4 * i, 4, v)
  })
  return b
}

function read(b: Uint8Array, o: number, size: number): number {
  let n = 0
  for (let i = 0; i < size; i++) n = n * 256 + b[o + i]
  return n
}

function write(b: Uint8Array, o: number, size: number, v: number): void {
  if (!Number.isInteger(v) || v < 0 || v >= 256 ** size) throw bad(`${v} is not an integer of ${size} bytes`)
  for (let i = size - 1; i >= 0; i--) {
    b[o + i] = v % 256
    v = Math.floor(v / 256)
  }
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  const b = new Uint8Array(parts.reduce((n, p) => n + p.length, 0))
  let o = 0
  for (const p of parts) {
    b.set(p, o)
    o += p.length
  }
  return b
}

/** RFC 8415 §21.13: UTF-8; what is none is shown as such. */
const utf8 = (b: Uint8Array): string => new TextDecoder().decode(b)
