/**
 * A VM's nic, seen from the VM: who configures it, and what its files then say.
 *
 * A short-lived process (src/runtimes/dhcp-client) enters the network namespace, gets a lease, configures the link and
 * ends; this file keeps the lease in vm.dir/lease.json and starts such a process again when the lease wants to be
 * renewed. So a VM that runs costs no process for its lease, and a daemon that was started again goes on with it.
 * IPv6: the VM's kernel does SLAAC, the client adds the address that DHCPv6 has reserved. That one stays on the link as long as the
 * VM runs (it is the VM's, whatever becomes of the lease); renewal is for who looks at the server's leases, and goes with IPv4's.
 * Read: RFC 2131 §4.4.5, RFC 8415 §18.2.4 (T1, T2, expiry).
 */
import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { NoidError } from '../../errors.ts'
import type { Attachment, Resolver } from '../../plugins/contract.ts'
import { readState, writeState } from '../../state-file.ts'
import { isRunning } from '../../sys/process.ts'
import type { RuntimeContext, StartedNic, VmHandle, VmSpec } from '../contract.ts'
import type { ClientAnswer, ClientRequest, Granted6, Lease, Term } from '../dhcp-client/lease.ts'
import { renewAt } from '../dhcp-client/lease.ts'
import { runInside, type SandboxState, tool } from './enter.ts'
import { DOMAIN, interfaces, resolvConf } from './files.ts'

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
  /** Absent on an IPv6-only network. */
  readonly lease?: Lease
  /** Absent on an IPv4-only network. */
  readonly ipv6?: Granted6
}

/** What one run of the client got. */
type Granted = Pick<KeptLease, 'lease' | 'ipv6'>

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
    // The same nic as before: its leases are asked for again.
    const before = readState<KeptLease>(keptFile(vm.dir))
    const known = before?.mac === a.mac ? before : undefined
    const { ifname } = a.nic
    const mine = a.addresses.map(splitCidr)
    const six = mine.find((x) => x.address.includes(':'))
    const got = await this.#ask(
      h,
      {
        mode: 'acquire',
        ifname,
        mac: a.mac,
        hostname: vm.name,
        mtu: a.mtu,
        // INIT-REBOOT
        lease: known?.lease !== undefined && !expired(known.lease) ? known.lease : undefined,
        ipv4: six === undefined || mine.length > 1,
        ipv6: six === undefined ? undefined : { ...six, lease: known?.ipv6?.lease },
        budgetMs: ACQUIRE_MS,
      },
      signal,
    )
    writeState(keptFile(vm.dir), { ifname, mac: a.mac, ...got })
    await writeFiles(h, addressesOf(got), resolverOf(got, dns))
    for (const line of described(got)) await note(h, `${ifname} ${line}`)
    if (six !== undefined && got.ipv6 === undefined) await note(h, `${ifname} has no IPv6: the kernel has none`)
    this.#arm(h, got)
    return nicOf(addressesOf(got), got.lease === undefined ? (got.ipv6?.lease ?? null) : got.lease)
  }

  async #configured(h: VmHandle, a: Attachment, dns: Resolver | undefined): Promise<StartedNic> {
    const addresses = a.addresses.map((x) => splitCidr(x).address)
    if (addresses.length === 0)
      throw new NoidError('INTERNAL', { why: 'the backend configured a nic without an address' })
    await writeFiles(h, addresses, dns ?? a.dns)
    await note(h, `${'ifname' in a.nic ? a.nic.ifname : 'the nic'} has ${a.addresses.join(', ')}, from the network`)
    return nicOf(addresses, null)
  }

  /** Go on with the renewal of a running VM's lease. Cheap when that is being done already. */
  adopt(h: VmHandle): void {
    const s = h.state as SandboxState
    if (this.#timers.get(s.id)?.pid === h.pid) return
    const kept = readState<KeptLease>(keptFile(s.dir))
    if (kept !== undefined) this.#arm(h, kept)
  }

  forget(vmId: string): void {
    clearTimeout(this.#timers.get(vmId)?.timer)
    this.#timers.delete(vmId)
  }

  #arm(h: VmHandle, got: Granted): void {
    const s = h.state as SandboxState
    this.forget(s.id)
    const at = nextRenewal(got)
    if (at === null) return
    const timer = setTimeout(() => void this.#renew(h), Math.min(MAX_TIMER_MS, Math.max(1000, at - Date.now())))
    timer.unref()
    this.#timers.set(s.id, { timer, pid: h.pid })
  }

  async #renew(h: VmHandle): Promise<void> {
    const s = h.state as SandboxState
    const kept = readState<KeptLease>(keptFile(s.dir))
    if (kept === undefined || !isRunning(h.pid, h.startTime)) return this.forget(s.id)
    const at = nextRenewal(kept)
    // A timer that could not be set far enough.
    if (at !== null && at > Date.now() + 1000) return this.#arm(h, kept)
    let next: Granted
    try {
      const { ifname, mac, lease, ipv6 } = kept
      const request = { ifname, mac, hostname: s.name, lease, ipv4: lease !== undefined, ipv6 }
      next = await this.#ask(h, { ...request, mode: 'renew', budgetMs: RENEW_MS }, AbortSignal.timeout(RENEW_MS * 2))
      if (
        addressesOf(next).join() !== addressesOf(kept).join() ||
        resolverOf(next, undefined)?.servers.join() !== resolverOf(kept, undefined)?.servers.join()
      )
        await writeFiles(h, addressesOf(next), resolverOf(next, undefined))
      // A lease of IPv6 that was not renewed is still the one to renew.
      if (next.ipv6 !== undefined && next.ipv6.lease === undefined && ipv6 !== undefined)
        next = { ...next, ipv6: { ...ipv6, ...(ipv6.lease === undefined ? {} : { lease: tried(ipv6.lease) }) } }
    } catch (e) {
      this.#ctx.log('warn', `the lease of ${s.name} was not renewed: ${(e as Error).message}`)
      next = {
        ...(kept.lease === undefined ? {} : { lease: tried(kept.lease) }),
        ...(kept.ipv6 === undefined
          ? {}
          : { ipv6: { ...kept.ipv6, ...(kept.ipv6.lease === undefined ? {} : { lease: tried(kept.ipv6.lease) }) } }),
      }
    }
    // It may have been stopped or configured again meanwhile.
    if (this.#timers.get(s.id)?.pid !== h.pid) return
    writeState(keptFile(s.dir), { ifname: kept.ifname, mac: kept.mac, ...next })
    this.#arm(h, next)
  }

  /** One run of the client in the VM's network namespace. */
  #ask(h: VmHandle, request: ClientRequest, signal: AbortSignal): Promise<Granted> {
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
        if (answer.ok) {
          const { lease, ipv6 } = answer
          resolve({ ...(lease === undefined ? {} : { lease }), ...(ipv6 === undefined ? {} : { ipv6 }) })
        } else reject(new NoidError('VM_START_FAILED', { name: s.name, why: answer.why }))
      })
    })
  }
}

const expired = (l: Term): boolean => l.leaseMs !== null && l.boundAt + l.leaseMs <= Date.now()
const tried = <T extends Term>(l: T): T => ({ ...l, triedAt: Date.now() })

const splitCidr = (cidr: string): { address: string; prefix: number } => {
  const [address, prefix] = cidr.split('/') as [string, string]
  return { address, prefix: Number(prefix) }
}

/** IPv4 first. */
const addressesOf = (g: Granted): string[] => [g.lease?.address, g.ipv6?.address].filter((x) => x !== undefined)

function nicOf(addresses: readonly string[], term: Term | null): StartedNic {
  const address = addresses.find((x) => !x.includes(':'))
  const address6 = addresses.find((x) => x.includes(':'))
  return {
    ...(address === undefined ? {} : { address }),
    ...(address6 === undefined ? {} : { address6 }),
    leaseMs: term?.leaseMs ?? null,
  }
}

/** The sooner of the two; null when both last for ever. */
function nextRenewal(g: Granted): number | null {
  const times = [g.lease, g.ipv6?.lease]
    .map((l) => (l === undefined ? null : renewAt(l, Date.now())))
    .filter((x) => x !== null)
  return times.length === 0 ? null : Math.min(...times)
}

/** The servers of both families; the network's own words where a server said nothing. */
function resolverOf(g: Granted, otherwise: Resolver | undefined): Resolver | undefined {
  const of = (said: readonly string[] | undefined, wanted: unknown, six: boolean): readonly string[] =>
    wanted === undefined ? [] : said?.length ? said : (otherwise?.servers.filter((x) => x.includes(':') === six) ?? [])
  const servers = [...of(g.lease?.dns, g.lease, false), ...of(g.ipv6?.lease?.dns, g.ipv6, true)]
  if (servers.length === 0) return otherwise
  const search = [g.lease?.search, g.ipv6?.lease?.search].find((x) => x !== undefined && x.length > 0)
  return { servers, search: search ?? otherwise?.search ?? [] }
}

function described({ lease, ipv6 }: Granted): string[] {
  const term = (l: Term): string => (l.leaseMs === null ? 'for ever' : `for ${Math.round(l.leaseMs / 1000)} s`)
  const lines: string[] = []
  if (lease !== undefined) lines.push(`has ${lease.address}/${lease.prefix} ${term(lease)}, from ${lease.server}`)
  if (ipv6 !== undefined)
    lines.push(
      `has ${ipv6.address}/${ipv6.prefix} ${ipv6.lease === undefined ? 'for ever: no DHCPv6 server answered' : `${term(ipv6.lease)}, from DHCPv6`}`,
    )
  if (ipv6?.router === false) lines.push('has seen no router advertisement: IPv6 ends at this link')
  return lines
}

/** Text that a program in the VM reads line by line: what a server sent must not make lines of its own. */
const word = (s: string): string => s.replace(/[^\w.:-]/g, '')

/**
 * resolv.conf, the VM's own lines in hosts, and interfaces where that is still as it was written here; written inside, so that a link in
 * the VM leads nowhere else.
 */
async function writeFiles(h: VmHandle, addresses: readonly string[], dns: Resolver | undefined): Promise<void> {
  const s = h.state as SandboxState
  const domain = word(dns?.search[0] ?? DOMAIN)
  const safe = dns === undefined ? undefined : { servers: dns.servers.map(word), search: dns.search.map(word) }
  const script = `
printf '%s' "$1" > /etc/resolv.conf
lines="$2"; name="$3"; interfaces="$4"; shift 4
others=$(while IFS= read -r l; do case $l in *"$name."*" $name") ;; *) printf '%s\\n' "$l";; esac; done < /etc/hosts)
printf '%s\\n%s\\n' "$others" "$lines" > /etc/hosts
[ ! -f /etc/network/interfaces ] && exit 0
now="$(cat /etc/network/interfaces)"
for known; do [ "$now" = "$known" ] && printf '%s\\n' "$interfaces" > /etc/network/interfaces; done
exit 0`
  const own = addresses.map((address) => `${address}\t${s.name}.${domain} ${s.name}`).join('\n')
  const families = addresses.map((x) => (x.includes(':') ? 6 : 4))
  const known = [[4], [6], [4, 6]] as const
  const r = await runInside(h.pid, s, script, [
    ...[resolvConf(safe), own, s.name, interfaces(families).trimEnd()],
    ...known.map((f) => interfaces(f).trimEnd()),
  ])
  if (r.code !== 0) throw new NoidError('VM_START_FAILED', { name: s.name, why: `its files: ${r.stderr.trim()}` })
}

/** A line in the VM's log, beside what init prints. */
async function note(h: VmHandle, text: string): Promise<void> {
  const s = h.state as SandboxState
  writeFileSync(join(s.dir, 'init.log'), `noid: ${text}\n`, { flag: 'a' })
}

const keptFile = (dir: string): string => join(dir, 'lease.json')
