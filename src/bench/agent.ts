/**
 * One backend of noid in a process of its own, inside the host namespace of its stand: what the daemon does with a backend, without the
 * daemon. `node agent.ts NAME`: makes a network with two guests that have their lease and a published port, tells what it made as one line
 * of JSON, and takes it away when its stdin ends. `node agent.ts NAME 200`: with 198 more that are idle.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Attachment, BackendContext, NetworkBackend, NetworkSpec } from '../plugins/contract.ts'
import { Registry } from '../plugins/registry.ts'
import { backendSources } from '../plugins/sources.ts'
import type { ClientAnswer, ClientRequest } from '../runtimes/dhcp-client/lease.ts'
import { finished, Place, started } from './place.ts'
import { GUEST_PORT, PUBLISHED_PORT } from './ports.ts'

const VERB_MS = 20_000
const LEASE_MS = 15_000
const NET = '10.213.16'
const root = process.getuid?.() === 0
const CLIENT = fileURLToPath(
  new URL(`../runtimes/dhcp-client/main${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url),
)

export interface AgentGuest {
  readonly netns: string
  readonly address: string
  readonly ifname: string
}
export type AgentAnswer =
  | { readonly ok: false; readonly why: string }
  | {
      readonly ok: true
      readonly guests: readonly AgentGuest[]
      readonly published: boolean
      readonly dns: string | undefined
      readonly summary: string
      readonly nic: string
      readonly pids: readonly number[]
    }

const signal = () => AbortSignal.timeout(VERB_MS)
const dir = mkdtempSync(join(tmpdir(), 'agent-'))

/** CNI's plugins reserve addresses in a directory of the machine's, which are somebody's: here they have a chain of the usual ones, and a directory, of their own. */
const CHAIN = {
  conflist: {
    cniVersion: '0.4.0',
    name: 'noid-bench',
    plugins: [
      {
        type: 'bridge',
        bridge: 'bench0',
        isGateway: true,
        ipMasq: true,
        ipam: {
          type: 'host-local',
          dataDir: join(dir, 'addresses'),
          routes: [{ dst: '0.0.0.0/0' }],
          ranges: [[{ subnet: `${NET}.0/24` }]],
        },
      },
      { type: 'portmap', capabilities: { portMappings: true } },
      { type: 'firewall' },
    ],
  },
}

interface Namespaces {
  readonly place: Place
  readonly wire: Place | undefined
  readonly enter: readonly string[]
}

/** A guest's namespaces; an ordinary user's lie in a user namespace, as a sandbox's do. */
async function namespaces(): Promise<Namespaces> {
  if (root) {
    const place = await Place.make()
    return { place, wire: undefined, enter: [] }
  }
  const holder = await started(
    spawn(
      'unshare',
      ['--user', '--map-root-user', '--net', 'sh', '-c', 'ip link set lo up; echo ready; exec sleep infinity'],
      {
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    ),
  )
  const enter = ['nsenter', '--preserve-credentials', `--user=/proc/${holder.pid}/ns/user`]
  return { place: new Place(`/proc/${holder.pid}/ns/net`), wire: await Place.make(enter), enter }
}

async function attach(
  b: NetworkBackend,
  n: NetworkSpec,
  last: number,
  idle = false,
): Promise<AgentGuest & { attachment: Attachment }> {
  const g = await namespaces()
  const name = `vm${last}`
  const attachment = await b.attach(
    {
      id: name,
      network: n.id,
      name,
      mac: `02:6b:00:00:00:${last.toString(16).padStart(2, '0')}`,
      addresses: [`${NET}.${last}/24`],
      accepts: ['tap', 'netdev'],
      netns: g.place.netns,
      wireNetns: g.wire?.netns,
    },
    signal(),
  )
  const ifname = 'ifname' in attachment.nic ? attachment.nic.ifname : 'eth0'
  let address = attachment.addresses[0]?.split('/')[0]
  if (idle) await g.place.sh(`ip link set ${ifname} up`)
  else if (attachment.configuredBy === 'dhcp') {
    const request: ClientRequest = {
      mode: 'acquire',
      ifname,
      mac: attachment.mac,
      hostname: name,
      mtu: attachment.mtu,
      budgetMs: LEASE_MS,
    }
    const node = [process.execPath, '--disable-warning=ExperimentalWarning', CLIENT, JSON.stringify(request)]
    const [, ...place] = g.place.enter(...node)
    const argv = g.enter.length === 0 ? ['nsenter', ...place] : [...g.enter, ...place]
    const answer = JSON.parse((await finished(argv)).stdout) as ClientAnswer
    if (!answer.ok) throw new Error(answer.why)
    address = answer.lease?.address ?? address
  }
  if (address === undefined) throw new Error('a guest got no address')
  return { netns: g.place.netns, address, ifname, attachment }
}

/** Last bytes of idle guests' addresses. */
const CROWD = Array.from({ length: 252 }, (_, i) => i + 3).filter((n) => n !== 100 && n !== 101 && n !== 254)

async function main(name: string, attached: number): Promise<void> {
  const context: BackendContext = {
    runDir: join(dir, 'run'),
    stateDir: join(dir, 'state'),
    privileged: root,
    log: () => {},
    notify: () => {},
  }
  const registry = await Registry.collect(await backendSources(), () => context)
  const descriptor = registry.descriptor(name)
  const backend = await registry.backend(name)
  const status = await backend.status(signal())
  if (!status.ok) throw new Error(status.problems.map((p) => p.what).join('; '))
  const n: NetworkSpec = {
    id: 'bench',
    name: 'bench',
    subnet: `${NET}.0/24`,
    gateway: `${NET}.1`,
    services: `${NET}.2`,
    hostAddress: `${NET}.254`,
    domain: 'noid.internal',
    mtu: 1500,
    isolated: false,
    allowHostPorts: [],
    config: await backend.parseConfig(name === 'cni' ? CHAIN : undefined),
  }
  await backend.createNetwork(n, signal())
  const guests = [await attach(backend, n, 100), await attach(backend, n, 101)]
  for (const last of CROWD.slice(0, attached - guests.length)) guests.push(await attach(backend, n, last, true))
  const [a] = guests as [(typeof guests)[0]]
  if (backend.ports !== undefined) {
    const port = { attachment: a.attachment.id, proto: 'tcp', hostAddress: '0.0.0.0', guestAddress: a.address } as const
    await backend.ports.publish({ ...port, id: 'p', hostPort: PUBLISHED_PORT, guestPort: GUEST_PORT }, signal())
  }
  const answer: AgentAnswer = {
    ok: true,
    guests: guests.slice(0, 2).map(({ netns, address, ifname }) => ({ netns, address, ifname })),
    published: backend.ports !== undefined,
    dns: descriptor.capabilities.dns ? n.services : undefined,
    summary: descriptor.summary,
    nic: a.attachment.nic.kind,
    pids: planes(context.runDir),
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`)
  process.stdin.resume().once('close', async () => {
    for (const g of guests) await backend.detach(g.attachment.id, g.attachment, signal()).catch(() => {})
    await backend.deleteNetwork(n.id, signal()).catch(() => {})
    await registry.close()
    process.exit(0)
  })
}

/** Data planes write their pid beside their socket. */
function planes(runDir: string): number[] {
  try {
    return readdirSync(runDir).flatMap((network) => {
      try {
        return [(JSON.parse(readFileSync(join(runDir, network, 'pid'), 'utf8')) as { pid: number }).pid]
      } catch {
        return []
      }
    })
  } catch {
    return []
  }
}

try {
  await main(process.argv[2] as string, Number(process.argv[3] ?? 2))
} catch (e) {
  process.stdout.write(`${JSON.stringify({ ok: false, why: (e as Error).message } satisfies AgentAnswer)}\n`)
  process.exit(0)
}
