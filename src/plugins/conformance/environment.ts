/**
 * The surroundings of one case: a backend with fresh directories, networks nobody uses, guests in network namespaces.
 *
 * Owns: everything it made; `close` removes it in the reverse order, also after a failure. `restart` closes the backend and loads it
 * again over the same directories, as a daemon that was killed and started again would.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type {
  Attachment,
  AttachRequest,
  BackendContext,
  BackendDescriptor,
  BackendEvent,
  NetworkBackend,
  NetworkSpec,
  NicKind,
} from '../contract.ts'
import { Guest } from './guest.ts'
import { patiently } from './patience.ts'

export interface KitOptions {
  /** What the cases are called by, where one backend is held against the kit more than once. */
  readonly label?: string
  /** What parseConfig is given for every network (macvtap: its parent). */
  readonly config?: unknown
  /** The third octet of the first subnet the kit uses, 10.213.N.0/24 and up. */
  readonly firstSubnet?: number
  /** Only the cases of this group. */
  readonly group?: string
  /** Where the backend's own messages go. */
  readonly log?: (message: string) => void
}

const ACCEPTS: readonly NicKind[] = ['tap', 'netdev']
/** How long any one verb may take. */
const VERB_MS = 60_000

let serial = 0

export class Environment {
  readonly descriptor: BackendDescriptor
  readonly options: KitOptions
  readonly events: BackendEvent[] = []
  backend!: NetworkBackend
  readonly #dir: string
  readonly #networks = new Map<string, NetworkSpec>()
  readonly #attachments = new Map<string, Attachment>()
  readonly #guests: Guest[] = []

  private constructor(d: BackendDescriptor, o: KitOptions) {
    this.descriptor = d
    this.options = o
    this.#dir = mkdtempSync(join(tmpdir(), 'noid-kit-'))
  }

  static async open(d: BackendDescriptor, o: KitOptions): Promise<Environment> {
    const e = new Environment(d, o)
    await e.#load()
    return e
  }

  get context(): BackendContext {
    return {
      runDir: join(this.#dir, 'run'),
      stateDir: join(this.#dir, 'state'),
      privileged: process.getuid?.() === 0,
      log: (level, message) => this.options.log?.(`${level}: ${message}`),
      notify: (event) => this.events.push(event),
    }
  }

  async #load(): Promise<void> {
    this.backend = (await this.descriptor.load())(this.context)
  }

  /** The daemon dies and comes back: what it knew comes from its store, as JSON. */
  async restart(): Promise<void> {
    await this.backend.close()
    for (const [id, a] of this.#attachments) this.#attachments.set(id, JSON.parse(JSON.stringify(a)) as Attachment)
    await this.#load()
    for (const n of this.#networks.values()) await this.backend.createNetwork(n, this.signal())
  }

  signal(): AbortSignal {
    return AbortSignal.timeout(VERB_MS)
  }

  async spec(over: Partial<NetworkSpec> = {}): Promise<NetworkSpec> {
    const n = serial++
    const net = `10.213.${((this.options.firstSubnet ?? 16) + n) % 256}`
    return {
      id: `kit${n}`,
      name: `kit${n}`,
      subnet: `${net}.0/24`,
      gateway: `${net}.1`,
      services: `${net}.2`,
      hostAddress: `${net}.254`,
      domain: 'noid.internal',
      mtu: 1500,
      isolated: false,
      allowHostPorts: [],
      config: await this.backend.parseConfig(this.options.config),
      ...over,
    }
  }

  /** A network with both families. */
  async dual(over: Partial<NetworkSpec> = {}): Promise<NetworkSpec> {
    const net = `fd6b:6974:${this.options.firstSubnet ?? 16}:${(serial + 1).toString(16)}`
    return this.network({
      ipv6: { subnet: `${net}::/64`, gateway: `${net}::1`, services: `${net}::2`, hostAddress: `${net}::254` },
      ...over,
    })
  }

  async network(over: Partial<NetworkSpec> = {}): Promise<NetworkSpec> {
    const n = await this.spec(over)
    this.#networks.set(n.id, n)
    await this.backend.createNetwork(n, this.signal())
    return n
  }

  async removeNetwork(id: string): Promise<void> {
    await this.backend.deleteNetwork(id, this.signal())
    this.#networks.delete(id)
  }

  async guest(): Promise<Guest> {
    const g = await Guest.open()
    this.#guests.push(g)
    return g
  }

  request(n: NetworkSpec, g: Guest, name = `vm${serial++}`, host = 100 + this.#guests.indexOf(g)): AttachRequest {
    const hex = (v: number) => v.toString(16).padStart(2, '0')
    return {
      id: `${n.id}-${name}`,
      network: n.id,
      name,
      mac: `02:6b:${hex(serial >> 8)}:${hex(serial & 255)}:00:${hex(host)}`,
      addresses: [
        ...(n.ipv4 === false ? [] : [`${n.subnet.slice(0, n.subnet.lastIndexOf('.'))}.${host}/24`]),
        ...(n.ipv6 === undefined ? [] : [n.ipv6.subnet.replace('::/64', `::${host}/64`)]),
      ],
      accepts: ACCEPTS,
      netns: g.netns,
      wireNetns: g.wireNetns,
    }
  }

  async attach(r: AttachRequest): Promise<Attachment> {
    const a = await this.backend.attach(r, this.signal())
    this.#attachments.set(r.id, a)
    return a
  }

  /** As it stands in the store: after a restart, what went through JSON. */
  stored(id: string): Attachment | undefined {
    return this.#attachments.get(id)
  }

  async detach(id: string): Promise<void> {
    await this.backend.detach(id, this.#attachments.get(id), this.signal())
    this.#attachments.delete(id)
  }

  /** The other hand removed it, by gc or with its network. */
  forget(id: string): void {
    this.#attachments.delete(id)
  }

  async close(): Promise<void> {
    const failed: unknown[] = []
    const attempt = async (what: () => Promise<unknown>) => {
      try {
        await what()
      } catch (error) {
        failed.push(error)
      }
    }
    for (const id of [...this.#attachments.keys()]) await attempt(() => this.detach(id))
    for (const id of [...this.#networks.keys()]) await attempt(() => this.removeNetwork(id))
    for (const g of this.#guests) await attempt(() => g.close())
    await attempt(() => this.backend.close())
    await attempt(() => patiently(() => noProcesses(this.#dir)))
    rmSync(this.#dir, { recursive: true, force: true })
    if (failed.length > 0) throw failed[0]
  }
}

/** No command line names the case's directory: what the backend started for it has ended. */
function noProcesses(dir: string): void {
  const left = readdirSync('/proc').flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return []
    try {
      const line = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim()
      return line.includes(dir) ? [`${line.slice(0, 120)} (pid ${pid})`] : []
    } catch {
      return []
    }
  })
  if (left.length > 0) throw new Error(`processes left behind: ${left.join('; ')}`)
}
