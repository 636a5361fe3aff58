/**
 * What a guest that floods leaves to its neighbours: the throughput of one, and how long another waits for a name.
 *
 *   node bench/e2e/floods.ts [--rounds 5] [--seconds 2] [--json]
 *
 * Needs root, iperf3 and dig. Everything happens in namespaces it makes; neighbours are measured by turns alone, beside a guest that only counts (it takes a
 * processor as a flood does, and nothing of the network), and beside each flood. The flood is a process that writes frames to a packet socket on its nic as
 * fast as it can.
 */
import { execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { availableParallelism, release } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { Scratch } from '../../src/sys/libc.ts'
import { linkIndex } from '../../src/sys/netdev.ts'
import { openPacket } from '../../src/sys/packet.ts'
import { send } from '../../src/sys/socket.ts'
import { type Guest, Lab, SERVER } from '../../test/dataplane/lab.ts'
import { arp, BROADCAST_MAC, type Build, tcp, udp } from '../../test/netstack/net.ts'

const { values: o, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '2' },
    json: { type: 'boolean', default: false },
  },
})
/** Different frames of a flood, sent again and again. */
const FRAMES = 4096
const FRAME = 128
const SYN = 2
const NAMES = 10

const FLOODS: Readonly<Record<string, (n: number) => Build>> = {
  ARP: (n) => arp({ target: `192.168.100.${n % 250}` }),
  broadcasts: () => udp({ to: '192.168.100.255:9', dstMac: BROADCAST_MAC }),
  connections: (n) => tcp({ to: `${SERVER}:${1 + (n % 6000)}`, flags: SYN, seq: n }),
  datagrams: (n) => udp({ to: `${SERVER}:${1 + ((n * 7919) % 60000)}`, data: 'x' }),
}
const ALONE = 'nobody beside'
const COUNTING = 'beside a guest that counts'

/** The child: in the guest's namespace, until it is ended. It says how many frames it sent. */
function flood(kind: string, mac: string, ip: string): void {
  let sent = 0
  process.on('SIGTERM', () => {
    process.stdout.write(`${sent}\n`, () => process.exit(0))
  })
  const build = FLOODS[kind]
  const fd = build === undefined ? -1 : openPacket(linkIndex('eth0'), false)
  const memory = new Scratch(FRAMES * FRAME)
  const lengths = Array.from({ length: FRAMES }, (_, n) => {
    const bytes = build?.(n)({ mac, ip }).bytes ?? new Uint8Array(0)
    memory.bytes.set(bytes, n * FRAME)
    return bytes.length
  })
  const some = (): void => {
    for (let n = 0; n < FRAMES; n++)
      if (build !== undefined && send(fd, memory.address + n * FRAME, lengths[n] as number) > 0) sent++
    setImmediate(some)
  }
  some()
}

interface Figure {
  readonly gbits: number
  readonly names: readonly number[]
  readonly framesPerSecond: number
}

async function measure(kind: string, busy: Guest, bad: Guest, asking: Guest): Promise<Figure> {
  const self = [process.execPath, fileURLToPath(import.meta.url), 'flood', kind, bad.mac, bad.address]
  const began = performance.now()
  const child = kind === ALONE ? undefined : spawn('ip', ['netns', 'exec', bad.netns, ...self])
  let text = ''
  child?.stdout.on('data', (d) => {
    text += d
  })
  if (child !== undefined) await sleep(500)
  const names: number[] = []
  const asked = (async () => {
    for (let n = 0; n < NAMES; n++) {
      const argv = [
        'netns',
        'exec',
        asking.netns,
        'dig',
        '+tries=1',
        '+time=2',
        '@192.168.100.2',
        'asking.noid.internal',
      ]
      const { stdout } = await promisify(execFile)('ip', argv)
      names.push(Number(/Query time: (\d+) msec/.exec(stdout)?.[1] ?? Number.NaN))
    }
  })()
  const argv = ['netns', 'exec', busy.netns, 'iperf3', '-J', '-c', SERVER, '-t', o.seconds]
  const { stdout } = await promisify(execFile)('ip', argv, { maxBuffer: 1 << 24 })
  await asked
  const took = performance.now() - began
  if (child !== undefined) {
    // `ip netns exec` has become the program: this is its pid.
    child.kill('SIGTERM')
    await once(child, 'close')
  }
  const { end } = JSON.parse(stdout) as { end: { sum_received: { bits_per_second: number } } }
  return { gbits: end.sum_received.bits_per_second / 1e9, names, framesPerSecond: (Number(text || 0) * 1000) / took }
}

const median = (list: readonly number[]): number =>
  list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)] as number

async function main(): Promise<void> {
  const lab = new Lab()
  try {
    await lab.start()
    const [busy, bad, asking] = [await lab.guest('busy', 10), await lab.guest('bad', 11), await lab.guest('asking', 12)]
    lab.background(lab.host, ['iperf3', '-s'])
    await sleep(1000)
    const kinds = [ALONE, COUNTING, ...Object.keys(FLOODS)]
    const figures = new Map<string, Figure[]>(kinds.map((kind) => [kind, []]))
    for (let round = 0; round < Number(o.rounds); round++)
      for (const kind of kinds) figures.get(kind)?.push(await measure(kind, busy, bad, asking))
    if (o.json) return console.log(JSON.stringify(Object.fromEntries(figures), null, 2))
    console.log(
      `Linux ${release()}, Node ${process.version}, ${availableParallelism()} CPUs; medians of ${o.rounds} rounds`,
    )
    console.log(`${'beside'.padEnd(30)}Gbit/s  of counting  names: median, longest ms  frames/s`)
    const each = (kind: string): readonly Figure[] => figures.get(kind) as Figure[]
    for (const kind of kinds) {
      const ratio = each(kind).map((f, n) => f.gbits / (each(COUNTING)[n] as Figure).gbits)
      const names = each(kind).flatMap((f) => f.names)
      const cells = [
        kind.padEnd(30),
        median(each(kind).map((f) => f.gbits))
          .toFixed(1)
          .padStart(6),
        median(ratio).toFixed(2).padStart(13),
        `${median(names)}, ${Math.max(...names)}`.padStart(25),
        Math.round(median(each(kind).map((f) => f.framesPerSecond)))
          .toString()
          .padStart(10),
      ]
      console.log(cells.join(''))
    }
  } finally {
    await lab.close()
  }
}

const [verb, kind, mac, ip] = positionals
if (verb === 'flood') flood(kind as string, mac as string, ip as string)
else {
  execFileSync('iperf3', ['--version'])
  await main()
}
