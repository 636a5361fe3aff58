/**
 * IPv6 of one link of this network namespace, as far as it is the kernel's: its own sysctls, the default route it learned, addresses.
 *
 * The kernel of the VM does SLAAC (RFC 4862) from the router's advertisements by itself; here it is only told how, and looked at. Its
 * link-local address is usable while it is still being probed (RFC 4429, optimistic), so that a VM does not start a second later for it.
 * Only this link's own settings are touched. In a kernel, or below a /proc, where they cannot be written, the kernel's own are taken.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'

/** include/net/ipv6.h, linux/if_addr.h */
const TENTATIVE = 0x40
const OPTIMISTIC = 0x04
/** linux/ipv6_route.h */
const RTF_GATEWAY = 0x2

const conf = (link: string): string => `/proc/sys/net/ipv6/conf/${link}`

/** Has this kernel IPv6 at all? */
export const hasIpv6 = (link: string): boolean => existsSync(conf(link))

function set(link: string, key: string, value: number): void {
  try {
    writeFileSync(`${conf(link)}/${key}`, `${value}`)
  } catch {
    // Not in this kernel, or not ours to change.
  }
}

/** Link-local address from the MAC, router advertisements listened to, no wait for the end of probes. */
export function prepare6(link: string): void {
  set(link, 'addr_gen_mode', 0)
  set(link, 'accept_ra', 1)
  set(link, 'autoconf', 1)
  set(link, 'optimistic_dad', 1)
  set(link, 'use_optimistic', 1)
  // An address that is being probed the slow way, or none: from the beginning, as was just said.
  if (linkLocalIsUsable(link)) return
  set(link, 'disable_ipv6', 1)
  set(link, 'disable_ipv6', 0)
}

/** From /proc/net/if_inet6: address, index, prefix length, scope, flags, link; numbers in hex. */
export function linkLocalIsUsable(link: string, text = readFileSync('/proc/net/if_inet6', 'latin1')): boolean {
  return text.split('\n').some((line) => {
    const [address = '', , , , flags = '', name] = line.trim().split(/\s+/)
    const f = Number.parseInt(flags, 16)
    return name === link && address.startsWith('fe80') && ((f & TENTATIVE) === 0 || (f & OPTIMISTIC) !== 0)
  })
}

/** Has the kernel a default route by this link? /proc/net/ipv6_route, as src/daemon/addressing6.ts reads it. */
export function hasDefault6(link: string, text = readFileSync('/proc/net/ipv6_route', 'latin1')): boolean {
  return text.split('\n').some((line) => {
    const f = line.trim().split(/\s+/)
    return (
      f[9] === link && f[1] === '00' && /^0+$/.test(f[0] ?? '') && (Number.parseInt(f[8] ?? '', 16) & RTF_GATEWAY) !== 0
    )
  })
}
