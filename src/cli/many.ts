/**
 * One verb for several names: each is tried, each is told, and the first error is thrown at the end, so that
 * `noid destroy a b c` does not stop at the a that is gone already.
 */
import { vmNamed } from './active.ts'

/** Without a name it is the directory's active VM. */
export const forEachVm = <T>(given: readonly string[], verb: (name: string) => Promise<T>): Promise<T[]> =>
  forEachNamed(given.length > 0 ? given : [vmNamed(undefined)], verb)

export async function forEachNamed<T>(given: readonly string[], verb: (name: string) => Promise<T>): Promise<T[]> {
  const names = new Set(given)
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
