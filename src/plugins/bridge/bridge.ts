/**
 * One bridged network as it should be, and the kernel and data plane that carry it.
 *
 * Owns: `#align`, which makes the host what the wish (wish.ts) says: bridge, ports, rules, claims, services. Every verb changes the wish and
 * aligns; so does the way back after any accident.
 * Never does: choosing addresses (the daemon), text of rules (rules.ts), sockets of published ports (published.ts), packets.
 *
 * The services are the project's own, in a data plane of medium `bridge` (src/dataplane): DHCP and DNS at .2 behind a TAP on the bridge.
 */
import { mkdirSync, readFileSync } from 'node:fs'
import ipaddr from 'ipaddr.js'
import { gatewayMac, type HelloAnswer, type StatsAnswer } from '../../dataplane/protocol.ts'
import { NoidError } from '../../errors.ts'
import { netnsName } from '../../sys/netns.ts'
import type {
  Attachment,
  AttachmentId,
  AttachRequest,
  BackendContext,
  NetworkSpec,
  NetworkStats,
  PublishSpec,
} from '../contract.ts'
import { addressesOf, networkConfig } from '../dataplane/config.ts'
import type { Link } from '../dataplane/link.ts'
import { DataPlaneProcess } from '../dataplane/process.ts'
import { Supervisor } from '../dataplane/supervisor.ts'
import { linkLocal } from './addresses6.ts'
import { Claims } from './claims.ts'
import { askedAt, type Family, forgetGuests, forgetPublished, forgetUnled } from './conntrack.ts'
import { forward4, forward6 } from './forwarding.ts'
import type { Guard, GuardedNetwork } from './guard.ts'
import {
  bridgeOf,
  ensureBridge,
  ensurePort,
  forgetNeighbours,
  IFNAME,
  isBridge,
  macFor,
  openServicesTap,
  outside,
  portName,
  portState,
  portsOf,
  removeBridge,
  removePort,
  removePorts,
  routeLocalnet,
  servicesJoined,
} from './links.ts'
import {
  applyGuards,
  applyRules,
  guardRefusals,
  type Installed,
  installed,
  keepRules,
  removeRules,
  rulesWhole,
} from './netfilter.ts'
import { Published } from './published.ts'
import { leadsLoopback, type RuleModel } from './rules.ts'
import { Wish } from './wish.ts'

/** Shared by all daemons of root in one network namespace: the switches are the namespace's. */
const claimsDir = (): string => `/run/noid/claims/${netnsName()}`
/** As the data plane calls itself on its link (netstack/network.ts). */
const SERVICES_LINK_LOCAL = 'fe80::2'

export interface BridgeDeps {
  readonly ctx: BackendContext
  readonly resolvers: () => Promise<readonly string[]>
  /** The VM of another of our networks that publishes the port. */
  readonly holderOf: (proto: 'tcp' | 'udp', address: string, port: number) => string | undefined
}

export class Bridge {
  readonly #deps: BridgeDeps
  readonly #process: DataPlaneProcess
  readonly #supervisor: Supervisor
  readonly #claims = new Claims(claimsDir())
  #spec: NetworkSpec
  readonly #wish: Wish
  readonly #published: Published
  #name: string | undefined
  #queue: Promise<unknown> = Promise.resolve()
  /** What the host is called outside, in each family. */
  #hostAddresses: readonly [four: readonly string[], six: readonly string[]] = [[], []]
  #warnings: readonly string[] = []

  constructor(dir: string, spec: NetworkSpec, deps: BridgeDeps) {
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    this.#spec = spec
    this.#deps = deps
    this.#process = new DataPlaneProcess(dir, spec.name, deps.ctx.log)
    this.#supervisor = new Supervisor(this.#process, {
      what: 'services',
      network: spec.id,
      ctx: deps.ctx,
      onLease: (id, state) => this.#leased(id, state),
      bringBack: () => this.#serially(() => this.#align(AbortSignal.timeout(20_000))),
    })
    this.#wish = new Wish(dir)
    this.#published = new Published(this.#wish.publishes, () => this.#spec, deps.holderOf)
  }

  get name(): string {
    return this.#spec.name
  }

  /** Nobody is attached, nothing is published. */
  get unused(): boolean {
    return this.#wish.attachments.size + this.#wish.publishes.size === 0
  }

  // -- verbs ---------------------------------------------------------------------------------------------------------

  create(spec: NetworkSpec, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      this.#spec = spec
      await this.#align(signal)
    })
  }

  attach(r: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      this.#wish.attachments.set(r.id, r)
      this.#wish.save()
      try {
        const name =
          this.#supervisor.link !== undefined && this.#name !== undefined ? this.#name : await this.#align(signal)
        // A port is guarded before it is there.
        await this.#keep(name)
        await ensurePort(this.#spec, name, r)
        await this.#join(await this.#services(name, signal), r)
        signal.throwIfAborted()
      } catch (e) {
        await this.#forget(r.id)
        throw e
      }
      return this.#attachmentOf(r)
    })
  }

  detach(id: AttachmentId): Promise<void> {
    return this.#serially(() => this.#forget(id))
  }

  async #forget(id: AttachmentId): Promise<void> {
    const had = this.#wish.attachments.get(id)
    this.#wish.attachments.delete(id)
    this.#wish.bound.delete(id)
    this.#wish.save()
    await removePort(id)
    await this.#supervisor.link?.request({ op: 'detach', id })
    if (this.#name !== undefined) {
      await applyGuards(this.#guarded(this.#name), this.#guards())
      if (had !== undefined) await forgetNeighbours(this.#spec, this.#name, had)
    }
    for (const a of had?.addresses ?? []) await forgetGuests(a.split('/')[0] as string)
  }

  check(a: Attachment, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      const r = this.#wish.attachments.get(a.id)
      const name = await bridgeOf(this.#spec.id)
      if (r === undefined || name === undefined || (await portState(this.#spec, name, r)) !== 'whole')
        throw new NoidError('INTERNAL', { why: `the nic of ${r?.name ?? a.id} on ${this.name} is gone` })
      if (!this.#rulesWhole(name, await installed()))
        throw new NoidError('INTERNAL', {
          why: `somebody removed rules of ${this.name} from iptables or ebtables; they come back within seconds`,
        })
      const hello = await (await this.#services(name, signal)).request<HelloAnswer>({ op: 'hello' })
      if (!hello.attachments.includes(a.id))
        throw new NoidError('INTERNAL', { why: `the services of ${this.name} do not know ${r.name}` })
    })
  }

  gc(valid: ReadonlySet<AttachmentId>): Promise<AttachmentId[]> {
    return this.#serially(async () => {
      const there = this.#name === undefined ? [] : (await portsOf(this.#name)).keys()
      const strays = [...new Set([...there, ...this.#wish.attachments.keys()])].filter((id) => !valid.has(id))
      for (const id of strays) await this.#forget(id)
      for (const [id, { spec }] of [...this.#wish.publishes]) if (!valid.has(spec.attachment)) await this.#withdraw(id)
      return strays
    })
  }

  publish(p: PublishSpec, signal: AbortSignal): Promise<{ hostPort: number }> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      const had = this.#wish.publishes.get(p.id)
      if (had !== undefined && JSON.stringify(had.spec) === JSON.stringify(p)) return { hostPort: had.hostPort }
      if (had !== undefined) await this.#withdraw(p.id)
      const name = await this.#align(signal)
      const spare = p.proto === 'tcp' ? await askedAt(p, this.#families, true) : undefined
      const bound = await this.#published.bind(p)
      this.#wish.publishes.set(p.id, { spec: p, hostPort: bound.hostPort })
      this.#wish.save()
      try {
        await this.#published.give(await this.#services(name, signal), { ...p, hostPort: bound.hostPort }, bound.fd)
        await this.#rule(name)
        await forgetUnled({ ...p, hostPort: bound.hostPort }, this.#families, spare)
      } catch (e) {
        await this.#withdraw(p.id)
        throw e
      }
      return { hostPort: bound.hostPort }
    })
  }

  unpublish(id: string): Promise<void> {
    return this.#serially(() => this.#withdraw(id))
  }

  async #withdraw(id: string): Promise<void> {
    const had = this.#wish.publishes.get(id)
    if (had === undefined) return
    this.#wish.publishes.delete(id)
    this.#published.forget(id)
    this.#wish.save()
    await this.#supervisor.link?.request({ op: 'unpublish', id })
    if (this.#name !== undefined) await this.#rule(this.#name)
    await forgetPublished({ ...had.spec, hostPort: had.hostPort })
  }

  publisherOf(proto: 'tcp' | 'udp', address: string, port: number): string | undefined {
    const published = this.#published.find(proto, address, port)
    if (published === undefined) return undefined
    const vm = this.#wish.attachments.get(published.attachment)?.name
    return vm === undefined ? `another VM on the network ${this.name}` : `the VM "${vm}"`
  }

  /** Is the address in this network's subnet? */
  covers(address: string): boolean {
    const { ipv6 } = this.#spec
    if (address.includes(':'))
      return ipv6 !== undefined && ipaddr.IPv6.parse(address).match(ipaddr.IPv6.parseCIDR(ipv6.subnet))
    const [base = '', bits] = this.#spec.subnet.split('/')
    const shift = 32 - Number(bits)
    return word(address) >>> shift === word(base) >>> shift
  }

  async stats(): Promise<NetworkStats> {
    const name = await this.#serially(() => this.#align(AbortSignal.timeout(20_000)))
    const s = await (this.#supervisor.link as Link).request<StatsAnswer>({ op: 'stats' })
    const { drops, warnings } = await guardRefusals(this.#guarded(name), this.#guards())
    for (const message of warnings)
      if (!this.#warnings.includes(message)) this.#deps.ctx.notify({ type: 'warning', network: this.#spec.id, message })
    this.#warnings = warnings
    return { ...s, drops: [...s.drops, ...drops], warnings: [...s.warnings, ...warnings] }
  }

  /** The host's links or addresses changed. */
  async refresh(): Promise<void> {
    await this.#serially(async () => {
      if (this.#name === undefined || this.#supervisor.stopped) return
      const before = this.#hostAddresses.join()
      await this.#lookOutside()
      if (this.#hostAddresses.join() !== before) await this.#rule(this.#name)
    })
  }

  /**
   * Somebody may have removed rules: those are put back, and it is said.
   * @param seen the host's rules a moment ago; one look is for all networks
   */
  async repair(seen: Installed): Promise<void> {
    await this.#serially(async () => {
      const name = this.#name
      if (name === undefined || this.#supervisor.stopped) return
      // What was seen may be older than the last verb.
      if (this.#rulesWhole(name, seen) || this.#rulesWhole(name, await installed())) return
      await this.#keep(name)
      const message = `somebody removed rules of ${this.name} from iptables or ebtables; noid put them back`
      this.#deps.ctx.notify({ type: 'warning', network: this.#spec.id, message })
    })
  }

  /** Answers come in by the links of the outside: they must be allowed to go on to the bridge. What the host is called there is learnt as well. */
  async #lookOutside(): Promise<void> {
    const { four, six } = await outside()
    const { id, ipv4, ipv6 } = this.#spec
    if (ipv4 !== false) forward4(this.#claims, id, four.links)
    if (ipv6 !== undefined && this.#name !== undefined) forward6(this.#claims, id, this.#name, six.links)
    this.#hostAddresses = [four.addresses, six.addresses]
  }

  /** The host's name servers changed. */
  async reconfigure(): Promise<void> {
    await this.#serially(async () => {
      if (this.#supervisor.link) await this.#configure(this.#supervisor.link)
    })
  }

  close(): void {
    this.#supervisor.stop()?.close()
  }

  end(): Promise<void> {
    return this.#serially(async () => {
      const link = this.#supervisor.stop()
      await removeNetwork(this.#spec.id, [...this.#wish.attachments.keys()], this.#wish.link)
      for (const { spec, hostPort } of this.#wish.publishes.values()) await forgetPublished({ ...spec, hostPort })
      await forgetGuests(this.#spec.subnet)
      if (this.#spec.ipv6 !== undefined) await forgetGuests(this.#spec.ipv6.subnet)
      await this.#process.end(link)
    })
  }

  // -- alignment -----------------------------------------------------------------------------------------------------

  #serially<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(work)
    this.#queue = done.catch(() => {})
    return done
  }

  /** Make the host what the wish says. Returns the bridge's name. */
  async #align(signal: AbortSignal): Promise<string> {
    signal.throwIfAborted()
    const spec = this.#spec
    const name = await ensureBridge(spec)
    this.#name = name
    const last = this.#wish.link
    if (last !== name) {
      this.#wish.link = name
      this.#wish.save()
      // Somebody removed the bridge, and it came back under another name.
      if (last !== undefined && !(await isBridge(last))) await removeRules(last)
    }
    await this.#lookOutside()
    await this.#keep(name)
    for (const r of this.#wish.attachments.values()) {
      signal.throwIfAborted()
      if (r.netns !== undefined && namespaceGone(r.netns)) continue
      await ensurePort(spec, name, r)
    }
    const link = await this.#services(name, signal)
    const hello = await link.request<HelloAnswer>({ op: 'hello' })
    for (const r of this.#wish.attachments.values()) {
      if (!hello.attachments.includes(r.id)) await this.#join(link, r)
    }
    const warn = (message: string): void => this.#deps.ctx.notify({ type: 'warning', network: spec.id, message })
    // Theirs now: the rule must not take it away from them.
    if (await this.#published.restore(link, hello.publishes, warn)) await this.#rule(name, keepRules)
    return name
  }

  /** The loopback's packets pass only while there are rules that lead them, and the one that refuses the others stands before. */
  async #rule(name: string, write = applyRules): Promise<void> {
    const model = this.#model(name)
    const leads = leadsLoopback(model)
    if (!leads) routeLocalnet(name, false)
    await write(model)
    if (leads) routeLocalnet(name, true)
  }

  /** Guards and rules that are missing. */
  async #keep(name: string): Promise<void> {
    await Promise.all([applyGuards(this.#guarded(name), this.#guards()), this.#rule(name, keepRules)])
  }

  #rulesWhole(name: string, i: Installed): boolean {
    return rulesWhole(this.#model(name), this.#guarded(name), this.#guards(), i)
  }

  /** As conntrack calls them. */
  get #families(): readonly Family[] {
    const { ipv4, ipv6 } = this.#spec
    return [...(ipv4 === false ? [] : (['ipv4'] as const)), ...(ipv6 === undefined ? [] : (['ipv6'] as const))]
  }

  /** What the rules are a function of. */
  #model(link: string): RuleModel {
    const { subnet, gateway, services, hostAddress, ipv4, ipv6, isolated, allowHostPorts } = this.#spec
    const [four, six] = this.#hostAddresses
    return {
      link,
      isolated,
      allowHostPorts,
      ...(ipv4 === false ? {} : { four: { subnet, gateway, services, hostAddress, hostAddresses: four } }),
      ...(ipv6 === undefined ? {} : { six: { ...ipv6, hostAddresses: six } }),
      publishes: this.#published.led,
    }
  }

  /** What ports are guarded on. */
  #guarded(link: string): GuardedNetwork {
    const { id, services, ipv4, ipv6 } = this.#spec
    if (ipv6 === undefined) return { link, ipv4: ipv4 !== false }
    const own = [ipv6.gateway, ipv6.hostAddress, linkLocal(macFor(id)), ipv6.services, SERVICES_LINK_LOCAL]
    const macs = [macFor(id), gatewayMac(services)]
    return { link, ipv4: ipv4 !== false, six: { subnet: ipv6.subnet, own, macs } }
  }

  #guards(): readonly Guard[] {
    return Array.from(this.#wish.attachments.values(), (r) => ({
      vm: r.name,
      ifname: portName(r.id),
      mac: r.mac.toLowerCase(),
      ...addressesOf(r.addresses),
    }))
  }

  /** Tell the services of a VM. */
  #join(link: Link, r: AttachRequest): Promise<unknown> {
    const bound = this.#wish.bound.has(r.id)
    return link.request({ op: 'member', id: r.id, name: r.name, mac: r.mac, ...addressesOf(r.addresses), bound })
  }

  /** The services' data plane, started or adopted, configured, with its TAP on the bridge. */
  async #services(bridge: string, signal: AbortSignal): Promise<Link> {
    const there = this.#supervisor.link
    if (there !== undefined) {
      // The bridge may be a new one, or whoever made the last one was killed before its services had their TAP.
      await this.#joinServices(there, bridge)
      return there
    }
    return this.#supervisor.connect(signal, async ({ link }) => {
      await this.#configure(link)
      await this.#joinServices(link, bridge)
    })
  }

  async #joinServices(link: Link, bridge: string): Promise<void> {
    if (await servicesJoined(bridge)) return
    await link.give({ op: 'uplink', fds: 1, vnetHdr: true }, await openServicesTap(bridge, this.#spec.mtu))
  }

  /** Leases live on when the services are started anew. */
  #leased(id: AttachmentId, state: string): void {
    const had = this.#wish.bound.has(id)
    if (!this.#wish.attachments.has(id) || had === (state === 'bound')) return
    if (had) this.#wish.bound.delete(id)
    else this.#wish.bound.add(id)
    this.#wish.save()
  }

  async #configure(link: Link): Promise<void> {
    const { id, ipv6 } = this.#spec
    const routerMac = macFor(id)
    const router = { routerMac, routerLinkLocal: linkLocal(routerMac) }
    const six = ipv6 === undefined ? {} : { ipv6: { ...ipv6, ...router } }
    const network = networkConfig(this.#spec, { medium: 'bridge', allowHostPorts: [], ...six })
    await link.request({ op: 'configure', network, resolvers: await this.#deps.resolvers() })
  }

  #attachmentOf(r: AttachRequest): Attachment {
    const s = this.#spec
    return {
      id: r.id,
      network: r.network,
      nic:
        r.netns === undefined
          ? { kind: 'tap', ifname: portName(r.id), queues: 1, vnetHdr: true }
          : { kind: 'netdev', ifname: IFNAME, netns: r.netns },
      mac: r.mac,
      mtu: s.mtu,
      addresses: r.addresses,
      routes: [
        ...(s.ipv4 === false ? [] : [{ to: '0.0.0.0/0', via: s.gateway }]),
        ...(s.ipv6 === undefined ? [] : [{ to: '::/0', via: s.ipv6.gateway }]),
      ],
      dns: {
        servers: [...(s.ipv4 === false ? [] : [s.services]), ...(s.ipv6 === undefined ? [] : [s.ipv6.services])],
        search: [s.domain],
      },
      configuredBy: 'dhcp',
      state: { port: portName(r.id) },
    }
  }
}

/**
 * Remove what the kernel has of a network, also of one that this daemon knows nothing about.
 * @param last the bridge's name as it was known
 */
export async function removeNetwork(id: string, attachments: readonly string[] = [], last?: string): Promise<void> {
  await removePorts(attachments)
  const name = await bridgeOf(id)
  if (name !== undefined) await removeRules(name)
  if (last !== undefined && last !== name && !(await isBridge(last))) await removeRules(last)
  await removeBridge(id)
  new Claims(claimsDir()).releaseAll(id)
}

function namespaceGone(path: string): boolean {
  try {
    readFileSync(path.replace(/\/ns\/net$/, '/stat'))
    return false
  } catch {
    return path.startsWith('/proc/')
  }
}

const word = (v4: string): number => v4.split('.').reduce((w, part) => (w << 8) | Number(part), 0)
