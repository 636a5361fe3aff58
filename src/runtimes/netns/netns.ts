/**
 * A VM that is nobody's but a name: a network namespace which a container engine has made, runs things in and will remove.
 *
 * noid puts a nic into it and configures that at once and for good (no DHCP client: nobody would renew; the address is held
 * as long as the attachment is). It starts no process and ends none. The namespace is told by its inode as well as by its path, because a
 * path may name another one later.
 * Never does: exec, images, files of the container (its engine writes resolv.conf, from what noid-cni answers).
 */
import { spawn } from 'node:child_process'
import { statSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { NoidError } from '../../errors.ts'
import type { Attachment, Status } from '../../plugins/contract.ts'
import type { ExecSession, Runtime, RuntimeContext, StartedNic, VmHandle, VmSpec } from '../contract.ts'

const TOOL_MS = 10_000

interface ForeignState {
  readonly netns: string
  /** Device and inode. */
  readonly identity: string
}

/** Undefined when nothing is there, or something that is no namespace: those all lie on one file system. */
const identityOf = (path: string): string | undefined => {
  const s = statSync(path, { throwIfNoEntry: false })
  return s === undefined || s.dev !== statSync('/proc/self/ns/net').dev ? undefined : `${s.dev}:${s.ino}`
}

export class ForeignNamespace implements Runtime {
  readonly #ctx: RuntimeContext

  constructor(ctx: RuntimeContext) {
    this.#ctx = ctx
  }

  async status(): Promise<Status> {
    return { ok: true, problems: [] }
  }

  async prepare(vm: VmSpec): Promise<VmHandle> {
    const { netns } = vm
    const identity = netns === undefined ? undefined : identityOf(netns)
    if (netns === undefined || identity === undefined) throw failed(vm, `there is no network namespace at ${netns}`)
    if (identity === identityOf('/proc/self/ns/net')) throw failed(vm, `${netns} is the host's own network namespace`)
    const state: ForeignState = { netns, identity }
    return { pid: 0, startTime: identity, netns, state }
  }

  async start(vm: VmSpec, h: VmHandle, a: Attachment): Promise<{ handle: VmHandle; nic: StartedNic }> {
    return { handle: h, nic: await this.renic(vm, h, a) }
  }

  async renic(vm: VmSpec, h: VmHandle, a: Attachment): Promise<StartedNic> {
    const addresses = a.addresses.map((x) => x.split('/')[0] as string)
    if (addresses.length === 0 || !('ifname' in a.nic)) throw failed(vm, 'the network gave it no address')
    const { ifname } = a.nic
    if (a.configuredBy === 'dhcp') await this.#configure(vm, h.state as ForeignState, ifname, a)
    await mkdir(vm.dir, { recursive: true, mode: 0o700 })
    writeFileSync(this.logFile(vm), `noid: ${ifname} has ${a.addresses.join(', ')}\n`, { flag: 'a' })
    const address = addresses.find((x) => !x.includes(':'))
    const address6 = addresses.find((x) => x.includes(':'))
    return {
      ...(address === undefined ? {} : { address }),
      ...(address6 === undefined ? {} : { address6 }),
      leaseMs: null,
    }
  }

  /** Repeatable: `replace` makes and keeps alike. A default route of somebody else's (a first interface) stays. */
  async #configure(vm: VmSpec, s: ForeignState, ifname: string, a: Attachment): Promise<void> {
    const six = (x: string): boolean => x.includes(':')
    // Engines make namespaces in which IPv6 is off, and leave it to the network to switch it on for its own interface.
    if (a.addresses.some(six)) await this.#run(vm, s, ['sh', '-c', switchOn, 'noid', ifname])
    // Nobody is asked whether the address is a duplicate: it is reserved.
    const link = [
      `link set dev ${ifname} up`,
      ...a.addresses.map((x) => `addr replace ${x} dev ${ifname}${six(x) ? ' nodad' : ''}`),
    ]
    await this.#run(vm, s, ['ip', '-batch', '-'], link.join('\n'))
    for (const r of a.routes)
      await this.#run(vm, s, [
        'ip',
        'route',
        'add',
        r.to,
        ...(r.via === undefined ? [] : ['via', r.via]),
        'dev',
        ifname,
      ]).catch((e: Error) => {
        if (!e.message.includes('File exists')) throw e
      })
  }

  /** Run one of the host's tools in the namespace. */
  #run(vm: VmSpec, s: ForeignState, argv: readonly string[], input = ''): Promise<void> {
    const enter = this.#ctx.privileged
      ? [`--net=${s.netns}`]
      : ['--preserve-credentials', `--user=${join(dirname(s.netns), 'user')}`, `--net=${s.netns}`]
    return new Promise((resolve, reject) => {
      const child = spawn('nsenter', [...enter, ...argv], { stdio: ['pipe', 'ignore', 'pipe'], timeout: TOOL_MS })
      let words = ''
      child.stderr.setEncoding('utf8').on('data', (t: string) => {
        words = (words + t).slice(-1000)
      })
      child.stdin.on('error', () => {})
      child.stdin.end(input)
      child.once('error', (e: NodeJS.ErrnoException) =>
        reject(e.code === 'ENOENT' ? new NoidError('TOOL_MISSING', { tool: 'nsenter', package: 'util-linux' }) : e),
      )
      child.once('close', (code) =>
        code === 0 ? resolve() : reject(failed(vm, `its interface: ${words.trim() || `exit code ${code}`}`)),
      )
    })
  }

  /** Its things are not noid's to end; the backend takes its nic. */
  async stop(): Promise<void> {}

  alive(h: VmHandle): boolean {
    const s = h.state as ForeignState
    return identityOf(s.netns) === s.identity
  }

  async exec(vm: VmSpec): Promise<ExecSession> {
    throw new NoidError('EXEC_FAILED', {
      vm: vm.name,
      why: `it belongs to another engine; use that one's exec, or nsenter --net=${vm.netns}`,
    })
  }

  async destroy(): Promise<void> {}

  logFile(vm: VmSpec): string {
    return join(vm.dir, 'init.log')
  }
}

/** $1: the interface. Where there is no such file, or it may not be written, the address itself will say what is wrong. */
const switchOn = 'f=/proc/sys/net/ipv6/conf/$1/disable_ipv6; [ "$(cat $f)" = 0 ] || echo 0 > $f || :'

const failed = (vm: VmSpec, why: string): NoidError => new NoidError('VM_START_FAILED', { name: vm.name, why })
