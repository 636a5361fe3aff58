/**
 * The frames a client needs before its link has a usable IPv6 address: router solicitations, DHCPv6 to the servers on the link and back, the
 * question whether anybody has the address it got.
 * Read: RFC 8200 §3 and §8.1 (pseudo-header), RFC 4861 §4.1 to §4.3, RFC 4862 §5.4.2, RFC 8415 §7.1 and §7.2, RFC 2464 §7 (33:33 and the last 32 bits),
 * RFC 4291 appendix A. Never throws on what arrives; what is not for us is undefined.
 */
const ETHERNET = 14
const IP = 40
const UDP = 8
const ETHERTYPE_IPV6 = 0x86dd
const PROTOCOL_UDP = 17
const PROTOCOL_ICMPV6 = 58
const SERVER_PORT = 547
const CLIENT_PORT = 546
const SOLICITATION = 133
const ADVERTISEMENT = 134
const NEIGHBOUR = 135
const SOURCE_LINK_ADDRESS = 1
/** ff02::2 and ff02::1:2. */
const ALL_ROUTERS = Uint8Array.of(0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2)
const ALL_SERVERS = Uint8Array.of(0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2)
const NOBODY = new Uint8Array(16)

const macBytes = (text: string): number[] => text.split(':').map((x) => Number.parseInt(x, 16))

/** fe80:: and what SLAAC makes of a MAC. */
export function linkLocalOf(mac: string): Uint8Array {
  const m = macBytes(mac)
  return Uint8Array.of(0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0]! ^ 2, m[1]!, m[2]!, 0xff, 0xfe, m[3]!, m[4]!, m[5]!)
}

/** Ethernet and IPv6 around `length` bytes, to a multicast group of the link. */
function around(mac: string, source: Uint8Array, group: Uint8Array, protocol: number, hops: number, length: number) {
  const b = Buffer.alloc(ETHERNET + IP + length)
  b.set([0x33, 0x33, ...group.subarray(12)], 0)
  b.set(macBytes(mac), 6)
  b.writeUInt16BE(ETHERTYPE_IPV6, 12)
  b[ETHERNET] = 0x60
  b.writeUInt16BE(length, ETHERNET + 4)
  b[ETHERNET + 6] = protocol
  b[ETHERNET + 7] = hops
  b.set(source, ETHERNET + 8)
  b.set(group, ETHERNET + 24)
  return b
}

/** The Internet checksum over the payload and its pseudo-header: zero when it is right. */
function checksum(b: Buffer, protocol: number): number {
  let s = protocol + b.length - ETHERNET - IP
  for (let i = ETHERNET + 8; i < b.length; i += 2) s += (b[i]! << 8) | (i + 1 < b.length ? b[i + 1]! : 0)
  while (s > 0xffff) s = (s & 0xffff) + (s >>> 16)
  return ~s & 0xffff
}

/**
 * Who is a router here? From the link-local address, so that the answer may be for us alone; or from nobody, where that address may
 * not be used yet.
 */
export function buildSolicitation(mac: string, fromNobody: boolean): Buffer {
  const icmp = ETHERNET + IP
  const b = around(mac, fromNobody ? NOBODY : linkLocalOf(mac), ALL_ROUTERS, PROTOCOL_ICMPV6, 255, fromNobody ? 8 : 16)
  b[icmp] = SOLICITATION
  if (!fromNobody) b.set([SOURCE_LINK_ADDRESS, 1, ...macBytes(mac)], icmp + 8)
  b.writeUInt16BE(checksum(b, PROTOCOL_ICMPV6), icmp + 2)
  return b
}

/** Has anybody this address (16 bytes)? From nobody, to the group of those who end like it: what a kernel asks before it takes one. */
export function buildProbe(mac: string, address: Uint8Array): Buffer {
  const icmp = ETHERNET + IP
  const group = Uint8Array.of(0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, ...address.subarray(13))
  const b = around(mac, NOBODY, group, PROTOCOL_ICMPV6, 255, 24)
  b[icmp] = NEIGHBOUR
  b.set(address, icmp + 8)
  b.writeUInt16BE(checksum(b, PROTOCOL_ICMPV6), icmp + 2)
  return b
}

/** A DHCPv6 message to all servers. */
export function buildFrame6(mac: string, payload: Uint8Array): Buffer {
  const udp = ETHERNET + IP
  const b = around(mac, linkLocalOf(mac), ALL_SERVERS, PROTOCOL_UDP, 1, UDP + payload.length)
  b.writeUInt16BE(CLIENT_PORT, udp)
  b.writeUInt16BE(SERVER_PORT, udp + 2)
  b.writeUInt16BE(UDP + payload.length, udp + 4)
  b.set(payload, udp + UDP)
  b.writeUInt16BE(checksum(b, PROTOCOL_UDP) || 0xffff, udp + 6)
  return b
}

/**
 * The DHCPv6 payload of a frame to port 546. Extension headers have no business there. The UDP checksum is not looked at, as in frame.ts:
 * the exchange is matched by its transaction and the client's DUID.
 */
export function parseFrame6(b: Buffer): Buffer | undefined {
  const udp = ETHERNET + IP
  if (b.length < udp + UDP || b.readUInt16BE(12) !== ETHERTYPE_IPV6 || b[ETHERNET]! >> 4 !== 6) return undefined
  const end = udp + b.readUInt16BE(ETHERNET + 4)
  if (b[ETHERNET + 6] !== PROTOCOL_UDP || end > b.length || udp + UDP > end) return undefined
  if (b.readUInt16BE(udp) !== SERVER_PORT || b.readUInt16BE(udp + 2) !== CLIENT_PORT) return undefined
  const length = b.readUInt16BE(udp + 4)
  return length < UDP || udp + length > end ? undefined : b.subarray(udp + UDP, udp + length)
}

/** Is it a router's advertisement? The kernel reads it; here it is only a sign that it came. */
export function isAdvertisement(b: Buffer): boolean {
  return (
    b.length >= ETHERNET + IP + 16 &&
    b.readUInt16BE(12) === ETHERTYPE_IPV6 &&
    b[ETHERNET + 6] === PROTOCOL_ICMPV6 &&
    b[ETHERNET + IP] === ADVERTISEMENT
  )
}
