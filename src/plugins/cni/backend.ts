/**
 * The cni backend: a chain of CNI plugins gives VMs their network; noid is the engine that runs them.
 *
 * Owns: one chain for each network, settled when the network is made; a record for each attachment (records.ts), the namespace it
 * is in (anchor.ts), the host ports that were promised (hostports.ts). Addresses are the plugins' (capability `external`).
 * Never does: making devices, rules or addresses of its own.
 *
 * Theory. ADD is written down before it is run and DEL is what undoes it, whatever became of it: a failure, a caller who gave up,
 * a daemon that died. Commands of one CNI network run one after another, so that no plugin meets itself.
 * Ports are published before a VM has its nic (a busy port is refused early): they wait, and go with ADD as `portMappings`.
 */
import { readFileSync } from 'node:fs'
import { NoidError } from '../../errors.ts'
import { SysError } from '../../sys/errno.ts'
import { linkIndex, linkMac, linkMtu } from '../../sys/netdev.ts'
import { inNetns } from '../../sys/netns.ts'
import type {
  Attachment,
  AttachmentId,
  AttachRequest,
  BackendContext,
  GcReport,
  NetworkBackend,
  NetworkId,
  NetworkSpec,
  PortPublisher,
  PublishSpec,
  Resolver,
  Status,
} from '../contract.ts'
import { parseResolvConf } from '../host/resolvers.ts'
import { Anchors } from './anchor.ts'
import {
  add,
  type CapabilityArgs,
  type Chain,
  check,
  del,
  gc,
  offers,
  type PortMapping,
  remap,
  settle,
  status,
} from './chain.ts'
import { type CniConfig, isShared, parseConfig } from './config.ts'
import { HostPorts } from './hostports.ts'
import { type AttachmentRecord, Records } from './records.ts'
import { addressesOf, type CniResult, insideInterface, resolverOf, routesOf } from './result.ts'
import { removeMasquerade, Traces } from './traces.ts'

const IFNAME = 'eth0'
/** For undoing what a caller gave up: its own signal is spent. */
const UNDO_MS = 30_000

interface Network {
  readonly spec: NetworkSpec
  readonly chain: Chain
}

export class CniBackend implements NetworkBackend {
  readonly #ctx: BackendContext
  readonly #records: Records
  readonly #anchors: Anchors
  readonly #traces: Traces
  readonly #hostPorts = new HostPorts()
  readonly #networks = new Map<NetworkId, Network>()
  readonly #turns = new Map<string, Promise<unknown>>()
  readonly #running = new Set<Promise<unknown>>()
  /** Closed while the host is swept. */
  #gate: Promise<void> = Promise.resolve()
  readonly ports: PortPublisher

  constructor(ctx: BackendContext) {
    this.#ctx = ctx
    this.#records = new Records(ctx.stateDir)
    this.#anchors = new Anchors(ctx.runDir)
    this.#traces = new Traces(ctx.stateDir)
    this.ports = { publish: (p, s) => this.#publish(p, s), unpublish: (id, s) => this.#unpublish(id, s) }
  }

  parseConfig(raw: unknown): CniConfig {
    return parseConfig(raw)
  }

  async status(): Promise<Status> {
    if (this.#ctx.privileged) return { ok: true, problems: [] }
    const problem = {
      what: 'CNI plugins make interfaces on the host, and noid has no right to',
      hint: 'run noid as root, or use --network-backend userspace',
    }
    return { ok: false, problems: [problem] }
  }

  /** A chain has nothing to make for a network: its plugins are looked for and asked for their versions. */
  async createNetwork(n: NetworkSpec, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const { conflist, binDirs } = n.config as CniConfig
    const chain = await settle(conflist, binDirs, n.name, signal)
    this.#networks.set(n.id, { spec: n, chain })
  }

  async deleteNetwork(id: NetworkId, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    for (const r of this.#records.of(id)) await this.#inTurn(r.chain.name, () => this.#undo(r, signal))
    this.#networks.delete(id)
    await this.#sweep(signal)
  }

  /** While no plugin runs: a bridge that has no port yet looks like one that has none any more. */
  async #sweep(signal: AbortSignal): Promise<void> {
    const before = this.#gate
    const { promise, resolve: open } = Promise.withResolvers<void>()
    this.#gate = before.then(() => promise)
    try {
      await before
      await Promise.race([Promise.allSettled(this.#running), aborted(signal)])
      if (!signal.aborted) await this.#traces.sweep((m) => this.#ctx.log('warn', m))
    } finally {
      open()
    }
  }

  async attach(r: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    const n = this.#network(r.network)
    return this.#inTurn(n.chain.name, async () => {
      signal.throwIfAborted()
      const had = this.#records.get(r.id)
      if (had !== undefined) {
        if (this.#whole(had, r)) return this.#attachment(n, had)
        await this.#undo(had, signal)
      }
      return this.#add(n, r, signal)
    })
  }

  /** Is it what is asked for, in the namespace that is asked for, and still there? */
  #whole(had: AttachmentRecord, r: AttachRequest): boolean {
    return (
      had.network === r.network &&
      had.target.ifname === (r.ifname ?? IFNAME) &&
      had.caps.mac === r.mac &&
      complete(had) &&
      r.netns !== undefined &&
      this.#anchors.names(had.id, r.netns) &&
      this.#present(had)
    )
  }

  #present(r: AttachmentRecord): boolean {
    return this.#anchors.held(r.id) && inNetns(r.target.netns, () => linkIndex(r.target.ifname)) >= 0
  }

  async #add(n: Network, r: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    if (r.netns === undefined || !r.accepts.includes('netdev'))
      throw new NoidError('CAPABILITY_MISSING', {
        backend: 'cni',
        what: `a nic for this runtime (it accepts ${r.accepts.join(', ')})`,
        hint: 'choose the sandbox runtime',
      })
    const ports = this.#hostPorts.of(r.id)
    if (ports.length > 0) mustMapPorts(n)
    await status(n.chain, signal)
    await this.#traces.note(n.chain)
    let record: AttachmentRecord = {
      id: r.id,
      network: r.network,
      name: r.name,
      target: {
        containerId: r.id,
        netns: this.#hold(r),
        ifname: r.ifname ?? IFNAME,
        args: `IgnoreUnknown=1;MAC=${r.mac}`,
      },
      chain: n.chain,
      caps: { mac: r.mac, portMappings: ports.map(mappingOf) },
      results: [],
      publishes: Object.fromEntries(ports.map((p) => [p.id, p.hostPort])),
    }
    this.#records.set(record)
    try {
      const soFar = (results: readonly CniResult[]): void => {
        record = { ...record, results }
        this.#records.set(record)
      }
      await add(n.chain, record.target, record.caps, signal, soFar)
      if (!this.#present(record)) throw notThere(n, record.target.ifname)
      return this.#attachment(n, record)
    } catch (e) {
      await this.#undo(record, AbortSignal.timeout(UNDO_MS)).catch((f: Error) =>
        this.#ctx.log('error', `${r.name}: what a failed ADD left could not be removed: ${f.message}`),
      )
      throw e
    }
  }

  #hold(r: AttachRequest): string {
    try {
      return this.#anchors.hold(r.id, r.netns as string)
    } catch (e) {
      if (e instanceof SysError) throw new NoidError('VM_NOT_RUNNING', { name: r.name }, { cause: e })
      throw e
    }
  }

  #attachment(n: Network, r: AttachmentRecord): Attachment {
    const { ifname, netns } = r.target
    const result = r.results.at(-1) as CniResult
    const inside = inNetns(netns, () => ({ mac: linkMac(ifname), mtu: linkMtu(ifname) }))
    const mac = typeof inside.mac === 'number' ? r.caps.mac : formatMac(inside.mac)
    if (mac !== r.caps.mac)
      this.#ctx.notify({
        type: 'warning',
        network: r.network,
        message: `the plugins gave ${r.name} the MAC address ${mac}; add {"type": "tuning", "capabilities": {"mac": true}} to the conflist for ${r.caps.mac}`,
      })
    const addresses = addressesOf(result, ifname)
    return {
      id: r.id,
      network: r.network,
      nic: { kind: 'netdev', ifname, netns },
      mac,
      mtu: insideInterface(result, ifname)?.mtu || (inside.mtu > 0 ? inside.mtu : n.spec.mtu),
      addresses,
      routes: routesOf(result),
      dns: resolverOf(result) ?? hostResolver(),
      // A chain without IPAM gives a device and no address: the VM asks who is there.
      configuredBy: addresses.length > 0 ? 'backend' : 'dhcp',
      state: { network: r.chain.name, containerId: r.target.containerId },
    }
  }

  async detach(id: AttachmentId, _last: Attachment | undefined, signal: AbortSignal): Promise<void> {
    const r = this.#records.get(id)
    if (r !== undefined)
      await this.#inTurn(r.chain.name, async () => {
        const now = this.#records.get(id)
        if (now !== undefined) await this.#undo(now, signal)
      })
    for (const p of this.#hostPorts.of(id)) this.#hostPorts.release(p.id)
  }

  /** DEL, and nothing of it is left. What could not be removed stays on record. */
  async #undo(r: AttachmentRecord, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    // A namespace that is gone took its devices along; plugins still give back addresses and rules.
    const target = { ...r.target, netns: this.#anchors.held(r.id) ? r.target.netns : '' }
    await del(r.chain, target, r.caps, r.results.at(-1), signal)
    await removeMasquerade(r.chain, r.target.containerId)
    this.#anchors.release(r.id)
    this.#records.delete(r.id)
  }

  async check(a: Attachment, signal: AbortSignal): Promise<void> {
    const r = this.#records.get(a.id)
    if (r === undefined || !complete(r))
      throw new NoidError('INTERNAL', { why: `${a.id} is not attached to ${a.network}` })
    await this.#inTurn(r.chain.name, async () => {
      if (!this.#present(r)) throw new NoidError('INTERNAL', { why: `the nic ${r.target.ifname} of ${r.name} is gone` })
      await check(r.chain, r.target, r.caps, r.results.at(-1) as CniResult, signal)
    })
  }

  async gc(id: NetworkId, valid: readonly AttachmentId[], signal: AbortSignal): Promise<GcReport> {
    const removed: AttachmentId[] = []
    for (const r of this.#records.of(id)) {
      if (valid.includes(r.id)) continue
      await this.#inTurn(r.chain.name, () => this.#undo(r, signal))
      removed.push(r.id)
    }
    const n = this.#networks.get(id)
    // Engines that share the network would lose what they have on it.
    if (n !== undefined && !isShared(n.chain.name))
      await this.#inTurn(n.chain.name, () => {
        const all = this.#records.all().filter((r) => r.chain.name === n.chain.name)
        const list = all.map((r) => ({ containerID: r.target.containerId, ifname: r.target.ifname }))
        return gc(n.chain, list, signal)
      })
    return { removed }
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#turns.values())
    this.#hostPorts.close()
  }

  // -- ports -----------------------------------------------------------------------------------------------------------

  async #publish(p: PublishSpec, signal: AbortSignal): Promise<{ readonly hostPort: number }> {
    signal.throwIfAborted()
    const r = this.#records.get(p.attachment)
    const n = r === undefined ? undefined : this.#networks.get(r.network)
    if (n !== undefined) mustMapPorts(n)
    const kept = this.#hostPorts.keep({ ...p, hostPort: p.hostPort || (r?.publishes[p.id] ?? 0) })
    if (r !== undefined)
      await this.#remap(r.id, signal).catch((e) => {
        this.#hostPorts.release(p.id)
        throw e
      })
    return { hostPort: kept.hostPort }
  }

  async #unpublish(id: string, signal: AbortSignal): Promise<void> {
    this.#hostPorts.release(id)
    const r = this.#records.all().find((x) => id in x.publishes)
    if (r !== undefined) await this.#remap(r.id, signal, id)
  }

  /** Have the plugins map what is kept for an attachment now, beside what was mapped before a restart and not taken back. */
  #remap(id: AttachmentId, signal: AbortSignal, without?: string): Promise<void> {
    const name = this.#records.get(id)?.chain.name ?? ''
    return this.#inTurn(name, async () => {
      const r = this.#records.get(id)
      if (r === undefined || !complete(r)) return
      const wanted = new Map<string, PortMapping>()
      for (const [i, key] of Object.keys(r.publishes).entries())
        if (key !== without) wanted.set(key, r.caps.portMappings[i] as PortMapping)
      for (const p of this.#hostPorts.of(id)) wanted.set(p.id, mappingOf(p))
      const caps: CapabilityArgs = { ...r.caps, portMappings: [...wanted.values()] }
      if (JSON.stringify(caps) === JSON.stringify(r.caps)) return
      await remap(r.chain, r.target, r.caps, caps, r.results, signal)
      const publishes = Object.fromEntries([...wanted].map(([key, m]) => [key, m.hostPort]))
      this.#records.set({ ...r, caps, publishes })
    })
  }

  // -- the rest ----------------------------------------------------------------------------------------------------------

  #network(id: NetworkId): Network {
    const n = this.#networks.get(id)
    if (n === undefined) throw new NoidError('NETWORK_UNKNOWN', { name: id })
    return n
  }

  /** Run while no sweep does; one that begins waits. */
  async #whileOpen<T>(work: () => Promise<T>): Promise<T> {
    for (let gate: Promise<void> | undefined; gate !== this.#gate; ) {
      gate = this.#gate
      await gate
    }
    const run = work()
    this.#running.add(run)
    try {
      return await run
    } finally {
      this.#running.delete(run)
    }
  }

  async #inTurn<T>(name: string, work: () => Promise<T>): Promise<T> {
    const turn = (this.#turns.get(name) ?? Promise.resolve()).catch(() => {}).then(() => this.#whileOpen(work))
    this.#turns.set(name, turn)
    try {
      return await turn
    } finally {
      if (this.#turns.get(name) === turn) this.#turns.delete(name)
    }
  }
}

/** ADD came to its end. */
const complete = (r: AttachmentRecord): boolean => r.results.length === r.chain.plugins.length

const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })

function mustMapPorts(n: Network): void {
  if (!offers(n.chain, 'portMappings'))
    throw new NoidError('CAPABILITY_MISSING', {
      backend: 'cni',
      what: `to publish ports on ${n.spec.name}: no plugin of its conflist maps ports`,
      hint: 'add {"type": "portmap", "capabilities": {"portMappings": true}} to the plugins, or use --network-backend userspace',
    })
}

const notThere = (n: Network, ifname: string): NoidError =>
  new NoidError('INTERNAL', { why: `the plugins of ${n.chain.name} ended well and made no ${ifname}` })

const mappingOf = (p: PublishSpec): PortMapping => ({
  hostPort: p.hostPort,
  containerPort: p.guestPort,
  protocol: p.proto,
  ...(p.hostAddress === '0.0.0.0' ? {} : { hostIP: p.hostAddress }),
})

const formatMac = (b: Uint8Array): string => [...b].map((x) => x.toString(16).padStart(2, '0')).join(':')

/** The host's own name servers, which engines give to containers when plugins name none; not those that only the host reaches. */
function hostResolver(): Resolver | undefined {
  for (const file of ['/run/systemd/resolve/resolv.conf', '/etc/resolv.conf']) {
    try {
      const servers = parseResolvConf(readFileSync(file, 'utf8')).filter((s) => !s.startsWith('127.') && s !== '::1')
      if (servers.length > 0) return { servers, search: [] }
    } catch {
      // Not on this machine.
    }
  }
  return undefined
}
