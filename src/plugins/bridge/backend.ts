/**
 * The bridge backend: the verbs of the contract, each passed to the network it concerns.
 *
 * Owns: one Bridge for each network, the host's name servers. Never does: a verb's work (bridge.ts).
 * Every verb may be repeated, in any order after a crash. What a verb names and nobody knows is done already.
 */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { z } from 'zod'
import { NoidError } from '../../errors.ts'
import type {
  Attachment,
  AttachmentId,
  AttachRequest,
  BackendContext,
  CaptureOptions,
  GcReport,
  NetworkBackend,
  NetworkId,
  NetworkSpec,
  NetworkStats,
  PortPublisher,
  Status,
} from '../contract.ts'
import { DataPlaneProcess } from '../dataplane/process.ts'
import { Resolvers } from '../host/resolvers.ts'
import { Bridge, removeNetwork } from './bridge.ts'
import { addresses, bridgeOf, portName, removePort } from './links.ts'
import { installed, PROGRAMS } from './netfilter.ts'

const run = promisify(execFile)
const LEASE_SECONDS = 12 * 3600
/** How soon a link that came up is noticed. */
const LOOK_MS = 1000
/** How soon rules that somebody removed are noticed. Reading all of a host's costs some 30 ms of a processor, seldom more. */
const RULES_MS = 10_000

const config = z.strictObject({
  /** How long a lease is good for, in seconds. */
  leaseSeconds: z
    .number()
    .int()
    .min(60)
    .max(365 * 86_400)
    .default(LEASE_SECONDS),
})

export class BridgeBackend implements NetworkBackend {
  readonly #ctx: BackendContext
  readonly #resolvers: Resolvers
  readonly #bridges = new Map<NetworkId, Bridge>()
  readonly #networkOfPublish = new Map<string, NetworkId>()
  #look: NodeJS.Timeout | undefined
  #rulesLook: NodeJS.Timeout | undefined
  #lookingAtRules = false
  #seen = ''
  readonly ports: PortPublisher

  constructor(ctx: BackendContext) {
    this.#ctx = ctx
    this.#resolvers = new Resolvers(() => {
      for (const b of this.#bridges.values())
        b.reconfigure().catch((e: Error) =>
          ctx.log('warn', `${b.name} did not take the new name servers: ${e.message}`),
        )
    })
    this.ports = {
      publish: async (p, signal) => {
        const id = this.#networkOfPublish.get(p.id) ?? this.#covering(p.guestAddress || (p.guestAddress6 ?? ''))
        const answer = await this.#bridge(id).publish(p, signal)
        this.#networkOfPublish.set(p.id, id)
        return answer
      },
      unpublish: async (id) => {
        for (const b of this.#bridges.values()) await b.unpublish(id)
        this.#networkOfPublish.delete(id)
      },
    }
  }

  parseConfig(raw: unknown): z.output<typeof config> {
    const r = config.safeParse(raw ?? {})
    if (r.success) return r.data
    const issue = r.error.issues[0]
    throw new NoidError('INVALID_INPUT', {
      what: `the configuration of a bridge network is not valid: ${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`.trim(),
      hint: 'it knows leaseSeconds (60 and above)',
    })
  }

  async status(signal: AbortSignal): Promise<Status> {
    const problems: { what: string; hint: string }[] = []
    if (!this.#ctx.privileged)
      problems.push({
        what: 'bridges, veths and iptables need root',
        hint: 'run noid as root, or use --network-backend userspace',
      })
    for (const [program, pkg] of Object.entries(PROGRAMS)) {
      const there = await run(program, ['-V'], { signal, timeout: 5000 }).then(
        () => true,
        (e: NodeJS.ErrnoException) => e.code !== 'ENOENT',
      )
      if (!there) problems.push({ what: `the program ${program} is not installed`, hint: `apt-get install ${pkg}` })
    }
    return { ok: problems.length === 0, problems }
  }

  async createNetwork(n: NetworkSpec, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const known = this.#bridges.get(n.id)
    const bridge =
      known ??
      new Bridge(join(this.#ctx.runDir, n.id), n, {
        ctx: this.#ctx,
        resolvers: () => this.#resolvers.current(),
        holderOf: (proto, address, port) => {
          for (const b of this.#bridges.values()) {
            const holder = b.publisherOf(proto, address, port)
            if (holder !== undefined) return holder
          }
          return undefined
        },
      })
    this.#bridges.set(n.id, bridge)
    this.#look ??= setInterval(() => this.#lookAround(), LOOK_MS).unref()
    this.#rulesLook ??= setInterval(() => this.#lookAtRules(), RULES_MS).unref()
    try {
      await bridge.create(n, signal)
    } catch (e) {
      // Half a network is none. One that has VMs stays, and the next verb aligns it.
      if (known === undefined && bridge.unused) {
        this.#bridges.delete(n.id)
        await bridge.end()
      }
      throw e
    }
  }

  async deleteNetwork(id: NetworkId, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const bridge = this.#bridges.get(id)
    this.#bridges.delete(id)
    if (bridge !== undefined) return bridge.end()
    if (!this.#ctx.privileged) return
    await removeNetwork(id)
    await new DataPlaneProcess(join(this.#ctx.runDir, id), id, this.#ctx.log).end(undefined)
  }

  async attach(r: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    return this.#bridge(r.network).attach(r, signal)
  }

  async detach(id: AttachmentId, last: Attachment | undefined): Promise<void> {
    const bridge = last === undefined ? undefined : this.#bridges.get(last.network)
    if (bridge !== undefined) return bridge.detach(id)
    for (const b of this.#bridges.values()) await b.detach(id)
    if (this.#ctx.privileged) await removePort(id)
  }

  async check(a: Attachment, signal: AbortSignal): Promise<void> {
    return this.#bridge(a.network).check(a, signal)
  }

  async gc(n: NetworkId, valid: readonly AttachmentId[]): Promise<GcReport> {
    return { removed: (await this.#bridges.get(n)?.gc(new Set(valid))) ?? [] }
  }

  async stats(n: NetworkId): Promise<NetworkStats> {
    return this.#bridge(n).stats()
  }

  /** The kernel forwards: its own tools see every frame, and nothing here does. */
  async capture(n: NetworkId, { attachment }: CaptureOptions): Promise<never> {
    const ifname = attachment === undefined ? await bridgeOf(n) : portName(attachment)
    throw new NoidError('CAPABILITY_MISSING', {
      backend: 'bridge',
      what: 'captures',
      hint: `the kernel's own tool can: tcpdump -i ${ifname ?? 'noid0'} -w -`,
    })
  }

  async close(): Promise<void> {
    this.#resolvers.close()
    clearInterval(this.#look)
    clearInterval(this.#rulesLook)
    for (const b of this.#bridges.values()) b.close()
    this.#bridges.clear()
  }

  /**
   * Links come and go without a word: a way out that comes up (a VPN) must forward answers, and a new address of the host is refused to VMs
   * until it is known to be none of another noid network's.
   */
  #lookAround(): void {
    const now = addresses().join()
    if (now === this.#seen) return
    this.#seen = now
    for (const b of this.#bridges.values())
      b.refresh().catch((e: Error) =>
        this.#ctx.log('warn', `the rules of ${b.name} could not be renewed: ${e.message}`),
      )
  }

  /** A firewall that starts anew removes everybody's rules without a word: then VMs are cut off, and reach what they must not. */
  async #lookAtRules(): Promise<void> {
    if (this.#lookingAtRules || this.#bridges.size === 0) return
    this.#lookingAtRules = true
    try {
      const seen = await installed()
      const done = await Promise.allSettled(Array.from(this.#bridges.values(), (b) => b.repair(seen)))
      for (const d of done) if (d.status === 'rejected') throw d.reason
    } catch (e) {
      this.#ctx.log('warn', `rules that somebody may have removed could not be put back: ${(e as Error).message}`)
    } finally {
      this.#lookingAtRules = false
    }
  }

  #bridge(id: NetworkId): Bridge {
    const b = this.#bridges.get(id)
    if (b === undefined) throw new NoidError('NETWORK_UNKNOWN', { name: id })
    return b
  }

  #covering(guestAddress: string): NetworkId {
    for (const [id, b] of this.#bridges) if (b.covers(guestAddress)) return id
    throw new NoidError('NETWORK_UNKNOWN', { name: guestAddress })
  }
}
