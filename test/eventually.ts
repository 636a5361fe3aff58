/** Waiting for what comes about by others' hands: asked again and again, bounded, never by the clock alone. */
import { setTimeout as sleep } from 'node:timers/promises'

/**
 * What `probe` gives, as soon as it is true. What it looks at may go while it looks: its errors are a no, and the last of them is told at the end.
 * @param what for the error: "the server has all of them"
 */
export async function eventually<T>(what: string, probe: () => Promise<T> | T, timeoutMs = 60_000): Promise<T> {
  let last: unknown
  for (const until = Date.now() + timeoutMs; ; await sleep(20)) {
    try {
      const r = await probe()
      if (r) return r
      last = r
    } catch (e) {
      last = e
    }
    if (Date.now() > until) break
  }
  const said = last instanceof Error ? last.message : JSON.stringify(last)
  throw new Error(`${what}: not within ${timeoutMs} ms; last: ${said}`)
}
