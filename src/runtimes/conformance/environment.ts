/**
 * The surroundings of a runtime under test: fresh directories, one network of a real backend, and VMs that are brought up on it as the
 * daemon brings them up: provide → prepare → attach → start.
 *
 * Owns: everything it made; `close` removes it in the reverse order, also after a failure, and then looks for what the runtime left behind.
 * `again` loads the runtime anew over the same directories and takes handles through JSON, as a daemon that was killed and started again does.
 * Never does: looking inside a runtime.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Attachment, BackendDescriptor, NetworkBackend, NetworkSpec } from '../../plugins/contract.ts'
import { userspace } from '../../plugins/sources.ts'
import type { ExecRequest, ExecSession, Runtime, RuntimeDescriptor, VmHandle, VmSpec } from '../contract.ts'

export interface KitOptions {
  /** What the cases are called by. */
  readonly label?: string
  /** The image of the VMs; the runtime's own when left out. */
  readonly image?: string
  readonly memMib?: number
  /** Who gives the nics; noid's userspace backend when left out. */
  readonly backend?: BackendDescriptor
  /** What that backend's parseConfig is given. */
  readonly config?: unknown
  /** The third octet of the kit's subnet, 10.214.N.0/24; where the backend has IPv6, fd00:10:214:N::/64 besides. */
  readonly subnet?: number
  /** Only the cases of this group. */
  readonly group?: string
  readonly log?: (message: string) => void
}

export interface Vm {
  readonly spec: VmSpec
  handle: VmHandle
  attachment: Attachment
  readonly address: string
  /** Of a backend without IPv6 nobody has one. */
  readonly address6: string | undefined
}

export interface Ran {
  readonly code: number
  readonly out: string
  readonly err: string
}

/** Under software emulation on a busy machine everything takes long; only what hangs is cut off. */
const VERB_MS = 300_000
export const EXEC_MS = 60_000
const GRACE_MS = 15_000

export class Environment {
  readonly descriptor: RuntimeDescriptor
  readonly options: KitOptions
  runtime!: Runtime
  readonly #dir: string
  #backend!: NetworkBackend
  #network!: NetworkSpec
  readonly #vms = new Set<Vm>()
  #serial = 0
  #shared: Promise<Vm> | undefined

  private constructor(d: RuntimeDescriptor, o: KitOptions) {
    this.descriptor = d
    this.options = o
    this.#dir = mkdtempSync(join(tmpdir(), 'noid-rt-'))
  }

  static async open(d: RuntimeDescriptor, o: KitOptions): Promise<Environment> {
    const e = new Environment(d, o)
    await e.again()
    const context = {
      runDir: join(e.#dir, 'net'),
      stateDir: join(e.#dir, 'net-state'),
      privileged: process.getuid?.() === 0,
      log: (level: string, message: string) => o.log?.(`${level}: ${message}`),
      notify: () => {},
    }
    for (const dir of [context.runDir, context.stateDir]) mkdirSync(dir, { recursive: true, mode: 0o700 })
    const backend = o.backend ?? (await userspace())
    e.#backend = (await backend.load())(context)
    const n = o.subnet ?? process.pid % 256
    const net = `10.214.${n}`
    const six = `fd00:10:214:${n.toString(16)}::`
    e.#network = {
      id: 'kit',
      name: 'kit',
      subnet: `${net}.0/24`,
      gateway: `${net}.1`,
      services: `${net}.2`,
      hostAddress: `${net}.254`,
      domain: 'noid.internal',
      mtu: 1500,
      isolated: false,
      allowHostPorts: [],
      ...(backend.capabilities.ipv6
        ? { ipv6: { subnet: `${six}/64`, gateway: `${six}1`, services: `${six}2`, hostAddress: `${six}254` } }
        : {}),
      config: await e.#backend.parseConfig(o.config),
    }
    await e.#backend.createNetwork(e.#network, e.signal())
    return e
  }

  /** Those of the runtime. */
  get directories(): { readonly run: string; readonly state: string } {
    return { run: join(this.#dir, 'run'), state: join(this.#dir, 'state') }
  }

  get gateway(): string {
    return this.#network.gateway
  }

  get gateway6(): string | undefined {
    return this.#network.ipv6?.gateway
  }

  /** Another instance over the same directories; what it is told of VMs went through JSON. */
  async again(): Promise<void> {
    await this.runtime?.close?.()
    this.runtime = (await this.descriptor.load())({
      privileged: process.getuid?.() === 0,
      runDir: join(this.#dir, 'run'),
      stateDir: join(this.#dir, 'state'),
      log: (level, message) => this.options.log?.(`${level}: ${message}`),
    })
    for (const vm of this.#vms) vm.handle = JSON.parse(JSON.stringify(vm.handle)) as VmHandle
  }

  signal(): AbortSignal {
    return AbortSignal.timeout(VERB_MS)
  }

  /** A VM of which nothing was made but its directory. */
  spec(over: Partial<VmSpec> = {}): VmSpec {
    const n = this.#serial++
    const id = `v${createHash('sha256').update(`${this.#dir} ${n}`).digest('hex').slice(0, 10)}`
    const dir = join(this.#dir, 'state', 'vms', id)
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    const image = this.options.image === undefined ? {} : { image: this.options.image }
    return { id, name: `kit${n}`, dir, cpus: 1, memMib: this.options.memMib ?? 256, ...image, ...over }
  }

  async up(spec = this.spec()): Promise<Vm> {
    await this.runtime.provide?.(spec, this.signal(), () => {})
    const prepared = await this.runtime.prepare(spec, this.signal())
    const attachment = await this.attach(spec, prepared)
    const { handle, nic } = await this.runtime.start(spec, prepared, attachment, attachment.dns, this.signal())
    const vm: Vm = { spec, handle, attachment, address: nic.address as string, address6: nic.address6 }
    this.#vms.add(vm)
    return vm
  }

  attach(spec: VmSpec, h: VmHandle): Promise<Attachment> {
    const host = 100 + (Number(spec.name.slice(3)) % 150)
    const net = this.#network.subnet.slice(0, this.#network.subnet.lastIndexOf('.'))
    const { ipv6 } = this.#network
    return this.#backend.attach(
      {
        id: spec.id,
        network: this.#network.id,
        name: spec.name,
        mac: `02:6b:00:00:00:${host.toString(16)}`,
        addresses: [
          `${net}.${host}/24`,
          ...(ipv6 === undefined ? [] : [`${ipv6.subnet.replace('/64', '')}${host}/64`]),
        ],
        accepts: this.descriptor.accepts,
        ...(h.netns === undefined ? {} : { netns: h.netns }),
        ...(h.wireNetns === undefined ? {} : { wireNetns: h.wireNetns }),
      },
      this.signal(),
    )
  }

  detach(id: string): Promise<void> {
    return this.#backend.detach(id, undefined, this.signal())
  }

  /** One that cases share which leave it as it was. */
  shared(): Promise<Vm> {
    this.#shared ??= this.up()
    return this.#shared
  }

  async down(vm: Vm): Promise<void> {
    await this.runtime.stop(vm.spec, vm.handle, GRACE_MS)
    await this.detach(vm.spec.id)
    await this.runtime.destroy(vm.spec)
    this.#vms.delete(vm)
  }

  exec(vm: Vm, argv: readonly string[], o: Partial<ExecRequest> = {}): Promise<ExecSession> {
    return this.runtime.exec(vm.spec, vm.handle, { argv, env: {}, tty: false, ...o })
  }

  /** A command with its whole output; bounded. */
  async run(vm: Vm, argv: readonly string[], o: Partial<ExecRequest> & { input?: string } = {}): Promise<Ran> {
    const { input, ...request } = o
    const s = await this.exec(vm, argv, request)
    s.stdin.on('error', () => {})
    s.stdin.end(input ?? '')
    const [out, err, code] = await within(argv.join(' '), Promise.all([collect(s.stdout), collect(s.stderr), s.exit]))
    return { code, out, err }
  }

  /** Command lines that name the kit's directory, and what of a VM's mark is left. */
  async leftovers(): Promise<string[]> {
    for (let t = 0; ; t++) {
      const left = processesWith(this.#dir)
      if (left.length === 0 || t === 100) return left
      await sleep(50)
    }
  }

  async close(): Promise<void> {
    const failed: unknown[] = []
    for (const vm of [...this.#vms]) await this.down(vm).catch((e: unknown) => failed.push(e))
    await this.#backend.deleteNetwork(this.#network.id, this.signal()).catch((e: unknown) => failed.push(e))
    await this.#backend.close().catch((e: unknown) => failed.push(e))
    await this.runtime.close?.()
    const left = await this.leftovers()
    rmSync(this.#dir, { recursive: true, force: true })
    if (failed.length > 0) throw failed[0]
    if (left.length > 0) throw new Error(`processes left behind: ${left.join('; ')}`)
  }
}

export function collect(stream: ExecSession['stdout'] | undefined): Promise<string> {
  if (stream === undefined) return Promise.resolve('')
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    stream.on('data', (c: Buffer) => chunks.push(c))
    stream.once('close', () => resolve(Buffer.concat(chunks).toString('utf8')))
    stream.once('error', reject)
  })
}

export async function within<T>(what: string, p: Promise<T>, ms = EXEC_MS): Promise<T> {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => late.reject(new Error(`${what}: nothing within ${ms / 1000} s`)), ms)
  try {
    return await Promise.race([p, late.promise])
  } finally {
    clearTimeout(timer)
  }
}

/** Waits until something of the stream matches; the rest stays for others. */
export function until(stream: ExecSession['stdout'], pattern: RegExp, what: string): Promise<string> {
  return within(
    what,
    new Promise((resolve, reject) => {
      let text = ''
      const take = (c: Buffer): void => {
        text += c.toString('utf8')
        if (!pattern.test(text)) return
        stream.off('data', take)
        // Nobody listens, but it must be read to its end.
        stream.resume()
        resolve(text)
      }
      stream.on('data', take)
      stream.once('close', () => reject(new Error(`${what}: it ended with ${JSON.stringify(text)}`)))
    }),
  )
}

function processesWith(text: string): string[] {
  return readdirSync('/proc').flatMap((pid) => {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) return []
    try {
      const line = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim()
      return line.includes(text) ? [`${line.slice(0, 160)} (pid ${pid})`] : []
    } catch {
      return []
    }
  })
}
