/**
 * One verb for several VMs: each is tried, each is told, and the first error is thrown at the end, so that
 * `noid destroy a b c` does not stop at the a that is gone already.
 */
import { vmNamed } from './active.ts'

export async function forEachVm<T>(given: readonly string[], verb: (name: string) => Promise<T>): Promise<T[]> {
  const names = given.length > 0 ? [...new Set(given)] : [vmNamed(undefined)]
  const done: T[] = []
  const failed: unknown[] = []
  for (const name of names) {
    try {
      done.push(await verb(name))
    } catch (e) {
      failed.push(e)
    }
  }
  if (failed.length > 0) throw failed[0]
  return done
}
