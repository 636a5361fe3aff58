/** What a data plane is told of a network: the contract's specification in the control protocol's words. */
import type { NetworkConfig } from '../../dataplane/protocol.ts'
import type { NetworkSpec } from '../contract.ts'

/** @param more what differs for this backend: the medium, an MTU of the parent's */
export function networkConfig(
  { id, name, subnet, gateway, services, hostAddress, domain, mtu, isolated, allowHostPorts, config }: NetworkSpec,
  more: Partial<NetworkConfig> = {},
): NetworkConfig {
  const { leaseSeconds } = config as { leaseSeconds: number }
  const told = { id, name, subnet, gateway, services, hostAddress, domain, mtu, isolated, allowHostPorts, leaseSeconds }
  return { ...told, ...more }
}
