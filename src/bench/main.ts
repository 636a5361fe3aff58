/**
 * The measuring process: `node main.ts OPTIONS`, the first process of the bench's own namespaces (run.ts made them). It opens every subject,
 * tries every measure on each of them, side by side in time, and tells what it does as lines of JSON (contract.ts, Message).
 *
 * Never does: removing what it made. It is the first process of its process namespace: when it ends, whatever way, everything in it ends,
 * and with the last process the namespaces and mounts are gone.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { loadavg } from 'node:os'
import { Registry } from '../plugins/registry.ts'
import { backendSources } from '../plugins/sources.ts'
import type { Figure, Message, Need, Options, Report, Sample, SubjectInfo } from './contract.ts'
import { NAMES, nameOf } from './dns-tool.ts'
import { facts } from './facts.ts'
import { type Measure, measures, serve, TOOL, type Tools } from './measures.ts'
import { finished, type Place } from './place.ts'
import { HOST } from './ports.ts'
import type { Stand, Subject } from './stand.ts'
import { booting } from './subjects/boot.ts'
import { dnsmasq, kernel } from './subjects/kernel.ts'
import { noid } from './subjects/noid.ts'
import { pasta } from './subjects/pasta.ts'
import { qemuUser } from './subjects/qemu.ts'
import { slirp } from './subjects/slirp.ts'
import { vde } from './subjects/vde.ts'

interface Request {
  readonly options: Options
  readonly asUser: boolean
  readonly version: string
  /** Why VMs of an image cannot be booted; empty when they can. */
  readonly images: Readonly<Record<string, string>>
}

const WORK = '/run/noid-bench'
/** `--quick` begins nothing new after that. NOID_BENCH_QUICK_S: where all of it shall be measured, however slow the machine. */
const QUICK_MS = Number(process.env.NOID_BENCH_QUICK_S ?? 50) * 1000
const say = (m: Message): void => {
  process.stdout.write(`${JSON.stringify(m)}\n`)
}

/** A /run, a /tmp for children and a resolv.conf of the bench's own; a TUN device that an ordinary user may open, when root may make one. */
async function furnish(asUser: boolean): Promise<void> {
  await finished(['sh', '-ec', 'mount --make-rprivate /; mount -t tmpfs tmpfs /run; ip link set lo up'])
  mkdirSync(WORK, { mode: 0o755 })
  process.env.TMPDIR = WORK
  writeFileSync(`${WORK}/resolv.conf`, `nameserver ${HOST}\n`)
  await finished([
    'sh',
    '-ec',
    `t=$(readlink -m /etc/resolv.conf); mkdir -p "$(dirname "$t")"; [ -e "$t" ] || : > "$t"; mount --bind ${WORK}/resolv.conf "$t"`,
  ])
  if (!asUser)
    await finished(['sh', '-c', `mknod -m 0666 ${WORK}/tun c 10 200 && mount --bind ${WORK}/tun /dev/net/tun || true`])
}

async function subjects(r: Request): Promise<Subject[]> {
  const registry = await Registry.collect(await backendSources(), () => {
    throw new Error('nothing is loaded here')
  })
  const own = registry.descriptors().map((d) => noid(d.name, r.version, r.asUser))
  await registry.close()
  const { quick } = r.options
  const small = quick ? [] : [slirp(1500)]
  const boots = [
    booting({ runtime: 'sandbox', memMib: 256 }, r.version, r.images.sandbox || undefined),
    ...['tiny', 'debian'].flatMap((image) =>
      [false, true].map((cold) =>
        booting({ runtime: 'qemu', image, cold, memMib: 512 }, r.version, r.images[image] || undefined),
      ),
    ),
  ]
  const smallPasta = quick ? [] : [pasta(1500, r.asUser)]
  return [
    ...own,
    ...(quick || r.asUser ? [] : [noid('userspace', r.version, false, 200)]),
    ...(quick ? [] : [kernel(0)]),
    kernel(1),
    slirp(65520),
    ...small,
    pasta(65520, r.asUser),
    ...smallPasta,
    ...(quick ? [] : [qemuUser]),
    vde,
    dnsmasq,
    ...(quick ? [] : boots),
  ]
}

const can = (s: Stand): Need[] => [
  ...(s.out ? (['host'] as const) : []),
  ...(s.guests.length > 1 && s.kind !== 'services' ? (['vm'] as const) : []),
  ...(s.published ? (['publish'] as const) : []),
  ...(s.dns === undefined ? [] : (['dns'] as const)),
  ...(s.pids.length === 0 ? [] : (['process'] as const)),
  ...(s.boot === undefined ? [] : (['boot'] as const)),
]

async function describe(s: Stand): Promise<SubjectInfo> {
  const g = s.guests[0]
  if (g === undefined)
    return {
      name: s.name,
      kind: s.kind,
      version: s.version,
      mtu: 1500,
      txQueueLen: 0,
      offloads: [],
      note: s.note,
      can: can(s),
    }
  const [link] = JSON.parse(await g.place.sh(`ip -j link show dev ${g.ifname}`)) as { mtu: number; txqlen?: number }[]
  const on = JSON.parse((await g.place.run(...TOOL, 'offloads', g.ifname)).stdout) as string[]
  return {
    name: s.name,
    kind: s.kind,
    version: s.version,
    mtu: link?.mtu ?? 0,
    txQueueLen: link?.txqlen ?? 0,
    offloads: on,
    note: s.note,
    can: can(s),
  }
}

/**
 * What `--only` means: a subject's whole name, else the beginning of measures' names, else the beginning of subjects' names. Names of one
 * kind choose there and leave the other whole. @throws when a name is nobody's
 */
function choose(
  only: readonly string[],
  subjects: readonly Subject[],
  all: readonly Measure[],
): { readonly subjects: readonly Subject[]; readonly measures: readonly Measure[] } {
  const chosenSubjects = new Set<Subject>()
  const chosenMeasures = new Set<Measure>()
  for (const o of only) {
    const exact = subjects.find((s) => s.name === o)
    const named = all.filter((m) => m.id.startsWith(o))
    const beginning = subjects.filter((s) => s.name.startsWith(o))
    if (exact !== undefined) chosenSubjects.add(exact)
    else if (named.length > 0) for (const m of named) chosenMeasures.add(m)
    else if (beginning.length > 0) for (const s of beginning) chosenSubjects.add(s)
    else {
      const known = [...subjects.map((s) => s.name), ...all.map((m) => m.id)].join(', ')
      throw new Error(`"${o}" names nothing here; there are: ${known}`)
    }
  }
  return {
    subjects: chosenSubjects.size > 0 ? subjects.filter((s) => chosenSubjects.has(s)) : subjects,
    measures: chosenMeasures.size > 0 ? all.filter((m) => chosenMeasures.has(m)) : all,
  }
}

async function toolsHere(): Promise<Tools> {
  const here = (argv: string[]) =>
    finished(argv, 5000).then(
      () => true,
      (e: Error) => !/ENOENT/.test(e.message),
    )
  const questions = `${WORK}/questions`
  writeFileSync(questions, Array.from({ length: NAMES }, (_, n) => `${nameOf(n)} A\n`).join(''))
  return { iperf3: await here(['iperf3', '--version']), dnsperf: await here(['dnsperf', '-h']), questions }
}

async function measure(r: Request): Promise<Report> {
  const began = Date.now()
  const { options: o } = r
  await furnish(r.asUser)
  const tools = await toolsHere()
  const load = loadavg()[0] as number
  const leftOut: { name: string; why: string }[] = []
  const stands: Stand[] = []
  const infos: SubjectInfo[] = []
  const suite = measures.filter((m) => m.quick || !o.quick)
  const { subjects: named, measures: picked } = choose(o.only, await subjects(r), suite)
  // A stand is dear: only those of which something is measured.
  const chosen = named.filter((s) => picked.some((m) => (m.needs === 'boot') === (s.boots ?? false)))
  for (const [i, s] of chosen.entries()) {
    say({ type: 'step', text: `setting up ${s.name}`, done: i, total: chosen.length })
    try {
      const stand = await s.open()
      if (s.boots !== true) {
        await serve(stand, tools)
        await stand.host.start([...TOOL, 'dns-serve', HOST], true)
      }
      infos.push(await describe(stand))
      stands.push(stand)
    } catch (e) {
      leftOut.push({ name: s.name, why: (e as Error).message })
      say({ type: 'note', text: `${s.name} is left out: ${(e as Error).message}` })
    }
  }
  if (stands.length === 0) throw new Error('nothing that was named can be measured here')
  const figures = await rounds(stands, picked, o, tools)
  return {
    format: 1,
    at: new Date(began).toISOString(),
    took: Math.round((Date.now() - began) / 1000),
    options: o,
    facts: await facts(stands[0]?.host as Place),
    load,
    subjects: infos,
    leftOut,
    parts: picked.flatMap((m) => m.parts),
    figures,
  }
}

async function rounds(stands: readonly Stand[], picked: readonly Measure[], o: Options, t: Tools): Promise<Figure[]> {
  const figures = new Map<string, { part: string; subject: string; samples: Sample[]; failed?: string }>()
  const plan = picked.flatMap((m) =>
    stands.filter((s) => can(s).includes(m.needs) && (s.only?.includes(m.id) ?? true)).map((s) => ({ m, s })),
  )
  const total = plan.length * o.rounds
  let done = 0
  for (let round = 0; round < o.rounds; round++) {
    // Every second round backwards: who comes first changes.
    const order = round % 2 === 0 ? plan : plan.toReversed()
    for (const { m, s } of order) {
      if (o.quick && performance.now() > QUICK_MS) {
        say({
          type: 'note',
          text: `time is up: ${total - done} of ${total} were not measured; leave out --quick for all`,
        })
        return [...figures.values()]
      }
      const which = o.rounds > 1 ? ` (round ${round + 1} of ${o.rounds})` : ''
      say({ type: 'step', text: `${s.name}: ${m.parts[0]?.title}${which}`, done: done++, total })
      const figure = (part: string) => {
        const key = `${part}|${s.name}`
        let f = figures.get(key)
        if (f === undefined) figures.set(key, (f = { part, subject: s.name, samples: [] }))
        return f
      }
      try {
        for (const [part, sample] of Object.entries(await m.run(s, o, t))) figure(part).samples.push(sample)
      } catch (e) {
        for (const p of m.parts) {
          const f = figure(p.id)
          f.failed = (e as Error).message
          f.samples.push({ value: Number.NaN, more: {} })
        }
      }
    }
  }
  return [...figures.values()]
}

// The starter holds the other end; without it nobody wants the result.
process.stdin.resume().once('close', () => process.exit(1))
process.on('SIGINT', () => process.exit(130))
process.on('SIGTERM', () => process.exit(143))
try {
  say({ type: 'report', report: await measure(JSON.parse(process.argv[2] as string) as Request) })
  process.exit(0)
} catch (e) {
  say({ type: 'error', message: (e as Error).message })
  process.exit(1)
}
