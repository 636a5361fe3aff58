/**
 * Bringing the store and the world together: once at the start, and while the daemon runs.
 *
 * At the start: what was being done is finished or undone, VMs that run are adopted, networks with such VMs are carried
 * again and strays on them removed. Networks are repaired side by side; one that hangs delays nobody else's.
 * While it runs: each second every running VM is asked whether its init lives (two reads of /proc for each), and those whose time has come
 * are started again, a few at once; logs are kept small, and room for the end; events of the backends go to the store.
 */
import { availableParallelism } from 'node:os'
import type { BackendEvent } from '../plugins/contract.ts'
import { bounded, limitMs } from './bounded.ts'
import type { Control } from './control.ts'
import type { Networks } from './networks.ts'
import { due } from './restarts.ts'
import { LogKeeper } from './rotate.ts'
import type { NetworkRecord, Phase, VmRecord } from './store.ts'
import type { Vms } from './vms.ts'

const WATCH_MS = 1_000
const SWEEP_MS = 2_000
/** VMs that are started again at one time: after a reboot all of them want to. */
const REVIVING = Math.max(2, availableParallelism())
/** Phases in which a VM may hold something of its network. */
const MAY_HOLD: ReadonlySet<Phase> = new Set(['creating', 'starting', 'running', 'stopping', 'destroying'])

export class Reconciler {
  readonly #c: Control
  readonly #networks: Networks
  readonly #vms: Vms
  #timer: NodeJS.Timeout | undefined
  #sweeper: NodeJS.Timeout | undefined
  readonly #closing = new AbortController()

  constructor(c: Control, networks: Networks, vms: Vms) {
    this.#c = c
    this.#networks = networks
    this.#vms = vms
  }

  /** Never throws: what cannot be repaired is logged, and told with the VM or network that it concerns. */
  async start(): Promise<void> {
    await Promise.all(this.#c.store.networks().map((n) => this.#network(n).catch((e: unknown) => this.#trouble(n, e))))
  }

  async #network(n: NetworkRecord): Promise<void> {
    const vms = this.#c.store.vmsOn(n.id)
    const running = vms.filter((v) => v.phase === 'running')
    const held = vms.some((v) => MAY_HOLD.has(v.phase) && (v.bootId ?? this.#c.bootId) === this.#c.bootId)
    if (n.phase === 'ready' && held) {
      // VMs are looked after even when their network cannot be: each is told its own trouble.
      await this.#carry(n, running).catch((e: unknown) => this.#trouble(n, e))
    }
    await Promise.all(vms.map((v) => this.#vms.recover(v.name)))
    await this.#networks.finish(n)
  }

  /** The backend carries the network again, and only what belongs to VMs that run. */
  async #carry(n: NetworkRecord, running: readonly VmRecord[]): Promise<void> {
    await this.#networks.ensure(n.id)
    const backend = await this.#c.registry.backend(n.backend)
    const valid = running.map((v) => v.id)
    const { removed } = await bounded('removing strays', limitMs.network, (s) => backend.gc(n.id, valid, s))
    if (removed.length > 0) this.#c.log('info', `removed strays of ${n.name}: ${removed.join(', ')}`)
  }

  #trouble(n: NetworkRecord, e: unknown): void {
    const what = `it could not be repaired: ${e instanceof Error ? e.message : e}`
    this.#c.log('error', `the network ${n.name}: ${what}`)
    this.#networks.warn(n.id, what)
  }

  watch(): void {
    const logs = new LogKeeper(this.#c)
    this.#sweeper = setInterval(() => {
      logs.sweep()
      this.#c.reserve.keep()
    }, SWEEP_MS)
    const reaping = new Set<string>()
    const reviving = new Set<string>()
    const look = async (v: VmRecord): Promise<void> => {
      if (v.phase !== 'running' || reaping.has(v.id) || (await this.#vms.isAlive(v))) return
      reaping.add(v.id)
      await this.#vms.reap(v.name).finally(() => reaping.delete(v.id))
    }
    // A VM whose turn is taken by something long delays the others' watch by nothing.
    this.#timer = setInterval(() => {
      const tell = (v: VmRecord, e: unknown): void =>
        this.#c.log('error', `watching ${v.name}: ${e instanceof Error ? e.message : e}`)
      for (const v of this.#c.store.vms()) {
        look(v).catch((e: unknown) => tell(v, e))
        if (reviving.size >= REVIVING || reviving.has(v.id) || !due(v, Date.now(), this.#c.backoff)) continue
        reviving.add(v.id)
        this.#vms
          .revive(v.name, this.#closing.signal)
          .catch((e: unknown) => tell(v, e))
          .finally(() => reviving.delete(v.id))
      }
    }, WATCH_MS)
  }

  close(): void {
    clearInterval(this.#timer)
    clearInterval(this.#sweeper)
    this.#closing.abort()
  }

  /** A backend's word. Never throws: the backend is not the one to repair what goes wrong here. */
  event(e: BackendEvent): void {
    if (e.type === 'warning') {
      this.#c.log('warn', `${e.network}: ${e.message}`)
      this.#networks.warn(e.network, e.message)
    } else if (e.type === 'lease') {
      try {
        this.#lease(e)
      } catch (f) {
        this.#c.log('error', `the lease of ${e.address}: ${f instanceof Error ? f.message : f}`)
      }
    } else void this.#restored(e)
  }

  #lease(e: Extract<BackendEvent, { type: 'lease' }>): void {
    const { store, registry } = this.#c
    const v = store.vm(e.attachment)
    if (v === undefined) return
    store.setLease({ attachment: e.attachment, address: e.address, state: e.state, expiresAt: e.expiresAt })
    const external = registry.descriptor(store.network(v.network).backend).capabilities.addressing === 'external'
    if (external && e.state === 'bound')
      store.updateVm(v.id, e.address.includes(':') ? { address6: e.address } : { address: e.address })
  }

  async #restored(e: Extract<BackendEvent, { type: 'restored' }>): Promise<void> {
    this.#c.log('warn', `the backend has made ${e.network} again, with ${e.attachments.length} attachments`)
    await Promise.all(
      e.attachments.map(async (a) => {
        const name = this.#c.store.vm(a.id)?.name
        if (name === undefined) return
        await this.#vms
          .locked(name, async (v) => {
            if (v.phase === 'running') await this.#vms.boot.restored(v, a)
          })
          .catch((f: unknown) => this.#c.log('error', `${name} after its network was made again: ${f}`))
      }),
    )
  }
}
