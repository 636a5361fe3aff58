/**
 * What every part of the control plane shares: the store, who gives networks and VMs, the locks.
 *
 * Lock order, so that nothing waits in a circle: `vm:NAME` before `net:NAME`. Backends' events take a VM's lock on their
 * own, never from inside a call.
 */
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../errors.ts'
import type { Paths } from '../paths.ts'
import type { BackendDescriptor } from '../plugins/contract.ts'
import type { Registry } from '../plugins/registry.ts'
import type { Runtime, RuntimeContext, RuntimeDescriptor, VmSpec } from '../runtimes/contract.ts'
import type { TakenSubnet } from './addressing.ts'
import type { TakenPrefix6 } from './addressing6.ts'
import type { KeyedMutex } from './mutex.ts'
import type { Reserve } from './reserve.ts'
import type { Backoff } from './restarts.ts'
import type { Store, VmRecord } from './store.ts'

export type Log = (level: 'debug' | 'info' | 'warn' | 'error', message: string) => void

/** Lines of a long answer while it is on its way. */
export type Progress = (type: 'step' | 'note', text: string) => void

export interface Control {
  readonly store: Store
  readonly reserve: Reserve
  readonly registry: Registry
  readonly runtimes: Runtimes
  readonly locks: KeyedMutex
  readonly paths: Paths
  readonly log: Log
  /** The backend when none is named. */
  readonly defaultBackend: string
  readonly bootId: string
  /** May make interfaces on the host. */
  readonly privileged: boolean
  /** undefined: the kernel has no IPv6. */
  readonly hostRoutes6: () => readonly TakenPrefix6[] | undefined
  readonly hostRoutes: () => readonly TakenSubnet[]
  /** Pauses between a VM's end and its next start (restarts.ts). */
  readonly backoff: Backoff
  /** Called at named points between two steps; tests end the process there. */
  readonly checkpoint: (point: string) => void
}

/** This boot of the machine: a pid from another one names nobody. */
export const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()

/** Short, because unix socket paths with it in them end at 107 bytes. */
export const newId = (kind: 'v' | 'n' | 'p'): string => kind + randomBytes(5).toString('hex')

/** Of the 20,000 ranges of users that there are for VMs nearly all are taken when none is found in so many. */
const ID_TRIES = 1_000

/** An id for a VM. What a runtime derives from ids (RuntimeDescriptor.usersOf) is derived from no other VM's. */
export function newVmId(usersOf: RuntimeDescriptor['usersOf'], others: readonly string[]): string {
  if (usersOf === undefined) return newId('v')
  const taken = new Set(others.map(usersOf))
  for (let tries = 0; tries < ID_TRIES; tries++) {
    const id = newId('v')
    if (!taken.has(usersOf(id))) return id
  }
  throw new NoidError('INVALID_INPUT', {
    what: 'no range of users is left for one more VM on this machine',
    hint: 'destroy a VM',
  })
}

const NAME = /^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/

/** Names that mean something else on every network. */
const RESERVED: Readonly<Record<string, string>> = {
  host: 'this machine',
  gateway: 'the gateway',
  localhost: 'the VM itself',
}

/** Can a VM be called that? */
export const isName = (name: string): boolean => NAME.test(name) && RESERVED[name] === undefined

export function checkName(kind: 'VM' | 'network', name: string): void {
  if (!NAME.test(name)) throw new NoidError('NAME_INVALID', { name, kind })
  const meaning = RESERVED[name]
  if (kind === 'VM' && meaning !== undefined)
    throw new NoidError('INVALID_INPUT', {
      what: `"${name}" is the name of ${meaning} on every network`,
      hint: 'choose another name',
    })
}

export const vmDir = (paths: Paths, id: string): string => join(paths.stateDir, 'vms', id)

export const specOf = (paths: Paths, v: VmRecord): VmSpec => ({
  id: v.id,
  name: v.name,
  dir: vmDir(paths, v.id),
  cpus: v.cpus,
  memMib: v.memMib,
  ...(v.image === null ? {} : { image: v.image }),
  ...(v.netns === null ? {} : { netns: v.netns }),
  ...(v.mounts.length === 0 ? {} : { mounts: v.mounts }),
})

/** What is told when a backend that is not there any more could not be asked to take back what it made. */
export const leftBy = (backend: string, owner: string): string =>
  `the network backend ${backend} is not there any more: what it made for ${owner} on this machine may have stayed`

/** The runtimes, loaded on first use. */
export class Runtimes {
  readonly #descriptors: readonly RuntimeDescriptor[]
  readonly #context: RuntimeContext
  readonly #loaded = new Map<string, Promise<Runtime>>()

  constructor(descriptors: readonly RuntimeDescriptor[], context: RuntimeContext) {
    this.#descriptors = descriptors
    this.#context = context
  }

  /** Those whose VMs are noid's own. */
  names(): string[] {
    return this.#descriptors.filter((d) => d.foreign !== true).map((d) => d.name)
  }

  /** The named one, or the embedded default. */
  descriptor(name: string | undefined): RuntimeDescriptor {
    const d = name === undefined ? this.#descriptors[0] : this.#descriptors.find((x) => x.name === name)
    if (d === undefined)
      throw new NoidError('RUNTIME_UNKNOWN', { name, known: this.#descriptors.map((x) => x.name).join(', ') })
    return d
  }

  get(name: string): Promise<Runtime> {
    let r = this.#loaded.get(name)
    if (r === undefined) {
      r = this.descriptor(name)
        .load()
        .then((make) => make(this.#context))
      this.#loaded.set(name, r)
      r.catch(() => this.#loaded.delete(name))
    }
    return r
  }

  /** Every one that was loaded lets go; VMs go on. */
  async close(): Promise<void> {
    await Promise.allSettled([...this.#loaded.values()].map(async (r) => (await r).close?.()))
  }
}

/** What both can plug in, in the order the runtime prefers. */
export function commonNics(r: RuntimeDescriptor, b: BackendDescriptor): RuntimeDescriptor['accepts'] {
  const kinds = r.accepts.filter((k) => b.provides.includes(k))
  if (kinds.length === 0) {
    throw new NoidError('CAPABILITY_MISSING', {
      backend: b.name,
      what: `to give the runtime ${r.name} a network interface`,
      hint: `it gives ${b.provides.join(', ')}; ${r.name} takes ${r.accepts.join(', ')}`,
    })
  }
  return kinds
}
