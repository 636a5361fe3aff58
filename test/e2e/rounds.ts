/**
 * Rates that are compared with each other, on a machine that has others to serve: measured in turns, in rounds, and the best of each kind counts.
 *
 * What disturbs one round is gone in another; what is slow by itself stays so in all of them. Only rounds in a row are compared: what one kind had
 * in a quiet minute says nothing about another's in a busy one.
 */
const IN_A_ROW = 5
const MOST = 20

/** Measures every kind once in each round; goes on while the best of the last few are not `good`, but not for ever: what to make of them is the caller's. */
export async function rounds<K extends number>(
  kinds: readonly K[],
  measure: (kind: K) => Promise<number>,
  good: (best: Record<K, number>) => boolean,
): Promise<{ readonly rates: Record<K, number[]>; readonly best: Record<K, number> }> {
  const of = <V>(value: (kind: K) => V) => Object.fromEntries(kinds.map((k) => [k, value(k)])) as Record<K, V>
  const rates = of((): number[] => [])
  for (let round = 1; ; round++) {
    for (const kind of round % 2 === 1 ? kinds : kinds.toReversed()) rates[kind].push(await measure(kind))
    const best = of((kind) => Math.max(...rates[kind].slice(-IN_A_ROW)))
    if (round >= MOST || (round >= IN_A_ROW && good(best))) return { rates, best }
  }
}
