/**
 * The laboratory: a host, a router and an internet, each a network namespace, for tests that need a real network and have none.
 *
 *   guests ── (data plane) ── HOST ── uplink, MTU 1400 ── ROUTER ── INET
 *                             10.77.0.2      10.77.0.1  203.0.113.1   203.0.113.2; 8.8.8.8, 1.1.1.1, 93.184.216.34 (example.com)
 *                     2001:db8:77::2  2001:db8:77::1  2001:db8:113::1  …::2; 2001:db8:8888::8, 2001:db8::34 (v6.example.com, dual.example.com)
 *
 * The host can be one with IPv4 alone or IPv6 alone; router and internet always have both.
 * Owns: namespaces with the prefix nt<random>, their links, processes and files below one temporary directory; it removes all of
 * it, also when a test fails or is interrupted. Never does: touching the machine's own namespace, routes or resolv.conf.
 * The host's name server is 8.8.8.8 of the laboratory (inet/services.ts): it can be silenced, slowed, or made to deny.
 * `ip netns exec` shows /etc/netns/NAME/resolv.conf as /etc/resolv.conf, so host and guests have files of their own.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFile, execFileSync, type SpawnOptions, spawn } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { eventually } from '../eventually.ts'
import { Agent } from './agent-client.ts'

export const UPLINK_MTU = 1400
export const EXAMPLE = '93.184.216.34'
export const DNS = '8.8.8.8'
export const EXAMPLE6 = '2001:db8::34'
export const DNS6 = '2001:db8:8888::8'
export const HOST6 = '2001:db8:77::2'
const here = dirname(fileURLToPath(import.meta.url))
const root = join(here, '../..')
const RUN_MS = 120_000

/** Why a test that needs these cannot run here, or false. Give it to `{ skip }`. */
export function missing(...tools: string[]): string | false {
  if (process.getuid?.() !== 0) return 'needs root'
  const paths = `${process.env.PATH}:/usr/sbin:/sbin:/usr/bin:/bin`.split(':')
  for (const tool of ['ip', 'nsenter', ...tools])
    if (!paths.some((p) => existsSync(join(p, tool)))) return `needs the program ${tool}`
  return false
}

/** What a finished program said. */
export interface Said {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
  readonly all: string
}

/** A network namespace of the laboratory. */
export class Place {
  readonly name: string
  readonly lab: Lab

  constructor(lab: Lab, name: string) {
    this.lab = lab
    this.name = name
  }

  get netns(): string {
    return `/run/netns/${this.name}`
  }

  /** Run a program here to its end. Never throws for its exit code. */
  run(
    argv: readonly string[],
    options: { timeoutMs?: number; input?: string; env?: NodeJS.ProcessEnv } = {},
  ): Promise<Said> {
    return new Promise((resolve) => {
      const child = execFile(
        'ip',
        ['netns', 'exec', this.name, ...argv],
        {
          timeout: options.timeoutMs ?? RUN_MS,
          maxBuffer: 64 << 20,
          env: { ...process.env, ...options.env },
          killSignal: 'SIGKILL',
        },
        (error, stdout, stderr) => {
          const code = error ? (typeof error.code === 'number' ? error.code : 124) : 0
          resolve({ code, stdout, stderr, all: stdout + stderr })
        },
      )
      child.stdin?.on('error', () => {})
      child.stdin?.end(options.input)
    })
  }

  /** Run a shell script here; throws when it fails. Returns what it printed. */
  async sh(script: string, timeoutMs = RUN_MS): Promise<string> {
    const r = await this.run(['sh', '-ec', script], { timeoutMs })
    if (r.code !== 0) throw new Error(`"${script}" in ${this.name} ended with ${r.code}: ${r.all}`)
    return r.stdout.trim()
  }

  /** Start a program that goes on; it is ended with the laboratory. */
  start(argv: readonly string[], options: SpawnOptions = {}): ChildProcess {
    const child = spawn('ip', ['netns', 'exec', this.name, ...argv], { stdio: ['ignore', 'pipe', 'pipe'], ...options })
    child.on('error', () => {})
    child.stdout?.resume()
    child.stderr?.resume()
    return child
  }

  /** The same, and what it has said so far. */
  hear(
    argv: readonly string[],
    options: SpawnOptions = {},
  ): { readonly child: ChildProcess; readonly said: { out: string; err: string } } {
    const child = this.start(argv, options)
    const said = { out: '', err: '' }
    child.stdout?.on('data', (d) => (said.out += d))
    child.stderr?.on('data', (d) => (said.err += d))
    return { child, said }
  }

  /**
   * What comes back of a datagram. It may be lost and a busy machine be late: then it is said again.
   * @param to the far end in socat's words: "UDP:192.0.2.1:7"
   */
  echo(to: string, text: string): Promise<string> {
    const argv = ['socat', '-t1', '-b65000', '-', to]
    const once = async () => (await this.run(argv, { input: text, timeoutMs: 20_000 })).stdout
    return eventually(`${text.length} bytes come back from ${to}`, once)
  }

  /** tcpdump here, listening already. `end` waits until what must be seen was seen, a little more for what must not, and tells all. */
  async tcpdump(...argv: string[]): Promise<{ end(must: RegExp): Promise<string> }> {
    const { child, said } = this.hear(['tcpdump', '-U', '-l', '-n', ...argv])
    await eventually('tcpdump listens', () => said.err.includes('listening on'))
    return {
      end: async (must) => {
        await eventually(`${must}`, () => must.test(said.out)).catch(() => {})
        await sleep(500)
        child.kill('SIGKILL')
        return said.out
      },
    }
  }

  /** What this place believes to be /etc/resolv.conf; written in place, as a bind mount follows the inode. */
  resolvConf(text: string): void {
    writeFileSync(`/etc/netns/${this.name}/resolv.conf`, text)
  }

  async remove(): Promise<void> {
    this.lab.removePlace(this.name)
  }
}

export class Lab {
  readonly id: string
  readonly dir: string
  readonly host: Place
  readonly router: Place
  readonly inet: Place
  readonly #places: string[] = []
  readonly #onExit = () => this.#removeAll()
  readonly #onSignal = () => process.exit(130)
  #services: ChildProcess | undefined
  #answers: ((line: string) => void)[] = []
  #guests = 0
  #user: string | undefined

  private constructor() {
    this.id = `nt${Math.random().toString(36).slice(2, 7)}`
    this.dir = mkdtempSync(join(tmpdir(), `${this.id}-`))
    process.on('exit', this.#onExit)
    process.on('SIGINT', this.#onSignal)
    process.on('SIGTERM', this.#onSignal)
    this.host = this.#place('host')
    this.router = this.#place('router')
    this.inet = this.#place('inet')
  }

  /** @param families what the host has */
  static async create(families: readonly (4 | 6)[] = [4, 6]): Promise<Lab> {
    const lab = new Lab()
    try {
      await lab.#build(families)
      return lab
    } catch (e) {
      await lab.remove()
      throw e
    }
  }

  #place(name: string): Place {
    const full = `${this.id}-${name}`
    mkdirSync(`/etc/netns/${full}`, { recursive: true })
    writeFileSync(`/etc/netns/${full}/resolv.conf`, `nameserver ${DNS}\n`)
    execFileSync('ip', ['netns', 'add', full])
    this.#places.push(full)
    execFileSync('ip', ['-n', full, 'link', 'set', 'lo', 'up'])
    return new Place(this, full)
  }

  async #build(families: readonly (4 | 6)[]): Promise<void> {
    const [h, r, i] = [this.host.name, this.router.name, this.inet.name]
    const batch = (ns: string, lines: string) =>
      execFileSync('ip', ['-n', ns, '-batch', '-'], {
        input: lines
          .trim()
          .split('\n')
          .map((l) => l.trim())
          .join('\n'),
      })
    // Addresses are there at once: nobody else has them.
    for (const place of [this.host, this.router, this.inet])
      await place.sh('for i in all default; do echo 0 >/proc/sys/net/ipv6/conf/$i/accept_dad; done')
    if (!families.includes(6))
      await this.host.sh('for i in all default lo; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done')
    batch(
      r,
      `link add down0 mtu ${UPLINK_MTU} type veth peer uplink mtu ${UPLINK_MTU} netns ${h}
       link add up0 type veth peer eth0 netns ${i}
       addr add 10.77.0.1/24 dev down0
       addr add 203.0.113.1/24 dev up0
       addr add 2001:db8:77::1/64 dev down0 nodad
       addr add 2001:db8:113::1/64 dev up0 nodad
       link set down0 up
       link set up0 up
       route add 8.8.8.8 via 203.0.113.2
       route add 1.1.1.1 via 203.0.113.2
       route add ${EXAMPLE} via 203.0.113.2
       route add ${DNS6} via 2001:db8:113::2
       route add ${EXAMPLE6} via 2001:db8:113::2`,
    )
    batch(h, 'link set uplink up')
    if (families.includes(4)) batch(h, 'addr add 10.77.0.2/24 dev uplink\nroute add default via 10.77.0.1')
    else this.host.resolvConf(`nameserver ${DNS6}\n`)
    if (families.includes(6)) batch(h, `addr add ${HOST6}/64 dev uplink nodad\nroute add default via 2001:db8:77::1`)
    batch(
      i,
      `addr add 203.0.113.2/24 dev eth0
       addr add 8.8.8.8/32 dev lo
       addr add 1.1.1.1/32 dev lo
       addr add ${EXAMPLE}/32 dev lo
       addr add 2001:db8:113::2/64 dev eth0 nodad
       addr add ${DNS6}/128 dev lo nodad
       addr add ${EXAMPLE6}/128 dev lo nodad
       link set eth0 up
       route add default via 203.0.113.1
       route add default via 2001:db8:113::1`,
    )
    const forward = 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
    const atOnce = 'echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit'
    await this.router.sh(`${forward}; ${atOnce}`)
    await this.inet.sh(atOnce)
    // On the host as well: the worst case for isolation, and common (docker).
    await this.host.sh(forward)
    const services = this.inet.start([process.execPath, join(here, 'inet/services.ts')], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    this.#services = services
    let text = ''
    services.stdout?.on('data', (d: Buffer) => {
      const lines = (text + d).split('\n')
      text = lines.pop() as string
      for (const l of lines) this.#answers.shift()?.(l)
    })
    await this.#answer('ready')
  }

  #answer(what: string): Promise<string> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`the internet does not answer: ${what}`)), 60_000)
      this.#answers.push((line) => {
        clearTimeout(timer)
        resolve(line)
      })
    })
  }

  /** Change how the internet's name server behaves, or ask what it saw. See inet/services.ts. */
  async tell(command: Record<string, unknown>): Promise<unknown> {
    const answer = this.#answer(JSON.stringify(command))
    this.#services?.stdin?.write(`${JSON.stringify(command)}\n`)
    return JSON.parse(await answer)
  }

  /** A namespace that plays a VM: nothing in it but lo. */
  guest(name = `vm${++this.#guests}`): Place {
    return this.#place(name)
  }

  /** A daemon's stand-in in the host's namespace: one backend alone, in a process of its own that can be killed. */
  agent(home = join(this.dir, 'home'), backend?: 'userspace' | 'bridge', env?: NodeJS.ProcessEnv): Agent {
    mkdirSync(home, { recursive: true })
    return new Agent(this.host, home, backend, env)
  }

  /** An ordinary user of this machine with ids to map (subuid(5)), gone with the laboratory. */
  user(): { readonly name: string; readonly home: string } {
    const name = `${this.id}u`
    const home = join(this.dir, 'user')
    execFileSync('useradd', ['--no-create-home', '--user-group', '--home-dir', home, '--shell', '/bin/sh', name], {
      stdio: 'pipe',
    })
    this.#user = name
    chmodSync(this.dir, 0o755)
    mkdirSync(home)
    execFileSync('chown', [`${name}:`, home])
    return { name, home }
  }

  /** Drop this share of the packets between host and internet, both ways; 0 ends it. */
  async loss(share: number): Promise<void> {
    for (const iptables of ['iptables', 'ip6tables']) {
      await this.router.sh(`${iptables} -F FORWARD`)
      if (share > 0)
        await this.router.sh(`${iptables} -A FORWARD -m statistic --mode random --probability ${share} -j DROP`)
    }
  }

  /** Everything that must be the same before and after: links, namespaces, mounts, listening ports, processes of this laboratory. */
  async snapshot(): Promise<Record<string, string[]>> {
    const lines = (s: string) =>
      s
        .split('\n')
        .map((l) => l.trim())
        .filter(Boolean)
        .sort()
    return {
      links: lines(await this.host.sh("ip -o link | awk '{print $2}'")),
      namespaces: lines(execFileSync('ip', ['netns', 'list'], { encoding: 'utf8' }))
        .filter((n) => n.startsWith(this.id))
        .map((n) => n.split(' ')[0] as string),
      mounts: lines(readFileSync('/proc/self/mounts', 'utf8')).filter((m) => m.includes(this.dir)),
      listening: lines(await this.host.sh("ss -Hlntu | awk '{print $1, $5}'")),
      processes: this.processes()
        .map((p) => p.argv)
        .filter((p) => /noid|unshare/.test(p))
        .sort(),
    }
  }

  /** What runs in the host's namespace or names this laboratory's directory. */
  processes(): { readonly pid: number; readonly argv: string }[] {
    const own = execFileSync('ip', ['netns', 'pids', this.host.name], { encoding: 'utf8' }).split('\n')
    const found: { pid: number; argv: string }[] = []
    for (const pid of readdirSync('/proc').filter((p) => /^\d+$/.test(p))) {
      try {
        const argv = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim()
        if (argv && (own.includes(pid) || argv.includes(this.dir))) found.push({ pid: Number(pid), argv })
      } catch {
        // Gone meanwhile.
      }
    }
    return found
  }

  removePlace(name: string): void {
    try {
      const pids = execFileSync('ip', ['netns', 'pids', name], { encoding: 'utf8' })
        .split('\n')
        .filter(Boolean)
        .map(Number)
      for (const pid of pids) if (pid !== process.pid) kill(pid)
    } catch {
      // Gone meanwhile.
    }
    try {
      execFileSync('ip', ['netns', 'del', name], { stdio: 'ignore' })
    } catch {
      // It was removed by the test.
    }
    rmSync(`/etc/netns/${name}`, { recursive: true, force: true })
    const i = this.#places.indexOf(name)
    if (i >= 0) this.#places.splice(i, 1)
  }

  #removeAll(): void {
    for (const { pid, argv } of this.#places.length > 0 ? this.processes() : [])
      if (pid !== process.pid && argv.includes(this.dir)) kill(pid)
    for (const name of [...this.#places].reverse()) this.removePlace(name)
    for (const m of readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .map((l) => l.split(' ')[1])
      .filter((m) => m?.startsWith(this.dir))
      .reverse()) {
      try {
        execFileSync('umount', ['-l', m as string], { stdio: 'ignore' })
      } catch {
        // Unmounted with its parent.
      }
    }
    if (this.#user !== undefined) {
      const user = this.#user
      const uid = execFileSync('id', ['-u', user], { encoding: 'utf8' }).trim()
      for (const pid of readdirSync('/proc').filter((p) => /^\d+$/.test(p)))
        if (statSync(`/proc/${pid}`, { throwIfNoEntry: false })?.uid === Number(uid)) kill(Number(pid))
      execFileSync('userdel', ['--force', user], { stdio: 'ignore' })
      this.#user = undefined
    }
    rmSync(this.dir, { recursive: true, force: true })
  }

  async remove(): Promise<void> {
    this.#removeAll()
    process.off('exit', this.#onExit)
    process.off('SIGINT', this.#onSignal)
    process.off('SIGTERM', this.#onSignal)
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // Gone meanwhile.
  }
}

export { eventually }

/** Waits until what `probe` gives is this; in the end the difference is told. */
export async function becomes<T>(what: string, probe: () => Promise<T> | T, expected: T): Promise<void> {
  await eventually(what, async () => {
    assert.deepEqual(await probe(), expected)
    return true
  })
}

export const repository = root
