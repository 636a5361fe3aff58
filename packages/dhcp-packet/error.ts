/**
 * The one error of this package.
 *
 * `decode` throws nothing else, whatever the bytes; `encode` throws nothing else, whatever the values.
 */

export const reasons = {
  ERR_DHCP_SHORT: 'fewer bytes than a DHCP message has',
  ERR_DHCP_COOKIE: 'no DHCP magic cookie (plain BOOTP, or not DHCP at all)',
  ERR_DHCP_FIELD: 'a field of the fixed part has an impossible value',
  ERR_DHCP_OPTION: 'an option runs past the end of its area',
  ERR_DHCP_VALUE: 'a value cannot be expressed in its field or option',
  ERR_DHCP_SPACE: 'the message does not fit into the space given',
} as const

export type DhcpErrorCode = keyof typeof reasons

export class DhcpError extends Error {
  readonly code: DhcpErrorCode

  constructor(code: DhcpErrorCode, detail?: string) {
    super(detail === undefined ? reasons[code] : `${reasons[code]}: ${detail}`)
    this.name = 'DhcpError'
    this.code = code
  }
}
