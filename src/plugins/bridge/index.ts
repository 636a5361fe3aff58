/**
 * The bridge backend, as the registry sees it: a Linux bridge for each network, routed and translated by the host's kernel with iptables.
 * Nothing else is loaded before it is chosen.
 */
import type { BackendDescriptor } from '../contract.ts'

export const descriptor: BackendDescriptor = {
  name: 'bridge',
  apiVersion: 1,
  summary: 'a Linux bridge with iptables; needs root',
  provides: ['netdev', 'tap'],
  capabilities: {
    addressing: 'noid',
    privileges: ['net-admin', 'tun'],
    publish: true,
    dns: true,
    isolation: true,
    ipv6: true,
  },
  async load() {
    const { BridgeBackend } = await import('./backend.ts')
    return (ctx) => new BridgeBackend(ctx)
  },
}
