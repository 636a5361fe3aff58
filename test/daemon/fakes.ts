/**
 * A backend and a runtime that make files instead of networks and VMs, so that what is left behind can be listed, also
 * after the daemon was killed: one file below `world` for each thing that exists. VMs are real processes (`sleep`).
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { NoidError } from '../../src/errors.ts'
import type {
  Attachment,
  BackendContext,
  BackendDescriptor,
  CaptureOptions,
  NetworkBackend,
  NetworkSpec,
  PublishSpec,
} from '../../src/plugins/contract.ts'
import type { Obituary, Runtime, RuntimeDescriptor, StartedNic } from '../../src/runtimes/contract.ts'
import { isRunning, processStat } from '../../src/sys/process.ts'
import { eventually } from '../eventually.ts'

/** How the fakes misbehave, read from a file before each call, so that a test can change it while the daemon runs. */
export interface Mood {
  readonly failAttach?: boolean
  /** An attach makes what it makes, and ends by its signal alone. */
  readonly hangAttach?: boolean
  readonly failStart?: boolean
  readonly hangStatus?: boolean
  readonly failDetach?: boolean
  readonly hangCheck?: boolean
  readonly slowMs?: number
  /** How many ranges of users the runtime has for VMs; as many as there are ids without it. */
  readonly ranges?: number
  /** What the runtime says of a VM that ended on its own. */
  readonly obituary?: Obituary
}

export class World {
  readonly dir: string

  constructor(dir: string) {
    this.dir = dir
    mkdirSync(dir, { recursive: true })
  }

  list = (): string[] =>
    readdirSync(this.dir)
      .filter((f) => !f.startsWith('.'))
      .sort()
  has = (name: string): boolean => existsSync(join(this.dir, name))
  put = (name: string, text = ''): void => writeFileSync(join(this.dir, name), text)
  get = (name: string): string => readFileSync(join(this.dir, name), 'utf8')
  drop = (name: string): void => rmSync(join(this.dir, name), { force: true })
  get mood(): Mood {
    return this.has('.mood') ? (JSON.parse(this.get('.mood')) as Mood) : {}
  }
  set mood(m: Mood) {
    this.put('.mood', JSON.stringify(m))
  }
  /** Calls in order, for tests that ask what was done. */
  called = (what: string): void => appendFileSync(join(this.dir, '.calls'), `${what}\n`)
  calls = (): string[] => (this.has('.calls') ? this.get('.calls').trimEnd().split('\n') : [])
}

const startTime = (pid: number): string => processStat(pid)?.startTime ?? ''

class FakeBackend implements NetworkBackend {
  readonly #w: World
  readonly #ctx: BackendContext

  constructor(w: World, ctx: BackendContext) {
    this.#w = w
    this.#ctx = ctx
    // A test that wants an event of the backend writes it here.
    setInterval(() => {
      if (!w.has('.event')) return
      const e = JSON.parse(w.get('.event'))
      w.drop('.event')
      this.#ctx.notify(e)
    }, 20).unref()
  }

  parseConfig(raw: unknown): unknown {
    for (const k of Object.keys(raw as object)) if (k !== 'colour') throw new Error(`unknown key ${k}`)
    return raw
  }
  async status() {
    if (this.#w.mood.hangStatus) await new Promise(() => {})
    return { ok: true, problems: [] }
  }
  async createNetwork(n: NetworkSpec) {
    this.#w.called(`createNetwork ${n.id}`)
    this.#w.put(`.spec-${n.name}`, JSON.stringify(n))
    this.#w.put(`net-${n.id}`)
  }
  async deleteNetwork(id: string) {
    this.#w.drop(`net-${id}`)
  }
  async attach(...[r, signal]: Parameters<NetworkBackend['attach']>): Promise<Attachment> {
    this.#w.called(`attach ${r.name}`)
    this.#w.put(`.attach-${r.name}`, JSON.stringify(r))
    await sleep(this.#w.mood.slowMs ?? 1)
    this.#w.put(`att-${r.network}-${r.id}`)
    if (this.#w.mood.failAttach) throw new Error('the fake does not attach')
    if (this.#w.mood.hangAttach) {
      await eventually('its signal', () => signal.aborted)
      this.#w.called(`attach ${r.name} ended: ${(signal.reason as Error).message}`)
      throw signal.reason
    }
    return {
      id: r.id,
      network: r.network,
      nic: { kind: 'tap', ifname: 'eth0', queues: 1, vnetHdr: true },
      mac: r.mac,
      mtu: 1500,
      addresses: r.addresses,
      routes: [],
      configuredBy: 'dhcp',
      state: { some: 'thing' },
    }
  }
  async detach(id: string) {
    if (this.#w.mood.failDetach) throw new Error('the fake does not detach')
    for (const f of this.#w.list()) if (f.startsWith('att-') && f.endsWith(`-${id}`)) this.#w.drop(f)
  }
  async check(a: Attachment) {
    if (this.#w.mood.hangCheck) await new Promise(() => {})
    if (!this.#w.has(`att-${a.network}-${a.id}`)) throw new Error('gone')
  }
  async gc(n: string, valid: readonly string[]) {
    const removed: string[] = []
    for (const f of this.#w.list()) {
      const id = f.startsWith(`att-${n}-`) ? f.slice(`att-${n}-`.length) : undefined
      if (id === undefined || valid.includes(id)) continue
      this.#w.drop(f)
      removed.push(id)
    }
    return { removed }
  }
  async close() {}
  ports = {
    publish: async (p: PublishSpec) => {
      this.#w.put('.publish', JSON.stringify(p))
      const mine = this.#w.list().find((f) => f.startsWith('pub-') && this.#w.get(f) === p.id)
      if (mine !== undefined) return { hostPort: Number(mine.split('-')[2]) }
      let port = p.hostPort
      if (port === 0) for (port = 40000; this.#w.has(`pub-${p.proto}-${port}`); port++);
      if (this.#w.has(`pub-${p.proto}-${port}`))
        throw new NoidError('PORT_BUSY', { proto: p.proto, port, address: p.hostAddress, holder: 'nginx (pid 7)' })
      this.#w.put(`pub-${p.proto}-${port}`, p.id)
      return { hostPort: port }
    },
    unpublish: async (id: string) => {
      for (const f of this.#w.list()) if (f.startsWith('pub-') && this.#w.get(f) === id) this.#w.drop(f)
    },
  }
  async stats() {
    return { flows: [], leases: [], drops: [], ports: [], warnings: [] }
  }
  /** Without end, as fast as it is read; what was read and that it was destroyed is in the world. */
  async capture(n: string, o: CaptureOptions) {
    this.#w.put('.capture', JSON.stringify({ network: n, ...o }))
    let given = 0
    return new Readable({
      read() {
        given += 65_536
        setImmediate(() => this.push(Buffer.alloc(65_536)))
      },
      destroy: (_e, done) => {
        this.#w.put('.captured', String(given))
        done(null)
      },
    })
  }
}

function nicOf(a: Attachment): StartedNic {
  const all = a.addresses.map((x) => x.split('/')[0] as string)
  const [address, address6] = [all.find((x) => !x.includes(':')), all.find((x) => x.includes(':'))]
  return {
    ...(address === undefined ? {} : { address }),
    ...(address6 === undefined ? {} : { address6 }),
    leaseMs: 3600_000,
  }
}

class FakeRuntime implements Runtime {
  readonly #w: World

  constructor(w: World) {
    this.#w = w
  }

  async status() {
    return { ok: true, problems: [] }
  }
  async prepare(vm: Parameters<Runtime['prepare']>[0]) {
    const child = spawn('sleep', ['300'], { detached: true, stdio: 'ignore' })
    child.unref()
    const pid = child.pid as number
    this.#w.put(`vm-${vm.id}`, String(pid))
    writeFileSync(join(vm.dir, 'log'), 'first\nsecond\nthird\n')
    return { pid, startTime: startTime(pid), netns: `/proc/${pid}/ns/net`, state: {} }
  }
  async start(...[, h, a]: Parameters<Runtime['start']>) {
    if (this.#w.mood.failStart) throw new NoidError('VM_START_FAILED', { name: 'x', why: 'the fake does not start' })
    return { handle: h, nic: nicOf(a) }
  }
  async renic(...[vm, , a]: Parameters<Runtime['renic']>) {
    this.#w.called(`renic ${vm.name}`)
    return nicOf(a)
  }
  async stop(...[vm]: Parameters<Runtime['stop']>) {
    if (!this.#w.has(`vm-${vm.id}`)) return
    const pid = Number(this.#w.get(`vm-${vm.id}`))
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // Gone already.
    }
    while (processStat(pid) !== undefined && processStat(pid)?.state !== 'Z') await sleep(5)
    this.#w.drop(`vm-${vm.id}`)
  }
  alive(h: { pid: number; startTime: string }) {
    return isRunning(h.pid, h.startTime)
  }
  async obituary() {
    return this.#w.mood.obituary
  }
  /** Files named .kept-KIND-NAME. */
  async leftovers(vms: Parameters<NonNullable<Runtime['leftovers']>>[0], images: boolean) {
    return readdirSync(this.#w.dir).flatMap((file) => {
      const [, kind, name] = /^\.kept-(image|template)-(.+)$/.exec(file) ?? []
      if (kind === undefined || name === undefined) return []
      if (kind === 'image' && (!images || vms.some((v) => v.image === name && !v.going))) return []
      const remove = async (): Promise<boolean> => {
        if (name === 'stuck') throw new Error('the fake keeps it')
        this.#w.drop(file)
        return true
      }
      return [{ kind: kind as 'image' | 'template', name, bytes: 1, remove }]
    })
  }
  async exec(...[, , r]: Parameters<Runtime['exec']>) {
    const child = spawn(r.argv[0] as string, r.argv.slice(1), { env: { ...process.env, ...r.env }, detached: true })
    await once(child, 'spawn').catch((e: Error) => {
      throw new NoidError('EXEC_FAILED', { vm: 'x', why: e.message })
    })
    return {
      stdin: child.stdin,
      stdout: child.stdout,
      stderr: child.stderr,
      signal: (name: string) => void process.kill(-(child.pid as number), name as NodeJS.Signals),
      resize: () => {},
      exit: new Promise<number>((resolve) =>
        child.on('exit', (code, signal) => resolve(code ?? (signal === 'SIGHUP' ? 129 : 143))),
      ),
    }
  }
  async destroy() {}
  logFile(vm: { dir: string }) {
    return join(vm.dir, 'log')
  }
}

export const fakeBackend = (
  w: World,
  name: string,
  change: Partial<BackendDescriptor['capabilities']> = {},
): BackendDescriptor => ({
  name,
  apiVersion: 1,
  summary: 'files',
  provides: ['tap'],
  capabilities: {
    addressing: 'noid',
    privileges: [],
    publish: true,
    dns: true,
    isolation: true,
    ipv6: false,
    ...change,
  },
  load: async () => (ctx) => {
    const b: NetworkBackend = new FakeBackend(w, ctx)
    return name === 'bare' ? Object.assign(b, { capture: undefined }) : b
  },
})

export const rangeOf = (w: World, id: string): number =>
  Number.parseInt(id.slice(1), 16) % (w.mood.ranges ?? Number.MAX_SAFE_INTEGER)

export const fakeRuntime = (w: World): RuntimeDescriptor => ({
  name: 'sandbox',
  summary: 'sleep',
  accepts: ['tap', 'netdev'],
  usersOf: (id) => rangeOf(w, id),
  load: async () => () => new FakeRuntime(w),
})
