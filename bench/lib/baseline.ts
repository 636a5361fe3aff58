/**
 * The comparison with the stored baseline: pure, so that it can be tested.
 *
 * Theory. A case's cost is its time in units of the reference loop (suite.ts), measured in the same process: a machine that is slower, or busy,
 * slows both. The cost is the median of several processes. What remains is noise, and its size is known from the rounds: a case has
 * regressed when its cost passes the baseline's by more than the least tolerance and by more than three times the larger of both spreads
 * (median of the distances from the median), and when even its cheapest round passes the tolerance. On another CPU or Node the same code has another cost in units of the
 * reference: there the least tolerance is wider, and so it is for what the kernel does. Bytes are exact anywhere: one more for each frame is a regression.
 */
import type { Result } from './suite.ts'

export interface Stored {
  /** In units of the reference loop. */
  readonly cost: number
  /** The cheapest round. */
  readonly least: number
  /** Median distance of the rounds from it. */
  readonly spread: number
  readonly bytes: number | null
  /** Where it was stored; for people. */
  readonly ns: number
  readonly kernel: boolean
}
export interface Baseline {
  readonly machine: { readonly cpu: string; readonly cpus: number; readonly kernel: string; readonly node: string }
  readonly cases: Readonly<Record<string, Stored>>
}

export interface Verdict {
  readonly name: string
  readonly now: Stored
  readonly before: Stored | undefined
  /** now.cost / before.cost */
  readonly ratio: number
  readonly allowed: number
  readonly regressed: boolean
  readonly why: string
}

const HERE = 0.35
const ELSEWHERE = 1
/** Of what the kernel does. */
const KERNEL = 2
const SPREADS = 3
/** One byte, and a little: what a count of 100,000 calls cannot tell apart. */
const BYTES = 1.5
/** Of cases that allocate anyhow, in parts. */
const BYTES_SHARE = 0.05

const median = (list: readonly number[]): number => list.toSorted((a, b) => a - b)[list.length >> 1] as number

/** The rounds of one case as what is stored. */
export function condense(rounds: readonly Result[]): Stored {
  const costs = rounds.map((r) => r.ns / r.reference)
  const cost = median(costs)
  const counted = rounds.map((r) => r.bytes).filter((b) => b !== null)
  return {
    cost,
    least: Math.min(...costs),
    spread: median(costs.map((c) => Math.abs(c - cost))),
    bytes: counted.length === 0 ? null : Math.min(...counted),
    ns: median(rounds.map((r) => r.ns)),
    kernel: rounds.some((r) => r.kernel),
  }
}

export const sameMachine = (a: Baseline['machine'], b: Baseline['machine']): boolean =>
  a.cpu === b.cpu && a.node.split('.')[0] === b.node.split('.')[0]

export function compare(
  baseline: Baseline,
  machine: Baseline['machine'],
  now: Readonly<Record<string, Stored>>,
): Verdict[] {
  const machines = sameMachine(baseline.machine, machine) ? HERE : ELSEWHERE
  return Object.entries(now).map(([name, n]) => {
    const before = baseline.cases[name]
    if (before === undefined)
      return { name, now: n, before, ratio: Number.NaN, allowed: Number.NaN, regressed: false, why: 'new' }
    const ratio = n.cost / before.cost
    const noise = (SPREADS * Math.max(n.spread, before.spread)) / before.cost
    const tolerance = n.kernel ? KERNEL : machines
    const allowed = 1 + Math.max(tolerance, noise)
    const grown = n.bytes !== null && before.bytes !== null && n.bytes > before.bytes * (1 + BYTES_SHARE) + BYTES
    const slower = ratio > allowed && n.least / before.cost > 1 + tolerance
    const why = grown
      ? `allocates ${n.bytes?.toFixed(1)} bytes, ${before.bytes?.toFixed(1)} before`
      : slower
        ? 'slower'
        : ''
    return { name, now: n, before, ratio, allowed, regressed: grown || slower, why }
  })
}
