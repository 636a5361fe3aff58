/** What a data plane is told of a network: the contract's specification in the control protocol's words. */
import type { NetworkConfig } from '../../dataplane/protocol.ts'
import type { Cidr, NetworkSpec } from '../contract.ts'

/** @param more what differs for this backend: the medium, an MTU of the parent's */
export function networkConfig(
  { id, name, subnet, gateway, services, hostAddress, ipv4, ipv6, domain, mtu, isolated, ...spec }: NetworkSpec,
  more: Partial<NetworkConfig> = {},
): NetworkConfig {
  const { leaseSeconds } = spec.config as { leaseSeconds: number }
  const addresses = { subnet, gateway, services, hostAddress, ipv4, ipv6 }
  const { allowHostPorts } = spec
  return { id, name, ...addresses, domain, mtu, isolated, allowHostPorts, leaseSeconds, ...more }
}

/** The addresses of an attachment as the control protocol has them: without their prefixes, IPv4's empty when there is none. */
export function addressesOf(cidrs: readonly Cidr[]): { readonly address: string; readonly address6?: string } {
  const bare = cidrs.map((c) => c.split('/')[0] as string)
  return { address: bare.find((a) => !a.includes(':')) ?? '', address6: bare.find((a) => a.includes(':')) }
}
