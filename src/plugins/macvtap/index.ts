/**
 * The macvtap backend, as the registry sees it: VMs on the LAN of a parent device, each with a MAC of its own there.
 * Nothing else is loaded before it is chosen.
 */
import type { BackendDescriptor } from '../contract.ts'

export const descriptor: BackendDescriptor = {
  name: 'macvtap',
  apiVersion: 1,
  summary: 'VMs directly on the LAN of a parent device (macvtap, macvlan); needs root',
  provides: ['netdev', 'tap-device'],
  capabilities: {
    // The LAN's own DHCP server; or noid's, on a segment without one (config: addresses noid).
    addressing: 'external',
    privileges: ['net-admin'],
    // The parent's kernel never sees the VMs' packets: nothing to forward, filter or answer.
    publish: false,
    dns: false,
    isolation: false,
    ipv6: false,
  },
  async load() {
    const { MacvtapBackend } = await import('./backend.ts')
    return (ctx) => new MacvtapBackend(ctx)
  },
}
