/**
 * MAC addresses of clients between DHCP's text and the switch's integers: the upper 16 and the lower 32 bits (signed).
 */
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
