/**
 * The macvtap backend: VMs as neighbours of their host on a LAN.
 *
 * Owns: the device of each attachment, a ledger of them (a macvlan lives in its VM's namespace, where nobody could find it again), and, on
 * segments that noid serves, addresses and a data plane of medium `bridge` with a macvtap of its own for DHCP and names.
 * Never does: forwarding, translating, filtering: the parent's driver passes frames. So there are no published ports, the host does not
 * reach its VMs nor they it (macvlan never hands a frame up to its own parent), and `isolated` cannot be kept: noid refuses these before anything is made.
 */
import { execFile } from 'node:child_process'
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { gatewayMac, type StatsAnswer } from '../../dataplane/protocol.ts'
import { NoidError } from '../../errors.ts'
import { readState, writeState } from '../../state-file.ts'
import type {
  Attachment,
  AttachmentId,
  AttachRequest,
  BackendContext,
  GcReport,
  NetworkBackend,
  NetworkId,
  NetworkSpec,
  NetworkStats,
  Status,
} from '../contract.ts'
import { networkConfig } from '../dataplane/config.ts'
import type { Link } from '../dataplane/link.ts'
import { DataPlaneProcess } from '../dataplane/process.ts'
import { Supervisor } from '../dataplane/supervisor.ts'
import { invalid, type MacvtapConfig, parseConfig } from './config.ts'
import {
  addMacvlan,
  addMacvtap,
  IFNAME,
  macvlanThere,
  openMacvtap,
  type Parent,
  parentOf,
  removeMacvlan,
  removeMacvtap,
  tapName,
  tapNumbers,
} from './devices.ts'

const run = promisify(execFile)
const NO_STATS: NetworkStats = { flows: [], leases: [], drops: [], ports: [], warnings: [] }
/** As long as the services may take to come back. */
const SERVICES_MS = 20_000

interface Entry {
  readonly request: AttachRequest
  /** Given by noid, on a segment that it serves. */
  readonly address: string | null
  readonly kind: 'netdev' | 'tap-device'
  /** Its client holds its lease. */
  readonly bound?: boolean
}

interface Segment {
  readonly spec: NetworkSpec
  readonly config: MacvtapConfig
  readonly entries: Map<AttachmentId, Entry>
  readonly process: DataPlaneProcess
  /** DHCP and names, where noid serves it. */
  readonly services: Supervisor
}

export class MacvtapBackend implements NetworkBackend {
  readonly #ctx: BackendContext
  readonly #segments = new Map<NetworkId, Segment>()
  #queue: Promise<unknown> = Promise.resolve()

  constructor(ctx: BackendContext) {
    this.#ctx = ctx
  }

  parseConfig(raw: unknown): unknown {
    return parseConfig(raw)
  }

  async status(signal: AbortSignal): Promise<Status> {
    const problems: { what: string; hint: string }[] = []
    if (!this.#ctx.privileged)
      problems.push({ what: 'macvtap devices need root', hint: 'run noid as root, or use --network-backend userspace' })
    await run('ip', ['-V'], { signal, timeout: 5000 }).catch(() =>
      problems.push({ what: 'the program ip is not installed', hint: 'apt-get install iproute2' }),
    )
    return { ok: problems.length === 0, problems }
  }

  createNetwork(n: NetworkSpec, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      const config = n.config as MacvtapConfig
      await this.#parent(config)
      if (n.allowHostPorts.length > 0)
        throw new NoidError('CAPABILITY_MISSING', {
          backend: 'macvtap',
          what: 'reaching its own host (a macvtap never hands a frame to its parent’s kernel)',
          hint: 'use --network-backend userspace or bridge for --allow-host',
        })
      const dir = this.#dir(n.id)
      mkdirSync(dir, { recursive: true, mode: 0o700 })
      const { entries, process, services } = this.#segments.get(n.id) ?? this.#unserved(n, dir)
      const segment: Segment = { spec: n, config, entries, process, services }
      this.#segments.set(n.id, segment)
      for (const [id, e] of segment.entries) await this.#ensure(segment, id, e).catch(() => {})
      if (config.addresses === 'noid') await this.#services(segment, signal)
    })
  }

  deleteNetwork(id: NetworkId, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      const segment = this.#segments.get(id)
      this.#segments.delete(id)
      const dir = this.#dir(id)
      for (const [a, e] of segment?.entries ?? readEntries(dir)) await removeDevice(a, e)
      if (this.#ctx.privileged) await removeMacvtap(tapName(`services ${id}`))
      const process = segment?.process ?? new DataPlaneProcess(dir, id, this.#ctx.log)
      await process.end(segment?.services.stop())
    })
  }

  attach(r: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      const s = this.#segment(r.network)
      const kind = r.netns !== undefined && r.accepts.includes('netdev') ? 'netdev' : 'tap-device'
      if (!r.accepts.includes(kind))
        throw new NoidError('CAPABILITY_MISSING', {
          backend: 'macvtap',
          what: `a nic for this runtime (it accepts ${r.accepts.join(', ')})`,
        })
      const address = s.config.addresses === 'noid' ? this.#address(s, r) : null
      const entry: Entry = { request: r, address, kind }
      const had = s.entries.get(r.id)
      if (had !== undefined && had.request.netns !== r.netns) await removeDevice(r.id, had)
      s.entries.set(r.id, entry)
      this.#save(s)
      try {
        await this.#ensure(s, r.id, entry)
        if (address !== null) await this.#join(await this.#services(s, signal), entry)
        signal.throwIfAborted()
        return await this.#attachment(s, entry)
      } catch (e) {
        await this.#forget(s, r.id)
        throw e
      }
    })
  }

  detach(id: AttachmentId): Promise<void> {
    return this.#serially(async () => {
      for (const s of this.#segments.values()) await this.#forget(s, id)
    })
  }

  check(a: Attachment, signal: AbortSignal): Promise<void> {
    return this.#serially(async () => {
      signal.throwIfAborted()
      const e = this.#segment(a.network).entries.get(a.id)
      if (e === undefined || !present(a.id, e))
        throw new NoidError('INTERNAL', { why: `the nic of ${e?.request.name ?? a.id} is gone` })
    })
  }

  gc(n: NetworkId, valid: readonly AttachmentId[]): Promise<GcReport> {
    return this.#serially(async () => {
      const s = this.#segments.get(n)
      const strays = [...(s?.entries.keys() ?? [])].filter((id) => !valid.includes(id))
      if (s !== undefined) for (const id of strays) await this.#forget(s, id)
      return { removed: strays }
    })
  }

  async stats(n: NetworkId): Promise<NetworkStats> {
    const s = this.#segment(n)
    return s.services.link?.request<StatsAnswer>({ op: 'stats' }) ?? NO_STATS
  }

  async close(): Promise<void> {
    for (const s of this.#segments.values()) s.services.stop()?.close()
    this.#segments.clear()
  }

  // -- devices -------------------------------------------------------------------------------------------------------

  #serially<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(work)
    this.#queue = done.catch(() => {})
    return done
  }

  async #parent(config: MacvtapConfig): Promise<Parent> {
    if (config.parent === undefined) throw invalid('parent is missing: the device whose LAN the VMs are to be on')
    const parent = await parentOf(config.parent)
    if (parent === undefined) throw invalid(`there is no link named ${config.parent}; ip link shows what there is`)
    if (!parent.up)
      throw invalid(`the link ${config.parent} is down; bring it up with: ip link set ${config.parent} up`)
    return parent
  }

  async #ensure(s: Segment, id: AttachmentId, e: Entry): Promise<void> {
    if (present(id, e)) return
    const { mtu } = await this.#parent(s.config)
    const { netns, mac } = e.request
    try {
      if (e.kind === 'netdev') await addMacvlan(s.config, netns as string, mac, mtu)
      else await addMacvtap(s.config, tapName(id), mac, mtu)
    } catch (error) {
      const said = (error as { stderr?: string }).stderr?.trim() ?? (error as Error).message
      const only = s.config.mode === 'passthru' && s.entries.size > 1
      throw new NoidError('BACKEND_UNAVAILABLE', {
        name: 'macvtap',
        why: only ? `in mode passthru one VM has ${s.config.parent} to itself` : said,
        hint: only ? 'use mode bridge for several VMs' : undefined,
      })
    }
  }

  async #forget(s: Segment, id: AttachmentId): Promise<void> {
    const e = s.entries.get(id)
    if (e === undefined) return
    await removeDevice(id, e)
    s.entries.delete(id)
    this.#save(s)
    await s.services.link?.request({ op: 'detach', id })
  }

  async #attachment(s: Segment, e: Entry): Promise<Attachment> {
    const { id, network, netns, mac } = e.request
    const served = e.address !== null
    return {
      id,
      network,
      nic:
        e.kind === 'netdev'
          ? { kind: 'netdev', ifname: IFNAME, netns: netns as string }
          : { kind: 'tap-device', ...tapNumbers(tapName(id)), ifname: tapName(id) },
      mac,
      mtu: (await this.#parent(s.config)).mtu,
      addresses: served ? [`${e.address}/${s.spec.subnet.split('/')[1]}`] : [],
      routes: [],
      ...(served ? { dns: { servers: [s.spec.services], search: [s.spec.domain] } } : {}),
      configuredBy: 'dhcp',
      state: { kind: e.kind },
    }
  }

  // -- a segment that noid serves ------------------------------------------------------------------------------------

  /** The address it asked for or had, where that is one for VMs, or the first free one of the pool. */
  #address(s: Segment, r: AttachRequest): string {
    const asked = r.addresses[0]?.split('/')[0]
    const had = s.entries.get(r.id)?.address
    const taken = new Set([...s.entries].flatMap(([id, e]) => (id === r.id ? [] : [e.address])))
    const { name, services, hostAddress } = s.spec
    const usable = [numberOf(services) + 1, numberOf(hostAddress) - 1] as const
    const fits = (a: string): boolean => numberOf(a) >= usable[0] && numberOf(a) <= usable[1]
    if (asked !== undefined && fits(asked) && !taken.has(asked)) return asked
    if (had !== undefined && had !== null && fits(had)) return had
    const [first, last] = s.spec.pool?.map(numberOf) ?? usable
    for (let n = first as number; n <= (last as number); n++) if (!taken.has(textOf(n))) return textOf(n)
    throw new NoidError('POOL_EXHAUSTED', {
      network: name,
      range: `${textOf(first as number)}-${textOf(last as number)}`,
    })
  }

  #join(link: Link, e: Entry): Promise<unknown> {
    const { id, name, mac } = e.request
    return link.request({ op: 'member', id, name, mac, address: e.address as string, bound: e.bound ?? false })
  }

  #unserved({ id, name }: NetworkSpec, dir: string): Pick<Segment, 'entries' | 'process' | 'services'> {
    const process = new DataPlaneProcess(dir, name, this.#ctx.log)
    const services = new Supervisor(process, {
      what: 'services',
      network: id,
      ctx: this.#ctx,
      onLease: (attachment, state) => this.#leased(id, attachment, state === 'bound'),
      bringBack: () => this.#serially(() => this.#services(this.#segment(id), AbortSignal.timeout(SERVICES_MS))),
    })
    return { entries: readEntries(dir), process, services }
  }

  /** Leases live on when the services are started anew. */
  #leased(network: NetworkId, id: AttachmentId, bound: boolean): void {
    const s = this.#segments.get(network)
    const e = s?.entries.get(id)
    if (s === undefined || e === undefined || (e.bound ?? false) === bound) return
    s.entries.set(id, { ...e, bound })
    this.#save(s)
  }

  /** DHCP and names of the segment: a data plane with a macvtap on the same parent. */
  async #services(s: Segment, signal: AbortSignal): Promise<Link> {
    if (s.services.link !== undefined) return s.services.link
    const { spec, config } = s
    return s.services.connect(signal, async ({ link, hello }) => {
      const { mtu } = await this.#parent(config)
      const network = networkConfig(spec, { mtu, isolated: false, medium: 'bridge', allowHostPorts: [] })
      await link.request({ op: 'configure', network, resolvers: [] })
      if (!hello.uplink) {
        const ifname = tapName(`services ${spec.id}`)
        await removeMacvtap(ifname)
        await addMacvtap(config, ifname, gatewayMac(spec.services), network.mtu)
        await link.give({ op: 'uplink', fds: 1, vnetHdr: true }, await openMacvtap(ifname, this.#dir(spec.id)))
      }
      for (const e of s.entries.values())
        if (!hello.attachments.includes(e.request.id) && e.address !== null) await this.#join(link, e)
    })
  }

  // -- what is written down ------------------------------------------------------------------------------------------

  #dir(id: NetworkId): string {
    return join(this.#ctx.runDir, id)
  }

  #save(s: Segment): void {
    writeState(join(this.#dir(s.spec.id), 'macvtap.json'), Object.fromEntries(s.entries))
  }

  #segment(id: NetworkId): Segment {
    const s = this.#segments.get(id)
    if (s === undefined) throw new NoidError('NETWORK_UNKNOWN', { name: id })
    return s
  }
}

function readEntries(dir: string): Map<AttachmentId, Entry> {
  return new Map(Object.entries(readState<Record<string, Entry>>(join(dir, 'macvtap.json')) ?? {}))
}

const numberOf = (address: string): number => address.split('.').reduce((n, part) => n * 256 + Number(part), 0)
const textOf = (n: number): string => [n >>> 24, (n >>> 16) & 255, (n >>> 8) & 255, n & 255].join('.')

const present = (id: AttachmentId, e: Entry): boolean =>
  e.kind === 'netdev'
    ? macvlanThere(e.request.netns as string, e.request.mac)
    : readdirSync('/sys/class/net').includes(tapName(id))

async function removeDevice(id: AttachmentId, e: Entry): Promise<void> {
  if (e.kind === 'tap-device') await removeMacvtap(tapName(id))
  else if (macvlanThere(e.request.netns as string, e.request.mac)) await removeMacvlan(e.request.netns as string)
}
