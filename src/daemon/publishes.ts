/**
 * The ports that VMs publish: kept in the store, bound while the VM runs, added and removed while traffic flows.
 */
import type { Publish } from '../api/contract.ts'
import { NoidError } from '../errors.ts'
import type { Control } from './control.ts'
import { names, parsePorts, parseSpec, publicPort } from './ports.ts'
import type { PublishRecord } from './store.ts'
import type { Vms } from './vms.ts'

export class Publishes {
  readonly #c: Control
  readonly #vms: Vms

  constructor(c: Control, vms: Vms) {
    this.#c = c
    this.#vms = vms
  }

  of(name: string): Publish[] {
    return this.#c.store.publishesOf(this.#vms.find(name).id).map(publicPort)
  }

  /** All of them or none. */
  add(name: string, specs: readonly string[]): Promise<Publish[]> {
    return this.#vms.locked(name, async (v) => {
      const { store } = this.#c
      const { boot } = this.#vms
      const ports = parsePorts(specs, store.publishesOf(v.id))
      this.#vms.mustPublish(store.network(v.network).backend, ports)
      const records = store.transaction(() => boot.reserve(v.id, ports))
      if (v.phase !== 'running') return records.map(publicPort)
      const undo = new AsyncDisposableStack()
      try {
        const done: Publish[] = []
        for (const r of records) {
          undo.defer(() => boot.unpublish(v, r))
          done.push(publicPort(await boot.publish(v, r)))
        }
        undo.move()
        return done
      } catch (e) {
        await undo.disposeAsync().catch((f: unknown) => this.#c.log('error', `closing ports of ${name}: ${f}`))
        for (const r of records) store.removePublish(r.id)
        throw e
      }
    })
  }

  remove(name: string, specs: readonly string[]): Promise<Publish[]> {
    return this.#vms.locked(name, async (v) => {
      const have = this.#c.store.publishesOf(v.id)
      const going = new Set<PublishRecord>()
      for (const text of specs) {
        const spec = parseSpec(text)
        const hits = have.filter((p) => names(spec, p))
        if (hits.length === 0) throw new NoidError('PORT_UNKNOWN', { vm: name, spec: text })
        for (const p of hits) going.add(p)
      }
      for (const p of going) {
        if (v.phase === 'running') await this.#vms.boot.unpublish(v, p)
        this.#c.store.removePublish(p.id)
      }
      return [...going].map(publicPort)
    })
  }
}
