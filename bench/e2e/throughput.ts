/**
 * Throughput of the data plane beside slirp4netns and a kernel veth, measured in alternating rounds so that all meet the same machine.
 *
 *   node bench/e2e/throughput.ts [--rounds 5] [--seconds 3] [--only tap,packet,vm,slirp,veth] [--parallel 1] [--prof DIR] [--json]
 *
 * Needs root, iperf3, slirp4netns. Everything happens in namespaces it makes. `out` is guest to host, `in` is host to guest (iperf3 -R);
 * `vm` is from one guest to another through the switch. CPU is that of the process in the middle alone.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { release } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import type { HelloAnswer } from '../../src/dataplane/protocol.ts'
import { CONFIG, Lab, SERVER } from '../../test/dataplane/lab.ts'

const { values: o } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '3' },
    only: { type: 'string', default: 'tap,packet,vm,slirp,veth' },
    parallel: { type: 'string', default: '1' },
    prof: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
})
const SLIRP_MTU = '65520'
const CLOCK_TICKS = 100

interface Path {
  readonly name: string
  readonly from: string
  readonly server: string
  /** Whose CPU is told beside it. */
  readonly pid: number | undefined
}
interface Figure {
  readonly gbits: number
  /** Seconds of CPU for each GB, of the process in the middle. */
  readonly cpuPerGB: number | undefined
  readonly retransmits: number
}

const cpuSeconds = (pid: number): number => {
  const f = readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1].split(' ')
  return (Number(f[11]) + Number(f[12])) / CLOCK_TICKS
}

function measure(lab: Lab, p: Path, reverse: boolean): Figure {
  const before = p.pid === undefined ? 0 : cpuSeconds(p.pid)
  const text = lab.in(
    p.from,
    ...['iperf3', '-J', '-c', p.server, '-t', o.seconds, '-P', o.parallel, ...(reverse ? ['-R'] : [])],
  )
  const { end } = JSON.parse(text) as {
    end: { sum_received: { bits_per_second: number; bytes: number }; sum_sent: { retransmits?: number } }
  }
  const cpu = p.pid === undefined ? undefined : cpuSeconds(p.pid) - before
  return {
    gbits: end.sum_received.bits_per_second / 1e9,
    cpuPerGB: cpu === undefined ? undefined : cpu / (end.sum_received.bytes / 1e9),
    retransmits: end.sum_sent.retransmits ?? 0,
  }
}

const median = (list: readonly number[]): number => {
  const sorted = list.toSorted((a, b) => a - b)
  return sorted.length === 0 ? Number.NaN : sorted[Math.floor(sorted.length / 2)]
}

async function main(): Promise<void> {
  const wanted = new Set(o.only.split(','))
  const lab = new Lab()
  try {
    await lab.start(CONFIG, o.prof ? ['--cpu-prof', `--cpu-prof-dir=${o.prof}`] : [])
    const { pid } = await lab.link.request<HelloAnswer>({ op: 'hello' })
    lab.background(lab.host, ['iperf3', '-s'])
    const paths: Path[] = []
    if (wanted.has('tap'))
      paths.push({ name: 'noid, TAP', from: (await lab.guest('tap', 10)).netns, server: SERVER, pid })
    if (wanted.has('packet'))
      paths.push({
        name: 'noid, packet socket',
        from: (await lab.guest('pkt', 11, 'packet')).netns,
        server: SERVER,
        pid,
      })
    if (wanted.has('vm')) {
      const server = await lab.guest('srv', 12)
      lab.background(server.netns, ['iperf3', '-s'])
      paths.push({ name: 'noid, VM to VM', from: (await lab.guest('cli', 13)).netns, server: server.address, pid })
    }
    if (wanted.has('slirp')) {
      const netns = lab.addNetns('slirp')
      const argv = ['slirp4netns', '--configure', `--mtu=${SLIRP_MTU}`, '--netns-type=path', lab.path(netns), 'tap0']
      const slirp = lab.background(lab.host, argv)
      paths.push({ name: 'slirp4netns', from: netns, server: SERVER, pid: slirp.pid })
    }
    if (wanted.has('veth')) {
      const netns = lab.addNetns('veth')
      lab.in(lab.host, 'ip', 'link', 'add', 'veth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', netns)
      lab.in(lab.host, 'sh', '-c', 'ip addr add 10.78.0.1/24 dev veth0; ip link set veth0 up')
      lab.in(netns, 'sh', '-c', 'ip addr add 10.78.0.2/24 dev eth0; ip link set eth0 up')
      paths.push({ name: 'kernel veth', from: netns, server: '10.78.0.1', pid: undefined })
    }
    await sleep(1000)
    const figures = new Map<string, Figure[]>()
    for (let round = 0; round < Number(o.rounds); round++)
      for (const reverse of [false, true])
        for (const p of paths) {
          const key = `${p.name}|${reverse ? 'in' : 'out'}`
          const list = figures.get(key) ?? []
          figures.set(key, list)
          list.push(measure(lab, p, reverse))
        }
    report(paths, figures)
  } finally {
    await lab.close()
  }
}

function report(paths: readonly Path[], figures: ReadonlyMap<string, readonly Figure[]>): void {
  if (o.json) {
    console.log(JSON.stringify(Object.fromEntries(figures)))
    return
  }
  const of = (name: string, way: string) => figures.get(`${name}|${way}`) ?? []
  const rate = (name: string, way: string) => median(of(name, way).map((f) => f.gbits))
  const cpus = execFileSync('nproc', { encoding: 'utf8' }).trim()
  console.log(
    `Linux ${release()}, Node ${process.version}, ${cpus} CPUs, guests' MTU ${CONFIG.mtu}, slirp4netns' ${SLIRP_MTU}`,
  )
  console.log(`${o.rounds} rounds of ${o.seconds} s, ${o.parallel} flow(s), medians; [lowest-highest]\n`)
  console.log('path                  way  Gbit/s                    CPU s/GB  of veth  of slirp4netns')
  for (const p of paths)
    for (const way of ['out', 'in']) {
      const list = of(p.name, way)
      const rates = list.map((f) => f.gbits)
      const spread = `[${Math.min(...rates).toFixed(1)}-${Math.max(...rates).toFixed(1)}]`
      const cpu = p.pid === undefined ? '' : median(list.map((f) => f.cpuPerGB ?? 0)).toFixed(2)
      const ratio = (to: string) => {
        const r = rate(p.name, way) / rate(to, way)
        return Number.isNaN(r) ? '' : r.toFixed(2)
      }
      const cells = [
        p.name.padEnd(21),
        way.padEnd(4),
        `${rate(p.name, way).toFixed(2)} ${spread}`.padEnd(25),
        cpu.padEnd(9),
      ]
      console.log(`${cells.join(' ')} ${ratio('kernel veth').padEnd(8)} ${ratio('slirp4netns')}`)
    }
}

await main()
