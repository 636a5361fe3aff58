/** Medians, spreads, percentiles. Lists may be empty: NaN then. */
import type { Figure } from './contract.ts'

export function median(list: readonly number[]): number {
  const s = list.toSorted((a, b) => a - b)
  if (s.length === 0) return Number.NaN
  const middle = s.length >> 1
  return s.length % 2 === 1 ? (s[middle] as number) : ((s[middle - 1] as number) + (s[middle] as number)) / 2
}

/** The value below which a share `q` (0..1) of an ascending list lies: nearest rank. */
export function percentile(ascending: ArrayLike<number>, q: number): number {
  if (ascending.length === 0) return Number.NaN
  const rank = Math.max(1, Math.ceil(q * ascending.length))
  return ascending[rank - 1] as number
}

export const spread = (list: readonly number[]): readonly [number, number] => [Math.min(...list), Math.max(...list)]

/** What was measured; a try that failed is no value. */
export const values = (f: Figure | undefined): number[] =>
  f?.samples.map((s) => s.value).filter((v) => Number.isFinite(v)) ?? []

export const medianOf = (f: Figure | undefined): number => median(values(f))

/** Median of what is told beside a figure; NaN when it is not. */
export const medianMore = (f: Figure, key: string): number =>
  median(f.samples.map((s) => s.more[key]).filter((n): n is number => Number.isFinite(n)))

/**
 * The median of the ratios round by round, not the ratio of medians: in a round both met the same machine. NaN when no round has both.
 * @param a, b samples of the same part, in rounds
 */
export function ratio(a: Figure | undefined, b: Figure | undefined): number {
  const list: number[] = []
  for (let i = 0; i < Math.min(a?.samples.length ?? 0, b?.samples.length ?? 0); i++) {
    const x = (a as Figure).samples[i]?.value as number
    const y = (b as Figure).samples[i]?.value as number
    if (Number.isFinite(x) && Number.isFinite(y) && y > 0) list.push(x / y)
  }
  return median(list)
}

/** Three significant figures, without an exponent. */
export function three(n: number): string {
  if (!Number.isFinite(n)) return '-'
  const a = Math.abs(n)
  if (a >= 100) return Math.round(n).toLocaleString('en-US')
  return n.toFixed(a >= 10 ? 1 : a >= 0.005 || a === 0 ? 2 : 4)
}
