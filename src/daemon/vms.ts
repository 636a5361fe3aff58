/**
 * VMs: create, start, stop, restart, destroy, and what happens to them on their own.
 *
 * Everything that can be refused is refused before anything is made. What was made before a failure is unmade before the
 * error is told; when even that fails the row stays, `destroying` with its problem, and destroy or the next start of the
 * daemon tries again. Operations on one VM take turns; different VMs do not wait for each other.
 */
import { mkdir, rm } from 'node:fs/promises'
import type { CreateVm, Publish, Vm } from '../api/contract.ts'
import { NoidError } from '../errors.ts'
import type { MountSpec, Obituary, RuntimeDescriptor } from '../runtimes/contract.ts'
import { claimAddress, formatIpv4, type Holder, macOf, nextAddress, parseIpv4, parseMac } from './addressing.ts'
import { claimAddress6, formatIpv6, type Holder6, nextAddress6, parseIpv6, slaacOf } from './addressing6.ts'
import { Boot, busy } from './boot.ts'
import { bounded, Cancelled, limitMs } from './bounded.ts'
import { type Control, checkName, commonNics, newVmId, type Progress, specOf, vmDir } from './control.ts'
import { checkMounts } from './mounts.ts'
import { type Networks, plan6OfNetwork, planOfNetwork, type Wanted } from './networks.ts'
import { parsePorts, publicPort } from './ports.ts'
import { due, parsePolicy, plan } from './restarts.ts'
import { isDiskFull, type NetworkRecord, type Phase, type VmRecord } from './store.ts'

const GRACE_MS = 5_000
export const MAX_GRACE_MS = 600_000
/** Of what a VM said last, in its problem. */
const MAX_WORDS = 2_000

/** A request after everything that can be checked without the store was checked. */
interface Plan {
  readonly body: CreateVm
  readonly wanted: Wanted
  readonly runtime: string
  readonly mac: string | undefined
  readonly fixed: FixedAddresses
  readonly ports: readonly Publish[]
  readonly mounts: readonly MountSpec[]
  readonly foreign: ForeignOrigin | undefined
}

/** What `--ip` names, of each family at most one. */
interface FixedAddresses {
  readonly v4?: string
  readonly v6?: string
}

/** A namespace that somebody else has made, and that one's id for it. */
export interface ForeignOrigin {
  readonly netns: string
  readonly ifname: string
  readonly attachedAs: string
}

const shown: Readonly<Record<Phase, Vm['state']>> = {
  creating: 'starting',
  created: 'created',
  starting: 'starting',
  running: 'running',
  stopping: 'running',
  stopped: 'stopped',
  failed: 'failed',
  destroying: 'failed',
}

/** What a guest printed as text alone: it must not write to anybody's terminal as it likes. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken away
const CONTROL = /\u001b\[[0-9;?]*[ -/]*[@-~]|[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g
const plain = (s: string): string => s.replace(CONTROL, '')

export class Vms {
  readonly #c: Control
  readonly #networks: Networks
  readonly boot: Boot
  /** Runtimes of which it was said what they do not enforce here: once is enough. */
  readonly #told = new Set<string>()

  constructor(c: Control, networks: Networks) {
    this.#c = c
    this.#networks = networks
    this.boot = new Boot(c, networks)
  }

  find(name: string): VmRecord {
    const v = this.#c.store.vmNamed(name)
    if (v === undefined) throw new NoidError('VM_UNKNOWN', { name })
    return v
  }

  /** Run something on a VM while nobody else changes it; the record is read under the lock. */
  locked<T>(name: string, fn: (v: VmRecord) => Promise<T>): Promise<T> {
    return this.#c.locks.run(`vm:${name}`, () => fn(this.find(name)))
  }

  // -- create ----------------------------------------------------------------------------------------------------------
  async create(body: CreateVm, progress: Progress, cancel?: AbortSignal, foreign?: ForeignOrigin): Promise<Vm> {
    const plan = await this.#check(body, foreign)
    let id = ''
    return this.#c.locks.run(`vm:${body.name}`, async () => {
      if (this.#c.store.vmNamed(body.name) !== undefined) throw new NoidError('NAME_TAKEN', { name: body.name })
      try {
        const insert = (n: NetworkRecord) => {
          id = this.#insert(plan, n)
        }
        await this.#networks.take(plan.wanted, progress, insert, cancel)
        await this.#tellLimits(plan.runtime, progress)
        await mkdir(vmDir(this.#c.paths, id), { recursive: true, mode: 0o700 })
        if (body.start === false) this.#c.store.updateVm(id, { phase: 'created' })
        else await this.boot.up(this.find(body.name), progress, cancel)
      } catch (e) {
        if (this.#c.store.vm(id) !== undefined) progress('step', 'undoing what was made')
        await this.#forget(id, 0).catch((f: unknown) => this.#stuck(id, f))
        throw e
      }
      return this.view(this.find(body.name))
    })
  }

  async #tellLimits(runtime: string, progress: Progress): Promise<void> {
    if (this.#told.has(runtime)) return
    this.#told.add(runtime)
    const r = await this.#c.runtimes.get(runtime)
    const notice = await r.notice?.()
    if (notice !== undefined) progress('note', notice)
    const missing = await r.unenforced?.()
    if (missing !== undefined) progress('note', `nothing on this machine enforces ${missing}: noid doctor tells why`)
  }

  /** What can be refused before the network is known. */
  async #check(body: CreateVm, foreign?: ForeignOrigin): Promise<Plan> {
    const { registry, runtimes, store } = this.#c
    checkName('VM', body.name)
    parsePolicy(body.restart ?? 'no')
    if (store.vmNamed(body.name) !== undefined) throw new NoidError('NAME_TAKEN', { name: body.name })
    const wanted = this.#networks.resolve(body.network, body.networkBackend)
    const backend = registry.descriptor(wanted.backend)
    const runtime = runtimes.descriptor(body.runtime)
    if ((runtime.foreign ?? false) !== (foreign !== undefined))
      throw new NoidError('INVALID_INPUT', {
        what: `the runtime ${runtime.name} makes no VMs: it is for namespaces of other engines`,
        hint: 'leave out --runtime',
      })
    commonNics(runtime, backend)
    const ports = parsePorts(body.ports ?? [])
    const mounts = checkMounts(body.mounts ?? [])
    this.mustPublish(wanted.backend, ports)
    const fixed = fixedAddresses(body.ip)
    if (body.ip !== undefined && backend.capabilities.addressing === 'external')
      throw new NoidError('CAPABILITY_MISSING', { backend: backend.name, what: 'to give a VM a fixed address' })
    await this.#mustRun(runtime)
    const mac = body.mac === undefined ? undefined : parseMac(body.mac)
    const b = await registry.backend(wanted.backend)
    const status = await bounded(`asking the backend ${wanted.backend}`, limitMs.status, (s) => b.status(s))
    if (!status.ok) {
      const p = status.problems[0]
      throw new NoidError('BACKEND_UNAVAILABLE', {
        name: wanted.backend,
        why: p?.what ?? 'it is not ready',
        hint: p?.hint,
      })
    }
    return { body, wanted, runtime: runtime.name, mac, fixed, ports, mounts, foreign }
  }

  /** The default runtime is tried as it is; one that was chosen says first what it lacks. */
  async #mustRun({ name, foreign }: RuntimeDescriptor): Promise<void> {
    const { runtimes } = this.#c
    if (foreign || name === runtimes.descriptor(undefined).name) return
    const r = await runtimes.get(name)
    const status = await bounded(`asking the runtime ${name}`, limitMs.status, () => r.status())
    const p = status.problems[0]
    if (!status.ok)
      throw new NoidError('RUNTIME_UNAVAILABLE', { name, why: p?.what ?? 'it is not ready', hint: p?.hint })
  }

  /** Throws when the backend cannot forward these ports. */
  mustPublish(backend: string, ports: readonly Publish[]): void {
    const { publish, ipv6 } = this.#c.registry.descriptor(backend).capabilities
    if (ports.length > 0 && !publish) throw new NoidError('CAPABILITY_MISSING', { backend, what: 'to publish ports' })
    const six = ports.find((p) => p.hostAddress.includes(':'))
    if (six !== undefined && !ipv6)
      throw new NoidError('CAPABILITY_MISSING', { backend, what: `ports on ${six.hostAddress}` })
  }

  /** The VM's rows: in one transaction, without a pause, so that no two VMs are given one address or MAC, or one's users. Returns its id. */
  #insert(plan: Plan, n: NetworkRecord): string {
    const { store, registry, runtimes } = this.#c
    const others = store.vms().map((v) => v.id)
    const id = newVmId(runtimes.descriptor(plan.runtime).usersOf, others)
    const { body } = plan
    const holder = plan.mac === undefined ? undefined : store.vmWithMac(plan.mac)
    if (holder !== undefined) throw new NoidError('MAC_TAKEN', { mac: plan.mac, by: holder.name })
    const external = registry.descriptor(n.backend).capabilities.addressing === 'external'
    const mac = plan.mac ?? macOf(id, (m) => store.vmWithMac(m) !== undefined)
    const addresses = external ? { address: null, address6: null } : this.#addresses(plan.fixed, n)
    store.addVm({
      id,
      name: body.name,
      phase: 'creating',
      problem: null,
      runtime: plan.runtime,
      network: n.id,
      ...addresses,
      mac,
      cpus: body.cpus ?? 1,
      memMib: body.memMib ?? 512,
      image: body.image ?? null,
      netns: plan.foreign?.netns ?? null,
      ifname: plan.foreign?.ifname ?? null,
      attachedAs: plan.foreign?.attachedAs ?? null,
      handle: null,
      bootId: null,
      createdAt: new Date().toISOString(),
      startedAt: null,
      mounts: plan.mounts,
      restart: body.restart ?? 'no',
      restarts: 0,
      restartAt: null,
    })
    this.boot.reserve(id, plan.ports)
    return id
  }

  #addresses(fixed: FixedAddresses, n: NetworkRecord): { address: string | null; address6: string | null } {
    if (fixed.v4 !== undefined && !n.ipv4)
      throw new NoidError('ADDRESS_FAMILY', { address: fixed.v4, network: n.name, family: 4 })
    if (fixed.v6 !== undefined && n.subnet6 === null)
      throw new NoidError('ADDRESS_FAMILY', { address: fixed.v6, network: n.name, family: 6 })
    const v4 = n.ipv4 ? this.#address(fixed.v4, n) : undefined
    const v6 = this.#address6(fixed.v6, n, v4)
    return {
      address: v4 === undefined ? null : formatIpv4(v4),
      address6: v6 === undefined ? null : formatIpv6(v6),
    }
  }

  #address(ip: string | undefined, n: NetworkRecord): number {
    const holders: Holder[] = this.#c.store
      .vmsOn(n.id)
      .flatMap((v) => (v.address === null ? [] : [{ address: parseIpv4(v.address) as number, vm: v.name }]))
    const p = planOfNetwork(n)
    return ip === undefined ? nextAddress(n.name, p, holders) : claimAddress(ip, n.name, p, holders)
  }

  #address6(ip: string | undefined, n: NetworkRecord, v4: number | undefined): bigint | undefined {
    const p = plan6OfNetwork(n)
    if (p === undefined) return undefined
    // What others make of their MACs is theirs as well.
    const holders: Holder6[] = this.#c.store
      .vmsOn(n.id)
      .flatMap((v) => [
        ...(v.address6 === null ? [] : [{ address: parseIpv6(v.address6) as bigint, vm: v.name }]),
        { address: slaacOf(p, v.mac), vm: v.name },
      ])
    if (ip !== undefined) return claimAddress6(ip, n.name, p, holders)
    return nextAddress6(p, holders, v4 === undefined ? undefined : v4 & 255)
  }

  // -- start, stop, restart, destroy -----------------------------------------------------------------------------------
  start(name: string, progress: Progress, cancel?: AbortSignal): Promise<Vm> {
    return this.locked(name, async (v) => {
      if (v.phase === 'running') progress('note', `${name} runs already`)
      else {
        this.#unplan(v)
        await this.#start(v, progress, cancel)
      }
      return this.view(this.find(name))
    })
  }

  restart(name: string, progress: Progress): Promise<Vm> {
    return this.locked(name, async (v) => {
      this.#unplan(v)
      if (v.phase === 'running') {
        progress('step', 'stopping it')
        await this.#stop(v, GRACE_MS)
      }
      await this.#start(this.find(name), progress)
      return this.view(this.find(name))
    })
  }

  /** A person's word: what was planned for it on its own is over. */
  #unplan(v: VmRecord): void {
    if (v.restartAt !== null || v.restarts !== 0) this.#ending(v.id, { restartAt: null, restarts: 0 })
  }

  /**
   * What is about to end, written down before it is done, as far as there is room for it: a full disk must keep no VM from its end, which gives the room
   * back. Who dies before more can be written leaves a VM that is found dead, and whose end can be asked for again.
   */
  #ending(id: string, change: Partial<VmRecord>): void {
    try {
      this.#c.store.updateVm(id, change)
    } catch (e) {
      if (!isDiskFull(e)) throw e
      this.#c.log('warn', `${id}: ${(e as Error).message}`)
    }
  }

  async #start(v: VmRecord, progress: Progress, cancel?: AbortSignal): Promise<void> {
    this.#mayStart(v)
    this.#c.store.updateVm(v.id, { phase: 'starting', problem: null })
    this.#c.checkpoint('starting')
    try {
      await mkdir(vmDir(this.#c.paths, v.id), { recursive: true, mode: 0o700 })
      await this.boot.up(v, progress, cancel)
    } catch (e) {
      await this.boot.down(v, 0).catch(() => {})
      const problem = e instanceof Error ? e.message : String(e)
      this.#c.store.updateVm(v.id, e instanceof Cancelled ? { phase: 'stopped' } : { phase: 'failed', problem })
      throw e
    }
  }

  #mayStart(v: VmRecord): void {
    if (v.phase === 'destroying')
      throw new NoidError('VM_START_FAILED', {
        name: v.name,
        why: 'its removal did not finish, so it can only be destroyed',
      })
    for (const p of this.#c.store.publishesOf(v.id)) {
      const holder = p.picked ? undefined : this.boot.holderOf(p, v.id)
      if (holder !== undefined) throw busy(p, `the VM "${holder.name}"`)
    }
  }

  stop(name: string, graceMs = GRACE_MS): Promise<Vm> {
    return this.locked(name, async (v) => {
      this.#unplan(v)
      if (v.phase !== 'created' && v.phase !== 'stopped' && v.phase !== 'destroying') await this.#stop(v, graceMs)
      return this.view(this.find(name))
    })
  }

  async #stop(v: VmRecord, graceMs: number): Promise<void> {
    this.#ending(v.id, { phase: 'stopping' })
    this.#c.checkpoint('stopping')
    try {
      const stayed = await this.boot.down(v, graceMs)
      this.#c.store.updateVm(v.id, { phase: 'stopped', problem: stayed ?? null })
    } catch (e) {
      this.#c.store.updateVm(v.id, { phase: 'failed', problem: e instanceof Error ? e.message : String(e) })
      throw e
    }
  }

  /** What may have stayed of it, in a sentence. */
  destroy(name: string): Promise<string | undefined> {
    return this.locked(name, async (v) => {
      try {
        return await this.#forget(v.id, GRACE_MS)
      } catch (e) {
        this.#stuck(v.id, e)
        throw e
      }
    })
  }

  /** Unless it is in use by then; false when it stayed. */
  destroyIf(name: string, unused: (v: VmRecord) => boolean): Promise<boolean> {
    return this.#c.locks.run(`vm:${name}`, async () => {
      const v = this.#c.store.vmNamed(name)
      if (v === undefined || !unused(v)) return false
      try {
        await this.#forget(v.id, 0)
      } catch (e) {
        this.#stuck(v.id, e)
        throw e
      }
      return true
    })
  }

  /** Unmake everything a VM has and its rows. Also for a VM of which nothing was made yet. Under its lock. */
  async #forget(id: string, graceMs: number): Promise<string | undefined> {
    const { store, runtimes, paths, checkpoint } = this.#c
    const v = store.vm(id)
    if (v === undefined) return undefined
    this.#ending(id, { phase: 'destroying' })
    checkpoint('destroying')
    const stayed = await this.boot.down(v, graceMs).catch((e: unknown) => {
      // It has ended, and its files make room for the words that are missing.
      if (!isDiskFull(e)) throw e
      return undefined
    })
    const runtime = await runtimes.get(v.runtime)
    await bounded('removing the VM', limitMs.stop, () => runtime.destroy(specOf(paths, v)))
    await rm(vmDir(paths, id), { recursive: true, force: true })
    checkpoint('removed')
    store.removeVm(id)
    checkpoint('forgotten')
    await this.#networks.release(v.network)
    return stayed
  }

  #stuck(id: string, e: unknown): void {
    const problem = `its removal did not finish: ${e instanceof Error ? e.message : e}`
    this.#c.log('error', `${id}: ${problem}`)
    this.#ending(id, { phase: 'destroying', problem })
  }

  // -- what a daemon that died left, and what happens on its own ---------------------------------------------------------
  /** Finish or undo what was being done when the daemon died. */
  recover(name: string): Promise<void> {
    return this.locked(name, async (v) => {
      const { log } = this.#c
      if (v.phase === 'creating' || v.phase === 'destroying') {
        log('info', `removing ${v.name}, left ${v.phase}`)
        await this.#forget(v.id, 0).catch((e) => this.#stuck(v.id, e))
      } else if (v.phase === 'starting') {
        log('info', `undoing the start of ${v.name}`)
        await this.#ended(v, 'failed', 'the daemon ended while it was starting')
        // Nobody waits for one that was being started on its own, or that is to run always.
        if (v.restartAt !== null || parsePolicy(v.restart).when === 'always') this.#again(v)
      } else if (v.phase === 'stopping') {
        log('info', `finishing the stop of ${v.name}`)
        await this.#ended(v, 'stopped', null)
      } else if (v.phase === 'running') await this.#recoverRunning(v)
    })
  }

  async #recoverRunning(v: VmRecord): Promise<void> {
    if (v.bootId !== this.#c.bootId) {
      await this.#ended(v, 'stopped', 'the machine was started again')
      if (parsePolicy(v.restart).when === 'always') this.#again(v)
      return
    }
    if (!(await this.isAlive(v))) return this.#died(v, ' while the daemon was away')
    try {
      await this.boot.adopt(v)
      this.#c.store.updateVm(v.id, { problem: null })
      this.#c.log('info', `adopted ${v.name}`)
    } catch (e) {
      const problem = `its network could not be repaired: ${e instanceof Error ? e.message : e}`
      this.#c.log('error', `${v.name}: ${problem}`)
      this.#c.store.updateVm(v.id, { problem })
    }
  }

  async #ended(
    v: VmRecord,
    phase: 'failed' | 'stopped',
    problem: string | null,
    next: Partial<VmRecord> = {},
  ): Promise<void> {
    await this.boot.down(v, 0).catch(() => {})
    this.#c.store.updateVm(v.id, { phase, problem, ...next })
  }

  /** It goes on as soon as somebody looks; that counts as no failure of its own. */
  #again(v: VmRecord): void {
    this.#c.store.updateVm(v.id, { restartAt: new Date().toISOString() })
  }

  /** It ended on its own: give back what it held, say why, and plan what its policy says. */
  async #died(v: VmRecord, when = ''): Promise<void> {
    const last = await this.#obituary(v)
    const what = last?.orderly
      ? `it shut itself down${when}`
      : v.netns === null
        ? `${last === undefined ? 'its init ended' : 'it ended unexpectedly'}${when}`
        : 'its network namespace is gone'
    const words = last?.orderly
      ? ''
      : plain(last?.words ?? '')
          .trim()
          .slice(-MAX_WORDS)
    const problem = words === '' ? what : `${what}; its last words:\n${words}`
    this.#c.log('warn', `${v.name}: ${problem}`)
    const next = plan(v, last?.orderly ?? false, Date.now(), this.#c.backoff)
    // In one turn with the phase: no moment in which it has ended and nothing is planned.
    await this.#ended(v, last?.orderly ? 'stopped' : 'failed', problem, next)
    if (next.restartAt !== null) this.#c.log('info', `${v.name} is started again at ${next.restartAt} (${v.restart})`)
  }

  async #obituary(v: VmRecord): Promise<Obituary | undefined> {
    const { runtimes, paths, log } = this.#c
    const handle = v.handle
    if (handle === null) return undefined
    try {
      const runtime = await runtimes.get(v.runtime)
      return await bounded('asking how it ended', limitMs.stats, async () =>
        runtime.obituary?.(specOf(paths, v), handle),
      )
    } catch (e) {
      log('warn', `${v.name}: ${e instanceof Error ? e.message : e}`)
      return undefined
    }
  }

  /** Start what is due to be started again on its own. */
  async revive(name: string, cancel: AbortSignal): Promise<void> {
    await this.locked(name, async (v) => {
      const { log, store, backoff } = this.#c
      if (cancel.aborted || !due(v, Date.now(), backoff)) return
      log('info', `starting ${name} again`)
      try {
        await this.#start(v, (_, text) => log('debug', `${name}: ${text}`), cancel)
        store.updateVm(v.id, { restartAt: null })
        log('info', `${name} runs again`)
      } catch (e) {
        // The daemon ends: the next one goes on with it.
        if (e instanceof Cancelled) return
        log('error', `starting ${name} again: ${e instanceof Error ? e.message : e}`)
        store.updateVm(v.id, plan({ ...v, startedAt: null }, false, Date.now(), backoff))
      }
    })
  }

  async isAlive(v: VmRecord): Promise<boolean> {
    return v.handle !== null && (await this.#c.runtimes.get(v.runtime)).alive(v.handle)
  }

  /** Its init is gone without `stop`: give back what it held and say so. */
  async reap(name: string): Promise<void> {
    await this.locked(name, async (v) => {
      if (v.phase !== 'running' || (await this.isAlive(v))) return
      await this.#died(v)
    })
  }

  view(v: VmRecord): Vm {
    const n = this.#c.store.network(v.network)
    return {
      id: v.id,
      name: v.name,
      state: shown[v.phase],
      problem: v.problem,
      runtime: v.runtime,
      network: n.name,
      backend: n.backend,
      address: v.address,
      address6: v.address6,
      mac: v.mac,
      cpus: v.cpus,
      memMib: v.memMib,
      image: v.image,
      mounts: [...v.mounts],
      ports: this.#c.store.publishesOf(v.id).map(publicPort),
      // A foreign namespace has no process of noid's.
      pid: v.handle?.pid || null,
      createdAt: v.createdAt,
      startedAt: v.startedAt,
      restart: v.restart,
      restarts: v.restarts,
      restartAt: v.restartAt,
    }
  }
}

function fixedAddresses(ip: CreateVm['ip']): FixedAddresses {
  const fixed: { v4?: string; v6?: string } = {}
  for (const address of ip === undefined ? [] : [ip].flat()) {
    const family = parseIpv4(address) !== undefined ? 'v4' : parseIpv6(address) !== undefined ? 'v6' : undefined
    if (family === undefined) throw new NoidError('ADDRESS_INVALID', { address })
    if (fixed[family] !== undefined)
      throw new NoidError('INVALID_INPUT', {
        what: `${fixed[family]} and ${address} are of one family`,
        hint: 'a VM has one fixed address of each family at most',
      })
    fixed[family] = address
  }
  return fixed
}
