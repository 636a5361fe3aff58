/** The hook `noid:backends` of noid itself: the backends it brings along, by descriptor; their code is loaded when used. */

import { descriptor as bridge } from './bridge/index.ts'
import { descriptor as cni } from './cni/index.ts'
import type { BackendDescriptor } from './contract.ts'
import { descriptor as macvtap } from './macvtap/index.ts'
import { descriptor as userspace } from './userspace/index.ts'

export default async (): Promise<readonly BackendDescriptor[]> => [userspace, bridge, macvtap, cni]
