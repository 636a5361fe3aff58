/**
 * Templates: the state of a freshly booted guest without an identity, kept so that later VMs start from it instead of booting.
 *
 *   templates/KEY/memory          the guest's RAM, a sparse file; every copy maps it privately (copy on write)
 *   templates/KEY/state           its devices (QEMU's migration stream without the RAM: x-ignore-shared)
 *   templates/KEY/disk.qcow2      its layer over the image, where the image has a disk; every VM gets a copy of this layer
 *   templates/KEY/template.json   what it was made of
 *
 * Theory. A VM of noid's own is booted aside, with a nic that leads nowhere, until its agent answers; then its RAM is in a shared file and
 * its devices are written down within milliseconds. The key is everything that must be equal for that state to fit: image, memory, cpus,
 * machine, accelerator, TSC, processor, QEMU's version. The nic's kind is no part of it: the nic has no driver in a template (guest/part); a
 * copy's is bound to its device anew (guest/identity) and reads features, MAC and MTU of the nic that is really there. A VM does not depend on its template once its
 * layer is copied and its QEMU started: templates may be thrown away at any time.
 *
 * Made in the background, one at a time, at low priority, never when memory or disk are short. A directory appears under its key when it is
 * whole. Never does: deciding whether a VM may start from one.
 */
import { createHash } from 'node:crypto'
import {
  chownSync,
  createWriteStream,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  utimesSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { setPriority } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { readState, writeState } from '../../state-file.ts'
import { signalExactly, signalNumber } from '../../sys/process.ts'
import type { RuntimeContext } from '../contract.ts'
import { rootBase } from '../sandbox/identity.ts'
import { AgentClient } from './agent/client.ts'
import { AGENT_SOCKET, type CommandSpec, commandLine, type Machine, QMP_SOCKET } from './command.ts'
import type { BootImage } from './image.ts'
import { PROGRAM, text } from './machine.ts'
import { nowhere } from './nic.ts'
import { freshOverlay } from './overlay.ts'
import { endAll, launch, markOf, named, tail } from './process.ts'
import { Qmp } from './qmp.ts'

const KILL = signalNumber('SIGKILL') as number
/** Raised when the state of an older noid does not fit any more. */
const SCHEMA = 1
const BOOT_MS = 120_000
const SAVE_MS = 30_000
const POLL_MS = 20
/** After this many failures for one key nobody tries again until the daemon is started again. */
const TRIES = 3
/** Templates that are kept; the one that was not used for longest goes first. */
const KEEP = 6
/** What must be left when a template is there. */
const SPARE_MEMORY = 512 << 20
const SPARE_DISK = 2 << 30
const NICE = 10
const PART = ['/run/noid/busybox', 'sh', '/run/noid/part']
/** The guest's agent notices that its host is gone, and its last pages settle. */
const SETTLE_MS = 150

export interface TemplateSpec {
  readonly image: BootImage
  readonly machine: Machine
  readonly cpus: number
  readonly memMib: number
  readonly version: string
}

export interface Template {
  readonly key: string
  readonly memory: string
  readonly state: string
  readonly disk: string | undefined
}

interface Kept {
  readonly schema: number
  readonly image: string
  readonly machine: Machine
  readonly version: string
}

export class Templates {
  readonly #ctx: RuntimeContext
  readonly #dir: string
  /** NOID_TEMPLATES=0: every VM boots cold, and no memory is kept for the next one. */
  readonly #off = process.env.NOID_TEMPLATES === '0'
  readonly #failed = new Map<string, number>()
  /** Only this daemon's are ever ended: two daemons of one machine have different names for theirs. */
  readonly #vmId: string
  #making: Promise<void> | undefined
  #cleared: Promise<void> | undefined

  constructor(ctx: RuntimeContext) {
    this.#ctx = ctx
    this.#dir = join(ctx.stateDir, 'templates')
    this.#vmId = `template-${createHash('sha256').update(this.#dir).digest('hex').slice(0, 10)}`
    // One that is being made is worth nothing to nobody else.
    process.once('exit', () => this.#endNow())
  }

  find(s: TemplateSpec): Template | undefined {
    if (this.#off) return undefined
    const key = keyOf(s)
    const dir = join(this.#dir, key)
    if (!existsSync(join(dir, 'template.json'))) return undefined
    const now = new Date()
    utimesSync(dir, now, now)
    return templateIn(dir, key, s.image.disk !== undefined)
  }

  /** It did not fit: the next cold boot makes another one. */
  drop(t: Template): void {
    rmSync(join(this.#dir, t.key), { recursive: true, force: true })
    this.#failed.set(t.key, (this.#failed.get(t.key) ?? 0) + 1)
  }

  /** Have one made in the background, unless it is there, one is being made, or there is no room. */
  want(s: TemplateSpec): void {
    if (this.#off) return
    const key = keyOf(s)
    if (this.#making !== undefined || existsSync(join(this.#dir, key)) || (this.#failed.get(key) ?? 0) >= TRIES) return
    const short = this.#shortage(s.memMib)
    if (short !== undefined) return this.#ctx.log('info', `no template is made: ${short}`)
    this.#making = this.#make(key, s)
      .catch((e: unknown) => {
        this.#failed.set(key, (this.#failed.get(key) ?? 0) + 1)
        this.#ctx.log('warn', `a template could not be made: ${(e as Error).message}`)
      })
      .finally(() => {
        this.#making = undefined
      })
  }

  /** Resolves when none is being made; for tests. */
  async idle(): Promise<void> {
    await this.#making
  }

  /** End the one that is being made. */
  async close(): Promise<void> {
    if (this.#making === undefined) return
    this.#endNow()
    await this.#making
  }

  /** What a daemon that was killed left half-made. Once in a daemon's life. */
  clear(): Promise<void> {
    this.#cleared ??= (async () => {
      await endAll(this.#vmId)
      rmSync(this.#work, { recursive: true, force: true })
      rmSync(this.#run, { recursive: true, force: true })
    })()
    return this.#cleared
  }

  /** All there are, with what they were made of. */
  list(): { readonly key: string; readonly kept: Kept; readonly bytes: number; remove(): void }[] {
    return names(this.#dir).flatMap((key) => {
      const dir = join(this.#dir, key)
      const kept = readState<Kept>(join(dir, 'template.json'))
      if (kept === undefined) return []
      const bytes = names(dir).reduce((n, f) => n + statSync(join(dir, f)).blocks * 512, 0)
      return [{ key, kept, bytes, remove: () => rmSync(dir, { recursive: true, force: true }) }]
    })
  }

  // -- making one --------------------------------------------------------------------------------------------------------
  get #work(): string {
    return join(this.#dir, '.new')
  }

  get #run(): string {
    return join(this.#ctx.runDir, 'qemu', this.#vmId)
  }

  async #make(key: string, s: TemplateSpec): Promise<void> {
    await this.clear()
    const began = performance.now()
    const t = templateIn(this.#work, key, s.image.disk !== undefined)
    for (const dir of [this.#work, this.#run]) mkdirSync(dir, { recursive: true, mode: 0o700 })
    try {
      if (t.disk !== undefined && s.image.disk !== undefined)
        await freshOverlay(t.disk, s.image.disk.file, s.image.disk.format)
      const qemu = launch({
        program: PROGRAM,
        argv: commandLine(this.#command(t, s)),
        cwd: this.#run,
        log: join(this.#work, 'qemu.log'),
        fds: [],
      })
      lowPriority(qemu.pid)
      const dead = qemu.ended.then((why): never => {
        throw new Error(`QEMU: ${why} ${tail(join(this.#work, 'qemu.log'), 2)}`)
      })
      dead.catch(() => {})
      await Promise.race([this.#ripen(), dead])
      await Promise.race([this.#save(t.state), dead])
    } finally {
      await endAll(this.#vmId)
      rmSync(this.#run, { recursive: true, force: true })
    }
    for (const log of ['qemu.log', 'console.log']) rmSync(join(this.#work, log), { force: true })
    const kept: Kept = { schema: SCHEMA, image: s.image.id, machine: s.machine, version: s.version }
    writeState(join(this.#work, 'template.json'), kept)
    renameSync(this.#work, join(this.#dir, key))
    this.#ctx.log('info', `a template was made in ${Math.round(performance.now() - began)} ms`)
    this.#thin(key)
  }

  #command(t: Template, s: TemplateSpec): CommandSpec {
    return {
      ...commonCommand(s),
      mark: markOf(this.#vmId),
      memory: { mib: s.memMib, file: t.memory, share: true },
      ...(t.disk === undefined ? {} : { disk: t.disk }),
      hostname: 'noid',
      netdev: nowhere(this.#run).netdev,
      mac: '02:00:00:00:00:01',
      mtu: 1500,
      serialLog: join(this.#work, 'console.log'),
      // QEMU gives its disk up before it writes the state, for which it opens it again by its path: another user could not.
      ...(this.#ctx.privileged && t.disk === undefined ? { runAs: userOf(this.#vmId) } : {}),
    }
  }

  /** Until its agent answers and its nic has no driver: what a copy's nic does not offer must not be in use. */
  async #ripen(): Promise<void> {
    const agent = await AgentClient.connect(join(this.#run, AGENT_SOCKET), AbortSignal.timeout(BOOT_MS))
    try {
      const session = await agent.exec({ argv: PART, env: {}, tty: false })
      session.stdin.end()
      session.stdout.resume()
      session.stderr?.resume()
      const code = await session.exit
      if (code !== 0) throw new Error(`its nic could not be parted from its driver (${code})`)
    } finally {
      agent.close()
    }
    await sleep(SETTLE_MS)
  }

  /** Not stopped before: a state that was written while running goes on by itself when it is read. */
  async #save(file: string): Promise<void> {
    const path = join(this.#run, 'state')
    const server = createServer()
    const received = new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.once('connection', (s) => {
        pipeline(s, createWriteStream(file, { mode: 0o600 })).then(resolve, reject)
      })
    })
    received.catch(() => {})
    await new Promise<void>((resolve) => server.listen(path, resolve))
    // QEMU may be another user by now.
    if (this.#ctx.privileged)
      for (const p of [this.#run, path]) chownSync(p, rootBase(this.#vmId), rootBase(this.#vmId))
    const qmp = await Qmp.connect(join(this.#run, QMP_SOCKET))
    try {
      await qmp.execute('migrate-set-capabilities', IGNORE_SHARED)
      await qmp.execute('migrate', { uri: 'unix:state' })
      for (const until = Date.now() + SAVE_MS; ; await sleep(POLL_MS)) {
        const answer = await qmp.execute<{ status?: string; 'error-desc'?: string }>('query-migrate')
        const { status } = answer
        if (status === 'completed') break
        if (status === 'failed' || status === 'cancelled' || Date.now() > until)
          throw new Error(`its state could not be written (${answer['error-desc'] ?? status})`)
      }
      await received
    } finally {
      qmp.close()
      server.close()
    }
  }

  #shortage(memMib: number): string | undefined {
    const needed = memMib << 20
    const available = Number(/^MemAvailable:\s+(\d+) kB/m.exec(text('/proc/meminfo'))?.[1] ?? 0) * 1024
    if (available < needed + SPARE_MEMORY) return `${Math.round(available / 2 ** 20)} MiB of memory are free`
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
    const disk = statfsSync(this.#dir)
    const free = disk.bavail * disk.bsize
    return free < needed + SPARE_DISK ? `${Math.round(free / 2 ** 20)} MiB are free below ${this.#dir}` : undefined
  }

  #thin(newest: string): void {
    const old = names(this.#dir)
      .filter((n) => n !== newest && !n.startsWith('.'))
      .map((n) => ({ n, used: statSync(join(this.#dir, n)).mtimeMs }))
      .sort((a, b) => b.used - a.used)
      .slice(KEEP - 1)
    for (const { n } of old) rmSync(join(this.#dir, n), { recursive: true, force: true })
  }

  #endNow(): void {
    if (this.#making !== undefined) for (const p of named(this.#vmId)) signalExactly(p.pid, p.startTime, KILL)
  }
}

/** Memory that lies in a file of its own is no part of the state. */
const IGNORE_SHARED = { capabilities: [{ capability: 'x-ignore-shared', state: true }] }

/** Tell a QEMU that was started with `incoming` to go on from the state on its descriptor. */
export async function resume(socket: string, stateFd: number, signal: AbortSignal): Promise<void> {
  const qmp = await Qmp.opening(socket, signal)
  try {
    await qmp.execute('migrate-set-capabilities', IGNORE_SHARED)
    await qmp.execute('migrate-incoming', { uri: `fd:${stateFd}` })
  } finally {
    qmp.close()
  }
}

export const userOf = (vmId: string): string => `${rootBase(vmId)}:${rootBase(vmId)}`

/** The part of the command line that a template and its copies have in common. */
export const commonCommand = (
  s: Pick<TemplateSpec, 'image' | 'machine' | 'cpus'>,
): Pick<CommandSpec, 'machine' | 'cpus' | 'kernel' | 'initrd' | 'append'> => ({
  machine: s.machine,
  cpus: s.cpus,
  kernel: s.image.kernel,
  ...(s.image.initrd === undefined ? {} : { initrd: s.image.initrd }),
  append: s.image.append,
})

function keyOf(s: TemplateSpec): string {
  const parts = {
    schema: SCHEMA,
    image: s.image.id,
    memMib: s.memMib,
    cpus: s.cpus,
    machine: s.machine,
    version: s.version,
    // Under KVM the guest sees the host's processor; tcg's speed of the TSC is in `machine`.
    processor: s.machine.accel === 'kvm' ? /^model name\s*:.*$/m.exec(text('/proc/cpuinfo'))?.[0] : undefined,
  }
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 24)
}

const templateIn = (dir: string, key: string, hasDisk: boolean): Template => ({
  key,
  memory: join(dir, 'memory'),
  state: join(dir, 'state'),
  disk: hasDisk ? join(dir, 'disk.qcow2') : undefined,
})

function names(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}

/** It must not delay what people wait for. */
function lowPriority(pid: number): void {
  try {
    setPriority(pid, NICE)
  } catch {
    // It has ended.
  }
}
