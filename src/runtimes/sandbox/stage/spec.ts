/** What a stage is told: the VM whose root it makes, and what of this machine is in it. JSON in its argument. */
import type { MountSpec } from '../../contract.ts'

export interface StageSpec {
  readonly id: string
  readonly name: string
  readonly dir: string
  readonly privileged: boolean
  /** Absolute; absent for the host's own system. */
  readonly image?: { readonly kind: 'directory' | 'tar'; readonly path: string }
  /** Absolute paths that no VM sees. */
  readonly hide: readonly string[]
  readonly mounts: readonly MountSpec[]
  /** Shared by a user's VMs: skeleton.ts. */
  readonly skeleton: string
  /** The files through which a process joins the VM's groups. */
  readonly groups: readonly string[]
}
