/** The runtimes noid brings along, the default one first. */
import type { RuntimeDescriptor } from './contract.ts'
import { netns } from './netns/index.ts'
import { qemu } from './qemu/index.ts'
import { sandbox } from './sandbox/index.ts'

export const runtimes: readonly RuntimeDescriptor[] = [sandbox, qemu, netns]
