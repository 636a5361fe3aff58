/**
 * Bringing one VM up and taking it down, step by step, over its backend and its runtime.
 *
 * Up:   publish (a busy port is refused before there is anything) → prepare → attach → start.
 * Down: the reverse; every step is tried even when another failed, each is safe to repeat, and what is already gone is no
 *       error. So the undo of a half-made boot, `stop`, `destroy` and the repair after kill -9 are one function.
 *       A backend that cannot be loaded is such a fault. One that is not there any more can be asked for nothing, and VMs end without it:
 *       what it may have left on the machine is told.
 * The caller holds the VM's lock and has written the phase.
 */
import type { Publish } from '../api/contract.ts'
import { NoidError } from '../errors.ts'
import type { Attachment, AttachRequest, NetworkBackend } from '../plugins/contract.ts'
import type { Runtime, StartedNic, VmSpec } from '../runtimes/contract.ts'
import { bounded, limitMs } from './bounded.ts'
import { type Control, commonNics, leftBy, newId, type Progress, specOf } from './control.ts'
import { type Networks, plan6OfNetwork, planOfNetwork } from './networks.ts'
import { ANY_ADDRESS, ANY_IPV4, clash } from './ports.ts'
import type { NetworkRecord, Phase, PublishRecord, VmRecord } from './store.ts'

/** Phases in which a VM's ports are bound, or about to be. */
const HOLDING: ReadonlySet<Phase> = new Set(['creating', 'starting', 'running', 'stopping'])

export class Boot {
  readonly #c: Control
  readonly #networks: Networks

  constructor(c: Control, networks: Networks) {
    this.#c = c
    this.#networks = networks
  }

  async #parts(v: VmRecord): Promise<{ spec: VmSpec; n: NetworkRecord; backend: NetworkBackend; runtime: Runtime }> {
    const n = this.#c.store.network(v.network)
    const [backend, runtime] = await Promise.all([this.#c.registry.backend(n.backend), this.#c.runtimes.get(v.runtime)])
    return { spec: specOf(this.#c.paths, v), n, backend, runtime }
  }

  async up(v: VmRecord, progress: Progress, cancel?: AbortSignal): Promise<void> {
    const { store, checkpoint } = this.#c
    const { spec, n, backend, runtime } = await this.#parts(v)
    const tell = (text: string): void => progress('step', text)
    await bounded('getting what the VM needs', undefined, async (s) => runtime.provide?.(spec, s, tell), cancel)
    checkpoint('provided')
    await this.#networks.ensure(n.id, cancel)
    const ports = store.publishesOf(v.id)
    if (ports.length > 0)
      progress('step', ports.length === 1 ? 'opening its port' : `opening its ${ports.length} ports`)
    for (const p of ports) await this.publish(v, p, cancel)
    checkpoint('published')

    progress('step', 'preparing it')
    // The handle is the only way to a process that exists: it is written in the same turn in which it becomes known.
    const prepared = await bounded('preparing the VM', limitMs.prepare, (s) => runtime.prepare(spec, s, tell), cancel)
    store.updateVm(v.id, { handle: prepared, bootId: this.#c.bootId })
    checkpoint('prepared')

    progress('step', `attaching it to ${n.name}`)
    const a = await this.#attach(v, n, backend, prepared.netns, prepared.wireNetns, cancel)
    checkpoint('attached')

    progress('step', 'starting it')
    const { handle, nic } = await bounded(
      'starting the VM',
      limitMs.start,
      (s) => runtime.start(spec, prepared, a, a.dns, s, tell),
      cancel,
    )
    store.transaction(() => {
      const external = this.#c.registry.descriptor(n.backend).capabilities.addressing === 'external'
      store.updateVm(v.id, {
        handle,
        phase: 'running',
        problem: null,
        startedAt: new Date().toISOString(),
        ...(external ? given(nic) : {}),
      })
      this.#setLeases(v, nic)
    })
    checkpoint('started')
  }

  async #attach(
    v: VmRecord,
    n: NetworkRecord,
    backend: NetworkBackend,
    netns?: string,
    wireNetns?: string,
    cancel?: AbortSignal,
  ): Promise<Attachment> {
    const request: AttachRequest = {
      id: v.id,
      network: n.id,
      name: v.name,
      mac: v.mac,
      addresses: [
        ...(v.address === null ? [] : [`${v.address}/${planOfNetwork(n).subnet.prefix}`]),
        ...(v.address6 === null ? [] : [`${v.address6}/${plan6OfNetwork(n)?.subnet.prefix}`]),
      ],
      accepts: commonNics(this.#c.runtimes.descriptor(v.runtime), this.#c.registry.descriptor(n.backend)),
      netns,
      wireNetns,
      ...(v.ifname === null ? {} : { ifname: v.ifname }),
    }
    const a = await bounded(`attaching to ${n.name}`, limitMs.attach, (s) => backend.attach(request, s), cancel)
    this.#c.store.setAttachment(v.id, a)
    if (v.ifname !== null && !('ifname' in a.nic && a.nic.ifname === v.ifname))
      throw new NoidError('CAPABILITY_MISSING', { backend: n.backend, what: `to name an interface ${v.ifname}` })
    return a
  }

  /** Bind one port. A port that another VM of noid holds is told by that VM's name. */
  async publish(v: VmRecord, p: PublishRecord, cancel?: AbortSignal): Promise<PublishRecord> {
    const { store } = this.#c
    const { n, backend } = await this.#parts(v)
    const publisher = backend.ports
    if (publisher === undefined)
      throw new NoidError('CAPABILITY_MISSING', { backend: n.backend, what: 'to publish ports' })
    const holder = this.holderOf(p, v.id)
    if (holder !== undefined && !p.picked) throw busy(p, `the VM "${holder.name}"`)
    const ask = (hostPort: number) =>
      bounded(
        `publishing port ${p.hostPort}`,
        limitMs.publish,
        (s) =>
          publisher.publish(
            {
              id: p.id,
              attachment: v.id,
              proto: p.proto,
              hostAddress: boundAddress(p, n),
              hostPort,
              guestAddress: v.address ?? '',
              ...(v.address6 === null ? {} : { guestAddress6: v.address6 }),
              guestPort: p.guestPort,
            },
            s,
          ),
        cancel,
      )
    const { hostPort } = await ask(holder === undefined ? p.hostPort : 0).catch((e: unknown) => {
      const another = p.picked && p.hostPort !== 0 && e instanceof NoidError && e.code === 'PORT_BUSY'
      if (!another) throw e
      return ask(0)
    })
    if (hostPort !== p.hostPort) store.updatePublish(p.id, { hostPort })
    return { ...p, hostPort }
  }

  async unpublish(v: VmRecord, p: PublishRecord): Promise<void> {
    const backend = await this.#c.registry.backend(this.#c.store.network(v.network).backend)
    await bounded(`closing port ${p.hostPort}`, limitMs.publish, async (s) => backend.ports?.unpublish(p.id, s))
  }

  /** Write down what a VM will publish; a port that another VM of noid holds is refused. In a transaction of the caller. */
  reserve(vm: string, ports: readonly Publish[]): PublishRecord[] {
    return ports.map((p) => {
      const r: PublishRecord = { id: newId('p'), vm, picked: p.hostPort === 0, ...p }
      const holder = this.holderOf(r, vm)
      if (holder !== undefined) throw busy(r, `the VM "${holder.name}"`)
      this.#c.store.addPublish(r)
      return r
    })
  }

  /** Which other VM has bound, or is about to bind, this host port. */
  holderOf(p: PublishRecord, self: string): VmRecord | undefined {
    const { store } = this.#c
    const bound = (o: PublishRecord, v: VmRecord | undefined): PublishRecord =>
      v === undefined ? o : { ...o, hostAddress: boundAddress(o, store.network(v.network)) }
    const mine = bound(p, store.vm(self))
    for (const o of store.publishesAt(p.proto, p.hostPort)) {
      const v = store.vm(o.vm)
      if (v !== undefined && v.id !== self && HOLDING.has(v.phase) && clash(bound(o, v), mine)) return v
    }
    return undefined
  }

  /** Take it down, whatever state it is in; what may have stayed, in a sentence. Throws what went wrong first, after everything was tried. */
  async down(v: VmRecord, graceMs: number): Promise<string | undefined> {
    const { store, registry, runtimes, log, bootId, checkpoint } = this.#c
    const n = store.network(v.network)
    const gone = !registry.has(n.backend)
    // Everybody who takes part writes down what he does.
    this.#c.reserve.lend()
    const faults: unknown[] = []
    const attempt = async (fn: () => Promise<unknown>): Promise<void> => {
      await fn().catch((e: unknown) => {
        log('error', `taking ${v.name} down: ${e instanceof Error ? e.message : e}`)
        faults.push(e)
      })
    }
    if (!gone) for (const p of store.publishesOf(v.id)) await attempt(() => this.unpublish(v, p))
    checkpoint('unpublished')
    // A handle of another boot names processes that are not the VM's.
    const handle = v.bootId === bootId ? (v.handle ?? undefined) : undefined
    await attempt(async () => {
      const runtime = await runtimes.get(v.runtime)
      const spec = specOf(this.#c.paths, v)
      await bounded('stopping the VM', graceMs + limitMs.stop, () => runtime.stop(spec, handle, graceMs))
    })
    checkpoint('ended')
    const last = store.attachment(v.id)
    if (!gone)
      await attempt(async () => {
        const backend = await registry.backend(n.backend)
        await bounded(`detaching from ${n.name}`, limitMs.attach, (s) => backend.detach(v.id, last, s))
      })
    checkpoint('detached')
    if (faults.length > 0) throw faults[0]
    store.setAttachment(v.id, undefined)
    store.updateVm(v.id, { handle: null, bootId: null, startedAt: null })
    if (!gone) return undefined
    const stayed = leftBy(n.backend, `the VM ${v.name}`)
    log('warn', stayed)
    return stayed
  }

  /** A VM that goes on after the daemon was away: its nic and ports are as they should be, or are made again. */
  async adopt(v: VmRecord): Promise<void> {
    const { spec, n, backend, runtime } = await this.#parts(v)
    const handle = v.handle
    if (handle === null) throw new Error(`${v.name} runs without a handle`)
    const a = this.#c.store.attachment(v.id)
    const whole =
      a !== undefined &&
      (await bounded('checking its nic', limitMs.attach, (s) => backend.check(a, s)).then(
        () => true,
        () => false,
      ))
    if (!whole) {
      const made = await this.#attach(v, n, backend, handle.netns, handle.wireNetns)
      const nic = await bounded('configuring its nic again', limitMs.renic, (s) => runtime.renic(spec, handle, made, s))
      this.#lease(v, nic)
      this.#c.log('info', `${v.name} was attached to ${n.name} again`)
    }
    // A port that somebody else took in the meantime is told; the others are bound all the same.
    const faults: unknown[] = []
    for (const p of this.#c.store.publishesOf(v.id)) await this.publish(v, p).catch((e: unknown) => faults.push(e))
    if (faults.length > 0) throw faults[0]
  }

  /** The backend has made the nic again on its own. */
  async restored(v: VmRecord, a: Attachment): Promise<void> {
    const { spec, runtime } = await this.#parts(v)
    const handle = v.handle
    if (handle === null) return
    this.#c.store.setAttachment(v.id, a)
    const nic = await bounded('configuring its nic again', limitMs.renic, (s) => runtime.renic(spec, handle, a, s))
    this.#lease(v, nic)
  }

  #lease(v: VmRecord, nic: StartedNic): void {
    this.#setLeases(v, nic)
    // An address that is not noid's to keep may be another one now.
    const n = this.#c.store.network(v.network)
    if (this.#c.registry.descriptor(n.backend).capabilities.addressing === 'external')
      this.#c.store.updateVm(v.id, given(nic))
  }

  #setLeases(v: VmRecord, nic: StartedNic): void {
    const expiresAt = nic.leaseMs === null ? null : Date.now() + nic.leaseMs
    for (const address of [nic.address, nic.address6])
      if (address !== undefined) this.#c.store.setLease({ attachment: v.id, address, state: 'bound', expiresAt })
  }
}

/** The addresses of a nic that its surroundings gave, for the store. */
const given = (nic: StartedNic): { address: string | null; address6: string | null } => ({
  address: nic.address ?? null,
  address6: nic.address6 ?? null,
})

/** What "all addresses" is on a network: those of IPv4 where it has nothing else. */
const boundAddress = (p: PublishRecord, n: NetworkRecord): string =>
  p.hostAddress === ANY_ADDRESS && n.subnet6 === null ? ANY_IPV4 : p.hostAddress

export const busy = (p: PublishRecord, holder: string): NoidError =>
  new NoidError('PORT_BUSY', {
    proto: p.proto.toUpperCase(),
    port: p.hostPort,
    address: p.hostAddress === ANY_ADDRESS || p.hostAddress === ANY_IPV4 ? 'this host' : p.hostAddress,
    holder,
  })
