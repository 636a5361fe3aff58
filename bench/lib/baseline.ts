/**
 * The comparison with the stored baseline: pure, so that it can be tested.
 *
 * Theory. A case's cost is its time in units of the reference loop (suite.ts), measured in the same process: a machine that is slower, or busy,
 * slows both. The cost is the median of several processes. What remains is noise, and its size is known from the rounds: a case has
 * regressed when its cost passes the baseline's by more than the least tolerance and by more than three times the larger of both spreads
 * (median of the distances from the median), and when even its cheapest round passes the tolerance. The tolerance is wider for what the kernel does, and with another
 * major version of Node. Another processor does the same code at another cost in units of the reference, up to 2.4 times was seen between two generations of one maker: each
 * processor has figures of its own, and one without is compared by bytes alone. Bytes are exact anywhere: one more for each frame is a regression.
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
export interface Machine {
  /** What processor() says; figures belong to it. */
  readonly cpu: string
  readonly cpus: number
  readonly kernel: string
  readonly node: string
}
/** What was measured on one machine. */
export interface Figures {
  readonly machine: Machine
  readonly cases: Readonly<Record<string, Stored>>
}
/** One for each processor. */
export type Baseline = readonly Figures[]

export interface Verdict {
  readonly name: string
  readonly now: Stored
  /** Of the same processor. */
  readonly before: Stored | undefined
  /** now.cost / before.cost */
  readonly ratio: number
  readonly allowed: number
  readonly regressed: boolean
  readonly why: string
}

const HERE = 0.35
const OTHER_NODE = 1
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

/** The figures of this processor, if there are any. */
export const figuresOf = (baseline: Baseline, { cpu }: Machine): Figures | undefined =>
  baseline.find((f) => f.machine.cpu === cpu)

export const sameNode = (a: Machine, b: Machine): boolean => a.node.split('.')[0] === b.node.split('.')[0]

export function compare(baseline: Baseline, machine: Machine, now: Readonly<Record<string, Stored>>): Verdict[] {
  const own = figuresOf(baseline, machine)
  const least = own === undefined || sameNode(own.machine, machine) ? HERE : OTHER_NODE
  return Object.entries(now).map(([name, n]) => {
    const before = own?.cases[name]
    const any = before ?? baseline.find((f) => f.cases[name] !== undefined)?.cases[name]
    const ratio = before === undefined ? Number.NaN : n.cost / before.cost
    const tolerance = n.kernel ? KERNEL : least
    const noise = before === undefined ? 0 : (SPREADS * Math.max(n.spread, before.spread)) / before.cost
    const allowed = 1 + Math.max(tolerance, noise)
    const grown =
      n.bytes !== null && any !== undefined && any.bytes !== null && n.bytes > any.bytes * (1 + BYTES_SHARE) + BYTES
    const slower = before !== undefined && ratio > allowed && n.least / before.cost > 1 + tolerance
    const why = grown
      ? `allocates ${n.bytes?.toFixed(1)} bytes, ${any.bytes?.toFixed(1)} before`
      : slower
        ? 'slower'
        : any === undefined
          ? 'new'
          : ''
    return { name, now: n, before, ratio, allowed, regressed: grown || slower, why }
  })
}

/** What is stored with `measured` in it. @param whole every case was run: what is gone is forgotten */
export function stored(baseline: Baseline, measured: Figures, whole: boolean): Baseline {
  const own = figuresOf(baseline, measured.machine)
  // What was not run stays as it is, if it is of this Node.
  const kept = !whole && own !== undefined && sameNode(own.machine, measured.machine) ? own.cases : {}
  const cases = Object.entries({ ...kept, ...measured.cases }).sort(([a], [b]) => (a < b ? -1 : 1))
  const figures = { machine: measured.machine, cases: Object.fromEntries(cases) }
  return [...baseline.filter((f) => f !== own), figures].sort((a, b) => (a.machine.cpu < b.machine.cpu ? -1 : 1))
}
