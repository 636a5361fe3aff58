/**
 * One network as it should be, and the data plane that carries it: started when needed, brought back when lost.
 *
 * Owns: the wish (network, attachments, publishes), the link, and bringing what is carried in line with what is wished.
 * Never does: opening devices (nic.ts, hostnic.ts), binding ports (publisher.ts), choosing addresses (the daemon).
 *
 * Theory. There is one way to repair: `#align` asks the data plane what it carries (`hello`) and hands over what is missing. It runs after a
 * first start, after an adoption by a new daemon, and after a loss, so none of them is special. Verbs run one after another
 * (#queue), so that a verb never meets half of another. A loss outside a verb starts the repair by itself, slower each time that it fails again
 * soon (a crash loop must not eat a core).
 * Invariants: `#carriedNics` and `#carriedPublishes` are what the data plane has confirmed over this link. A descriptor is closed here once it was sent.
 */
import { mkdirSync } from 'node:fs'
import { BlockList, isIP } from 'node:net'
import type { Readable } from 'node:stream'
import type { HelloAnswer, StatsAnswer } from '../../dataplane/protocol.ts'
import { NoidError } from '../../errors.ts'
import type {
  Attachment,
  AttachmentId,
  AttachRequest,
  BackendContext,
  CaptureOptions,
  NetworkSpec,
  NetworkStats,
  PublishSpec,
} from '../contract.ts'
import { addressesOf, networkConfig } from '../dataplane/config.ts'
import { type Link, Refused } from '../dataplane/link.ts'
import { DataPlaneProcess } from '../dataplane/process.ts'
import { addressesOverlap, bindPublished, type PublishEntry } from '../host/publisher.ts'
import { openCapture } from './capture.ts'
import { openHostNic, removeHostNic } from './hostnic.ts'
import { openRawIcmp } from './icmp.ts'
import { Ledger, type NicEntry } from './ledger.ts'
import { attachmentOf, chooseKind, nicGone, nicHeld, nicPresent, openNic, removeNic } from './nic.ts'
import { NicSockets } from './sockets.ts'

/** The attachment id of the host's own nic on a network. */
const HOST = 'host'
const HEALTH_MS = 15_000
const BACKOFF_MS = [0, 100, 500, 2000, 10_000] as const
/** A data plane that lived this long was well: the next loss is a first one again. */
const STABLE_MS = 60_000
const forever = new AbortController().signal

export interface PlaneDeps {
  readonly ctx: BackendContext
  readonly resolvers: () => Promise<readonly string[]>
  /** The name of a VM of any network that publishes this host port. */
  readonly holderOf: (proto: 'tcp' | 'udp', address: string, port: number) => string | undefined
}

export class Plane {
  readonly #deps: PlaneDeps
  readonly #process: DataPlaneProcess
  readonly #ledger: Ledger
  readonly #sockets: NicSockets
  #spec: NetworkSpec
  #link: Link | undefined
  #carriedNics = new Set<string>()
  #carriedPublishes = new Set<string>()
  #warnings: string[] = []
  #queue: Promise<unknown> = Promise.resolve()
  #failures = 0
  /** The last link was lost because its answers did not come. */
  #hung = false
  #upSince = 0
  #repair: NodeJS.Timeout | undefined
  readonly #health: NodeJS.Timeout
  #closed = false

  constructor(dir: string, spec: NetworkSpec, deps: PlaneDeps) {
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    this.#spec = spec
    this.#deps = deps
    this.#process = new DataPlaneProcess(dir, spec.name, deps.ctx.log)
    this.#ledger = new Ledger(dir)
    this.#sockets = new NicSockets(dir)
    this.#health = setInterval(() => {
      this.#sockets.look()
      // A link that does not answer closes itself, which starts the repair.
      this.#link?.request({ op: 'hello' }).catch(() => {})
    }, HEALTH_MS)
    this.#health.unref()
  }

  get name(): string {
    return this.#spec.name
  }

  /** Is the address, of either family, in this network's subnet? */
  covers(address: string): boolean {
    const { subnet, ipv6 } = this.#spec
    const cidr = address.includes(':') ? ipv6?.subnet : subnet
    if (cidr === undefined || isIP(address) === 0) return false
    const [base, bits] = cidr.split('/') as [string, string]
    const family = address.includes(':') ? 'ipv6' : 'ipv4'
    const list = new BlockList()
    list.addSubnet(base, Number(bits), family)
    return list.check(address, family)
  }

  /** Make sure it runs and is configured as `spec` says. */
  create(spec: NetworkSpec, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      this.#spec = spec
      const link = await this.#up(signal)
      await this.#configure(link)
    })
  }

  /** The resolvers changed. */
  async reconfigure(): Promise<void> {
    await this.#serially(async () => {
      if (this.#link?.open) await this.#configure(this.#link)
    })
  }

  attach(r: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    return this.#serially(async () => {
      const link = await this.#up(signal)
      const had = this.#ledger.nics.get(r.id)
      if (
        had &&
        this.#carriedNics.has(r.id) &&
        same(had.request, r) &&
        kindOf(had) === chooseKind(r) &&
        !nicGone(had.nic) &&
        (await nicPresent(had.nic, this.#sockets))
      )
        return attachmentOf(this.#spec, r, had.nic)
      if (this.#carriedNics.has(r.id)) await this.#drop(link, r.id)
      if (had && kindOf(had) !== chooseKind(r)) await removeNic(had.nic, this.#sockets)
      return this.#handOver(link, r, had !== undefined && !nicGone(had.nic))
    })
  }

  detach(id: AttachmentId, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      if (this.#carriedNics.has(id)) await this.#drop(await this.#up(signal), id)
      const had = this.#ledger.nics.get(id)
      if (had) await removeNic(had.nic, this.#sockets)
      this.#ledger.nics.delete(id)
      this.#ledger.save()
    })
  }

  publish(p: PublishSpec, signal: AbortSignal): Promise<{ hostPort: number }> {
    return this.#serially(async () => {
      const link = await this.#up(signal)
      const had = this.#ledger.publishes.get(p.id)
      if (had && this.#carriedPublishes.has(p.id)) {
        if (samePublish(had, p)) return { hostPort: had.hostPort }
        await this.#withdraw(link, p.id)
      }
      const hostPort = await this.#open(link, p)
      return { hostPort }
    })
  }

  unpublish(id: string, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      if (this.#link?.open) await this.#withdraw(this.#link, id)
      this.#ledger.publishes.delete(id)
      this.#ledger.save()
    })
  }

  /** Throws when the data plane does not carry it or its device is gone. */
  check(a: Attachment, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      const link = await this.#up(signal)
      const hello = await link.request<HelloAnswer>({ op: 'hello' })
      const had = this.#ledger.nics.get(a.id)
      if (!hello.attachments.includes(a.id) || !had || nicGone(had.nic) || !(await nicPresent(had.nic, this.#sockets)))
        throw new NoidError('INTERNAL', { why: `the nic of ${had?.request.name ?? a.id} on ${this.name} is gone` })
    })
  }

  gc(valid: ReadonlySet<AttachmentId>, signal: AbortSignal): Promise<AttachmentId[]> {
    return this.#serially(async () => {
      const link = await this.#up(signal)
      const removed: AttachmentId[] = []
      for (const id of new Set([...this.#carriedNics, ...this.#ledger.nics.keys()])) {
        if (id === HOST || valid.has(id)) continue
        if (this.#carriedNics.has(id)) await this.#drop(link, id)
        const had = this.#ledger.nics.get(id)
        if (had) await removeNic(had.nic, this.#sockets)
        this.#ledger.nics.delete(id)
        removed.push(id)
      }
      for (const id of new Set([...this.#carriedPublishes, ...this.#ledger.publishes.keys()])) {
        const owner = this.#ledger.publishes.get(id)?.spec.attachment
        if (owner !== undefined && valid.has(owner)) continue
        await this.#withdraw(link, id)
        this.#ledger.publishes.delete(id)
      }
      this.#ledger.save()
      return removed
    })
  }

  async stats(): Promise<NetworkStats> {
    const link = await this.#serially(() => this.#up(forever))
    const s = await link.request<StatsAnswer>({ op: 'stats' })
    return { ...s, warnings: [...this.#warnings, ...s.warnings] }
  }

  /** Live pcapng; destroying the stream ends it. */
  async capture(o: CaptureOptions, signal: AbortSignal): Promise<Readable> {
    const link = await this.#serially(() => this.#up(signal))
    return openCapture(link, this.name, o)
  }

  /** Whose is the host port? The VM's name, if this network publishes it. */
  publisherOf(proto: 'tcp' | 'udp', address: string, port: number): string | undefined {
    for (const { spec, hostPort } of this.#ledger.publishes.values()) {
      const overlaps = addressesOverlap(spec.hostAddress, address)
      if (spec.proto !== proto || hostPort !== port || !overlaps || !this.#carriedPublishes.has(spec.id)) continue
      const vm = this.#ledger.nics.get(spec.attachment)?.request.name
      return vm === undefined ? `another VM on the network ${this.name}` : `the VM "${vm}"`
    }
    return undefined
  }

  /** Let go; the data plane goes on. */
  close(): void {
    this.#closed = true
    clearInterval(this.#health)
    clearTimeout(this.#repair)
    this.#link?.close()
    this.#link = undefined
    this.#sockets.close()
  }

  /** End the data plane and remove everything of the network. */
  end(): Promise<void> {
    return this.#serially(async () => {
      const link = this.#link
      this.#link = undefined
      this.#closed = true
      clearInterval(this.#health)
      clearTimeout(this.#repair)
      for (const { nic } of this.#ledger.nics.values()) await removeNic(nic, this.#sockets)
      this.#sockets.close()
      await this.#process.end(link)
      if (this.#deps.ctx.privileged) await removeHostNic(this.#spec.id)
    })
  }

  // -- the link ----------------------------------------------------------------------------------------------------

  #serially<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(work)
    this.#queue = done.catch(() => {})
    return done
  }

  async #up(signal: AbortSignal): Promise<Link> {
    signal.throwIfAborted()
    if (this.#closed) throw new NoidError('DATAPLANE_LOST', { network: this.name })
    return this.#link?.open ? this.#link : this.#align(signal)
  }

  /** Find or start the data plane, and hand over what it should carry and does not. */
  async #align(signal: AbortSignal): Promise<Link> {
    clearTimeout(this.#repair)
    if (this.#hung) await this.#process.kill()
    this.#hung = false
    const { link, hello, started } = await this.#process.ensure(signal)
    this.#link = link
    this.#upSince = Date.now()
    link.onEvent = (e) => this.#event(e)
    link.onClose = () => this.#lost(link)
    this.#carriedNics = new Set(hello.attachments)
    this.#carriedPublishes = new Set(hello.publishes)
    await this.#configure(link)
    if (started || !hello.configured) await this.#giveRawIcmp(link)
    await this.#giveHostNic(link)
    for (const { spec, hostPort } of [...this.#ledger.publishes.values()]) {
      if (this.#carriedPublishes.has(spec.id)) continue
      try {
        await this.#open(link, { ...spec, hostPort }, spec)
      } catch (e) {
        if (!link.open) throw e
        this.#warn(`${spec.proto} port ${hostPort} could not be published again: ${(e as Error).message}`)
      }
    }
    const restored: Attachment[] = []
    for (const { request, nic } of [...this.#ledger.nics.values()]) {
      const carried = this.#carriedNics.has(request.id)
      if (carried && nicHeld(nic, this.#sockets)) continue
      if (nicGone(nic)) {
        this.#ledger.nics.delete(request.id)
        continue
      }
      try {
        const made = await this.#handOver(link, request, true)
        if (!carried) restored.push(made)
      } catch (e) {
        if (!link.open) throw e
        this.#warn(`the nic of ${request.name} could not be attached again: ${(e as Error).message}`)
      }
    }
    this.#ledger.save()
    if (restored.length > 0) this.#deps.ctx.notify({ type: 'restored', network: this.#spec.id, attachments: restored })
    return link
  }

  #lost(link: Link): void {
    if (this.#closed || this.#link !== link) return
    this.#link = undefined
    this.#hung = link.silent
    this.#failures = Date.now() - this.#upSince > STABLE_MS ? 1 : this.#failures + 1
    this.#deps.ctx.log('warn', `the data plane of ${this.name} was lost; it is started again`)
    this.#schedule()
  }

  #schedule(): void {
    clearTimeout(this.#repair)
    const wait = BACKOFF_MS[Math.min(this.#failures, BACKOFF_MS.length) - 1] ?? 0
    this.#repair = setTimeout(() => {
      this.#serially(() => this.#up(forever)).catch((e: Error) => {
        this.#deps.ctx.log('error', `the data plane of ${this.name} could not be brought back: ${e.message}`)
        if (this.#closed || this.#link?.open) return
        this.#failures++
        this.#schedule()
      })
    }, wait)
    this.#repair.unref()
  }

  #event(e: import('../../dataplane/protocol.ts').EventMessage): void {
    if (e.event === 'warning') {
      this.#deps.ctx.notify({ type: 'warning', network: this.#spec.id, message: e.message })
      return
    }
    this.#deps.ctx.notify({
      type: 'lease',
      network: this.#spec.id,
      attachment: e.id,
      address: e.address,
      state: e.state,
      expiresAt: e.expiresInMs === null ? null : Date.now() + e.expiresInMs,
    })
  }

  #warn(message: string): void {
    this.#warnings = [...this.#warnings.slice(-19), message]
    this.#deps.ctx.log('warn', `${this.name}: ${message}`)
    this.#deps.ctx.notify({ type: 'warning', network: this.#spec.id, message })
  }

  // -- what is handed over -----------------------------------------------------------------------------------------

  async #configure(link: Link): Promise<void> {
    const network = networkConfig(this.#spec)
    await link.request({ op: 'configure', network, resolvers: await this.#deps.resolvers() })
  }

  async #giveRawIcmp(link: Link): Promise<void> {
    if (!this.#deps.ctx.privileged) return
    for (const family of [4, 6] as const) {
      const fd = openRawIcmp(family)
      if (fd >= 0) await link.give({ op: 'rawIcmp', fds: 1 }, fd)
    }
  }

  async #giveHostNic(link: Link): Promise<void> {
    if (!this.#deps.ctx.privileged || this.#spec.isolated || this.#carriedNics.has(HOST)) return
    try {
      const host = openHostNic(this.#spec)
      await link.give(
        {
          op: 'attach',
          fds: 1,
          id: HOST,
          role: 'host',
          kind: 'tap',
          vnetHdr: true,
          name: HOST,
          mac: host.mac,
          address: this.#spec.ipv4 === false ? '' : this.#spec.hostAddress,
          address6: this.#spec.ipv6?.hostAddress,
          bound: true,
        },
        host.fd,
      )
      this.#carriedNics.add(HOST)
      if (host.problem !== undefined)
        this.#deps.ctx.log('info', `${this.name}: the host's nic ${host.ifname}: ${host.problem}`)
    } catch (e) {
      if (!link.open) throw e
      this.#warn(`the host cannot reach VMs by address: ${(e as Error).message}`)
    }
  }

  async #handOver(link: Link, r: AttachRequest, bound: boolean): Promise<Attachment> {
    const opened = await openNic(this.#spec, r, this.#deps.ctx.privileged, this.#sockets)
    const entry: NicEntry = { request: r, nic: opened.record }
    this.#ledger.nics.set(r.id, entry)
    this.#ledger.save()
    try {
      await link.give(
        {
          op: 'attach',
          fds: opened.fds.length,
          id: r.id,
          role: 'vm',
          kind: opened.record.kind,
          vnetHdr: 'vnetHdr' in opened.record && opened.record.vnetHdr,
          name: r.name,
          mac: r.mac,
          ...addressesOf(r.addresses),
          bound: bound || opened.existed,
        },
        ...opened.fds,
      )
    } catch (e) {
      if (e instanceof Refused) {
        await removeNic(opened.record, this.#sockets)
        this.#ledger.nics.delete(r.id)
        this.#ledger.save()
        throw new NoidError('INTERNAL', { why: `the data plane refused the nic of ${r.name}: ${e.message}` })
      }
      throw e
    }
    this.#carriedNics.add(r.id)
    return attachmentOf(this.#spec, r, opened.record)
  }

  async #drop(link: Link, id: AttachmentId): Promise<void> {
    await link.request({ op: 'detach', id })
    this.#carriedNics.delete(id)
  }

  /** Bind and hand over; `wish` is what is remembered when the port was chosen before. Returns the host port. */
  async #open(link: Link, p: PublishSpec, wish: PublishSpec = p): Promise<number> {
    const { fd, hostPort } = bindPublished(p, this.#deps.holderOf)
    const { id, proto, hostAddress, guestAddress, guestAddress6, guestPort } = p
    const guest = { guestAddress, guestAddress6, guestPort }
    await link.give({ op: 'publish', fds: 1, id, proto, hostAddress, hostPort, ...guest }, fd)
    this.#carriedPublishes.add(id)
    const entry: PublishEntry = { spec: wish, hostPort }
    this.#ledger.publishes.set(id, entry)
    this.#ledger.save()
    return hostPort
  }

  async #withdraw(link: Link, id: string): Promise<void> {
    if (!this.#carriedPublishes.has(id)) return
    await link.request({ op: 'unpublish', id })
    this.#carriedPublishes.delete(id)
  }
}

const kindOf = ({ nic }: NicEntry): ReturnType<typeof chooseKind> =>
  nic.kind === 'dgram' || nic.kind === 'vhost-user' ? nic.kind : 'device'

const same = (a: AttachRequest, b: AttachRequest): boolean =>
  a.name === b.name &&
  a.mac === b.mac &&
  a.addresses.join() === b.addresses.join() &&
  a.netns === b.netns &&
  a.ifname === b.ifname &&
  a.wireNetns === b.wireNetns

const samePublish = (had: PublishEntry, p: PublishSpec): boolean =>
  had.spec.proto === p.proto &&
  had.spec.hostAddress === p.hostAddress &&
  (p.hostPort === 0 || p.hostPort === had.hostPort) &&
  had.spec.guestAddress === p.guestAddress &&
  had.spec.guestAddress6 === p.guestAddress6 &&
  had.spec.guestPort === p.guestPort
