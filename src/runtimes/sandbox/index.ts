/** The descriptor of the sandbox runtime; its code is loaded when it is chosen. */
import type { RuntimeDescriptor } from '../contract.ts'
import { rootBase } from './identity.ts'

export const sandbox: RuntimeDescriptor = {
  name: 'sandbox',
  summary: 'Linux namespaces with a copy-on-write view of this system; shares the kernel, starts in a moment',
  accepts: ['tap', 'netdev'],
  usersOf: rootBase,
  load: async () => {
    const { Sandbox } = await import('./sandbox.ts')
    return (ctx) => new Sandbox(ctx)
  },
}
