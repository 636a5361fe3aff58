/**
 * The userspace backend: the verbs of the contract, each passed to the network it concerns.
 *
 * Owns: one Plane for each network, the host's name servers, which network an attachment or a published port belongs to.
 * Never does: packets (src/netstack), addresses (the daemon), a verb's work (plane.ts).
 * Every verb may be repeated, in any order after a crash. What a verb names and nobody knows is done already.
 */
import { execFile } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
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
  PublishSpec,
  Status,
} from '../contract.ts'
import { DataPlaneProcess } from '../dataplane/process.ts'
import { Resolvers } from '../host/resolvers.ts'
import { Plane } from './plane.ts'
import { NAME_MAX } from './sockets.ts'

const run = promisify(execFile)
/** sockaddr_un.sun_path without its NUL, less the longest name below a network's directory. */
const DIR_MAX = 107 - NAME_MAX
const LEASE_SECONDS = 12 * 3600

const config = z.strictObject({
  /** How long a lease is good for, in seconds. */
  leaseSeconds: z
    .number()
    .int()
    .min(60)
    .max(365 * 86_400)
    .default(LEASE_SECONDS),
})
export type UserspaceConfig = z.output<typeof config>

export class UserspaceBackend implements NetworkBackend {
  readonly #ctx: BackendContext
  readonly #resolvers: Resolvers
  readonly #planes = new Map<NetworkId, Plane>()
  readonly #attachments = new Map<AttachmentId, NetworkId>()
  readonly #publishes = new Map<string, NetworkId>()
  readonly ports: PortPublisher

  constructor(ctx: BackendContext) {
    this.#ctx = ctx
    this.#resolvers = new Resolvers(() => {
      for (const p of this.#planes.values())
        p.reconfigure().catch((e: Error) =>
          ctx.log('warn', `${p.name} did not take the new name servers: ${e.message}`),
        )
    })
    this.ports = {
      publish: (p, signal) => this.#publish(p, signal),
      unpublish: (id, signal) => this.#unpublish(id, signal),
    }
  }

  parseConfig(raw: unknown): UserspaceConfig {
    const r = config.safeParse(raw ?? {})
    if (r.success) return r.data
    const issue = r.error.issues[0]
    throw new NoidError('INVALID_INPUT', {
      what: `the configuration of a userspace network is not valid: ${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`.trim(),
      hint: 'it knows leaseSeconds (60 and above)',
    })
  }

  async status(signal: AbortSignal): Promise<Status> {
    const problems: { what: string; hint?: string }[] = []
    const tun = tunProblem()
    if (this.#ctx.privileged) {
      if (tun)
        problems.push({
          what: `no TAP device can be opened: ${tun}`,
          hint: 'modprobe tun; mknod /dev/net/tun c 10 200',
        })
      return { ok: tun === undefined, problems }
    }
    for (const tool of ['nsenter', 'unshare', ...(tun ? ['ip'] : [])]) {
      const found = await run(tool, [tool === 'ip' ? '-V' : '--version'], { signal, timeout: 5000 }).then(
        () => true,
        (e: NodeJS.ErrnoException) => e.code !== 'ENOENT',
      )
      const pkg = tool === 'ip' ? 'iproute2' : 'util-linux'
      if (!found) problems.push({ what: `the program ${tool} is not installed`, hint: `apt-get install ${pkg}` })
    }
    const why = await run('unshare', ['-Urn', 'true'], { signal, timeout: 5000 }).then(
      () => undefined,
      (e: Error & { stderr?: string }) => e.stderr?.trim() || e.message,
    )
    if (why !== undefined)
      problems.push({
        what: `user namespaces cannot be made: ${why}`,
        hint: 'as root: sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 (and kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)',
      })
    return { ok: problems.length === 0, problems }
  }

  async createNetwork(n: NetworkSpec, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    let plane = this.#planes.get(n.id)
    if (!plane) {
      plane = new Plane(this.#dir(n.id), n, {
        ctx: this.#ctx,
        resolvers: () => this.#resolvers.current(),
        holderOf: (proto, address, port) => {
          for (const p of this.#planes.values()) {
            const holder = p.publisherOf(proto, address, port)
            if (holder !== undefined) return holder
          }
          return undefined
        },
      })
      this.#planes.set(n.id, plane)
    }
    await plane.create(n, signal)
  }

  async deleteNetwork(id: NetworkId, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const plane = this.#planes.get(id)
    this.#planes.delete(id)
    for (const index of [this.#attachments, this.#publishes])
      for (const [what, network] of index) if (network === id) index.delete(what)
    if (plane) await plane.end()
    else await new DataPlaneProcess(this.#dir(id), id, this.#ctx.log).end(undefined)
  }

  async attach(r: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    const plane = this.#plane(r.network)
    // Whoever gave up waiting detaches while it is still being attached.
    this.#attachments.set(r.id, r.network)
    return plane.attach(r, signal)
  }

  async detach(id: AttachmentId, last: Attachment | undefined, signal: AbortSignal): Promise<void> {
    const network = last?.network ?? this.#attachments.get(id)
    // A daemon that was killed told nobody of what it was attaching.
    const planes = network === undefined ? [...this.#planes.values()] : [this.#planes.get(network)]
    for (const p of planes) await p?.detach(id, signal)
    this.#attachments.delete(id)
  }

  async check(a: Attachment, signal: AbortSignal): Promise<void> {
    await this.#plane(a.network).check(a, signal)
  }

  async gc(n: NetworkId, valid: readonly AttachmentId[], signal: AbortSignal): Promise<GcReport> {
    return { removed: (await this.#planes.get(n)?.gc(new Set(valid), signal)) ?? [] }
  }

  async stats(n: NetworkId): Promise<NetworkStats> {
    return this.#plane(n).stats()
  }

  async capture(n: NetworkId, o: CaptureOptions, signal: AbortSignal): Promise<Readable> {
    return this.#plane(n).capture(o, signal)
  }

  async close(): Promise<void> {
    this.#resolvers.close()
    for (const p of this.#planes.values()) p.close()
    this.#planes.clear()
  }

  /** An attachment belongs to the network that was told with it; before it exists, to the only one that can be meant. */
  async #publish(p: PublishSpec, signal: AbortSignal): Promise<{ readonly hostPort: number }> {
    const network = this.#publishes.get(p.id) ?? this.#attachments.get(p.attachment) ?? this.#networkOf(p)
    const answer = await this.#plane(network).publish(p, signal)
    this.#publishes.set(p.id, network)
    return answer
  }

  async #unpublish(id: string, signal: AbortSignal): Promise<void> {
    const network = this.#publishes.get(id)
    const planes = network === undefined ? [...this.#planes.values()] : [this.#planes.get(network)]
    for (const p of planes) await p?.unpublish(id, signal)
    this.#publishes.delete(id)
  }

  #networkOf({ guestAddress, guestAddress6 = '' }: PublishSpec): NetworkId {
    for (const [id, p] of this.#planes) if (p.covers(guestAddress) || p.covers(guestAddress6)) return id
    throw new NoidError('NETWORK_UNKNOWN', { name: guestAddress || guestAddress6 })
  }

  #plane(id: NetworkId): Plane {
    const p = this.#planes.get(id)
    if (!p) throw new NoidError('NETWORK_UNKNOWN', { name: id })
    return p
  }

  #dir(id: NetworkId): string {
    const dir = join(this.#ctx.runDir, id)
    if (Buffer.byteLength(dir) > DIR_MAX)
      throw new NoidError('INVALID_INPUT', {
        what: `the directory ${dir} is too long a path for a unix socket`,
        hint: 'choose a shorter NOID_HOME or XDG_RUNTIME_DIR',
      })
    return dir
  }
}

/** Why /dev/net/tun cannot be used by this process, or undefined. */
function tunProblem(): string | undefined {
  try {
    accessSync('/dev/net/tun', constants.R_OK | constants.W_OK)
    return undefined
  } catch (e) {
    return (e as NodeJS.ErrnoException).code === 'ENOENT' ? '/dev/net/tun is missing' : '/dev/net/tun may not be opened'
  }
}
