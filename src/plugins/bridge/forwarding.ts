/**
 * Which of the host's links forward, for a network of a bridge: its own, and those by which answers of the outside come in.
 *
 * IPv4 is forwarded by link. IPv6 is since Linux 6.17 (`force_forwarding`). Before, only all of it can be, and a link that forwards does not listen to router
 * advertisements any more: a host that has its own way out from them would lose it, so its links are told to go on first (`accept_ra` 2). All of these are
 * claimed, and put back with the last network that needs them (claims.ts), but for a link's switch when somebody has meanwhile set that of all links. Nobody
 * can tell whether another needs the old kernel's switch for all of IPv6: it is put back. Read: Documentation/networking/ip-sysctl.rst.
 */
import { existsSync, readFileSync } from 'node:fs'
import type { Claims } from './claims.ts'

const CONF4 = '/proc/sys/net/ipv4/conf'
const CONF6 = '/proc/sys/net/ipv6/conf'

/**
 * @param links of the outside, with an IPv4 address
 * @param conf where the switches are; `all/forwarding` of them is `net.ipv4.ip_forward`
 */
export function forward4(claims: Claims, network: string, links: readonly string[], conf = CONF4): void {
  for (const link of links) claims.claim(`${conf}/${link}/forwarding`, '1', network, `${conf}/all/forwarding`)
}

/**
 * @param links of the outside, with an IPv6 address
 * @param conf where the switches are; tests have a kernel of another age
 */
export function forward6(
  claims: Claims,
  network: string,
  bridge: string,
  links: readonly string[],
  conf = CONF6,
): void {
  const claim = (key: string, value: string, all?: string): void => claims.claim(`${conf}/${key}`, value, network, all)
  if (existsSync(`${conf}/all/force_forwarding`)) {
    for (const link of [bridge, ...links]) claim(`${link}/force_forwarding`, '1', `${conf}/all/force_forwarding`)
    return
  }
  // Also where another network has seen to it already: each has a claim of its own.
  for (const link of links)
    if (readFileSync(`${conf}/${link}/accept_ra`, 'latin1').trim() !== '0') claim(`${link}/accept_ra`, '2')
  claim('all/forwarding', '1')
}
