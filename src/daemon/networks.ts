/**
 * Networks: their names, subnets and life.
 *
 * A network is made by `network create`, or by the first VM that names it (`onDemand`: it goes with its last VM). Its row
 * is written before the backend makes it. `carried` are the networks that the backend was asked for in this daemon's
 * life: the first use of each one asks again, because createNetwork is idempotent and a reboot may lie in between.
 * One whose backend is not there any more is removed without it, and what that may have left on the machine is told.
 * Names: `default` and `isolated` are userspace's; another backend's are `default-BRIDGE`, `isolated-BRIDGE`.
 */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import { dirname } from 'node:path'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { CreateNetwork, Network } from '../api/contract.ts'
import { NoidError } from '../errors.ts'
import { Lock } from '../lock.ts'
import type { BackendDescriptor, CaptureOptions, NetworkSpec, NetworkStats } from '../plugins/contract.ts'
import {
  checkSubnet,
  chooseSubnet,
  formatIpv4,
  formatSubnet,
  type Plan,
  parseCidr,
  parseSubnet,
  planOf,
  type Subnet,
  type TakenSubnet,
} from './addressing.ts'
import {
  checkSubnet6,
  chooseSubnet6,
  formatIpv6,
  formatPrefix6,
  type Plan6,
  type Prefix6,
  parsePrefix6,
  parseSubnet6,
  plan6Of,
  type TakenPrefix6,
  ulaOf,
} from './addressing6.ts'
import { bounded, limitMs } from './bounded.ts'
import { type Control, checkName, leftBy, newId, type Progress } from './control.ts'
import type { NetworkRecord } from './store.ts'

const PLAIN_BACKEND = 'userspace'
const DOMAIN = 'noid.internal'
const DEFAULT_MTU = 1500
/** RFC 8200 §5: a link with less carries no IPv6. */
const IPV6_MIN_MTU = 1280
const MAX_WARNINGS = 20
/** Whose turn it is to make a network, among root's daemons (several only where NOID_HOME is used). */
const TURN_FILE = '/run/noid-networks.lock'
const TURN_MS = 5_000

const named = (kind: 'default' | 'isolated', backend: string): string =>
  backend === PLAIN_BACKEND ? kind : `${kind}-${backend}`

export const planOfNetwork = (n: NetworkRecord): Plan => planOf(parseCidr(n.subnet) as Subnet)

/** undefined on an IPv4-only network. */
export const plan6OfNetwork = (n: NetworkRecord): Plan6 | undefined =>
  n.subnet6 === null ? undefined : plan6Of(parsePrefix6(n.subnet6) as Prefix6)

/** What a person reads of a network's addresses. */
const subnetsOf = (n: NetworkRecord): string => [n.ipv4 ? [n.subnet] : [], n.subnet6 ?? []].flat().join(' and ')

/** A network as asked for: by name, and of which backend; whether it exists is seen when it is taken. */
export interface Wanted {
  readonly name: string
  readonly backend: string
}

export class Networks {
  readonly #c: Control
  readonly #carried = new Set<string>()
  readonly #warnings = new Map<string, string[]>()

  constructor(c: Control) {
    this.#c = c
  }

  /** Which network is meant. Throws when the name and the backend do not go together. */
  resolve(network: string | undefined, backend: string | undefined): Wanted {
    const { store, registry, defaultBackend } = this.#c
    if (backend !== undefined) registry.descriptor(backend)
    const preferred = backend ?? defaultBackend
    if (network === undefined || network === 'isolated') {
      registry.descriptor(preferred)
      return { name: named(network === undefined ? 'default' : 'isolated', preferred), backend: preferred }
    }
    checkName('network', network)
    const owner = store.networkNamed(network)?.backend ?? this.#ownerByName(network)
    if (owner !== undefined && backend !== undefined && owner !== backend)
      throw new NoidError('NETWORK_BACKEND_MISMATCH', { network, actual: owner, wanted: backend })
    registry.descriptor(owner ?? preferred)
    return { name: network, backend: owner ?? preferred }
  }

  /** `default`, `default-bridge`, ... belong to their backend before they exist. */
  #ownerByName(name: string): string | undefined {
    return this.#c.registry
      .descriptors()
      .map((d) => d.name)
      .find((b) => name === named('default', b) || name === named('isolated', b))
  }

  /**
   * Put a VM on a network: `insert` writes its rows (and throws when the network has no room), in one transaction with
   * the row of the network when that is new. Then the network is made where it is not there yet.
   */
  async take<T>(w: Wanted, progress: Progress, insert: (n: NetworkRecord) => T, cancel?: AbortSignal): Promise<T> {
    return this.#c.locks.run(`net:${w.name}`, async () => {
      const existing = this.#c.store.networkNamed(w.name)
      if (existing !== undefined) {
        const result = this.#c.store.transaction(() => insert(existing))
        this.#c.checkpoint('reserved')
        await this.#carry(existing, cancel)
        return result
      }
      const config = await this.#config(w.backend, {})
      return this.#withSubnets(async () => {
        const [n, result] = this.#c.store.transaction(() => {
          const made = this.#draft(w, {}, config, true)
          this.#c.store.addNetwork(made)
          return [made, insert(made)]
        })
        this.#c.checkpoint('reserved')
        progress('step', `making the network ${n.name} (${subnetsOf(n)}, ${n.backend})`)
        for (const note of n.notes) progress('note', note)
        if (w.name !== named('default', w.backend) && w.name !== named('isolated', w.backend))
          progress('note', `the network ${n.name} did not exist and is made: ${subnetsOf(n)}, backend ${n.backend}`)
        await this.#carry(n, cancel)
        return result
      })
    })
  }

  /**
   * Run while no other root daemon of this machine makes a network: each sees the subnets of the others by the routes of
   * their host interfaces, which are there when this is over. Who waits too long goes on: a clash is then told by the host.
   */
  async #withSubnets<T>(fn: () => Promise<T>): Promise<T> {
    if (!this.#c.privileged || !existsSync(dirname(TURN_FILE))) return fn()
    let turn: Lock | undefined
    for (const end = Date.now() + TURN_MS; Date.now() < end; await sleep(20)) {
      turn = Lock.take(TURN_FILE)
      if (turn !== undefined) break
    }
    try {
      return await fn()
    } finally {
      turn?.release()
    }
  }

  /** Have the backend carry it. Under its lock. */
  async #carry(n: NetworkRecord, cancel?: AbortSignal): Promise<void> {
    if (n.phase === 'ready' && this.#carried.has(n.id)) return
    const backend = await this.#c.registry.backend(n.backend)
    const spec = this.specOf(n)
    await bounded(`making the network ${n.name}`, limitMs.network, (s) => backend.createNetwork(spec, s), cancel)
    this.#c.checkpoint('network-made')
    this.#c.store.updateNetwork(n.id, { phase: 'ready' })
    this.#carried.add(n.id)
  }

  /** The backend carries the network, whatever happened before. */
  async ensure(id: string, cancel?: AbortSignal): Promise<void> {
    const { name } = this.#c.store.network(id)
    await this.#c.locks.run(`net:${name}`, () => this.#carry(this.#c.store.network(id), cancel))
  }

  /** What the backend makes of a configuration. */
  async #config(backend: string, raw: unknown): Promise<unknown> {
    const b = await this.#c.registry.backend(backend)
    return parseConfig((r) => b.parseConfig(r), raw)
  }

  /** The row of a new network. In one transaction with writing it: no two networks choose one subnet. */
  #draft(w: Wanted, body: Partial<CreateNetwork>, config: unknown, onDemand: boolean): NetworkRecord {
    const { store, registry, hostRoutes } = this.#c
    const d = registry.descriptor(w.backend)
    const isolated = w.name === named('isolated', w.backend)
    if (isolated && !d.capabilities.isolation)
      throw new NoidError('CAPABILITY_MISSING', { backend: d.name, what: 'to keep VMs of one network apart' })
    const taken: TakenSubnet[] = [
      ...store.networks().map((n) => ({ subnet: parseCidr(n.subnet) as Subnet, by: `the network "${n.name}"` })),
      ...hostRoutes(),
    ]
    const notes: string[] = []
    let subnet: Subnet
    if (body.subnet !== undefined) {
      subnet = parseSubnet(body.subnet)
      checkSubnet(subnet, taken)
    } else {
      const chosen = chooseSubnet(w.name === named('default', PLAIN_BACKEND), taken)
      subnet = chosen.subnet
      if (chosen.insteadOf !== undefined)
        notes.push(`192.168.100.0/24 overlaps ${chosen.insteadOf}, so ${w.name} is ${formatSubnet(subnet)}`)
    }
    const subnet6 = this.#subnet6(d, body, notes)
    return {
      id: newId('n'),
      name: w.name,
      backend: w.backend,
      phase: 'creating',
      subnet: formatSubnet(subnet),
      subnet6: subnet6 === undefined ? null : formatPrefix6(subnet6),
      ipv4: body.family !== 'ipv6',
      domain: DOMAIN,
      mtu: body.mtu ?? DEFAULT_MTU,
      isolated,
      onDemand,
      allowHost: body.allowHost ?? [],
      config,
      notes,
      createdAt: new Date().toISOString(),
    }
  }

  /** The prefix of a new network, or undefined for one without IPv6. */
  #subnet6(d: BackendDescriptor, body: Partial<CreateNetwork>, notes: string[]): Prefix6 | undefined {
    const { store, hostRoutes6 } = this.#c
    const asked = body.subnet6 !== undefined || body.family === 'ipv6'
    if (body.family === 'ipv4') return undefined
    if (!d.capabilities.ipv6 || d.capabilities.addressing === 'external') {
      if (asked) throw new NoidError('CAPABILITY_MISSING', { backend: d.name, what: 'IPv6' })
      return undefined
    }
    if (body.mtu !== undefined && body.mtu < IPV6_MIN_MTU) {
      const why = `IPv6 needs an MTU of at least ${IPV6_MIN_MTU}`
      if (asked) throw new NoidError('INVALID_INPUT', { what: why, hint: 'choose a greater --mtu, or --ipv4-only' })
      notes.push(`${why}, so this network is IPv4-only`)
      return undefined
    }
    const routes = hostRoutes6()
    if (routes === undefined && !asked) {
      notes.push('the kernel of this machine has no IPv6, so this network is IPv4-only')
      return undefined
    }
    const taken: TakenPrefix6[] = [
      ...store.networks().flatMap((n) => {
        const subnet = plan6OfNetwork(n)?.subnet
        return subnet === undefined ? [] : [{ subnet, by: `the network "${n.name}"` }]
      }),
      ...(routes ?? []),
    ]
    if (body.subnet6 === undefined) {
      try {
        return chooseSubnet6(this.#ula(), taken)
      } catch (e) {
        if (asked || !(e instanceof NoidError)) throw e
        notes.push(`${e.message}, so this network is IPv4-only: --subnet6 names another one`)
        return undefined
      }
    }
    const subnet = parseSubnet6(body.subnet6)
    checkSubnet6(subnet, taken)
    return subnet
  }

  /** This installation's own /48, random once and then kept. */
  #ula(): Prefix6 {
    return parsePrefix6(this.#c.store.installation('ula', () => formatPrefix6(ulaOf(randomBytes(5))))) as Prefix6
  }

  async create(body: CreateNetwork): Promise<Network> {
    checkFamilies(body)
    const w = this.resolve(body.name, body.backend)
    await this.#c.locks.run(`net:${w.name}`, async () => {
      if (this.#c.store.networkNamed(w.name) !== undefined)
        throw new NoidError('NAME_TAKEN', { name: w.name, kind: 'network' })
      const config = await this.#config(w.backend, body.config ?? {})
      await this.#withSubnets(async () => {
        const n = this.#c.store.transaction(() => {
          const made = this.#draft(w, body, config, false)
          this.#c.store.addNetwork(made)
          return made
        })
        this.#c.checkpoint('network-reserved')
        try {
          await this.#carry(n)
        } catch (e) {
          await this.#delete(n).catch((f) => this.#c.log('error', `removing the half-made network ${n.name}: ${f}`))
          throw e
        }
      })
    })
    return this.view(this.find(w.name))
  }

  find(name: string): NetworkRecord {
    const n = this.#c.store.networkNamed(name)
    if (n === undefined) throw new NoidError('NETWORK_UNKNOWN', { name })
    return n
  }

  /** What may have stayed of it, in a sentence. */
  remove(name: string): Promise<string | undefined> {
    return this.#c.locks.run(`net:${name}`, async () => {
      const n = this.find(name)
      const vms = this.#c.store.vmsOn(n.id).map((v) => v.name)
      if (vms.length > 0) throw new NoidError('NETWORK_IN_USE', { name, vms: vms.join(', ') })
      return this.#delete(n)
    })
  }

  /** A VM has left: a network that was made for VMs goes with the last one. */
  async release(id: string): Promise<void> {
    const name = this.#c.store.networks().find((n) => n.id === id)?.name
    if (name === undefined) return
    await this.#c.locks.run(`net:${name}`, async () => {
      const n = this.#c.store.networkNamed(name)
      if (n?.id === id && n.onDemand && this.#c.store.vmsOn(id).length === 0) await this.#delete(n)
    })
  }

  async #delete(n: NetworkRecord): Promise<string | undefined> {
    const { registry, store, log, checkpoint } = this.#c
    store.updateNetwork(n.id, { phase: 'deleting' })
    checkpoint('network-deleting')
    const stayed = registry.has(n.backend) ? undefined : leftBy(n.backend, `the network ${n.name}`)
    if (stayed === undefined) {
      const backend = await registry.backend(n.backend)
      await bounded(`removing the network ${n.name}`, limitMs.network, (s) => backend.deleteNetwork(n.id, s))
    } else log('warn', stayed)
    this.#carried.delete(n.id)
    this.#warnings.delete(n.id)
    store.removeNetwork(n.id)
    return stayed
  }

  /** After the daemon's death: a network that was being made without VMs, or removed, goes. */
  async finish(n: NetworkRecord): Promise<void> {
    await this.#c.locks.run(`net:${n.name}`, async () => {
      const now = this.#c.store.networkNamed(n.name)
      if (now === undefined || this.#c.store.vmsOn(n.id).length > 0) return
      if (now.phase === 'ready' && !now.onDemand) return
      // On its own word alone nothing is given up of which traces may stay: its backend may be back the next time.
      this.#c.registry.descriptor(now.backend)
      await this.#delete(now)
    })
  }

  specOf(n: NetworkRecord): NetworkSpec {
    const p = planOfNetwork(n)
    const p6 = plan6OfNetwork(n)
    return {
      id: n.id,
      name: n.name,
      subnet: n.subnet,
      gateway: formatIpv4(p.gateway),
      services: formatIpv4(p.services),
      hostAddress: formatIpv4(p.host),
      pool: [formatIpv4(p.pool[0]), formatIpv4(p.pool[1])],
      ...(n.ipv4 ? {} : { ipv4: false }),
      ...(p6 === undefined
        ? {}
        : {
            ipv6: {
              subnet: formatPrefix6(p6.subnet),
              gateway: formatIpv6(p6.gateway),
              services: formatIpv6(p6.services),
              hostAddress: formatIpv6(p6.host),
            },
          }),
      domain: n.domain,
      mtu: n.mtu,
      isolated: n.isolated,
      allowHostPorts: n.allowHost,
      config: n.config,
    }
  }

  warn(id: string, message: string): void {
    const list = this.#warnings.get(id) ?? []
    if (list.includes(message)) return
    list.push(message)
    this.#warnings.set(id, list.slice(-MAX_WARNINGS))
  }

  async stats(name: string): Promise<NetworkStats> {
    const n = this.find(name)
    const backend = await this.#c.registry.backend(n.backend)
    if (backend.stats === undefined)
      throw new NoidError('CAPABILITY_MISSING', { backend: n.backend, what: 'to show flows, leases and drops' })
    return bounded(`asking the network ${name}`, limitMs.stats, () => backend.stats?.(n.id) as Promise<NetworkStats>)
  }

  /** Live pcapng of a network, or of one attachment of it; destroying the stream ends it. */
  async capture(n: NetworkRecord, o: CaptureOptions, cancel: AbortSignal): Promise<Readable> {
    const backend = await this.#c.registry.backend(n.backend)
    const begin = backend.capture?.bind(backend)
    if (begin === undefined)
      throw new NoidError('CAPABILITY_MISSING', {
        backend: n.backend,
        what: 'captures',
        hint: 'capture in the VM with: noid exec NAME -- tcpdump -i eth0 -w -; or use --network-backend userspace',
      })
    await this.ensure(n.id, cancel)
    return bounded(
      `capturing ${n.name}`,
      limitMs.stats,
      async (signal) => {
        const frames = await begin(n.id, o, signal)
        // Nobody waits for it any more.
        if (signal.aborted) frames.destroy()
        return frames
      },
      cancel,
    )
  }

  view(n: NetworkRecord): Network {
    const spec = this.specOf(n)
    const local = Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map((i) => i.address))
    return {
      id: n.id,
      name: n.name,
      backend: n.backend,
      addressing: this.#c.registry.descriptors().find((d) => d.name === n.backend)?.capabilities.addressing ?? 'noid',
      subnet: n.subnet,
      gateway: spec.gateway,
      services: spec.services,
      hostAddress: spec.hostAddress,
      ipv4: n.ipv4,
      subnet6: spec.ipv6?.subnet ?? null,
      gateway6: spec.ipv6?.gateway ?? null,
      services6: spec.ipv6?.services ?? null,
      hostAddress6: spec.ipv6?.hostAddress ?? null,
      // An unprivileged daemon's networks have no host interface: one with that address is another daemon's.
      hostReach:
        this.#c.privileged &&
        local.some(
          (a) => (n.ipv4 && a === spec.hostAddress) || (spec.ipv6 !== undefined && a === spec.ipv6.hostAddress),
        ),
      domain: n.domain,
      mtu: n.mtu,
      isolated: n.isolated,
      allowHostPorts: [...n.allowHost],
      vms: this.#c.store.vmsOn(n.id).map((v) => v.name),
      warnings: [...n.notes, ...(this.#warnings.get(n.id) ?? [])],
      createdAt: n.createdAt,
    }
  }
}

function checkFamilies(body: CreateNetwork): void {
  const unused = body.family === 'ipv4' ? body.subnet6 : body.family === 'ipv6' ? body.subnet : undefined
  if (unused !== undefined)
    throw new NoidError('INVALID_INPUT', {
      what: `${unused} is of the family that the network is not to have`,
      hint: 'leave out --ipv4-only or --ipv6-only, or the subnet',
    })
}

async function parseConfig(parse: (raw: unknown) => unknown, raw: unknown): Promise<unknown> {
  try {
    return (await parse(raw)) ?? {}
  } catch (e) {
    if (e instanceof NoidError) throw e
    throw new NoidError('INVALID_INPUT', {
      what: `the backend does not take this configuration: ${e instanceof Error ? e.message : String(e)}`,
      hint: 'noid backends info shows what it takes',
    })
  }
}
