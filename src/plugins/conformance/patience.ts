/** What others do in their own time, the kernel or a process that ends, is looked at again and again, and not for ever. */
import { setTimeout as sleep } from 'node:timers/promises'

const PATIENCE_MS = 10_000

/** What `look` gives, once it throws no more; after `ms` what it throws is thrown. */
export async function patiently<T>(look: () => T | Promise<T>, ms = PATIENCE_MS): Promise<T> {
  for (const until = Date.now() + ms; ; await sleep(20)) {
    try {
      return await look()
    } catch (e) {
      if (Date.now() > until) throw e
    }
  }
}
