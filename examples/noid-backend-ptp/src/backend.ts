/**
 * Each VM gets a veth whose far end stays with the host: gateway and VM face each other as two addresses of one link, no
 * bridge between them, and the host's kernel routes.
 *
 * Owns: links named ptp<hash of the attachment>, their addresses and their `forwarding` switch; nothing else of the host.
 * There is no state of its own to lose: what is there is read from the kernel each time, and the link's alias names the
 * network and the attachment, so that gc works after any accident.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import type {
  Attachment,
  AttachmentId,
  AttachRequest,
  BackendContext,
  GcReport,
  NetworkBackend,
  NetworkId,
  NetworkSpec,
  Status,
} from 'noid/backend'

const run = promisify(execFile)
const GUEST = 'eth0'
const ALIAS = 'noid-ptp'

interface Link {
  readonly ifname: string
  readonly network: NetworkId
  readonly id: AttachmentId
}

const ifnameOf = (id: AttachmentId): string => `ptp${createHash('sha256').update(id).digest('hex').slice(0, 10)}`

async function ip(signal: AbortSignal | undefined, ...argv: string[]): Promise<string> {
  return (await run('ip', argv, { signal })).stdout
}

/** `ip` inside the VM's namespace. */
async function guestIp(netns: string, signal: AbortSignal | undefined, ...argv: string[]): Promise<string> {
  return (await run('nsenter', [`--net=${netns}`, 'ip', ...argv], { signal })).stdout
}

async function links(): Promise<Link[]> {
  const all = JSON.parse(await ip(undefined, '-j', 'link', 'show', 'type', 'veth')) as {
    ifname?: string
    ifalias?: string
  }[]
  return all.flatMap(({ ifname, ifalias }) => {
    const [mark, network, id] = ifalias?.split(' ') ?? []
    return ifname !== undefined && mark === ALIAS && network !== undefined && id !== undefined
      ? [{ ifname, network, id }]
      : []
  })
}

const removeLink = (ifname: string): Promise<unknown> => ip(undefined, 'link', 'delete', ifname).catch(() => {})

class Ptp implements NetworkBackend {
  readonly #ctx: BackendContext
  readonly #networks = new Map<NetworkId, NetworkSpec>()

  constructor(ctx: BackendContext) {
    this.#ctx = ctx
  }

  parseConfig(raw: unknown): Record<string, never> {
    const unknown = Object.keys((raw ?? {}) as object)
    if (unknown.length > 0) throw new Error(`ptp has no settings; unknown: ${unknown.join(', ')}`)
    return {}
  }

  async status(): Promise<Status> {
    const problems: { what: string; hint: string }[] = []
    if (!this.#ctx.privileged)
      problems.push({ what: 'veth devices need root', hint: 'run noid as root, or use --network-backend userspace' })
    await run('ip', ['-V']).catch(() =>
      problems.push({ what: 'the program ip is missing', hint: 'apt-get install iproute2' }),
    )
    return { ok: problems.length === 0, problems }
  }

  async createNetwork(n: NetworkSpec): Promise<void> {
    this.#networks.set(n.id, n)
  }

  async deleteNetwork(id: NetworkId): Promise<void> {
    for (const l of await links()) if (l.network === id) await removeLink(l.ifname)
    this.#networks.delete(id)
  }

  async attach(r: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    const n = this.#networks.get(r.network)
    if (n === undefined) throw new Error(`ptp knows no network ${r.network}`)
    if (r.netns === undefined || !r.accepts.includes('netdev'))
      throw new Error('ptp needs a runtime that accepts a device in a namespace')
    signal.throwIfAborted()
    const ifname = ifnameOf(r.id)
    const address = (r.addresses[0] as string).split('/')[0] as string
    const attachment: Attachment = {
      id: r.id,
      network: r.network,
      nic: { kind: 'netdev', ifname: GUEST, netns: r.netns },
      mac: r.mac,
      mtu: n.mtu,
      addresses: r.addresses,
      routes: [{ to: '0.0.0.0/0', via: n.gateway }],
      configuredBy: 'backend',
      state: { ifname },
    }
    const there = await this.check(attachment).then(
      () => true,
      () => false,
    )
    if (there) return attachment
    await removeLink(ifname)
    try {
      const far = ['peer', 'name', GUEST, 'netns', r.netns, 'address', r.mac, 'mtu', String(n.mtu)]
      await ip(signal, 'link', 'add', ifname, 'mtu', String(n.mtu), 'type', 'veth', ...far)
      await ip(signal, 'link', 'set', ifname, 'alias', `${ALIAS} ${r.network} ${r.id}`, 'up')
      await ip(signal, 'addr', 'add', n.gateway, 'peer', address, 'dev', ifname)
      writeFileSync(`/proc/sys/net/ipv4/conf/${ifname}/forwarding`, '1')
      await guestIp(r.netns, signal, 'link', 'set', GUEST, 'up')
      await guestIp(r.netns, signal, 'addr', 'add', address, 'peer', n.gateway, 'dev', GUEST)
      await guestIp(r.netns, signal, 'route', 'add', 'default', 'via', n.gateway, 'dev', GUEST)
      signal.throwIfAborted()
      return attachment
    } catch (error) {
      await removeLink(ifname)
      throw error
    }
  }

  async detach(id: AttachmentId): Promise<void> {
    await removeLink(ifnameOf(id))
  }

  async check(a: Attachment): Promise<void> {
    const [link] = JSON.parse(await ip(undefined, '-j', 'link', 'show', ifnameOf(a.id))) as { operstate: string }[]
    if (link?.operstate !== 'UP') throw new Error(`the link of ${a.id} is ${link?.operstate}`)
    if (!('netns' in a.nic) || a.nic.netns === undefined) throw new Error('the attachment names no namespace')
    await guestIp(a.nic.netns, undefined, 'link', 'show', GUEST)
  }

  async gc(n: NetworkId, valid: readonly AttachmentId[]): Promise<GcReport> {
    const strays = (await links()).filter((l) => l.network === n && !valid.includes(l.id))
    for (const s of strays) await removeLink(s.ifname)
    return { removed: strays.map((s) => s.id) }
  }

  async close(): Promise<void> {}
}

export const create = (ctx: BackendContext): NetworkBackend => new Ptp(ctx)
