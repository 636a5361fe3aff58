/**
 * One network as it should be, and what the data plane that carries it is given.
 *
 * Owns: the wish (network, attachments, publishes), and bringing what is carried in line with it.
 * Never does: keeping the data plane running (dataplane/supervisor.ts), opening devices (nic.ts, hostnic.ts), binding ports (publisher.ts), choosing addresses
 * (the daemon).
 *
 * Theory. There is one way to repair: `#give` learns what the data plane carries (`hello`) and hands over what is missing. It runs after a
 * first start, after an adoption by a new daemon, and after a loss, so none of them is special. Verbs run one after another
 * (#queue), so that a verb never meets half of another.
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
import { DataPlaneProcess, type Running } from '../dataplane/process.ts'
import { Supervisor } from '../dataplane/supervisor.ts'
import { addressesOverlap, bindPublished, type PublishEntry } from '../host/publisher.ts'
import { openCapture } from './capture.ts'
import { openHostNic, removeHostNic } from './hostnic.ts'
import { openRawIcmp } from './icmp.ts'
import { Ledger, type NicEntry } from './ledger.ts'
import { attachmentOf, chooseKind, nicGone, nicHeld, nicPresent, openNic, removeNic } from './nic.ts'
import { NicSockets } from './sockets.ts'

/** The attachment id of the host's own nic on a network. */
const HOST = 'host'
const LOOK_MS = 15_000
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
  readonly #supervisor: Supervisor
  readonly #ledger: Ledger
  readonly #sockets: NicSockets
  #spec: NetworkSpec
  #carriedNics = new Set<string>()
  #carriedPublishes = new Set<string>()
  #warnings: string[] = []
  #queue: Promise<unknown> = Promise.resolve()
  readonly #look: NodeJS.Timeout

  constructor(dir: string, spec: NetworkSpec, deps: PlaneDeps) {
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    this.#spec = spec
    this.#deps = deps
    this.#process = new DataPlaneProcess(dir, spec.name, deps.ctx.log)
    this.#supervisor = new Supervisor(this.#process, {
      what: 'data plane',
      network: spec.id,
      ctx: deps.ctx,
      bringBack: () => this.#serially(() => this.#up(forever)),
    })
    this.#ledger = new Ledger(dir)
    this.#sockets = new NicSockets(dir)
    this.#look = setInterval(() => this.#sockets.look(), LOOK_MS)
    this.#look.unref()
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
      if (this.#supervisor.link) await this.#configure(this.#supervisor.link)
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
      const made = await this.#handOver(link, r, had !== undefined && !nicGone(had.nic))
      // Nobody waits for a nic that is new. One that was there before is its VM's, whoever asked again.
      if (signal.aborted && had === undefined) await this.#forget(r.id, link)
      signal.throwIfAborted()
      return made
    })
  }

  detach(id: AttachmentId, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      await this.#forget(id, this.#carriedNics.has(id) ? await this.#up(signal) : undefined)
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
      if (this.#supervisor.link) await this.#withdraw(this.#supervisor.link, id)
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
        await this.#forget(id, link)
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
    clearInterval(this.#look)
    this.#supervisor.stop()?.close()
    this.#sockets.close()
  }

  /** End the data plane and remove everything of the network. */
  end(): Promise<void> {
    return this.#serially(async () => {
      clearInterval(this.#look)
      const link = this.#supervisor.stop()
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
    return this.#supervisor.link ?? this.#supervisor.connect(signal, (running) => this.#give(running))
  }

  /** Hand over what the data plane should carry and does not. */
  async #give({ link, hello, started }: Running): Promise<void> {
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

  /** @param link may be left out when it is not carried */
  async #forget(id: AttachmentId, link: Link | undefined): Promise<void> {
    if (link !== undefined && this.#carriedNics.has(id)) await this.#drop(link, id)
    const had = this.#ledger.nics.get(id)
    if (had === undefined) return
    await removeNic(had.nic, this.#sockets)
    this.#ledger.nics.delete(id)
    this.#ledger.save()
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
