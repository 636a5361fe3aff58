/** What a case of the kit is, and the groups they come in. */
import type { BackendDescriptor } from '../contract.ts'
import type { Environment, KitOptions } from './environment.ts'

export const GROUPS = [
  'descriptor',
  'status',
  'network',
  'attach',
  'detach',
  'parallel',
  'restart',
  'gc',
  'abort',
  'traffic',
  'publish',
  'isolation',
  'ipv6',
] as const
export type Group = (typeof GROUPS)[number]

export interface Case {
  readonly group: Group
  readonly name: string
  /** Why it cannot be asked of this backend on this machine; undefined when it can. */
  readonly skip?: (d: BackendDescriptor, o: KitOptions) => string | undefined
  readonly run: (e: Environment) => Promise<void>
}
