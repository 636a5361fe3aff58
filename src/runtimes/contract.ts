/**
 * The contract of a runtime: what noid asks of whoever gives VMs (sandbox, qemu, ...).
 *
 * A VM starts in three steps, because a nic needs the VM's namespace and the VM needs its nic:
 *   prepare  → the VM's own namespaces (or nothing, for qemu) exist and are held by a process that outlives the daemon
 *   (the backend attaches)
 *   start    → the VM configures its nic (DHCP, or as the backend says) and runs
 * Everything a runtime must know again after the daemon's death is in the opaque `state` it returns.
 *
 * Never here: addresses, networks, the store. Never a Node process for each running VM.
 */
import type { Attachment, NicKind, Resolver, Status } from '../plugins/contract.ts'

/** `--mount SRC:DST[:ro]`: both absolute. */
export interface MountSpec {
  readonly source: string
  readonly target: string
  readonly readonly: boolean
}

export interface VmSpec {
  readonly id: string
  readonly name: string
  /** Own directory of the VM for overlay, files, sockets, logs; made by the daemon, removed after destroy. */
  readonly dir: string
  readonly cpus: number
  readonly memMib: number
  /** Absent: the runtime's embedded default. */
  readonly image?: string
  /** Directories of the host that the VM sees. */
  readonly mounts?: readonly MountSpec[]
  /** A network namespace that somebody else owns, for a runtime that is `foreign`. */
  readonly netns?: string
}

/** What must be remembered of a VM that was prepared or runs. Plain JSON. */
export interface VmHandle {
  /** The process to watch: when it is gone the VM is gone. 0 after `prepare` when nothing needs to be held before `start`. */
  readonly pid: number
  /** /proc/PID/stat field 22, so that a reused pid is never taken for the VM. */
  readonly startTime: string
  readonly netns?: string
  readonly wireNetns?: string
  readonly state: unknown
}

export interface StartedNic {
  /** Absent on an IPv6-only network. */
  readonly address?: string
  /**
   * The one by which the VM is known: what the attachment reserves, configured or asked for by DHCPv6, usable when `start` resolves. It may have
   * others (SLAAC). Absent on an IPv4-only network.
   */
  readonly address6?: string
  readonly leaseMs: number | null
}

export interface ExecRequest {
  readonly argv: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly user?: string
  readonly tty: boolean
  readonly rows?: number
  readonly cols?: number
}

/** Says to whoever waits what is being done now: "booting it". */
export type Tell = (text: string) => void

/** How a VM went that ended on its own. */
export interface Obituary {
  /** It shut itself down. Otherwise it was killed, or failed. */
  readonly orderly: boolean
  /** What its process and its console said last: a few lines, for people. */
  readonly words?: string
}

/** One running command. Streams are Node's; with a terminal, stdout carries everything and stderr is absent. */
export interface ExecSession {
  readonly stdin: import('node:stream').Writable
  readonly stdout: import('node:stream').Readable
  readonly stderr: import('node:stream').Readable | undefined
  /** By name: "SIGINT". Reaches the command, not only the process that entered the VM. */
  signal(name: string): void
  resize(rows: number, cols: number): void
  /** 128+n when a signal ended it, as a shell says it. */
  readonly exit: Promise<number>
}

/** A VM that there is, as far as it matters to what is kept for VMs. */
export interface Use {
  readonly id: string
  readonly image?: string | undefined
  /** It would be gone by then: somebody asks what could be removed if it were. */
  readonly going: boolean
}

/** Something a runtime keeps for VMs to come. */
export interface Leftover {
  readonly kind: 'image' | 'template'
  readonly name: string
  readonly bytes: number
  /** False when it is in use after all. */
  remove(): Promise<boolean>
}

export interface Runtime {
  status(): Promise<Status>
  /**
   * What VMs like this one need and what may take minutes the first time: an image that is built. Asked before each start, without a time limit, until the
   * caller goes away; never leaves anything half-made.
   */
  provide?(vm: VmSpec, signal: AbortSignal, tell: Tell): Promise<void>
  prepare(vm: VmSpec, signal: AbortSignal, tell?: Tell): Promise<VmHandle>
  /** Resolves when the VM can be used: its nic has the address, exec works. */
  start(
    vm: VmSpec,
    h: VmHandle,
    a: Attachment,
    dns: Resolver | undefined,
    signal: AbortSignal,
    tell?: Tell,
  ): Promise<{ handle: VmHandle; nic: StartedNic }>
  /** The nic was made again (the data plane restarted and the old device is gone): configure it again. */
  renic(vm: VmSpec, h: VmHandle, a: Attachment, signal: AbortSignal): Promise<StartedNic>
  /** Orderly, then hard after graceMs. Idempotent; leaves no process, namespace or mount. */
  stop(vm: VmSpec, h: VmHandle | undefined, graceMs: number): Promise<void>
  /** Is it still the VM that the handle names? */
  alive(h: VmHandle): boolean
  /** Of a VM that is not alive any more and was not stopped: how it went, when that can be known. */
  obituary?(vm: VmSpec, h: VmHandle): Promise<Obituary | undefined>
  exec(vm: VmSpec, h: VmHandle, r: ExecRequest): Promise<ExecSession>
  /** The VM's serial console, where it has one: bytes both ways, several readers at once. */
  console?(vm: VmSpec, h: VmHandle): Promise<import('node:stream').Duplex>
  /** Remove what the runtime keeps in vm.dir (overlays owned by mapped users, mounts left by a kill). Idempotent. */
  destroy(vm: VmSpec): Promise<void>
  /** Which of a VM's limits nobody enforces on this machine, in words; undefined when all are. */
  unenforced?(): Promise<string | undefined>
  /** A sentence that whoever makes a VM should read once; undefined when there is none. */
  notice?(): Promise<string | undefined>
  /** The daemon ends: let go of what goes on in the background (a template that is being made). VMs go on. */
  close?(): Promise<void>
  /** What it keeps and no VM needs, given all VMs of it that there are: templates nobody can use; with `images` also images no VM is made of. */
  leftovers?(vms: readonly Use[], images: boolean): Promise<readonly Leftover[]>
  /**
   * The file with what the VM's init or serial line printed. Whoever writes a `*.log` in vm.dir has it open for appending (O_APPEND): the daemon keeps
   * each of them small by copying it to FILE.1 and cutting it to nothing.
   */
  logFile(vm: VmSpec): string
}

export interface RuntimeContext {
  readonly privileged: boolean
  readonly runDir: string
  readonly stateDir: string
  readonly log: (level: 'debug' | 'info' | 'warn' | 'error', message: string) => void
}

export interface RuntimeDescriptor {
  readonly name: string
  readonly summary: string
  /** In the order the runtime prefers. */
  readonly accepts: readonly NicKind[]
  /**
   * For a runtime that derives users of the host from a VM's id: which ones an id would have, as a number. A VM is given an id whose users no other VM
   * has, so what is derived needs no record, and never changes.
   */
  readonly usersOf?: (id: string) => number
  /** Its VMs are namespaces of somebody else's: they come by an attachment, never by `create`. */
  readonly foreign?: true
  load(): Promise<(ctx: RuntimeContext) => Runtime>
}
