/**
 * A VM's nic, seen from the VM: who configures it, and what its files then say.
 *
 * A short-lived process (src/runtimes/dhcp-client) enters the network namespace, gets a lease, configures the link and
 * ends; this file keeps the lease in vm.dir/lease.json and starts such a process again when the lease wants to be
 * renewed. So a VM that runs costs no process for its lease, and a daemon that was started again goes on with it.
 * Read: RFC 2131 §4.4.5 (T1, T2, expiry).
 */
import { spawn } from 'node:child_process'
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { NoidError } from '../../errors.ts'
import type { Attachment, Resolver } from '../../plugins/contract.ts'
import { isRunning } from '../../sys/process.ts'
import type { RuntimeContext, StartedNic, VmHandle, VmSpec } from '../contract.ts'
import type { ClientAnswer, ClientRequest, Lease } from '../dhcp-client/lease.ts'
import { renewAt } from '../dhcp-client/lease.ts'
import { runInside, type SandboxState, tool } from './enter.ts'
import { DOMAIN, resolvConf } from './files.ts'

const self = fileURLToPath(import.meta.url)
const clientFile = join(dirname(self), '..', 'dhcp-client', `main${self.slice(self.lastIndexOf('.'))}`)
/** setTimeout's longest. */
const MAX_TIMER_MS = 2 ** 31 - 1
const ACQUIRE_MS = 30_000
const RENEW_MS = 12_000

/** What vm.dir/lease.json holds. */
interface KeptLease {
  readonly ifname: string
  readonly mac: string
  readonly lease: Lease
}

export class Networking {
  readonly #ctx: RuntimeContext
  readonly #timers = new Map<string, { readonly timer: NodeJS.Timeout; readonly pid: number }>()

  constructor(ctx: RuntimeContext) {
    this.#ctx = ctx
  }

  /** Resolves when the nic has its address and the VM's files say so. */
  async configure(
    vm: VmSpec,
    h: VmHandle,
    a: Attachment,
    dns: Resolver | undefined,
    signal: AbortSignal,
  ): Promise<StartedNic> {
    this.forget(vm.id)
    if (a.configuredBy === 'backend') return this.#configured(h, a, dns)
    if (!('ifname' in a.nic))
      throw new NoidError('INTERNAL', { why: `a sandbox cannot use a nic of kind ${a.nic.kind}` })
    const known = readKept(vm.dir)
    const lease = await this.#ask(
      h,
      {
        mode: 'acquire',
        ifname: a.nic.ifname,
        mac: a.mac,
        hostname: vm.name,
        mtu: a.mtu,
        // INIT-REBOOT, when the nic is the one that had the lease.
        lease: known?.mac === a.mac && !expired(known.lease) ? known.lease : undefined,
        budgetMs: ACQUIRE_MS,
      },
      signal,
    )
    keep(vm.dir, { ifname: a.nic.ifname, mac: a.mac, lease })
    await writeFiles(h, lease.address, resolverOf(lease, dns))
    const until = lease.leaseMs === null ? 'for ever' : `for ${Math.round(lease.leaseMs / 1000)} s`
    await note(h, `${a.nic.ifname} has ${lease.address}/${lease.prefix} ${until}, from ${lease.server}`)
    this.#arm(h, lease)
    return { address: lease.address, leaseMs: lease.leaseMs }
  }

  async #configured(h: VmHandle, a: Attachment, dns: Resolver | undefined): Promise<StartedNic> {
    const address = a.addresses[0]?.split('/')[0]
    if (address === undefined)
      throw new NoidError('INTERNAL', { why: 'the backend configured a nic without an address' })
    await writeFiles(h, address, dns ?? a.dns)
    await note(h, `${'ifname' in a.nic ? a.nic.ifname : 'the nic'} has ${a.addresses.join(', ')}, from the network`)
    return { address, leaseMs: null }
  }

  /** Go on with the renewal of a running VM's lease. Cheap when that is being done already. */
  adopt(h: VmHandle): void {
    const s = h.state as SandboxState
    if (this.#timers.get(s.id)?.pid === h.pid) return
    const kept = readKept(s.dir)
    if (kept !== undefined) this.#arm(h, kept.lease)
  }

  forget(vmId: string): void {
    clearTimeout(this.#timers.get(vmId)?.timer)
    this.#timers.delete(vmId)
  }

  #arm(h: VmHandle, lease: Lease): void {
    const s = h.state as SandboxState
    this.forget(s.id)
    const at = renewAt(lease, Date.now())
    if (at === null) return
    const timer = setTimeout(() => void this.#renew(h), Math.min(MAX_TIMER_MS, Math.max(1000, at - Date.now())))
    timer.unref()
    this.#timers.set(s.id, { timer, pid: h.pid })
  }

  async #renew(h: VmHandle): Promise<void> {
    const s = h.state as SandboxState
    const kept = readKept(s.dir)
    if (kept === undefined || !isRunning(h.pid, h.startTime)) return this.forget(s.id)
    const at = renewAt(kept.lease, Date.now())
    // A timer that could not be set far enough.
    if (at !== null && at > Date.now() + 1000) return this.#arm(h, kept.lease)
    let next: Lease
    try {
      const request = { ifname: kept.ifname, mac: kept.mac, hostname: s.name, lease: kept.lease } as const
      next = await this.#ask(h, { ...request, mode: 'renew', budgetMs: RENEW_MS }, AbortSignal.timeout(RENEW_MS * 2))
      if (next.address !== kept.lease.address || next.dns.join() !== kept.lease.dns.join())
        await writeFiles(h, next.address, resolverOf(next, undefined))
    } catch (e) {
      this.#ctx.log('warn', `the lease of ${s.name} was not renewed: ${(e as Error).message}`)
      next = { ...kept.lease, triedAt: Date.now() }
    }
    // It may have been stopped or configured again meanwhile.
    if (this.#timers.get(s.id)?.pid !== h.pid) return
    keep(s.dir, { ...kept, lease: next })
    this.#arm(h, next)
  }

  /** One run of the client in the VM's network namespace. */
  #ask(h: VmHandle, request: ClientRequest, signal: AbortSignal): Promise<Lease> {
    const s = h.state as SandboxState
    const enter = s.privileged ? ['--net'] : ['--user', '--net', '--preserve-credentials']
    const argv = ['--target', String(h.pid), ...enter, process.execPath, clientFile, JSON.stringify(request)]
    return new Promise((resolve, reject) => {
      const child = spawn(tool('nsenter'), argv, {
        stdio: ['ignore', 'pipe', 'pipe'],
        cwd: '/',
        signal,
        killSignal: 'SIGKILL',
        timeout: request.budgetMs + 10_000,
      })
      let out = ''
      let err = ''
      child.stdout.setEncoding('utf8').on('data', (t: string) => {
        out += t
      })
      child.stderr.setEncoding('utf8').on('data', (t: string) => {
        err += t
      })
      child.once('error', reject)
      child.once('close', () => {
        let answer: ClientAnswer
        try {
          answer = JSON.parse(out) as ClientAnswer
        } catch {
          answer = { ok: false, why: err.trim().split('\n').at(-1) || 'its DHCP client ended without an answer' }
        }
        if (answer.ok) resolve(answer.lease)
        else reject(new NoidError('VM_START_FAILED', { name: s.name, why: answer.why }))
      })
    })
  }
}

const expired = (l: Lease): boolean => l.leaseMs !== null && l.boundAt + l.leaseMs <= Date.now()

const resolverOf = (l: Lease, otherwise: Resolver | undefined): Resolver | undefined =>
  l.dns.length === 0 ? otherwise : { servers: l.dns, search: l.search }

/** Text that a program in the VM reads line by line: what a server sent must not make lines of its own. */
const word = (s: string): string => s.replace(/[^\w.:-]/g, '')

/** resolv.conf and the VM's own line in hosts; written inside, so that a link in the VM leads nowhere else. */
async function writeFiles(h: VmHandle, address: string, dns: Resolver | undefined): Promise<void> {
  const s = h.state as SandboxState
  const domain = word(dns?.search[0] ?? DOMAIN)
  const safe = dns === undefined ? undefined : { servers: dns.servers.map(word), search: dns.search.map(word) }
  const script = `
printf '%s' "$1" > /etc/resolv.conf
line="$2"; name="$3"
others=$(while IFS= read -r l; do case $l in *"$name."*" $name") ;; *) printf '%s\\n' "$l";; esac; done < /etc/hosts)
printf '%s\\n%s\\n' "$others" "$line" > /etc/hosts`
  const r = await runInside(h.pid, s, script, [resolvConf(safe), `${address}\t${s.name}.${domain} ${s.name}`, s.name])
  if (r.code !== 0) throw new NoidError('VM_START_FAILED', { name: s.name, why: `its files: ${r.stderr.trim()}` })
}

/** A line in the VM's log, beside what init prints. */
async function note(h: VmHandle, text: string): Promise<void> {
  const s = h.state as SandboxState
  writeFileSync(join(s.dir, 'init.log'), `noid: ${text}\n`, { flag: 'a' })
}

const keptFile = (dir: string): string => join(dir, 'lease.json')

function keep(dir: string, k: KeptLease): void {
  writeFileSync(`${keptFile(dir)}.new`, JSON.stringify(k))
  renameSync(`${keptFile(dir)}.new`, keptFile(dir))
}

function readKept(dir: string): KeptLease | undefined {
  if (!existsSync(keptFile(dir))) return undefined
  try {
    return JSON.parse(readFileSync(keptFile(dir), 'utf8')) as KeptLease
  } catch {
    return undefined
  }
}
