/**
 * The sandbox runtime: a VM made of Linux namespaces, with a kernel it shares. Convenient and quick; not a boundary
 * against somebody who attacks the kernel.
 *
 * Processes of a VM on the host: outer (`unshare --fork`, waits) → init (sh) → sleep. Nothing of noid's own. The first
 * stage (stage/main.ts) becomes outer; networking is configured from outside by short-lived stages (network.ts).
 * Everything lives in the VM's namespaces and ends with init; what stays is vm.dir, until destroy.
 *
 * Any of daemon, stage, outer and init may be killed at any moment: `stop` finds what is left by its mark (mark.ts).
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, statSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import type { Socket } from 'node:net'
import { dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { NoidError } from '../../errors.ts'
import type { Attachment, Resolver, Status } from '../../plugins/contract.ts'
import { childrenOf, closeOnExec, isRunning, processStat, signalExactly, signalNumber } from '../../sys/process.ts'
import type {
  ExecRequest,
  ExecSession,
  Obituary,
  Runtime,
  RuntimeContext,
  StartedNic,
  Tell,
  VmHandle,
  VmSpec,
} from '../contract.ts'
import { checkMachine } from './doctor.ts'
import { type SandboxState, tool } from './enter.ts'
import { execute } from './exec.ts'
import { holdNamespace, rootBase, userMap } from './identity.ts'
import { makeGroups, removeGroups, unenforced } from './limits.ts'
import { markedProcesses, markOf } from './mark.ts'
import { Networking } from './network.ts'
import type { StageSpec } from './stage/spec.ts'

const TERM = signalNumber('SIGTERM') as number
const KILL = signalNumber('SIGKILL') as number
const PREPARE_MS = 60_000
const self = fileURLToPath(import.meta.url)
/** The file beside this one that a process of its own runs, in the checkout (.ts) as when built (.js). */
const stageFile = join(dirname(self), 'stage', `main${self.slice(self.lastIndexOf('.'))}`)

export class Sandbox implements Runtime {
  readonly #ctx: RuntimeContext
  readonly #networking: Networking
  #usable = false

  constructor(ctx: RuntimeContext) {
    this.#ctx = ctx
    // The daemon may have been started with descriptors that are nobody's; a VM must not get them.
    closeOnExec(3)
    this.#networking = new Networking(ctx)
  }

  async status(): Promise<Status> {
    // What worked once goes on to work; what was missing may be there now.
    if (this.#usable) return { ok: true, problems: [] }
    const failed = (await checkMachine()).filter((c) => !c.ok && c.required)
    this.#usable = failed.length === 0
    return {
      ok: this.#usable,
      problems: failed.map((c) => ({ what: `${c.name}: ${c.detail}`, hint: c.hint })),
    }
  }

  async prepare(vm: VmSpec, signal: AbortSignal, tell?: Tell): Promise<VmHandle> {
    signal.throwIfAborted()
    tell?.('making its namespaces')
    await this.#end(vm.id)
    // A root that was not finished when its stage was killed.
    if (!existsSync(join(vm.dir, 'fs', 'seeded'))) await this.#removeFiles(vm)
    tool('nsenter')
    tool('setpriv')
    const spec: Omit<StageSpec, 'groups'> = {
      id: vm.id,
      name: vm.name,
      dir: resolve(vm.dir),
      privileged: this.#ctx.privileged,
      image: vm.image === undefined ? undefined : imageOf(vm.image),
      skeleton: join(this.#ctx.stateDir, 'skeleton'),
      mounts: vm.mounts ?? [],
      hide: [this.#ctx.runDir, this.#ctx.stateDir, '/var/lib/noid'],
    }
    mkdirSync(spec.dir, { recursive: true, mode: 0o700 })
    try {
      const groups = makeGroups(vm.id, vm).procs
      const child = this.#launch(vm, { ...spec, groups })
      await whenUp(child, signal)
      return this.#handle(vm, child.pid as number, groups)
    } catch (e) {
      await this.#end(vm.id)
      if (signal.aborted || e instanceof NoidError) throw e
      throw failure(vm, (e as Error).message)
    }
  }

  #launch(vm: VmSpec, spec: StageSpec): ChildProcess {
    const log = openSync(this.logFile(vm), 'a', 0o600)
    try {
      const child = spawn(
        process.execPath,
        ['--disable-warning=ExperimentalWarning', stageFile, JSON.stringify(spec), markOf(vm.id)],
        { detached: true, stdio: ['ignore', log, log, 'pipe'], cwd: '/', env: stageEnvironment() },
      )
      child.unref()
      return child
    } finally {
      closeSync(log)
    }
  }

  #handle(vm: VmSpec, outer: number, groups: readonly string[]): VmHandle {
    const o = processStat(outer)
    const i = childrenOf(outer)
      .map(processStat)
      .find((p) => p !== undefined && p.state !== 'Z')
    if (o === undefined || i === undefined) throw new Error('it ended at once')
    const map = this.#ctx.privileged ? undefined : readFileSync(`/proc/${i.pid}/uid_map`, 'utf8').trim().split('\n')
    const state: SandboxState = {
      outer,
      outerStart: o.startTime,
      dir: resolve(vm.dir),
      id: vm.id,
      name: vm.name,
      privileged: this.#ctx.privileged,
      owner: this.#ctx.privileged ? rootBase(vm.id) : (process.getuid?.() ?? 0),
      range: map === undefined || map.length > 1,
      groups,
    }
    return {
      pid: i.pid,
      startTime: i.startTime,
      netns: `/proc/${i.pid}/ns/net`,
      ...(this.#ctx.privileged ? {} : { wireNetns: `/proc/${outer}/ns/net` }),
      state,
    }
  }

  async start(
    vm: VmSpec,
    h: VmHandle,
    a: Attachment,
    dns: Resolver | undefined,
    signal: AbortSignal,
    tell?: Tell,
  ): Promise<{ handle: VmHandle; nic: StartedNic }> {
    if (!this.alive(h)) throw failure(vm, 'its first process has ended')
    tell?.(a.configuredBy === 'dhcp' ? 'asking for an address' : 'configuring its interface')
    const nic = await this.#networking.configure(vm, h, a, dns, signal)
    return { handle: h, nic }
  }

  renic(vm: VmSpec, h: VmHandle, a: Attachment, signal: AbortSignal): Promise<StartedNic> {
    if (!this.alive(h)) throw new NoidError('VM_NOT_RUNNING', { name: vm.name })
    return this.#networking.configure(vm, h, a, a.dns, signal)
  }

  async stop(vm: VmSpec, h: VmHandle | undefined, graceMs: number): Promise<void> {
    this.#networking.forget(vm.id)
    if (h !== undefined && signalExactly(h.pid, h.startTime, TERM) === 0) {
      const until = Date.now() + graceMs
      while (isRunning(h.pid, h.startTime) && Date.now() < until) await sleep(10)
      signalExactly(h.pid, h.startTime, KILL)
    }
    await this.#end(vm.id, h === undefined ? [] : [h])
  }

  /** Kill whatever carries the VM's mark and wait until it is gone, its namespaces and its groups with it. */
  async #end(vmId: string, known: readonly { readonly pid: number; readonly startTime: string }[] = []): Promise<void> {
    const until = Date.now() + 10_000
    // One that is ending has no arguments any more, but its namespaces still.
    const seen = new Map(known.map((p) => [p.pid, p.startTime]))
    for (;;) {
      const marked = markedProcesses(vmId)
      for (const p of marked) {
        seen.set(p.pid, p.startTime)
        signalExactly(p.pid, p.startTime, KILL)
      }
      const left = [...seen].find(([pid, startTime]) => isRunning(pid, startTime))
      if (marked.length === 0 && left === undefined) break
      if (Date.now() > until) throw new NoidError('INTERNAL', { why: `process ${left?.[0]} of a VM cannot be ended` })
      await sleep(5)
    }
    if (!(await removeGroups(vmId))) this.#ctx.log('warn', `the control groups of ${vmId} are still in use`)
  }

  alive(h: VmHandle): boolean {
    if (!isRunning(h.pid, h.startTime)) return false
    // A daemon that was started again asks this first: renewal of the lease goes on.
    this.#networking.adopt(h)
    return true
  }

  /** Its init says when it ends as it was told to (script.ts); one that was killed says nothing. */
  async obituary(vm: VmSpec): Promise<Obituary | undefined> {
    const said = readFileSync(this.logFile(vm), { encoding: 'utf8', flag: 'r' }).slice(-200).trimEnd()
    return said.endsWith(`noid: ${vm.name} has stopped`) ? { orderly: true } : undefined
  }

  exec(vm: VmSpec, h: VmHandle, r: ExecRequest): Promise<ExecSession> {
    if (!isRunning(h.pid, h.startTime)) throw new NoidError('VM_NOT_RUNNING', { name: vm.name })
    return execute(vm.name, h, h.state as SandboxState, r)
  }

  async destroy(vm: VmSpec): Promise<void> {
    this.#networking.forget(vm.id)
    await this.#end(vm.id)
    await this.#removeFiles(vm)
  }

  async #removeFiles(vm: VmSpec): Promise<void> {
    const fs = join(vm.dir, 'fs')
    if (!existsSync(fs)) return
    // Files of mapped users: only their namespace's root may remove them.
    if (!this.#ctx.privileged) await removeInside(fs)
    await rm(fs, { recursive: true, force: true })
  }

  unenforced(): Promise<string | undefined> {
    return unenforced()
  }

  logFile(vm: VmSpec): string {
    return join(vm.dir, 'init.log')
  }
}

/** Nothing of the daemon's environment but what Node and the tools need. */
function stageEnvironment(): Record<string, string> {
  const env: Record<string, string> = {
    PATH: `/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
    LANG: 'C.UTF-8',
  }
  if (process.env.HOME) env.HOME = process.env.HOME
  return env
}

function imageOf(image: string): NonNullable<StageSpec['image']> {
  const path = resolve(image)
  const s = statSync(path, { throwIfNoEntry: false })
  if (s === undefined) throw new NoidError('IMAGE_INVALID', { image, why: 'it does not exist' })
  if (s.isFile()) return { kind: 'tar', path }
  if (!s.isDirectory()) throw new NoidError('IMAGE_INVALID', { image, why: 'it is neither a directory nor an archive' })
  if (!existsSync(join(path, 'etc')) || !existsSync(join(path, 'bin')))
    throw new NoidError('IMAGE_INVALID', { image, why: 'it has no /bin or no /etc' })
  return { kind: 'directory', path }
}

const failure = (vm: VmSpec, why: string): NoidError =>
  vm.image !== undefined && why.startsWith('the image: ')
    ? new NoidError('IMAGE_INVALID', { image: vm.image, why: why.slice('the image: '.length) })
    : /unshare|user namespace|uid_map/.test(why)
      ? new NoidError('NAMESPACES_UNAVAILABLE', { why })
      : new NoidError('VM_START_FAILED', { name: vm.name, why })

/** Resolves at the stage's `up`; rejects with what it refused, or with its end. */
function whenUp(child: ChildProcess, signal: AbortSignal): Promise<void> {
  const control = child.stdio[3] as Socket
  return new Promise<void>((resolve, reject) => {
    let text = ''
    const timer = setTimeout(
      () => finish(new Error(`its first stage took longer than ${PREPARE_MS / 1000} s`)),
      PREPARE_MS,
    )
    const aborted = () => finish(signal.reason as Error)
    const finish = (e?: Error) => {
      clearTimeout(timer)
      signal.removeEventListener('abort', aborted)
      control.destroy()
      if (e === undefined) resolve()
      else reject(e)
    }
    signal.addEventListener('abort', aborted, { once: true })
    child.once('error', finish)
    control.on('error', finish)
    control.on('data', (chunk: Buffer) => {
      text += chunk.toString('utf8')
      const line = /^(up|error (.*))$/m.exec(text)
      if (line !== null) finish(line[1] === 'up' ? undefined : new Error(line[2]))
    })
    control.on('end', () => finish(new Error('its first stage ended before the VM was up')))
  })
}

async function removeInside(path: string): Promise<void> {
  const held = await holdNamespace(userMap(), false).catch(() => undefined)
  if (held === undefined) return rmSync(path, { recursive: true, force: true })
  try {
    await new Promise<void>((done) => {
      const argv = [`--user=${held.path}`, '--preserve-credentials', 'rm', '-rf', '--one-file-system', path]
      const child = spawn(tool('nsenter'), argv, { stdio: 'ignore' })
      child.once('error', () => done())
      child.once('close', () => done())
    })
  } finally {
    await held.release()
  }
}
