/**
 * The cni backend, as the registry sees it: any chain of CNI plugins, run for the network namespace of a VM.
 *
 * What a chain can do is known only from its conflist; the capabilities below are what any chain can do once it has the
 * plugins for it, and a network whose chain has none (no portmap) says so when it is asked.
 */
import type { BackendDescriptor } from '../contract.ts'

export const descriptor: BackendDescriptor = {
  name: 'cni',
  apiVersion: 1,
  summary: 'a chain of CNI plugins, from a conflist; needs root',
  provides: ['netdev'],
  capabilities: {
    addressing: 'external',
    privileges: ['net-admin'],
    publish: true,
    dns: false,
    isolation: false,
    ipv6: false,
  },
  async load() {
    const { CniBackend } = await import('./backend.ts')
    return (ctx) => new CniBackend(ctx)
  },
}
