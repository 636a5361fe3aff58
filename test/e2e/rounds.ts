/**
 * Rates that are compared with each other, on a machine that has others to serve: measured in turns, in rounds, and the best of each kind counts.
 *
 * What disturbs one round is gone in another; what is slow by itself stays so in all of them.
 */
const LEAST = 5
const MOST = 20

/** Measures every kind once in each round; goes on while the best are not `good`, but not for ever: what to make of them is the caller's. */
export async function rounds<K extends number>(
  kinds: readonly K[],
  measure: (kind: K) => Promise<number>,
  good: (best: Record<K, number>) => boolean,
): Promise<{ readonly rates: Record<K, number[]>; readonly best: Record<K, number> }> {
  const rates = Object.fromEntries(kinds.map((k) => [k, []])) as unknown as Record<K, number[]>
  const best = Object.fromEntries(kinds.map((k) => [k, 0])) as Record<K, number>
  for (let round = 0; round < LEAST || (round < MOST && !good(best)); round++)
    for (const kind of round % 2 === 0 ? kinds : kinds.toReversed()) {
      const rate = await measure(kind)
      rates[kind].push(rate)
      best[kind] = Math.max(best[kind], rate)
    }
  return { rates, best }
}
