/**
 * What is left over and of no use to anybody: found, measured, and removed when it is wanted.
 *
 * Left over are: networks that were made for VMs and have none; directories of VMs and of networks that the store does not know (a disk that was full, a store
 * that was removed by hand, somebody's kill -9 between two versions); what runtimes keep for VMs to come and nothing needs any more. Stopped and failed VMs, and
 * images that no VM is made of, may be wanted still: only when asked for.
 * Each is looked at again under its lock before it goes: what somebody has begun to use in the meantime stays.
 * Never does: guessing. A directory is a VM's or a network's by the form of its name (control.ts), everything else is left alone.
 */
import { lstat, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Pruned, PruneReport, PruneRequest } from '../api/contract.ts'
import { bounded, limitMs } from './bounded.ts'
import type { Control } from './control.ts'
import type { Networks } from './networks.ts'
import type { VmRecord } from './store.ts'
import type { Vms } from './vms.ts'

const VM_ID = /^v[0-9a-f]{10}$/
const NETWORK_ID = /^n[0-9a-f]{10}$/

/** Something that could go. */
interface Leftover extends Pruned {
  /** False: it is in use after all. */
  remove(): Promise<boolean>
}

export class Prune {
  readonly #c: Control
  readonly #networks: Networks
  readonly #vms: Vms

  constructor(c: Control, networks: Networks, vms: Vms) {
    this.#c = c
    this.#networks = networks
    this.#vms = vms
  }

  /** In an order in which what goes first leaves the next without a user: VMs, networks, directories, images and templates. */
  async run(want: Required<PruneRequest>): Promise<PruneReport> {
    const removed: Pruned[] = []
    const failed: { name: string; why: string }[] = []
    // A dry run must know what would be free if all before it were gone.
    const going = new Set<string>()
    const kinds: (() => Promise<Leftover[]>)[] = [
      async () => (want.vms ? this.#stoppedVms() : []),
      async () => this.#emptyNetworks(going),
      () => this.#strayVms(),
      () => this.#strayNetworks(),
      () => this.#ofRuntimes(want, going),
    ]
    for (const kind of kinds)
      for (const l of await kind()) {
        const { remove, ...shown } = l
        try {
          if (!want.dryRun && !(await remove())) continue
          removed.push(shown)
          if (l.kind === 'vm') going.add(l.name)
        } catch (e) {
          failed.push({ name: l.name, why: e instanceof Error ? e.message : String(e) })
        }
      }
    return { removed, failed, bytes: removed.reduce((n, r) => n + r.bytes, 0), dryRun: want.dryRun }
  }

  async #stoppedVms(): Promise<Leftover[]> {
    const unused = (v: VmRecord): boolean =>
      (v.phase === 'stopped' || v.phase === 'failed' || v.phase === 'destroying') &&
      v.restartAt === null &&
      v.attachedAs === null
    return Promise.all(
      this.#c.store.vms().flatMap((v) =>
        unused(v)
          ? [
              (async () => ({
                kind: 'vm' as const,
                name: v.name,
                bytes: await sizeOf(join(this.#c.paths.stateDir, 'vms', v.id)),
                remove: () => this.#vms.destroyIf(v.name, (now) => now.id === v.id && unused(now)),
              }))(),
            ]
          : [],
      ),
    )
  }

  #emptyNetworks(going: ReadonlySet<string>): Leftover[] {
    const { store } = this.#c
    const empty = (id: string): boolean => store.vmsOn(id).every((v) => going.has(v.name))
    return store.networks().flatMap((n) =>
      empty(n.id) && (n.onDemand || n.phase !== 'ready')
        ? [
            {
              kind: 'network' as const,
              name: n.name,
              bytes: 0,
              remove: async () => {
                await this.#networks.finish(n)
                return store.networkNamed(n.name)?.id !== n.id
              },
            },
          ]
        : [],
    )
  }

  /** Directories of VMs that the store does not know: its row is there before a VM's directory is, and after. */
  async #strayVms(): Promise<Leftover[]> {
    const { paths, runtimes, store } = this.#c
    const known = (id: string): boolean => store.vm(id) !== undefined
    const places = [join(paths.stateDir, 'vms'), ...runtimes.names().map((r) => join(paths.runDir, r))]
    const found = new Map<string, string[]>()
    for (const place of places)
      for (const id of await names(place))
        if (VM_ID.test(id) && !known(id)) found.set(id, [...(found.get(id) ?? []), join(place, id)])
    return Promise.all(
      [...found].map(async ([id, dirs]) => ({
        kind: 'vm-directory' as const,
        name: id,
        bytes: (await Promise.all(dirs.map(sizeOf))).reduce((a, b) => a + b, 0),
        remove: async () => {
          if (known(id)) return false
          const spec = { id, name: id, dir: join(paths.stateDir, 'vms', id), cpus: 1, memMib: 1 }
          // Whose it was is not known; each runtime ends and removes only what carries the VM's id.
          for (const name of runtimes.names()) {
            const runtime = await runtimes.get(name).catch(() => undefined)
            if (runtime === undefined) continue
            await bounded('ending what is left of a VM', limitMs.stop, () => runtime.stop(spec, undefined, 0))
            await bounded('removing what is left of a VM', limitMs.stop, () => runtime.destroy(spec))
          }
          for (const dir of dirs) await rm(dir, { recursive: true, force: true })
          return true
        },
      })),
    )
  }

  async #strayNetworks(): Promise<Leftover[]> {
    const { paths, registry, store } = this.#c
    const known = (id: string): boolean => store.networks().some((n) => n.id === id)
    const found: Promise<Leftover>[] = []
    for (const { name: backend } of registry.descriptors())
      for (const id of await names(join(paths.runDir, backend))) {
        if (!NETWORK_ID.test(id) || known(id)) continue
        const dir = join(paths.runDir, backend, id)
        const remove = async (): Promise<boolean> => {
          if (known(id)) return false
          const b = await registry.backend(backend)
          await bounded('removing what is left of a network', limitMs.network, (s) => b.deleteNetwork(id, s))
          await rm(dir, { recursive: true, force: true })
          return true
        }
        found.push(
          sizeOf(dir).then((bytes) => ({ kind: 'network-directory', name: `${backend}/${id}`, bytes, remove })),
        )
      }
    return Promise.all(found)
  }

  /** Templates and the like; images, when asked for. */
  async #ofRuntimes(want: Required<PruneRequest>, going: ReadonlySet<string>): Promise<Leftover[]> {
    const { runtimes, store, log } = this.#c
    const found: Leftover[] = []
    for (const name of runtimes.names()) {
      const uses = store
        .vms()
        .filter((v) => v.runtime === name)
        .map((v) => ({ id: v.id, image: v.image ?? undefined, going: going.has(v.name) }))
      try {
        const runtime = await runtimes.get(name)
        found.push(...((await runtime.leftovers?.(uses, want.images)) ?? []))
      } catch (e) {
        log('warn', `asking ${name} what is left over: ${e instanceof Error ? e.message : e}`)
      }
    }
    return found
  }
}

async function names(dir: string): Promise<string[]> {
  return readdir(dir).catch(() => [])
}

/** Bytes on the disk below a path, as far as they may be seen; links are not followed. */
export async function sizeOf(path: string): Promise<number> {
  const s = await lstat(path).catch(() => undefined)
  if (s === undefined) return 0
  let bytes = s.blocks * 512
  // One directory after the other: what is measured may have a hundred thousand files.
  if (s.isDirectory()) for (const name of await names(path)) bytes += await sizeOf(join(path, name))
  return bytes
}
