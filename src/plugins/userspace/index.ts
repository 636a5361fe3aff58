/**
 * The userspace backend, as the registry sees it: a packet switch and NAT gateway in TypeScript, one process per network.
 * Nothing else is loaded before it is chosen.
 */
import type { BackendDescriptor } from '../contract.ts'

export const descriptor: BackendDescriptor = {
  name: 'userspace',
  apiVersion: 1,
  summary: 'a packet switch and NAT gateway in TypeScript; needs no privileges',
  provides: ['tap', 'netdev', 'vhost-user', 'dgram'],
  capabilities: {
    addressing: 'noid',
    privileges: [],
    publish: true,
    dns: true,
    isolation: true,
    ipv6: true,
  },
  async load() {
    const { UserspaceBackend } = await import('./backend.ts')
    return (ctx) => new UserspaceBackend(ctx)
  },
}
