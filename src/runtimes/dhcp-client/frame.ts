/**
 * The frames a DHCP client needs before its link has an address: Ethernet, IPv4 without options, UDP 68 → 67, and back.
 * Read: RFC 791 §3.1, RFC 768, RFC 1071. Never throws on what arrives; what is not for us is undefined.
 */
const ETHERNET = 14
const IP = 20
const UDP = 8
const ETHERTYPE_IPV4 = 0x0800
const PROTOCOL_UDP = 17
const SERVER_PORT = 67
const CLIENT_PORT = 68

const macBytes = (text: string): number[] => text.split(':').map((x) => Number.parseInt(x, 16))
const addressBytes = (text: string): number[] => text.split('.').map(Number)

/** One's complement sum of 16-bit words (RFC 1071), not yet complemented. */
function sum(b: Buffer, from: number, to: number, start = 0): number {
  let s = start
  for (let i = from; i < to; i += 2) s += (b[i]! << 8) | (i + 1 < to ? b[i + 1]! : 0)
  while (s > 0xffff) s = (s & 0xffff) + (s >>> 16)
  return s
}

export interface Addressing {
  readonly sourceMac: string
  readonly targetMac: string
  readonly source: string
  readonly target: string
}

export function buildFrame(a: Addressing, payload: Uint8Array): Buffer {
  const b = Buffer.alloc(ETHERNET + IP + UDP + payload.length)
  b.set(macBytes(a.targetMac), 0)
  b.set(macBytes(a.sourceMac), 6)
  b.writeUInt16BE(ETHERTYPE_IPV4, 12)
  const ip = ETHERNET
  b[ip] = 0x45
  b[ip + 1] = 0x10 // low delay
  b.writeUInt16BE(b.length - ip, ip + 2)
  b[ip + 8] = 64
  b[ip + 9] = PROTOCOL_UDP
  b.set(addressBytes(a.source), ip + 12)
  b.set(addressBytes(a.target), ip + 16)
  b.writeUInt16BE(~sum(b, ip, ip + IP) & 0xffff, ip + 10)
  const udp = ip + IP
  b.writeUInt16BE(CLIENT_PORT, udp)
  b.writeUInt16BE(SERVER_PORT, udp + 2)
  b.writeUInt16BE(UDP + payload.length, udp + 4)
  b.set(payload, udp + UDP)
  const pseudo = sum(b, ip + 12, ip + 20, PROTOCOL_UDP + UDP + payload.length)
  const check = ~sum(b, udp, b.length, pseudo) & 0xffff
  b.writeUInt16BE(check === 0 ? 0xffff : check, udp + 6)
  return b
}

export interface ClientDatagram {
  readonly sourceMac: string
  readonly payload: Buffer
}

/**
 * The DHCP payload of a frame to port 68, unfragmented. The UDP checksum is not looked at: a packet socket sees frames of
 * this host's own stack before it was filled in, and the exchange is matched by xid and hardware address.
 */
export function parseFrame(b: Buffer): ClientDatagram | undefined {
  if (b.length < ETHERNET + IP + UDP || b.readUInt16BE(12) !== ETHERTYPE_IPV4) return undefined
  const ip = ETHERNET
  const header = (b[ip]! & 15) * 4
  if (b[ip]! >> 4 !== 4 || header < IP || b[ip + 9] !== PROTOCOL_UDP || (b.readUInt16BE(ip + 6) & 0x3fff) !== 0)
    return undefined
  const end = ip + b.readUInt16BE(ip + 2)
  const udp = ip + header
  if (end > b.length || udp + UDP > end || sum(b, ip, udp) !== 0xffff) return undefined
  if (b.readUInt16BE(udp) !== SERVER_PORT || b.readUInt16BE(udp + 2) !== CLIENT_PORT) return undefined
  const length = b.readUInt16BE(udp + 4)
  if (length < UDP || udp + length > end) return undefined
  const sourceMac = [...b.subarray(6, 12)].map((x) => x.toString(16).padStart(2, '0')).join(':')
  return { sourceMac, payload: b.subarray(udp + UDP, udp + length) }
}
