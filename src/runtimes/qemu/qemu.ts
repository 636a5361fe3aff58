/**
 * The qemu runtime: a VM with a kernel of its own.
 *
 * One process for each VM: QEMU, detached, with three sockets in the VM's run directory (0700): its control (QMP), its serial console, and
 * the port of the guest's agent, which is root in the guest. So the daemon may die: the next one finds the process by pid and start time, and
 * the sockets by their place. What must last (overlay, logs) is in vm.dir.
 *
 * A start tries, in this order: a template's copy (templates.ts), a cold boot on the best machine, a cold boot on q35. Whatever went wrong
 * with one is the next one's turn, with an overlay made anew; a VM that has run before keeps its overlay and boots cold.
 * A VM has no identity before `configure` (the agent): name, MAC, clock, random seed. Its IPv4 address it gets itself, by DHCP; the
 * IPv6 address that is reserved for it comes with `configure`, beside those that its kernel makes of router advertisements.
 *
 * Any of daemon and QEMU may be killed at any moment: `stop` finds what is left by its name (process.ts).
 * Never does: networks, addresses, a Node process for each VM.
 */
import { randomBytes } from 'node:crypto'
import { appendFileSync, closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { NoidError } from '../../errors.ts'
import { DEFAULT_IMAGE } from '../../images/index.ts'
import type { Attachment, Nic, Resolver, Status } from '../../plugins/contract.ts'
import { isRunning, signalExactly, signalNumber } from '../../sys/process.ts'
import type {
  ExecRequest,
  ExecSession,
  Leftover,
  Obituary,
  Runtime,
  RuntimeContext,
  StartedNic,
  Tell,
  Use,
  VmHandle,
  VmSpec,
} from '../contract.ts'
import { rootBase } from '../sandbox/identity.ts'
import { AgentLink, type GuestInfo, type GuestNetwork } from './agent/client.ts'
import { SerialLine } from './agent/serial.ts'
import { AGENT_SOCKET, CONSOLE_SOCKET, type CommandSpec, commandLine, type Machine, QMP_SOCKET } from './command.ts'
import { keepDoor, openDoor } from './door.ts'
import type { BootImage, ImageSource } from './image.ts'
import { leftovers } from './leftovers.ts'
import { Machines, PROGRAM, programPath, text } from './machine.ts'
import { copyMemory } from './memory.ts'
import { type OpenNic, openNic } from './nic.ts'
import { copyOverlay, freshOverlay } from './overlay.ts'
import { endAll, holdsTap, launch, markOf, type Running, tail, waitForEnd } from './process.ts'
import { Qmp } from './qmp.ts'
import { MICROVM_SHARES, mustShare, openShares, type Shares } from './shares.ts'
import { commonCommand, resume, type Template, type TemplateSpec, Templates, userOf } from './templates.ts'

const KILL = signalNumber('SIGKILL') as number
/** A socket's path, its NUL not counted; unix(7). */
const SUN_PATH_MAX = 107
const FIRST_FD = 3
/** How long a boot may be silent before another way is tried: ten times what it takes on a busy machine of two cores. */
const SILENT_MS = { template: 20_000, microvm: 45_000, q35: 150_000 } as const
const ADDRESS_MS = 30_000
const EXEC_CONNECT_MS = 15_000
const ORDER_MS = 3_000
const QUIT_MS = 2_000
const LAST_LINES = 5
/** Between two lives in the logs of QEMU and of the serial line. */
const STARTS = /^noid: starting .*$/m
const TSC_POLL_MS = 500
const TSC_TRIES = 60

/** What is remembered of a VM beside pid and start time. */
export interface QemuState {
  readonly id: string
  readonly name: string
  /** Where its sockets are. */
  readonly run: string
  readonly machine: Machine | null
  readonly nic: Nic | null
}

interface Attempt {
  readonly machine: Machine
  readonly template: Template | undefined
  readonly what: string
  readonly silentMs: number
}

export class Qemu implements Runtime {
  readonly #ctx: RuntimeContext
  readonly #images: ImageSource
  readonly #machines: Machines
  readonly #templates: Templates
  readonly #links = new Map<string, AgentLink>()
  readonly #lines = new Map<string, SerialLine>()

  constructor(ctx: RuntimeContext, images: ImageSource) {
    this.#ctx = ctx
    this.#images = images
    this.#machines = new Machines({ file: join(ctx.runDir, 'qemu', 'machine.json'), bootId: bootId() })
    this.#templates = new Templates(ctx)
    void this.#templates.clear()
  }

  async status(): Promise<Status> {
    const problems: { what: string; hint: string }[] = []
    for (const [program, debian] of [
      [PROGRAM, 'qemu-system-x86'],
      ['qemu-img', 'qemu-utils'],
    ] as const)
      if (programPath(program) === undefined)
        problems.push({ what: `the program ${program} is not installed`, hint: `apt-get install ${debian}` })
    if (process.arch !== 'x64')
      problems.push({
        what: `QEMU's VMs need an x86-64 machine, this is ${process.arch}`,
        hint: 'use --runtime sandbox',
      })
    return { ok: problems.length === 0, problems }
  }

  /** Said once: it makes everything in the VM several times slower. */
  async notice(): Promise<string | undefined> {
    const { kvm, why } = await this.#machines.find()
    return kvm ? undefined : `VMs run in software emulation (tcg), several times slower than with KVM: ${why}`
  }

  // -- provide, prepare, start --------------------------------------------------------------------------------------------------
  async provide(vm: VmSpec, signal: AbortSignal, tell: Tell): Promise<void> {
    const status = await this.status()
    if (!status.ok) throw new NoidError('RUNTIME_UNAVAILABLE', { name: 'qemu', ...firstProblem(status) })
    mustShare(vm, this.#ctx.privileged)
    await this.#images.resolve(vm, signal, tell)
  }

  async prepare(vm: VmSpec, signal: AbortSignal): Promise<VmHandle> {
    signal.throwIfAborted()
    await this.#end(vm.id)
    const run = this.#runDir(vm.id)
    if (Buffer.byteLength(join(run, 'console')) > SUN_PATH_MAX)
      throw new NoidError('VM_START_FAILED', {
        name: vm.name,
        why: `its sockets in ${run} would have names longer than ${SUN_PATH_MAX} bytes; choose a shorter NOID_HOME`,
      })
    mkdirSync(vm.dir, { recursive: true, mode: 0o700 })
    await this.#machines.find()
    signal.throwIfAborted()
    // There is nothing to hold yet: pid 0 is nobody.
    return { pid: 0, startTime: '0', state: { id: vm.id, name: vm.name, run, machine: null, nic: null } }
  }

  async start(
    vm: VmSpec,
    _h: VmHandle,
    a: Attachment,
    dns: Resolver | undefined,
    signal: AbortSignal,
  ): Promise<{ handle: VmHandle; nic: StartedNic }> {
    const image = await this.#images.resolve(vm, signal)
    // What was written in its former life must be found again: then it boots cold.
    const fresh = !existsSync(join(vm.dir, OVERLAY))
    let failure: unknown
    for (const attempt of await this.#attempts(vm, image, fresh)) {
      try {
        const started = await this.#boot(vm, image, a, dns ?? a.dns, attempt, signal)
        if (attempt.template === undefined) void this.#ripen(vm, image)
        return started
      } catch (e) {
        await this.#end(vm.id)
        if (fresh) rmSync(join(vm.dir, OVERLAY), { force: true })
        if (signal.aborted || !(e instanceof BootFailure)) throw e
        if (attempt.template !== undefined) this.#templates.drop(attempt.template)
        this.#ctx.log('warn', `${vm.name}: ${attempt.what}: ${e.message}`)
        failure = e
      }
    }
    throw new NoidError('VM_START_FAILED', { name: vm.name, why: (failure as Error).message }, { cause: failure })
  }

  async #attempts(vm: VmSpec, image: BootImage, fresh: boolean): Promise<Attempt[]> {
    const best = await this.#machines.machine()
    const cold = (machine: Machine): Attempt => ({
      machine,
      template: undefined,
      what: `a cold boot on ${machine.type}`,
      silentMs: SILENT_MS[machine.type],
    })
    const shares = vm.mounts?.length ?? 0
    const only = best.type === 'q35' || shares > MICROVM_SHARES
    const attempts = only ? [cold({ ...best, type: 'q35' })] : [cold(best), cold({ ...best, type: 'q35' })]
    // A share's state is in its server; an init of the image's own does not know that it is a copy.
    const ownInit = /\bnoid\.init=/.test(image.append)
    const template =
      fresh && shares === 0 && !ownInit ? this.#templates.find(await this.#templateSpec(vm, image, best)) : undefined
    if (template !== undefined)
      attempts.unshift({ machine: best, template, what: 'a start from a template', silentMs: SILENT_MS.template })
    return attempts
  }

  async #templateSpec(vm: VmSpec, image: BootImage, machine: Machine): Promise<TemplateSpec> {
    const { version } = await this.#machines.find()
    return { image, machine, cpus: vm.cpus, memMib: vm.memMib, version }
  }

  /** After a cold boot: what the next VMs profit from. */
  async #ripen(vm: VmSpec, image: BootImage): Promise<void> {
    try {
      // The host's TSC frequency stands in the log of a guest on q35, a second or two after its boot.
      for (let i = 0; i < TSC_TRIES && !(await this.#machines.learn(() => text(this.logFile(vm)))); i++)
        await sleep(TSC_POLL_MS, undefined, { ref: false })
      if (/\bnoid\.init=/.test(image.append)) return
      this.#templates.want(await this.#templateSpec(vm, image, await this.#machines.machine()))
    } catch (e) {
      this.#ctx.log('warn', `after the boot of ${vm.name}: ${(e as Error).message}`)
    }
  }

  async #boot(
    vm: VmSpec,
    image: BootImage,
    a: Attachment,
    dns: Resolver | undefined,
    attempt: Attempt,
    signal: AbortSignal,
  ): Promise<{ handle: VmHandle; nic: StartedNic }> {
    const run = this.#runDir(vm.id)
    rmSync(run, { recursive: true, force: true })
    mkdirSync(run, { recursive: true, mode: 0o700 })
    const disk = image.disk === undefined ? undefined : join(vm.dir, OVERLAY)
    if (disk !== undefined && image.disk !== undefined && !existsSync(disk)) {
      if (attempt.template?.disk !== undefined) await copyOverlay(disk, attempt.template.disk)
      else await freshOverlay(disk, image.disk.file, image.disk.format, signal)
    }
    const door = this.#ctx.privileged ? openDoor(a.nic, run, rootBase(vm.id)) : undefined
    const nic = openNic(a.nic, FIRST_FD, vm.dir, door)
    const device = attempt.machine.type === 'microvm' ? 'device' : 'pci'
    let shares: Shares
    let p: Running
    let memory: number | undefined
    try {
      if (attempt.template !== undefined && nic.sharedMemory)
        memory = await copyMemory(attempt.template.memory, signal).catch((e: unknown) => {
          throw new BootFailure((e as Error).message)
        })
      shares = openShares(vm, run, this.#qemuLog(vm), device, this.#ctx.privileged)
      const reaches = nic.fds.length > 0 || door !== undefined
      p = this.#launch(vm, run, image, a, nic, attempt, disk, shares, memory, reaches)
    } finally {
      nic.close()
      if (memory !== undefined) closeSync(memory)
    }
    const link = this.#link(vm.id, vm.name, run)
    const network = networkOf(a, dns)
    const guest = await this.#awaited(vm, p, attempt, signal, async (s) => {
      if (attempt.template !== undefined) await resume(join(run, QMP_SOCKET), FIRST_FD + nic.fds.length, s)
      const agent = await link.client(s)
      return agent.configure({
        hostname: vm.name,
        clock: true,
        seed: randomBytes(256),
        ...(attempt.template === undefined ? {} : { renew: true, machineId: true, hostKeys: true }),
        mounts: shares.mounts,
        ...(network === undefined ? {} : { network }),
        ...(a.configuredBy === 'dhcp' && network?.ipv4 !== false ? { waitMs: ADDRESS_MS } : {}),
      })
    }).catch((e: unknown) => {
      // Whatever is wrong with a copy, a cold boot may be right.
      throw attempt.template === undefined || signal.aborted ? e : new BootFailure((e as Error).message, { cause: e })
    })
    const state: QemuState = { id: vm.id, name: vm.name, run, machine: attempt.machine, nic: a.nic }
    return { handle: { pid: p.pid, startTime: p.startTime, state }, nic: nicOf(a, guest) }
  }

  #launch(
    vm: VmSpec,
    run: string,
    image: BootImage,
    a: Attachment,
    nic: OpenNic,
    attempt: Attempt,
    disk: string | undefined,
    shares: Shares,
    memory: number | undefined,
    reaches: boolean,
  ): Running {
    const { machine, template } = attempt
    for (const log of [this.logFile(vm), this.#qemuLog(vm)])
      appendFileSync(log, `\nnoid: starting ${vm.name} (${machine.type})\n`, { mode: 0o600 })
    const state = template === undefined ? undefined : openSync(template.state, 'r')
    const becomes = this.#ctx.privileged && reaches
    const disks = becomes && disk !== undefined ? [openSync(disk, 'r+'), openSync(disk, 'r')] : []
    try {
      const fds = [...nic.fds, ...(state === undefined ? [] : [state]), ...(memory === undefined ? [] : [memory])]
      const file = memory === undefined ? template?.memory : `/proc/self/fd/${FIRST_FD + fds.length - 1}`
      const spec: CommandSpec = {
        ...commonCommand({ image, machine, cpus: vm.cpus }),
        ...(shares.argv.length === 0 ? {} : { append: `${image.append} noid.mounts` }),
        mark: markOf(vm.id),
        memory: {
          mib: vm.memMib,
          share: nic.sharedMemory || shares.argv.length > 0,
          ...(file === undefined ? {} : { file }),
        },
        hostname: vm.name,
        ...(disk === undefined ? {} : { disk }),
        ...(disks.length === 0 ? {} : { diskFds: disks.map((_, i) => FIRST_FD + fds.length + i) }),
        before: [...nic.before, ...shares.argv],
        netdev: nic.netdev,
        mac: a.mac,
        mtu: a.mtu,
        serialLog: this.logFile(vm),
        incoming: template !== undefined,
        // Root's QEMU becomes a user of its own, unless that one could not reach its switch.
        ...(becomes ? { runAs: userOf(vm.id) } : {}),
      }
      return launch({
        program: PROGRAM,
        argv: commandLine(spec),
        cwd: run,
        log: this.#qemuLog(vm),
        fds: [...fds, ...disks],
      })
    } finally {
      for (const fd of disks) closeSync(fd)
      if (state !== undefined) closeSync(state)
    }
  }

  /** Something that a guest must answer, unless its QEMU ends or it is silent for too long. */
  async #awaited<T>(
    vm: VmSpec,
    p: Running,
    attempt: Attempt,
    signal: AbortSignal,
    fn: (s: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const stop = new AbortController()
    const onAbort = (): void => stop.abort(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    const silent = Promise.withResolvers<never>()
    const timer = setTimeout(
      () =>
        silent.reject(new BootFailure(`its agent did not answer within ${attempt.silentMs / 1000} s${this.#last(vm)}`)),
      attempt.silentMs,
    )
    try {
      return await Promise.race([
        fn(stop.signal),
        silent.promise,
        p.ended.then((why): never => {
          throw new BootFailure(`QEMU: ${why}${this.#last(vm)}`)
        }),
      ])
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
      stop.abort()
    }
  }

  async renic(vm: VmSpec, h: VmHandle, a: Attachment, signal: AbortSignal): Promise<StartedNic> {
    if (!this.alive(h)) throw new NoidError('VM_NOT_RUNNING', { name: vm.name })
    const s = h.state as QemuState
    // QEMU finds paths again by itself; a TAP that was made anew is not the one it holds.
    if (
      JSON.stringify(s.nic) !== JSON.stringify(a.nic) ||
      (a.nic.kind === 'tap' && !holdsTap(h.pid, FIRST_FD, a.nic.ifname))
    )
      throw new NoidError('VM_START_FAILED', {
        name: vm.name,
        why: 'its network device was made anew while it ran, which QEMU cannot take up; restart it',
      })
    const agent = await this.#link(s.id, s.name, s.run).client(signal)
    return nicOf(a, await agent.info())
  }

  // -- stop, destroy ---------------------------------------------------------------------------------------------------
  async stop(vm: VmSpec, h: VmHandle | undefined, graceMs: number): Promise<void> {
    const s = h?.state as QemuState | undefined
    if (h !== undefined && s !== undefined && isRunning(h.pid, h.startTime)) {
      if (graceMs > 0 && (await this.#order(vm, s))) await waitForEnd(h, graceMs)
      if (isRunning(h.pid, h.startTime) && (await quit(join(s.run, QMP_SOCKET)))) await waitForEnd(h, QUIT_MS)
      signalExactly(h.pid, h.startTime, KILL)
    }
    await this.#end(vm.id, h === undefined || h.pid === 0 ? [] : [h])
  }

  /** The guest is asked to end itself: by its agent, or by the power button where the machine has one. */
  async #order(vm: VmSpec, s: QemuState): Promise<boolean> {
    const late = AbortSignal.timeout(ORDER_MS)
    try {
      const agent = await this.#link(s.id, s.name, s.run).client(late)
      await Promise.race([
        agent.poweroff(),
        sleep(ORDER_MS, undefined, { ref: false }).then(() => Promise.reject(new Error('it does not answer'))),
      ])
      return true
    } catch (e) {
      this.#ctx.log('debug', `${vm.name}: its agent cannot end it: ${(e as Error).message}`)
    }
    if (s.machine?.type !== 'q35') return false
    return ask(join(s.run, QMP_SOCKET), 'system_powerdown')
  }

  async #end(vmId: string, known: readonly { readonly pid: number; readonly startTime: string }[] = []): Promise<void> {
    this.#links.get(vmId)?.close()
    this.#links.delete(vmId)
    this.#lines.delete(vmId)
    await endAll(vmId, known)
    rmSync(this.#runDir(vmId), { recursive: true, force: true })
  }

  async destroy(vm: VmSpec): Promise<void> {
    await this.#end(vm.id)
    this.#images.release(vm)
    for (const file of [OVERLAY, LOG, `${LOG}.old`, QEMU_LOG]) rmSync(join(vm.dir, file), { force: true })
  }

  close(): Promise<void> {
    for (const link of this.#links.values()) link.close()
    this.#links.clear()
    return this.#templates.close()
  }

  // -- while it runs ---------------------------------------------------------------------------------------------------
  alive(h: VmHandle): boolean {
    if (h.pid === 0 || !isRunning(h.pid, h.startTime)) return false
    const s = h.state as QemuState
    if (this.#ctx.privileged && s.nic !== null) keepDoor(s.nic, s.run, rootBase(s.id))
    return true
  }

  async exec(vm: VmSpec, h: VmHandle, r: ExecRequest): Promise<ExecSession> {
    if (h.pid === 0 || !isRunning(h.pid, h.startTime)) throw new NoidError('VM_NOT_RUNNING', { name: vm.name })
    const s = h.state as QemuState
    const agent = await this.#link(s.id, s.name, s.run).client(AbortSignal.timeout(EXEC_CONNECT_MS))
    return agent.exec(r)
  }

  async console(vm: VmSpec, h: VmHandle): Promise<Duplex> {
    if (!this.alive(h)) throw new NoidError('VM_NOT_RUNNING', { name: vm.name })
    let line = this.#lines.get(vm.id)
    if (line === undefined) {
      line = new SerialLine(join((h.state as QemuState).run, CONSOLE_SOCKET), this.logFile(vm))
      this.#lines.set(vm.id, line)
    }
    return line.open()
  }

  /** A guest that shut itself down said so on its console (kernel/reboot.c); QEMU says why it gave up in its own log. */
  async obituary(vm: VmSpec): Promise<Obituary> {
    // Of this life only: the log has those before it, too.
    const ofThisLife = (log: string): string => (tail(log, LAST_LINES).split(STARTS).at(-1) as string).trim()
    const console = ofThisLife(this.logFile(vm))
    if (/reboot: (Power down|System halted)/.test(console)) return { orderly: true }
    const words = [ofThisLife(this.#qemuLog(vm)), console].filter(Boolean).join('\n')
    return words === '' ? { orderly: false } : { orderly: false, words }
  }

  async leftovers(vms: readonly Use[], images: boolean): Promise<readonly Leftover[]> {
    return leftovers(this.#images.images, this.#templates, vms, images, DEFAULT_IMAGE)
  }

  logFile(vm: VmSpec): string {
    return join(vm.dir, LOG)
  }

  #qemuLog(vm: VmSpec): string {
    return join(vm.dir, QEMU_LOG)
  }

  /** What QEMU itself said last, or else the guest's kernel. */
  #last(vm: VmSpec): string {
    const said = tail(this.#qemuLog(vm), 3).split(STARTS).at(-1)?.trim() || tail(this.logFile(vm), 3)
    return said === '' ? '' : `: ${said.replaceAll('\n', ' | ')}`
  }

  #runDir(vmId: string): string {
    return join(this.#ctx.runDir, 'qemu', vmId)
  }

  #link(id: string, name: string, run: string): AgentLink {
    let link = this.#links.get(id)
    if (link === undefined) {
      link = new AgentLink(join(run, AGENT_SOCKET), name)
      this.#links.set(id, link)
    }
    return link
  }
}

/** A boot that another way of booting may mend. */
class BootFailure extends Error {}

const OVERLAY = 'disk.qcow2'
const LOG = 'console.log'
const QEMU_LOG = 'qemu.log'

const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()

const firstProblem = (s: Status): { why: string; hint?: string } => ({
  why: s.problems[0]?.what ?? 'it is not ready',
  ...(s.problems[0]?.hint === undefined ? {} : { hint: s.problems[0].hint }),
})

/** What the attachment reserves; undefined when nothing is: then the network's own servers say it. */
function networkOf(a: Attachment, dns: Resolver | undefined): GuestNetwork | undefined {
  if (a.addresses.length === 0) return undefined
  const [address, address6] = [four(a), six(a)]
  return {
    ipv4: address !== undefined,
    ...(address6 === undefined ? {} : { address6 }),
    servers6: dns?.servers.filter((s) => s.includes(':')) ?? [],
    search: dns?.search ?? [],
  }
}

const four = (a: Attachment): string | undefined => a.addresses.find((x) => !x.includes(':'))
const six = (a: Attachment): string | undefined => a.addresses.find((x) => x.includes(':'))
const plainAddress = (cidr: string | undefined): string | undefined => cidr?.split('/')[0]

/** The IPv4 address the guest tells, or the one it was to have. A guest's word about itself is for people to see only. */
function nicOf(a: Attachment, guest: GuestInfo): StartedNic {
  const address = guest.address ?? plainAddress(four(a))
  const address6 = plainAddress(six(a))
  return {
    ...(address === undefined ? {} : { address }),
    ...(address6 === undefined ? {} : { address6 }),
    leaseMs: null,
  }
}

/** One command over a control connection of its own; false when QEMU does not take it. */
async function ask(socket: string, command: string): Promise<boolean> {
  try {
    const q = await Qmp.connect(socket, ORDER_MS)
    try {
      await q.execute(command, {}, ORDER_MS)
      return true
    } finally {
      q.close()
    }
  } catch {
    return false
  }
}

const quit = (socket: string): Promise<boolean> => ask(socket, 'quit')
