/**
 * IPv4 and MAC addresses between text and the engine's integers, at the edge of the gateway's services.
 *
 * An IPv4 address is a signed 32-bit integer, 192.168.0.1 being 0xc0a80001 | 0; a MAC is its upper 16 and lower 32 bits.
 */

/** Of text that was checked at the control plane's edge: a malformed address is a fault and throws. */
export function ipv4Of(text: string): number {
  const parts = text.split('.').map(Number)
  if (parts.length !== 4 || !parts.every((n) => Number.isInteger(n) && n >= 0 && n <= 255))
    throw new TypeError(`"${text}" is not an IPv4 address`)
  return (parts[0] << 24) | (parts[1] << 16) | (parts[2] << 8) | parts[3]
}

export const ipv4Text = (a: number): string => `${a >>> 24}.${(a >>> 16) & 255}.${(a >>> 8) & 255}.${a & 255}`

export interface Subnet {
  readonly base: number
  readonly mask: number
  readonly prefix: number
}

/** "192.168.100.0/24"; throws as ipv4Of does. */
export function subnetOf(cidr: string): Subnet {
  const [address, size] = cidr.split('/')
  const prefix = Number(size)
  if (!Number.isInteger(prefix) || prefix < 1 || prefix > 32) throw new TypeError(`"${cidr}" is not a subnet`)
  const mask = prefix === 32 ? -1 : ~(0xffffffff >>> prefix)
  return { base: ipv4Of(address) & mask, mask, prefix }
}

export const contains = (s: Subnet, a: number): boolean => (a & s.mask) === s.base

export interface Mac {
  readonly hi: number
  readonly lo: number
}

export const BROADCAST_MAC: Mac = { hi: 0xffff, lo: -1 }

/** undefined when the text is not six octets, or not the address of one station. */
export function stationOf(text: string): Mac | undefined {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) return undefined
  const digits = text.replaceAll(':', '')
  const hi = Number.parseInt(digits.slice(0, 4), 16)
  const lo = Number.parseInt(digits.slice(4), 16) | 0
  return (hi & 0x100) !== 0 || (hi === 0 && lo === 0) ? undefined : { hi, lo }
}
