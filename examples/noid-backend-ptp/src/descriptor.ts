import type { BackendDescriptor } from 'noid/backend'

export const descriptor: BackendDescriptor = {
  name: 'ptp',
  apiVersion: 1,
  summary: 'a point-to-point veth for each VM, routed by the host’s kernel',
  provides: ['netdev'],
  capabilities: {
    addressing: 'noid',
    privileges: ['net-admin'],
    // noid refuses what is false here before anything is created, and says what to use instead.
    publish: false,
    dns: false,
    isolation: false,
    ipv6: false,
  },
  load: async () => (await import('./backend.ts')).create,
}
