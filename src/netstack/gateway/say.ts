/**
 * What an ICMP error says, in one word for both families (RFC 792, RFC 1812 §5.2.7; RFC 4443 §3; how they correspond: RFC 7915 §4.2).
 */
import * as icmp from '../wire/icmp.ts'
import * as icmpv6 from '../wire/icmpv6.ts'

export const SAY = {
  /** No way there. */
  net: 0,
  /** The host does not answer. */
  host: 1,
  /** The protocol, or the next header, is not known here. */
  protocol: 2,
  /** Nothing listens. */
  port: 3,
  /** Longer than the path carries; `info` is what it carries. */
  tooBig: 4,
  /** Forbidden by policy. */
  prohibited: 5,
  /** TTL or hop limit used up. */
  ttl: 6,
  /** A fragment never came. */
  reassembly: 7,
  /** The source address is no good there. */
  scope: 8,
} as const
export type Say = (typeof SAY)[keyof typeof SAY]

const TYPE4 = new Uint8Array(9).fill(icmp.UNREACHABLE)
const CODE4 = new Uint8Array(9)
const TYPE6 = new Uint8Array(9).fill(icmpv6.UNREACHABLE)
const CODE6 = new Uint8Array(9)
CODE4[SAY.net] = icmp.NET
CODE4[SAY.host] = icmp.HOST
CODE4[SAY.protocol] = icmp.PROTOCOL
CODE4[SAY.port] = icmp.PORT
CODE4[SAY.tooBig] = icmp.FRAGMENTATION_NEEDED
CODE4[SAY.prohibited] = icmp.PROHIBITED
TYPE4[SAY.ttl] = TYPE4[SAY.reassembly] = icmp.TIME_EXCEEDED
CODE4[SAY.ttl] = icmp.IN_TRANSIT
CODE4[SAY.reassembly] = icmp.REASSEMBLY
// IPv4 has no word for it.
CODE4[SAY.scope] = icmp.NET
CODE6[SAY.net] = icmpv6.NO_ROUTE
CODE6[SAY.host] = icmpv6.ADDRESS
TYPE6[SAY.protocol] = icmpv6.PARAMETER_PROBLEM
CODE6[SAY.protocol] = icmpv6.NEXT_HEADER
CODE6[SAY.port] = icmpv6.PORT
TYPE6[SAY.tooBig] = icmpv6.TOO_BIG
CODE6[SAY.prohibited] = icmpv6.PROHIBITED
TYPE6[SAY.ttl] = TYPE6[SAY.reassembly] = icmpv6.TIME_EXCEEDED
CODE6[SAY.ttl] = icmp.IN_TRANSIT
CODE6[SAY.reassembly] = icmp.REASSEMBLY
CODE6[SAY.scope] = icmpv6.BEYOND_SCOPE

export const typeOf = (say: Say, family: number): number => (family === 4 ? TYPE4 : TYPE6)[say]
export const codeOf = (say: Say, family: number): number => (family === 4 ? CODE4 : CODE6)[say]

/** Who is said to report an error: the gateway, or whom the packet was for. Above 0: the 16 bytes of an address at an arena offset. */
export const FROM_GATEWAY = 0
export const FROM_PEER = -1
