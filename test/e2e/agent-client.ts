/** The test's end of agent.ts: the backend's verbs as methods, networks and guests in a few words. */
import type { ChildProcess } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type {
  Attachment,
  AttachRequest,
  BackendEvent,
  NetworkSpec,
  NetworkStats,
  PublishSpec,
} from '../../src/plugins/contract.ts'
import type { AgentMessage, Verb } from './agent.ts'
import type { Place } from './lab.ts'

const ENTRY = join(dirname(fileURLToPath(import.meta.url)), 'agent.ts')

export interface Waiting {
  readonly resolve: (r: unknown) => void
  readonly reject: (e: Error) => void
}

/** A network's specification from its third octet. */
export const network = (n: number, more: Partial<NetworkSpec> = {}): NetworkSpec => ({
  id: `net${n}`,
  name: `net${n}`,
  subnet: `192.168.${n}.0/24`,
  gateway: `192.168.${n}.1`,
  services: `192.168.${n}.2`,
  hostAddress: `192.168.${n}.254`,
  domain: 'noid.internal',
  mtu: 1500,
  isolated: false,
  allowHostPorts: [],
  config: undefined,
  ...more,
})

/** The same with IPv6: "fd00:77:0:<n>::/64". */
export const dual = (n: number, more: Partial<NetworkSpec> = {}): NetworkSpec => {
  const at = `fd00:77:0:${n.toString(16)}::`
  const ipv6 = { subnet: `${at}/64`, gateway: `${at}1`, services: `${at}2`, hostAddress: `${at}254` }
  return network(n, { ipv6, ...more })
}

/** The addresses of VM number `last` of a network, in its families. */
export function addressesOf(spec: NetworkSpec, last: number): readonly string[] {
  const [base, bits] = spec.subnet.split('/') as [string, string]
  const four = spec.ipv4 === false ? [] : [`${base.split('.').slice(0, 3).join('.')}.${last}/${bits}`]
  return spec.ipv6 === undefined ? four : [...four, `${spec.ipv6.subnet.replace('/64', '')}${last}/64`]
}

export class Agent {
  readonly events: BackendEvent[] = []
  readonly logs: string[] = []
  readonly home: string
  readonly #host: Place
  readonly #backend: string
  readonly #env: NodeJS.ProcessEnv
  readonly #waiting = new Map<number, Waiting>()
  #child: ChildProcess
  #seq = 0

  constructor(host: Place, home: string, backend: 'userspace' | 'bridge' = 'userspace', env: NodeJS.ProcessEnv = {}) {
    this.#backend = backend
    this.#env = env
    this.#host = host
    this.home = home
    this.#child = this.#spawn()
  }

  #spawn(): ChildProcess {
    const argv = [process.execPath, '--disable-warning=ExperimentalWarning', ENTRY, this.home, this.#backend]
    const child = this.#host.start(argv, {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: { ...process.env, NODE_TEST_CONTEXT: undefined, ...this.#env },
    })
    child.on('message', (m: AgentMessage) => {
      if (m.type === 'event') this.events.push(m.event)
      else if (m.type === 'log') this.logs.push(m.text)
      else {
        const w = this.#waiting.get(m.seq)
        this.#waiting.delete(m.seq)
        if (m.error) w?.reject(Object.assign(new Error(m.error.message), { code: m.error.code }))
        else w?.resolve(m.result)
      }
    })
    child.on('exit', () => {
      for (const w of this.#waiting.values()) w.reject(new Error('the agent is gone'))
      this.#waiting.clear()
    })
    return child
  }

  get pid(): number {
    return this.#child.pid as number
  }

  /** As kill -9 of the daemon; `again` is a new one that finds what was left. */
  async kill(): Promise<void> {
    const gone = new Promise((resolve) => this.#child.once('exit', resolve))
    this.#child.kill('SIGKILL')
    await gone
  }

  again(): void {
    this.#child = this.#spawn()
  }

  call<T = unknown>(v: Verb): Promise<T> {
    const seq = ++this.#seq
    return new Promise<T>((resolve, reject) => {
      this.#waiting.set(seq, { resolve: resolve as (r: unknown) => void, reject })
      this.#child.send({ ...v, seq })
    })
  }

  createNetwork = (spec: NetworkSpec) => this.call({ verb: 'createNetwork', spec })
  deleteNetwork = (id: string) => this.call({ verb: 'deleteNetwork', id })
  stats = (n: string) => this.call<NetworkStats>({ verb: 'stats', network: n })
  publish = (spec: PublishSpec) => this.call<{ hostPort: number }>({ verb: 'publish', spec })
  unpublish = (id: string) => this.call({ verb: 'unpublish', id })
  detach = (id: string, n: string) => this.call({ verb: 'detach', id, network: n })
  check = (attachment: Attachment) => this.call({ verb: 'check', attachment })

  attach(spec: NetworkSpec, guest: Place, last: number, more: Partial<AttachRequest> = {}): Promise<Attachment> {
    return this.call<Attachment>({
      verb: 'attach',
      request: {
        id: `${spec.id}-${last}`,
        network: spec.id,
        name: guest.name.split('-')[1] as string,
        mac: `52:54:00:00:${last.toString(16).padStart(2, '0')}:01`,
        addresses: addressesOf(spec, last),
        accepts: ['tap', 'netdev'],
        netns: guest.netns,
        ...more,
      },
    })
  }

  /** Attach, and configure by hand what DHCP would tell: for tests of something else. */
  async join(spec: NetworkSpec, guest: Place, last: number, more: Partial<AttachRequest> = {}): Promise<string> {
    const a = await this.attach(spec, guest, last, more)
    const [cidr] = a.addresses as [string]
    if (spec.ipv6 !== undefined) await guest.sh('echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad')
    for (const c of a.addresses) await guest.sh(`ip addr replace ${c} dev eth0`)
    await guest.sh('ip link set eth0 up')
    if (spec.ipv4 !== false) await guest.sh(`ip route replace default via ${spec.gateway}`)
    if (spec.ipv6 !== undefined) await guest.sh(`ip -6 route replace default via ${spec.ipv6.gateway} dev eth0`)
    const servers = [spec.ipv4 === false ? undefined : spec.services, spec.ipv6?.services].filter(
      (a) => a !== undefined,
    )
    guest.resolvConf(`${servers.map((a) => `nameserver ${a}\n`).join('')}search ${spec.domain}\n`)
    return cidr.split('/')[0] as string
  }
}
