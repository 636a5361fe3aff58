/**
 * Which options a client gets (RFC 2131 §4.3.1): what it must have, and what it asks for, in words of this network.
 *
 * Owns: the choice. A client that sends no parameter request list gets the usual ones. Classless routes are sent only when
 * asked for, and then hold the default route too, because a client that takes them ignores option 3 (RFC 3442).
 */
import { type Options, optionCodes, type Packet } from '#dhcp-packet'
import { addressText, parseSubnet } from '../wire/ipv4.ts'
import type { Lease } from './leases.ts'

/** What the server says of its network. Text addresses: it was checked at the control plane's edge. */
export interface DhcpNetwork {
  /** "192.168.100.0/24" */
  readonly subnet: string
  readonly gateway: string
  /** Server id and name server. */
  readonly services: string
  readonly domain: string
  readonly mtu: number
  readonly leaseSeconds: number
  /** Default: the network's own domain. */
  readonly search?: readonly string[]
  /** Beyond the default route. */
  readonly routes?: readonly { readonly to: string; readonly via: string }[]
}

export interface ReplyOptions {
  /** With lease times; a reply to INFORM has none. */
  readonly lease: boolean
  readonly rapidCommit?: true
}

const usual: readonly number[] = [
  optionCodes.routers,
  optionCodes.dnsServers,
  optionCodes.hostname,
  optionCodes.domainName,
  optionCodes.searchDomains,
  optionCodes.mtu,
  optionCodes.broadcastAddress,
]

export function leaseOptions(n: DhcpNetwork, l: Lease, p: Packet, how: ReplyOptions): Options {
  const asked = new Set(p.options.parameterRequestList ?? usual)
  const subnet = parseSubnet(n.subnet)
  const options: Options = {
    serverId: n.services,
    subnetMask: addressText(subnet.mask),
    // RFC 6842: a client id comes back as it came.
    clientId: p.options.clientId,
  }
  if (how.rapidCommit) options.rapidCommit = true
  if (how.lease) {
    // RFC 2131 §4.4.5: renew after a half, rebind after seven eighths.
    options.leaseTime = n.leaseSeconds
    options.renewalTime = Math.floor(n.leaseSeconds / 2)
    options.rebindingTime = Math.floor((n.leaseSeconds * 7) / 8)
  }
  const wants = (name: keyof typeof optionCodes): boolean => asked.has(optionCodes[name])
  if (wants('routers')) options.routers = [n.gateway]
  if (wants('dnsServers')) options.dnsServers = [n.services]
  if (wants('hostname')) options.hostname = l.name
  if (wants('domainName')) options.domainName = n.domain
  if (wants('searchDomains')) options.searchDomains = [...(n.search ?? [n.domain])]
  if (wants('mtu')) options.mtu = n.mtu
  if (wants('broadcastAddress')) options.broadcastAddress = addressText(subnet.base | ~subnet.mask)
  const routes = [{ to: '0.0.0.0/0', via: n.gateway }, ...(n.routes ?? [])]
  if (wants('classlessRoutes')) options.classlessRoutes = routes
  if (wants('microsoftRoutes')) options.microsoftRoutes = routes
  if (p.options.clientFqdn !== undefined)
    options.clientFqdn = {
      // RFC 4702 §4: the server does the update, and says so if the client had wished otherwise.
      serverUpdates: true,
      override: !p.options.clientFqdn.serverUpdates,
      noServerUpdates: false,
      canonical: true,
      name: `${l.name}.${n.domain}.`,
    }
  return options
}
