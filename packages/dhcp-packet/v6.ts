/**
 * DHCPv6 messages ⇄ plain objects (RFC 8415), in the shape of index.ts: `encode`, `decode`, `encodingLength`.
 *
 * Owns: messages between client and server (§8), their options as far as they have a name in options6.ts, identity associations with
 * the options inside them. Relay messages (§9) have another shape and are refused with ERR_DHCP_FIELD.
 * Never does: I/O, state machines, defaults of a client or server. No Node API; any JavaScript engine runs it.
 * Invariants: as those of index.ts: `decode` throws DhcpError and nothing else, on any bytes; what it returns shares no memory with its
 * input; decode(encode(p)) equals p.
 */
import { DhcpError } from './error.ts'
import { decodeOptions6, encodeOptions6, type Options6, optionsLength6, writeOptions6 } from './options6.ts'

export { DhcpError, type DhcpErrorCode } from './error.ts'
export {
  type Address6,
  type Fqdn6,
  type Ia,
  type IaPrefix,
  type IaTemporary,
  type OptionName6,
  type Options6,
  optionCodes6,
  type Prefix6,
  type Raw6,
  type Status,
  statusCodes,
} from './options6.ts'

/** RFC 8415 §7.3, by number from 1. */
const types = [
  'SOLICIT',
  'ADVERTISE',
  'REQUEST',
  'CONFIRM',
  'RENEW',
  'REBIND',
  'REPLY',
  'RELEASE',
  'DECLINE',
  'RECONFIGURE',
  'INFORMATION-REQUEST',
] as const
export type MessageType6 = (typeof types)[number]

export interface Packet6 {
  type: MessageType6
  /** 24 bits. */
  transactionId: number
  options: Options6
}

const HEADER = 4

/** Bytes that `encode` writes. Throws DhcpError as encode does. */
export function encodingLength(packet: Packet6): number {
  return HEADER + optionsLength6(encodeOptions6(packet.options))
}

/**
 * Write a message; returns the buffer, and `encode.bytes` is the number of bytes written. Without `buf` one of the right size is made.
 * Throws DhcpError: ERR_DHCP_VALUE, ERR_DHCP_SPACE.
 */
export function encode(packet: Packet6, buf?: Uint8Array, offset = 0): Uint8Array {
  const type = types.indexOf(packet.type) + 1
  const id = packet.transactionId
  if (type === 0) throw new DhcpError('ERR_DHCP_VALUE', `type ${packet.type}`)
  if (!Number.isInteger(id) || id < 0 || id > 0xffffff) throw new DhcpError('ERR_DHCP_VALUE', `transactionId ${id}`)
  const raw = encodeOptions6(packet.options)
  const length = HEADER + optionsLength6(raw)
  const b = buf ?? new Uint8Array(offset + length)
  if (offset + length > b.length) throw new DhcpError('ERR_DHCP_SPACE', `${length} bytes at ${offset} of ${b.length}`)
  b[offset] = type
  b[offset + 1] = id >> 16
  b[offset + 2] = id >> 8
  b[offset + 3] = id
  writeOptions6(raw, b, offset + HEADER)
  encode.bytes = length
  return b
}
encode.bytes = 0

/**
 * Read a message from `offset` to the end of `buf`; `decode.bytes` is the number of bytes taken, which is all of them.
 * Throws DhcpError: ERR_DHCP_SHORT, ERR_DHCP_FIELD (no message between client and server), ERR_DHCP_OPTION.
 */
export function decode(buf: Uint8Array, offset = 0): Packet6 {
  // A copy: the message outlives the buffer it came in.
  const b = Uint8Array.prototype.slice.call(buf, offset)
  if (b.length < HEADER) throw new DhcpError('ERR_DHCP_SHORT', `${b.length} of ${HEADER} bytes`)
  const type = types[b[0] - 1]
  if (type === undefined) throw new DhcpError('ERR_DHCP_FIELD', `type ${b[0]}`)
  decode.bytes = b.length
  return {
    type,
    transactionId: (b[1] << 16) | (b[2] << 8) | b[3],
    options: decodeOptions6(b, HEADER, b.length),
  }
}
decode.bytes = 0

/** DUID-LL (RFC 8415 §11.4) of an Ethernet address: "02:00:00:00:00:01". */
export function duidLinkLayer(mac: string): Uint8Array {
  const octets = mac.split(':')
  if (octets.length !== 6 || !octets.every((o) => /^[0-9a-fA-F]{2}$/.test(o)))
    throw new DhcpError('ERR_DHCP_VALUE', `"${mac}" is not an Ethernet address`)
  return Uint8Array.of(0, 3, 0, 1, ...octets.map((o) => Number.parseInt(o, 16)))
}
