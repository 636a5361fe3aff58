/**
 * What an ICMP error says, in one word for both families (RFC 792, RFC 1812 §5.2.7; RFC 4443 §3; how they correspond: RFC 7915 §4.2).
 */
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

const TYPE4 = Uint8Array.of(3, 3, 3, 3, 3, 3, 11, 11, 3)
const CODE4 = Uint8Array.of(0, 1, 2, 3, 4, 13, 0, 1, 0)
const TYPE6 = Uint8Array.of(1, 1, 4, 1, 2, 1, 3, 3, 1)
const CODE6 = Uint8Array.of(0, 3, 1, 4, 0, 1, 0, 1, 2)

export const typeOf = (say: Say, family: number): number => (family === 4 ? TYPE4 : TYPE6)[say]
export const codeOf = (say: Say, family: number): number => (family === 4 ? CODE4 : CODE6)[say]

/** Who is said to report an error: the gateway, or whom the packet was for. Above 0: the 16 bytes of an address at an arena offset. */
export const FROM_GATEWAY = 0
export const FROM_PEER = -1
