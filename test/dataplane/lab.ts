/**
 * A data-plane process between namespaces: `host` is where it runs and where servers are, guests are namespaces with a nic each.
 *
 * For tests and benchmarks of the process itself; the daemon, the runtimes and the plug-in are not in it. Everything made
 * here is gone after `close`, also after a failure.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { NetworkConfig } from '../../src/dataplane/protocol.ts'
import { Link } from '../../src/plugins/dataplane/link.ts'
import { openDevice } from '../../src/plugins/userspace/device.ts'
import { NicSockets } from '../../src/plugins/userspace/sockets.ts'
import { must } from '../../src/sys/errno.ts'
import { close } from '../../src/sys/fd.ts'
import { addRoute, linkIndex, setLinkAddress, setLinkMac, setLinkUp } from '../../src/sys/netdev.ts'
import { inNetns } from '../../src/sys/netns.ts'
import { openPackets } from '../../src/sys/packet.ts'
import {
  AF_INET,
  AF_INET6,
  bind,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  listen,
  SO_REUSEADDR,
  SOCK_DGRAM,
  SOCK_RAW,
  SOCK_STREAM,
  SOL_SOCKET,
  setOption,
  socket,
} from '../../src/sys/socket.ts'

const WIRE = fileURLToPath(new URL('../../src/plugins/conformance/wire.ts', import.meta.url))
const MAIN = fileURLToPath(new URL('../../src/dataplane/main.ts', import.meta.url))
const run = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })

/** How long what must happen is waited for: the machine may be busy. */
export const PATIENCE_MS = 60_000

export const skipWithoutRoot = process.getuid?.() === 0 ? false : 'needs root for namespaces and devices'

/** The address of the host's servers: on its loopback link, but no loopback address. */
export const SERVER = '10.77.0.1'
export const SERVER6 = '2001:db8:77::1'

export const CONFIG: NetworkConfig = {
  id: 'n1',
  name: 'default',
  subnet: '192.168.100.0/24',
  gateway: '192.168.100.1',
  services: '192.168.100.2',
  hostAddress: '192.168.100.254',
  domain: 'noid.internal',
  mtu: 1500,
  isolated: false,
  allowHostPorts: [],
  leaseSeconds: 3600,
}
/** The same network with both families; guest N has ::N. */
export const DUAL: NetworkConfig = {
  ...CONFIG,
  ipv6: { subnet: 'fd00:77::/64', gateway: 'fd00:77::1', services: 'fd00:77::2', hostAddress: 'fd00:77::254' },
}

export interface Guest {
  readonly name: string
  readonly kind: 'tap' | 'packet' | 'dgram'
  readonly netns: string
  readonly address: string
  /** On a network that has IPv6. */
  readonly address6?: string
  readonly mac: string
}

export class Lab {
  readonly dir = mkdtempSync(join(tmpdir(), 'noid-lab-'))
  readonly #prefix = `nt${randomBytes(3).toString('hex')}`
  readonly #netns: string[] = []
  readonly #children: ChildProcess[] = []
  readonly host: string
  readonly sockets = new NicSockets(this.dir)
  /** Of guests of kind dgram, by name. */
  readonly wires = new Map<string, ChildProcess>()
  process!: ChildProcess
  link!: Link
  #config = CONFIG

  constructor() {
    this.host = this.addNetns('host')
    this.in(this.host, 'ip', 'addr', 'add', `${SERVER}/32`, 'dev', 'lo')
    this.in(this.host, 'ip', 'addr', 'add', `${SERVER6}/128`, 'dev', 'lo', 'nodad')
  }

  /** A namespace with its loopback up. */
  addNetns(name: string): string {
    const netns = `${this.#prefix}-${name}`
    run('ip', 'netns', 'add', netns)
    this.#netns.push(netns)
    this.in(netns, 'ip', 'link', 'set', 'lo', 'up')
    return netns
  }

  /** Run to the end in a namespace; what it printed. Throws when it fails. */
  in(netns: string, ...argv: string[]): string {
    return run('ip', 'netns', 'exec', netns, ...argv)
  }

  /** Run beside us in a namespace until `close`. */
  background(netns: string, argv: readonly string[], stdio: 'ignore' | 'pipe' = 'ignore'): ChildProcess {
    const child = spawn('ip', ['netns', 'exec', netns, ...argv], { stdio })
    this.#children.push(child)
    return child
  }

  /** Wait until somebody listens at these ports of a namespace. */
  async listening(netns: string, proto: 'tcp' | 'udp', ...ports: number[]): Promise<void> {
    for (const end = Date.now() + PATIENCE_MS; ; await sleep(20)) {
      const rows = this.in(netns, 'ss', '-Hln', proto === 'tcp' ? '-t' : '-u')
      if (ports.every((p) => rows.includes(`:${p} `))) return
      if (Date.now() > end) throw new Error(`nobody listens at ${ports}: ${rows}`)
    }
  }

  path(netns: string): string {
    return `/run/netns/${netns}`
  }

  get log(): string {
    return readFileSync(join(this.dir, 'log'), 'utf8')
  }

  /** Start the process and configure its network. @param flags Node's, such as --cpu-prof */
  async start(config: NetworkConfig = CONFIG, flags: readonly string[] = []): Promise<void> {
    this.#config = config
    const log = openSync(join(this.dir, 'log'), 'a')
    const argv = ['netns', 'exec', this.host, process.execPath, ...flags, MAIN, this.dir]
    this.process = spawn('ip', argv, {
      stdio: ['ignore', log, log],
      env: { ...process.env, NODE_TEST_CONTEXT: undefined, NODE_COMPILE_CACHE: join(this.dir, 'compiled') },
    })
    closeSync(log)
    for (const end = Date.now() + PATIENCE_MS; Date.now() < end; ) {
      await sleep(20)
      if (this.process.exitCode !== null) break
      try {
        this.link = new Link(join(this.dir, 'control.sock'), config.name)
        await this.link.request({ op: 'hello' })
        await this.link.request({ op: 'configure', network: config, resolvers: [] })
        return
      } catch {}
    }
    throw new Error(`the data plane did not start: ${this.log}`)
  }

  /** A namespace with a nic on the network, configured by hand. `kind` packet: a veth whose far end lies in a namespace between; dgram: a TAP behind a process that speaks as QEMU does. */
  async guest(name: string, last: number, kind: Guest['kind'] = 'tap'): Promise<Guest> {
    const mac = `02:00:00:00:00:${last.toString(16).padStart(2, '0')}`
    const { ipv6 } = this.#config
    const address6 = ipv6 && `${ipv6.subnet.split('/')[0]}${last}`
    const guest: Guest = { name, netns: this.addNetns(name), address: `192.168.100.${last}`, address6, mac, kind }
    if (kind === 'packet') {
      const wire = this.addNetns(`${name}-wire`)
      run('ip', 'link', 'add', 'eth0', 'netns', guest.netns, 'type', 'veth', 'peer', 'name', 'far', 'netns', wire)
      inNetns(this.path(wire), () => must('far up', setLinkUp('far')))
    }
    await this.attach(guest)
    if (kind === 'dgram') await this.wire(guest)
    this.configure(guest)
    return guest
  }

  /** Its addresses and routes, by hand. */
  configure({ netns, mac, address, address6 }: Guest): void {
    inNetns(this.path(netns), () => {
      must(
        'MAC',
        setLinkMac(
          'eth0',
          Uint8Array.from(mac.split(':'), (p) => Number.parseInt(p, 16)),
        ),
      )
      must('address', setLinkAddress('eth0', address, 24))
      must('up', setLinkUp('eth0'))
      must('default route', addRoute('eth0', '0.0.0.0', 0, CONFIG.gateway))
    })
    const { ipv6 } = this.#config
    if (ipv6 === undefined) return
    this.in(netns, 'ip', 'addr', 'add', `${address6}/64`, 'dev', 'eth0', 'nodad')
    // On a busy machine the kernel has heard the router by now, and has a route of its own.
    this.in(netns, 'ip', '-6', 'route', 'replace', 'default', 'via', ipv6.gateway)
  }

  /** Open the guest's nic, which is made if it is not there, and hand it over. */
  async attach({ name, netns, mac, address, address6, kind }: Guest): Promise<void> {
    const fds =
      kind === 'dgram'
        ? [this.sockets.open(this.sockets.record('dgram', name))]
        : kind === 'tap'
          ? inNetns(this.path(netns), () => openDevice({ ifname: 'eth0', mac, mtu: CONFIG.mtu }).fds)
          : inNetns(this.path(`${netns}-wire`), () => openPackets(linkIndex('far'), true))
    if (typeof fds === 'number') throw new Error(`no packet socket: ${fds}`)
    const count = fds.length
    await this.link.request(
      {
        op: 'attach',
        fds: count,
        id: name,
        role: 'vm',
        kind,
        vnetHdr: true,
        name,
        mac,
        address,
        address6,
        bound: true,
      },
      fds,
    )
    for (const fd of fds) close(fd)
  }

  /** Start the process between a guest's TAP and its datagram socket; it is connected when it is there. */
  async wire({ name, netns, mac }: Guest): Promise<void> {
    const { path, peer } = this.sockets.record('dgram', name)
    const argv = [process.execPath, '--disable-warning=ExperimentalWarning', WIRE, 'eth0', mac, '1500', path, peer]
    const child = this.background(netns, argv, 'pipe')
    child.stderr?.pipe(process.stderr)
    await once(child.stdout as Readable, 'data')
    this.wires.set(name, child)
    this.sockets.look()
  }

  /** Forward a port of the host's namespace to a guest. */
  async publish(proto: 'tcp' | 'udp', hostPort: number, guest: Guest, guestPort: number): Promise<void> {
    const fd = inNetns(this.path(this.host), () => {
      const s = must('socket', socket(AF_INET, proto === 'tcp' ? SOCK_STREAM : SOCK_DGRAM))
      setOption(s, SOL_SOCKET, SO_REUSEADDR, 1)
      must('bind', bind(s, { family: 'inet', address: '0.0.0.0', port: hostPort }))
      if (proto === 'tcp') must('listen', listen(s))
      return s
    })
    const id = `${proto}${hostPort}`
    const { address: guestAddress } = guest
    await this.link.request(
      { op: 'publish', fds: 1, id, proto, hostAddress: '0.0.0.0', hostPort, guestAddress, guestPort },
      [fd],
    )
    close(fd)
  }

  /** Hand over raw ICMP sockets of both families, as root's daemon does. */
  async rawIcmp(): Promise<void> {
    for (const [family, protocol] of [
      [AF_INET, IPPROTO_ICMP],
      [AF_INET6, IPPROTO_ICMPV6],
    ] as const) {
      const fd = inNetns(this.path(this.host), () => must('raw socket', socket(family, SOCK_RAW, protocol)))
      await this.link.request({ op: 'rawIcmp', fds: 1 }, [fd])
      close(fd)
    }
  }

  async close(): Promise<void> {
    this.sockets.close()
    await this.link?.request({ op: 'stop' }).catch(() => {})
    this.link?.close()
    for (let i = 0; i < 100 && this.process && this.process.exitCode === null; i++) await sleep(20)
    this.process?.kill('SIGKILL')
    for (const child of this.#children) child.kill('SIGKILL')
    await sleep(50)
    for (const netns of this.#netns)
      try {
        run('ip', 'netns', 'delete', netns)
      } catch {}
    rmSync(this.dir, { recursive: true, force: true })
  }
}
