/**
 * What is measured, and how: each measure runs once on one stand and gives a sample of each of its parts.
 *
 * TCP streams are iperf3's where it is installed, else the built-in client's (tool.ts), which tells the same fields; everything else is
 * built in, the same for every subject. CPU is that of the whole machine while the measure ran (/proc/stat, without idle, iowait
 * and steal): the guests' ends and the measuring tools are in it, for every subject alike, and so is whatever else runs.
 */
import type { ChildProcess } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { MeasureInfo, Need, Options, Part, Sample } from './contract.ts'
import { parseDnsperf, parseIperf, type Transfer } from './parse.ts'
import { end, type Place } from './place.ts'
import { FAR, GUEST_PORT, HOST, PATH_MTU, PUBLISHED_PORT, TOOL_PORT, UDP_PORT } from './ports.ts'
import type { Stand, Station } from './stand.ts'

export const TOOL = [
  process.execPath,
  '--disable-warning=ExperimentalWarning',
  fileURLToPath(new URL(`./tool${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url)),
]
const DNS_CLIENTS = 4
/** /proc/stat counts in ticks of USER_HZ, which is 100 on every architecture of Linux that Node knows. */
const TICKS = 100

export interface Tools {
  readonly iperf3: boolean
  readonly dnsperf: boolean
  /** dnsperf's list of questions. */
  readonly questions: string
}

export interface Measure extends MeasureInfo {
  run(s: Stand, o: Options, t: Tools): Promise<Readonly<Record<string, Sample>>>
}

const higher = (id: string, title: string, unit: string): Part => ({ id, title, unit, better: 'higher' })
const lower = (id: string, title: string, unit: string): Part => ({ id, title, unit, better: 'lower' })

/** CPU seconds the machine has worked since it was started. */
export function cpuSeconds(stat = readFileSync('/proc/stat', 'latin1')): number {
  const f = (stat.split('\n', 1)[0] as string).split(/\s+/).slice(1).map(Number)
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = f
  return (user + nice + system + irq + softirq) / TICKS
}

const guest = (s: Stand, n: 0 | 1): Station => s.guests[n] as Station

/** One line of JSON from a tool's verb, run to its end. */
async function tool<T>(p: Place, ...args: (string | number)[]): Promise<T> {
  return JSON.parse((await p.run(...TOOL, ...args.map(String))).stdout) as T
}

interface Way {
  /** Where the client runs, what it dials. */
  readonly client: (s: Stand) => Place
  readonly address: (s: Stand) => string
  readonly port: number
  readonly reverse: boolean
}

const OUT: Way = { client: (s) => guest(s, 0).place, address: () => HOST, port: GUEST_PORT, reverse: false }
const IN: Way = { ...OUT, reverse: true }
const FAR_OUT: Way = { ...OUT, address: () => FAR }
const FAR_IN: Way = { ...FAR_OUT, reverse: true }
const VM: Way = { ...OUT, client: (s) => guest(s, 1).place, address: (s) => guest(s, 0).address }
const PUBLISH: Way = { client: (s) => s.host, address: () => HOST, port: PUBLISHED_PORT, reverse: false }

async function stream(s: Stand, w: Way, flows: number, o: Options, t: Tools): Promise<Transfer> {
  const where = w.client(s)
  const address = w.address(s)
  if (t.iperf3) {
    const argv = ['iperf3', '-J', '-c', address, '-p', String(w.port), '-t', String(o.seconds), '-P', String(flows)]
    return parseIperf((await where.run(...argv, ...(w.reverse ? ['-R'] : []))).stdout)
  }
  return tool(where, 'transfer', address, w.port, o.seconds * 1000, flows, w.reverse ? 'in' : 'out')
}

function tcp(id: string, title: string, needs: Need, w: Way, flows: number, quick: boolean): Measure {
  const part = higher(id, `TCP ${title}, ${flows} flow${flows === 1 ? '' : 's'}`, 'Gbit/s')
  return {
    id,
    needs,
    quick,
    parts: [part],
    async run(s, o, t) {
      const before = cpuSeconds()
      const r = await stream(s, w, flows, o, t)
      const cpu = cpuSeconds() - before
      const more: Record<string, number> = { cpu: cpu / (r.bytes / 1e9) }
      if (r.retransmits !== null) more.retransmits = r.retransmits
      return { [id]: { value: r.bitsPerSecond / 1e9, more } }
    },
  }
}

/** The next line that a tool says. */
function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stdout! }).once('line', resolve)
    child.once('exit', () => setTimeout(() => reject(new Error('the tool told nothing')), 100))
  })
}

/** Datagrams as fast as one sender makes them; what the receiver got counts. */
async function udp(s: Stand, way: 'out' | 'vm', size: number, ms: number, gso: boolean): Promise<Sample> {
  const [from, to] = way === 'out' ? [guest(s, 0).place, s.host] : [guest(s, 1).place, guest(s, 0).place]
  const address = way === 'out' ? HOST : guest(s, 0).address
  const counter = await to.start([...TOOL, 'udp-count', String(UDP_PORT)], true)
  try {
    const told = firstLine(counter)
    const before = cpuSeconds()
    const sent = await tool<{ sent: number; seconds: number }>(
      from,
      'udp-blast',
      address,
      UDP_PORT,
      size,
      ms,
      ...(gso ? ['gso'] : []),
    )
    const cpu = cpuSeconds() - before
    const got = JSON.parse(await told) as { bytes: number; seconds: number }
    const datagrams = got.bytes / size
    if (datagrams === 0) throw new Error('no datagram arrived')
    // What still lay in queues when the sender stopped arrives later: the longer of both times counts.
    const seconds = Math.max(sent.seconds, got.seconds)
    const loss = Math.max(0, 100 * (1 - datagrams / sent.sent))
    const perSecond = datagrams / seconds
    return {
      value: gso ? (perSecond * size * 8) / 1e9 : perSecond / 1000,
      more: { loss, cpu: cpu / (got.bytes / 1e9), sentPerSecond: sent.sent / sent.seconds },
    }
  } finally {
    end(counter)
  }
}

function datagrams(way: 'out' | 'vm', size: number, gso: boolean, quick: boolean): Measure {
  const id = `udp${gso ? '-gso' : ''}-${size}-${way}`
  const where = way === 'out' ? 'guest→host' : 'VM↔VM'
  const title = `UDP ${where}, ${size} bytes${gso ? ', segmentation offload' : ''}`
  return {
    id,
    needs: way === 'out' ? 'host' : 'vm',
    quick,
    parts: [higher(id, title, gso ? 'Gbit/s' : 'k datagrams/s')],
    run: async (s, o) => ({ [id]: await udp(s, way, size, o.quick ? 400 : o.seconds * 500, gso) }),
  }
}

interface Rounds {
  readonly perSecond: number
  readonly p50: number
  readonly p99: number
}

function requests(verb: 'rr' | 'crr', way: 'out' | 'vm', quick: boolean): Measure {
  const id = `${verb}-${way}`
  const where = way === 'out' ? 'guest→host' : 'VM↔VM'
  const what = verb === 'rr' ? `round trip of 64 bytes ${where}` : `connect, request, response ${where}`
  return {
    id,
    needs: way === 'out' ? 'host' : 'vm',
    quick,
    parts: [
      higher(id, what, '/s'),
      lower(`${id}-p50`, `${what}, median`, 'µs'),
      lower(`${id}-p99`, `${what}, 99th percentile`, 'µs'),
    ],
    async run(s, o) {
      const from = way === 'out' ? guest(s, 0).place : guest(s, 1).place
      const address = way === 'out' ? HOST : guest(s, 0).address
      const r = await tool<Rounds>(from, verb, address, TOOL_PORT, o.quick ? 300 : o.seconds * 500)
      const none = (value: number): Sample => ({ value, more: {} })
      return { [id]: none(r.perSecond), [`${id}-p50`]: none(r.p50), [`${id}-p99`]: none(r.p99) }
    },
  }
}

const dns: Measure = {
  id: 'dns',
  needs: 'dns',
  quick: true,
  parts: [higher('dns', `DNS answers from the cache, ${DNS_CLIENTS} clients`, '/s')],
  async run(s, o, t) {
    const server = s.dns as string
    const place = guest(s, 1).place
    const ask = async (seconds: number): Promise<{ perSecond: number; sent: number; completed: number }> => {
      if (!t.dnsperf) return tool(place, 'dns', server, seconds * 1000, DNS_CLIENTS)
      const argv = ['-s', server, '-d', t.questions, '-c', String(DNS_CLIENTS), '-l', String(seconds)]
      return parseDnsperf((await place.run('dnsperf', ...argv)).stdout)
    }
    // The first pass fills the cache.
    await tool(place, 'dns', server, 200, DNS_CLIENTS)
    const r = await ask(o.quick ? 1 : o.seconds)
    return { dns: { value: r.perSecond, more: { loss: 100 * (1 - r.completed / Math.max(1, r.sent)) } } }
  },
}

/** What was needed for a burst of work is given back within a second or two. */
const REST_MS = 2200
const rss: Measure = {
  id: 'rss',
  needs: 'process',
  quick: true,
  parts: [lower('rss', 'memory of the process in the middle', 'MiB')],
  async run(s, o) {
    if (!o.quick) await sleep(REST_MS)
    return { rss: { value: total(s, residentKib) / 1024, more: {} } }
  },
}

/** Nanoseconds that the threads of a process have run (schedstat of proc(5)). */
function ranNs(pid: number): number {
  let ns = 0
  for (const t of readdirSync(`/proc/${pid}/task`))
    ns += Number(readFileSync(`/proc/${pid}/task/${t}/schedstat`, 'latin1').split(' ')[0])
  return ns
}
const residentKib = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0)
const total = (s: Stand, of: (pid: number) => number): number => s.pids.reduce((sum, pid) => sum + of(pid), 0)

const IDLE_MS = 2000
const idle: Measure = {
  id: 'idle',
  needs: 'process',
  quick: false,
  parts: [lower('idle', 'CPU of the idle process in the middle', '% of a core')],
  async run(s) {
    const before = total(s, ranNs)
    const begin = performance.now()
    await sleep(IDLE_MS)
    const ns = total(s, ranNs) - before
    return { idle: { value: (100 * ns) / ((performance.now() - begin) * 1e6), more: {} } }
  },
}

/** A VM of noid may have 4096. */
const FLOWS = 4000
const SETTLE_MS = 500
const flows: Measure = {
  id: 'flows',
  needs: 'host',
  quick: false,
  parts: [lower('flows', `memory of each of ${FLOWS} idle TCP connections guest→host`, 'KiB')],
  async run(s) {
    if (s.pids.length === 0) return {} as Record<string, Sample>
    const before = total(s, residentKib)
    const argv = [...TOOL, 'hold', HOST, String(TOOL_PORT), String(FLOWS)]
    const holder = await guest(s, 0).place.start(argv, false, true)
    try {
      const { held } = JSON.parse(await firstLine(holder)) as { held: number }
      if (held < FLOWS) throw new Error(`${held} connections could be opened`)
      await sleep(SETTLE_MS)
      return { flows: { value: Math.max(0, total(s, residentKib) - before) / held, more: {} } }
    } finally {
      end(holder)
    }
  },
}

const boot: Measure = {
  id: 'boot',
  needs: 'boot',
  quick: false,
  parts: [
    lower('boot', 'from the wish for a VM to the end of its first command', 'ms'),
    lower('boot-exec', 'a command that does nothing, once the VM is up', 'ms'),
  ],
  async run(s) {
    if (s.boot === undefined) return {} as Record<string, Sample>
    const { create, exec } = await s.boot()
    return { boot: { value: create, more: {} }, 'boot-exec': { value: exec, more: {} } }
  },
}

export const measures: readonly Measure[] = [
  tcp('tcp-out-1', 'guest→host', 'host', OUT, 1, true),
  tcp('tcp-out-8', 'guest→host', 'host', OUT, 8, false),
  tcp('tcp-in-1', 'host→guest', 'host', IN, 1, true),
  tcp('tcp-in-8', 'host→guest', 'host', IN, 8, false),
  tcp('tcp-far-out', `guest→beyond a path of MTU ${PATH_MTU}`, 'host', FAR_OUT, 1, false),
  tcp('tcp-far-in', `beyond a path of MTU ${PATH_MTU}→guest`, 'host', FAR_IN, 1, false),
  tcp('tcp-vm-1', 'VM↔VM', 'vm', VM, 1, true),
  tcp('tcp-vm-8', 'VM↔VM', 'vm', VM, 8, false),
  tcp('tcp-publish-1', 'published port', 'publish', PUBLISH, 1, true),
  tcp('tcp-publish-8', 'published port', 'publish', PUBLISH, 8, false),
  datagrams('vm', 64, false, true),
  datagrams('vm', 512, false, false),
  datagrams('vm', 1400, false, false),
  datagrams('out', 64, false, false),
  datagrams('out', 512, false, false),
  datagrams('out', 1400, false, false),
  datagrams('out', 1400, true, false),
  datagrams('vm', 1400, true, false),
  requests('rr', 'out', true),
  requests('rr', 'vm', false),
  requests('crr', 'out', true),
  dns,
  rss,
  idle,
  flows,
  boot,
]

/** The servers of a stand: they run as long as it does. */
export async function serve(s: Stand, t: Tools): Promise<void> {
  for (const p of [s.host, s.host.far, ...s.guests.map((g) => g.place)]) {
    await p.start([...TOOL, 'serve', String(TOOL_PORT)], true)
    if (t.iperf3) await p.start(['iperf3', '-s', '-p', String(GUEST_PORT)], false)
    else await p.start([...TOOL, 'serve', String(GUEST_PORT)], true)
  }
}
