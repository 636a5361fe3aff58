/** The descriptor of the qemu runtime; its code is loaded when it is chosen. */
import type { RuntimeDescriptor } from '../contract.ts'
import { rootBase } from '../sandbox/identity.ts'

export const qemu: RuntimeDescriptor = {
  name: 'qemu',
  summary: 'a microVM with a kernel of its own, under QEMU; with KVM where the machine has it',
  accepts: ['vhost-user', 'dgram', 'tap', 'tap-device'],
  usersOf: rootBase,
  load: async () => {
    const [{ Qemu }, { imageSource }] = await Promise.all([import('./qemu.ts'), import('./image.ts')])
    return (ctx) => new Qemu(ctx, imageSource(ctx))
  },
}
