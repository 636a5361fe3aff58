/**
 * The files of a VM that say who and where it is. Contents only; who writes them is stage/ (before the VM runs) and
 * network.ts (when it has its address).
 */
import type { Resolver } from '../../plugins/contract.ts'

export const DOMAIN = 'noid.internal'

export const hostname = (name: string): string => `${name}\n`

/** /etc/hosts; the VM's own line appears with its address. */
export function hosts(name: string, address?: string, domain = DOMAIN): string {
  const own = address === undefined ? '' : `${address}\t${name}.${domain} ${name}\n`
  return `127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n${own}`
}

export function resolvConf(r: Resolver | undefined): string {
  if (r === undefined || r.servers.length === 0) return '# no name server was given\n'
  const search = r.search.length > 0 ? `search ${r.search.join(' ')}\n` : ''
  return `${r.servers.map((s) => `nameserver ${s}\n`).join('')}${search}`
}

/** /etc/network/interfaces, as ifupdown reads it: what noid's own DHCP client does. */
export const interfaces = (families: readonly (4 | 6)[] = [4]): string =>
  [
    'auto lo\niface lo inet loopback\n\nauto eth0\n',
    families.includes(4) ? 'iface eth0 inet dhcp\n' : '',
    families.includes(6) ? 'iface eth0 inet6 dhcp\n    accept_ra 1\n    autoconf 1\n' : '',
  ].join('')

/** A password file without passwords: every account of `passwd` exists and is locked. */
export const lockedShadow = (passwd: string): string =>
  passwd
    .split('\n')
    .filter((l) => l.includes(':'))
    .map((l) => `${l.slice(0, l.indexOf(':'))}:*:19000:0:99999:7:::\n`)
    .join('')

/** The same for groups. */
export const lockedGshadow = (group: string): string =>
  group
    .split('\n')
    .filter((l) => l.includes(':'))
    .map((l) => `${l.slice(0, l.indexOf(':'))}:*::\n`)
    .join('')
