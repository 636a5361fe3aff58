/**
 * DHCPv4 packets ⇄ plain objects, shaped like dns-packet: `encode`, `decode`, `encodingLength`.
 *
 * Owns: the fixed part (RFC 2131 §2), the magic cookie, and where options lie. Options are in options.ts, value types in
 * values.ts, domain names in names.ts.
 * Never does: I/O, state machines, defaults of a client or server. No Node API; any JavaScript engine runs it.
 * Invariants: `decode` throws DhcpError and nothing else, on any bytes; what it returns shares no memory with its input;
 * decode(encode(p)) equals p with its defaults filled in.
 */
import { DhcpError } from './error.ts'
import { isLatin1, latin1 } from './names.ts'
import {
  decodeOptions,
  encodeOptions,
  layOut,
  type Options,
  OVERLOAD_FILE,
  OVERLOAD_SNAME,
  optionsLength,
  overloadOption,
  type Parts,
  type RawOption,
  readArea,
  writeArea,
} from './options.ts'
import { readAddress, writeAddress } from './values.ts'

export { DhcpError, type DhcpErrorCode } from './error.ts'
export { type OptionName, type Options, optionCodes, type RawOption } from './options.ts'
export type { ClasslessRoute, ClientFqdn, MessageType } from './values.ts'

export interface Packet {
  /** A client's message, or a server's. */
  op: 'request' | 'reply'
  /** 1 is Ethernet. */
  htype: number
  hops: number
  /** Transaction id, 32 bits unsigned. */
  xid: number
  /** Seconds since the client began. */
  secs: number
  /** The client cannot take unicast before it has its address. */
  broadcast: boolean
  ciaddr: string
  yiaddr: string
  siaddr: string
  giaddr: string
  /** Hardware address, "02:00:00:00:00:01"; as many bytes as hlen says, up to 16. */
  chaddr: string
  sname: string
  file: string
  options: Options
}

/** What encode takes: everything but op and options has a default (zero, Ethernet). */
export type PacketInit = Pick<Packet, 'op' | 'options'> & Partial<Packet>

const HTYPE = 1
const HLEN = 2
const HOPS = 3
const XID = 4
const SECS = 8
const FLAGS = 10
const CIADDR = 12
const YIADDR = 16
const SIADDR = 20
const GIADDR = 24
const CHADDR = 28
const SNAME = 44
const FILE = 108
const COOKIE = 236
const OPTIONS = 240

const MAGIC = 0x63825363
/** BOOTP's size (RFC 951, RFC 1542 §2.1): relays and old clients drop what is shorter. */
const MIN_LENGTH = 300
const CHADDR_SIZE = 16
const SNAME_SIZE = 64
const FILE_SIZE = 128
const BROADCAST = 0x8000

/** Bytes that `encode` writes when it is given no limit. Throws DhcpError as encode does. */
export function encodingLength(packet: PacketInit): number {
  return Math.max(MIN_LENGTH, OPTIONS + optionsLength(encodeOptions(packet.options)) + 1)
}

/**
 * Write a packet; returns the buffer, and `encode.bytes` is the number of bytes written.
 *
 * Without `buf` one of the right size is made. `limit` is the most bytes the message may have (a client's maximum message
 * size less IP and UDP headers): beyond it options move into `file` and `sname` (option 52) where those are empty.
 * Throws DhcpError: ERR_DHCP_VALUE, ERR_DHCP_SPACE.
 */
export function encode(packet: PacketInit, buf?: Uint8Array, offset = 0, limit = Number.POSITIVE_INFINITY): Uint8Array {
  const raw = encodeOptions(packet.options)
  let areas: RawOption[][] = [raw]
  let length = Math.max(MIN_LENGTH, OPTIONS + optionsLength(raw) + 1)
  if (length > limit) {
    areas = overload(packet, raw, limit)
    length = Math.max(MIN_LENGTH, OPTIONS + optionsLength(areas[0]) + 1)
  }
  const b = buf ?? new Uint8Array(offset + length)
  if (offset + length > b.length) throw new DhcpError('ERR_DHCP_SPACE', `${length} bytes at ${offset} of ${b.length}`)
  b.fill(0, offset, offset + length)
  writeFixed(packet, b, offset)
  writeArea(areas[0], b, offset + OPTIONS)
  if (areas[1]?.length > 0) writeArea(areas[1], b, offset + FILE)
  if (areas[2]?.length > 0) writeArea(areas[2], b, offset + SNAME)
  encode.bytes = length
  return b
}
encode.bytes = 0

function overload(packet: PacketInit, raw: RawOption[], limit: number): RawOption[][] {
  const main = Math.floor(limit) - OPTIONS - 3
  const file = (packet.file ?? '') === '' ? FILE_SIZE : 0
  const sname = (packet.sname ?? '') === '' ? SNAME_SIZE : 0
  const areas = limit < MIN_LENGTH ? undefined : layOut(raw, [main, file, sname])
  if (areas === undefined) throw new DhcpError('ERR_DHCP_SPACE', `the options do not fit into ${limit} bytes`)
  const used = (areas[1].length > 0 ? OVERLOAD_FILE : 0) | (areas[2].length > 0 ? OVERLOAD_SNAME : 0)
  if (used !== 0) areas[0].push(overloadOption(used))
  return areas
}

function writeFixed(p: PacketInit, b: Uint8Array, o: number): void {
  if (p.op !== 'request' && p.op !== 'reply') throw new DhcpError('ERR_DHCP_VALUE', `op ${p.op}`)
  b[o] = p.op === 'request' ? 1 : 2
  b[o + HTYPE] = integer('htype', p.htype ?? 1, 0xff)
  b[o + HLEN] = writeHardware(b, o + CHADDR, p.chaddr ?? '')
  b[o + HOPS] = integer('hops', p.hops ?? 0, 0xff)
  write32(b, o + XID, integer('xid', p.xid ?? 0, 0xffffffff))
  const secs = integer('secs', p.secs ?? 0, 0xffff)
  b[o + SECS] = secs >> 8
  b[o + SECS + 1] = secs & 0xff
  if (p.broadcast) b[o + FLAGS] = BROADCAST >> 8
  writeAddress(b, o + CIADDR, p.ciaddr ?? '0.0.0.0')
  writeAddress(b, o + YIADDR, p.yiaddr ?? '0.0.0.0')
  writeAddress(b, o + SIADDR, p.siaddr ?? '0.0.0.0')
  writeAddress(b, o + GIADDR, p.giaddr ?? '0.0.0.0')
  writeText(b, o + SNAME, SNAME_SIZE, p.sname ?? '')
  writeText(b, o + FILE, FILE_SIZE, p.file ?? '')
  write32(b, o + COOKIE, MAGIC)
}

/**
 * Read a packet from `offset` to the end of `buf`; `decode.bytes` is the number of bytes taken, which is all of them.
 *
 * Throws DhcpError: ERR_DHCP_SHORT, ERR_DHCP_FIELD, ERR_DHCP_COOKIE, ERR_DHCP_OPTION.
 */
export function decode(buf: Uint8Array, offset = 0): Packet {
  // A copy: the packet outlives the buffer it came in.
  const b = Uint8Array.prototype.slice.call(buf, offset)
  if (b.length < OPTIONS) throw new DhcpError('ERR_DHCP_SHORT', `${b.length} of ${OPTIONS} bytes`)
  if (b[0] !== 1 && b[0] !== 2) throw new DhcpError('ERR_DHCP_FIELD', `op ${b[0]}`)
  if (b[HLEN] > CHADDR_SIZE) throw new DhcpError('ERR_DHCP_FIELD', `hlen ${b[HLEN]}`)
  if (read32(b, COOKIE) !== MAGIC) throw new DhcpError('ERR_DHCP_COOKIE')
  const parts: Parts = { byCode: new Array(256), overload: 0 }
  readArea(parts, b, OPTIONS, b.length)
  const { overload } = parts
  // In RFC 3396's order. An overload option inside these fields means nothing.
  if ((overload & OVERLOAD_FILE) !== 0) readArea(parts, b, FILE, FILE + FILE_SIZE)
  if ((overload & OVERLOAD_SNAME) !== 0) readArea(parts, b, SNAME, SNAME + SNAME_SIZE)
  decode.bytes = b.length
  return {
    op: b[0] === 1 ? 'request' : 'reply',
    htype: b[HTYPE],
    hops: b[HOPS],
    xid: read32(b, XID),
    secs: (b[SECS] << 8) | b[SECS + 1],
    broadcast: (b[FLAGS] & (BROADCAST >> 8)) !== 0,
    ciaddr: readAddress(b, CIADDR),
    yiaddr: readAddress(b, YIADDR),
    siaddr: readAddress(b, SIADDR),
    giaddr: readAddress(b, GIADDR),
    chaddr: readHardware(b, CHADDR, b[HLEN]),
    sname: (overload & OVERLOAD_SNAME) !== 0 ? '' : readText(b, SNAME, SNAME_SIZE),
    file: (overload & OVERLOAD_FILE) !== 0 ? '' : readText(b, FILE, FILE_SIZE),
    options: decodeOptions(parts),
  }
}
decode.bytes = 0

const integer = (name: string, value: number, max: number): number => {
  if (!Number.isInteger(value) || value < 0 || value > max) throw new DhcpError('ERR_DHCP_VALUE', `${name} ${value}`)
  return value
}

const read32 = (b: Uint8Array, o: number): number =>
  ((b[o] << 24) | (b[o + 1] << 16) | (b[o + 2] << 8) | b[o + 3]) >>> 0

function write32(b: Uint8Array, o: number, value: number): void {
  b[o] = value >>> 24
  b[o + 1] = value >>> 16
  b[o + 2] = value >>> 8
  b[o + 3] = value
}

function readHardware(b: Uint8Array, o: number, length: number): string {
  let s = ''
  for (let i = 0; i < length; i++) s += (i === 0 ? '' : ':') + b[o + i].toString(16).padStart(2, '0')
  return s
}

function writeHardware(b: Uint8Array, o: number, text: string): number {
  if (text === '') return 0
  const parts = text.split(':')
  if (parts.length > CHADDR_SIZE || !parts.every((p) => /^[0-9a-fA-F]{2}$/.test(p)))
    throw new DhcpError('ERR_DHCP_VALUE', `"${text}" is not a hardware address`)
  for (let i = 0; i < parts.length; i++) b[o + i] = Number.parseInt(parts[i], 16)
  return parts.length
}

function readText(b: Uint8Array, o: number, size: number): string {
  let end = o
  while (end < o + size && b[end] !== 0) end++
  return latin1(b, o, end)
}

function writeText(b: Uint8Array, o: number, size: number, text: string): void {
  // A text of exactly the field's size goes without its NUL, as it is read.
  if (text.length > size || !isLatin1(text) || text.includes('\0'))
    throw new DhcpError('ERR_DHCP_VALUE', `"${text}" does not fit into a field of ${size} bytes`)
  for (let i = 0; i < text.length; i++) b[o + i] = text.charCodeAt(i)
}
