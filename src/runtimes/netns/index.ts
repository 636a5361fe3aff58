/** The descriptor of the runtime of foreign namespaces; its code is loaded when the first one is attached. */
import type { RuntimeDescriptor } from '../contract.ts'

export const netns: RuntimeDescriptor = {
  name: 'netns',
  summary:
    'A network namespace that somebody else made (a container engine, through noid-cni); noid gives it its network',
  accepts: ['tap', 'netdev'],
  foreign: true,
  load: async () => {
    const { ForeignNamespace } = await import('./netns.ts')
    return (ctx) => new ForeignNamespace(ctx)
  },
}
