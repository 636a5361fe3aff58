/**
 * Namespaces of other engines on noid's networks: what noid-cni asks for.
 *
 * Theory. Such a namespace is a VM whose runtime runs nothing (src/runtimes/netns): so leases, names, published ports, the policy, adoption
 * after a crash and the list people see are the same code as for every other VM. Here is only what differs: it is known by
 * its engine's id, gets a name that is free, and may be asked for, checked and removed again and again.
 */
import { createHash } from 'node:crypto'
import type { Attach, Attached } from '../api/contract.ts'
import { NoidError } from '../errors.ts'
import { bounded, limitMs } from './bounded.ts'
import { type Control, isName } from './control.ts'
import type { Networks } from './networks.ts'
import { publicPort } from './ports.ts'
import type { VmRecord } from './store.ts'
import type { Vms } from './vms.ts'

const RUNTIME = 'netns'
const NAME_MAX = 63

export class Foreign {
  readonly #c: Control
  readonly #networks: Networks
  readonly #vms: Vms

  constructor(c: Control, networks: Networks, vms: Vms) {
    this.#c = c
    this.#networks = networks
    this.#vms = vms
  }

  list(network: string): Attached[] {
    const n = this.#networks.find(network)
    return this.#c.store.vmsOn(n.id).flatMap((v) => (v.attachedAs === null ? [] : [this.#view(v, v.attachedAs)]))
  }

  /** Put a namespace on a network; the same again gives the same. */
  attach(network: string, body: Attach): Promise<Attached> {
    return this.#c.locks.run(`attachment:${body.id}`, async () => {
      const had = this.#c.store.vmAttachedAs(body.id)
      if (had !== undefined) {
        const on = this.#c.store.network(had.network).name
        const same = on === network && had.netns === body.netns && had.phase === 'running'
        if (same && (await this.#vms.isAlive(had))) return this.#view(had, body.id)
        if (had.phase === 'running' && (await this.#vms.isAlive(had)))
          throw new NoidError('ATTACHED_ALREADY', { id: body.id, network: on, netns: had.netns })
        // What it was attached to is gone, and nobody has said so.
        await this.#vms.destroy(had.name)
      }
      const name = this.#nameFor(body)
      const { ip, mac, ports, netns, ifname, id } = body
      await this.#vms.create({ name, network, ip, mac, ports, runtime: RUNTIME }, () => {}, undefined, {
        netns,
        ifname: ifname ?? 'eth0',
        attachedAs: id,
      })
      return this.#view(this.#vms.find(name), id)
    })
  }

  /** The name that is wished for, when it is one and free; otherwise one that is made of it and the id. */
  #nameFor(body: Attach): string {
    const wish = (body.name ?? '')
      .toLowerCase()
      .replaceAll(/[^a-z0-9-]+/g, '-')
      .replace(/^[^a-z]+/, '')
      .slice(0, NAME_MAX)
      .replace(/-+$/, '')
    if (isName(wish) && this.#c.store.vmNamed(wish) === undefined) return wish
    const tail = createHash('sha256').update(body.id).digest('hex').slice(0, 8)
    return `${(wish || 'ns').slice(0, NAME_MAX - tail.length - 1).replace(/-+$/, '')}-${tail}`
  }

  #find(network: string, id: string): VmRecord | undefined {
    const v = this.#c.store.vmAttachedAs(id)
    return v !== undefined && this.#c.store.network(v.network).name === network ? v : undefined
  }

  async get(network: string, id: string, check: boolean): Promise<Attached> {
    const v = this.#find(network, id)
    if (v === undefined) throw new NoidError('ATTACHMENT_UNKNOWN', { id, network })
    if (check) {
      const a = this.#c.store.attachment(v.id)
      if (a === undefined || v.phase !== 'running' || !(await this.#vms.isAlive(v)))
        throw new NoidError('VM_NOT_RUNNING', { name: v.name })
      const backend = await this.#c.registry.backend(this.#c.store.network(v.network).backend)
      await bounded('checking its nic', limitMs.attach, (s) => backend.check(a, s))
    }
    return this.#view(v, id)
  }

  /**
   * Idempotent: what is not there is gone already. An id is on one network only and is found there: an engine whose
   * configuration was changed in between names another one.
   */
  async detach(id: string): Promise<void> {
    await this.#c.locks.run(`attachment:${id}`, async () => {
      const v = this.#c.store.vmAttachedAs(id)
      if (v !== undefined) await this.#vms.destroy(v.name)
    })
  }

  #view(v: VmRecord, id: string): Attached {
    const a = this.#c.store.attachment(v.id)
    return {
      id,
      name: v.name,
      network: this.#c.store.network(v.network).name,
      netns: v.netns ?? '',
      state: this.#vms.view(v).state,
      ifname: v.ifname ?? 'eth0',
      mac: a?.mac ?? v.mac,
      mtu: a?.mtu ?? 0,
      addresses: [...(a?.addresses ?? [])],
      routes: (a?.routes ?? []).map((r) => ({ ...r })),
      dns: a?.dns === undefined ? null : { servers: [...a.dns.servers], search: [...a.dns.search] },
      ports: this.#c.store.publishesOf(v.id).map(publicPort),
    }
  }
}
