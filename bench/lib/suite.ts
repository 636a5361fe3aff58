/**
 * One suite of micro-benchmarks: `node bench/NAME.bench.ts` prints it, with benny; as a child of compare.ts it answers with JSON.
 *
 * A case is a function that does the hot thing `per` times. Its time is the least of benny's samples (each of
 * many calls), divided by `per`: what disturbs only adds. Its bytes are what
 * V8 allocated over many calls (total_allocated_bytes of v8.getHeapStatistics), when the process was started with --expose-gc.
 * Every suite also runs the reference loop: a fixed piece of integer work. A time divided by the reference's time of the same process is
 * what is compared, so that a slower or a busy machine is no regression.
 */
import { getHeapStatistics } from 'node:v8'
import benny from 'benny'

export interface Case {
  readonly run: () => void
  /** How many times `run` does the thing; 1 unless said. */
  readonly per?: number
  /** The kernel does most of it: what other work does to its caches and locks, the reference loop does not feel. */
  readonly kernel?: boolean
}

export interface Result {
  /** Nanoseconds of one. */
  readonly ns: number
  /** Nanoseconds of the reference loop in the same process. */
  readonly reference: number
  /** Bytes of heap allocated for one; null when not measured. */
  readonly bytes: number | null
  readonly kernel: boolean
}

/** The parent wants JSON. */
export const JSON_ENV = 'NOID_BENCH_JSON'
const REFERENCE = 'reference loop'
/** Many short samples: on a busy machine some of them are undisturbed. */
const SAMPLES = { minSamples: 20, minTime: 0.004, maxTime: 0.2, initCount: 1, delay: 0 }
const COUNTED_CALLS = 100_000
const COUNTS = 4
/** V8 counts an allocation buffer when it is taken, not when it is used: one may be the counting's own. */
const BUFFER = 256 * 1024

const block = new Uint8Array(1024).map((_, i) => i * 7)
/** Where a case leaves what it computed, so that nothing is left out. */
export const sink = { value: 0 }

/** FNV-1a over a kilobyte: integer multiplies and loads, no allocation, nothing of noid. */
function reference(): void {
  let h = 0x811c9dc5
  for (let i = 0; i < block.length; i++) h = Math.imul(h ^ (block[i] as number), 0x01000193)
  sink.value ^= h
}

const allocated = (): number =>
  (getHeapStatistics() as unknown as { total_allocated_bytes: number }).total_allocated_bytes

/** The least of a few counts: what the compiler and the collector allocate meanwhile is not the case's. */
function bytesOf(c: Case): number | null {
  if (globalThis.gc === undefined) return null
  const per = c.per ?? 1
  const calls = Math.ceil(COUNTED_CALLS / per)
  for (let i = 0; i < calls; i++) c.run()
  let least = Number.POSITIVE_INFINITY
  for (let count = 0; count < COUNTS; count++) {
    globalThis.gc()
    const before = allocated()
    for (let i = 0; i < calls; i++) c.run()
    least = Math.min(least, Math.max(0, allocated() - before - BUFFER) / (calls * per))
  }
  return least
}

/** Run a suite and print it, or answer the parent. */
export async function suite(title: string, cases: Readonly<Record<string, Case>>): Promise<void> {
  const forParent = process.env[JSON_ENV] !== undefined
  // Before each case and after the last: whatever comes and goes on this machine meets both.
  const named: [string, Case][] = Object.entries(cases).flatMap(([name, c]) => [
    [REFERENCE, { run: reference }],
    [name, c],
  ])
  named.push([REFERENCE, { run: reference }])
  const bytes = new Map(Object.entries(cases).map(([name, c]) => [name, bytesOf(c)]))
  const summary = await benny.suite(
    title,
    ...named.map(([name, c]) =>
      // A function of each case's own: benny's loop is compiled for one shape of call.
      benny.add(name, () => {
        c.run()
      }),
    ),
    benny.configure({ cases: SAMPLES }),
    ...(forParent ? [] : [benny.cycle()]),
  )
  const ns = (name: string): number => {
    const least = summary.results.filter((r) => r.name === name).map((r) => r.details.min)
    return (Math.min(...least) * 1e9) / (cases[name]?.per ?? 1)
  }
  const results = Object.fromEntries(
    Object.keys(cases).map((name): [string, Result] => [
      name,
      { ns: ns(name), reference: ns(REFERENCE), bytes: bytes.get(name) ?? null, kernel: cases[name]?.kernel ?? false },
    ]),
  )
  if (forParent) process.stdout.write(`\n${JSON.stringify(results)}\n`)
  else
    for (const [name, r] of Object.entries(results))
      console.log(
        `${name.padEnd(40)} ${r.ns.toFixed(1).padStart(10)} ns  ${r.bytes === null ? '' : `${r.bytes.toFixed(2)} bytes`}`,
      )
}
