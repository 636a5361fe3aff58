/**
 * IPv6 addresses that follow from a MAC (RFC 4291 appendix A), as text (RFC 5952): what a guest's kernel makes of a prefix by itself, and what the
 * bridge is called on its link.
 */
import ipaddr from 'ipaddr.js'

const LINK_LOCAL = 'fe80::'

/** @param prefix "fd12:3456:789a:1::/64" or its address */
export function eui64(prefix: string, mac: string): string {
  const upper = ipaddr.IPv6.parse(prefix.split('/')[0] as string)
    .toByteArray()
    .slice(0, 8)
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = mac.split(':').map((x) => Number.parseInt(x, 16))
  return new ipaddr.IPv6([...upper, a ^ 2, b, c, 0xff, 0xfe, d, e, f]).toRFC5952String()
}

export const linkLocal = (mac: string): string => eui64(LINK_LOCAL, mac)
