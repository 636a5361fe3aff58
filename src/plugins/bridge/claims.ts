/**
 * Switches of the host that several networks, of several daemons, need at once: each is claimed with a count and put back when the last
 * claim is gone, unless somebody else has changed it meanwhile, or relies on it: who sets the switch of all links (Docker and `ip_forward`) sets each
 * link's, so one that was on already would be put back under him.
 *
 * Owns: <dir>/<key>.json: what the switch was before the first claim, and who holds it. The directory is shared by all of root's
 * daemons (/run/noid/claims) and gone with a reboot, as the switches are. Synchronous, under a lock directory.
 * A claim of a network that no longer exists is given back by `releaseAll` of that network, or with the next reboot.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { readState, writeState } from '../../state-file.ts'

interface Claim {
  readonly before: string
  /** What we set: another value means that somebody else has taken over. */
  readonly value: string
  /** The switch of all links, as it was before the first claim. */
  readonly all?: { readonly path: string; readonly before: string }
  readonly holders: readonly string[]
}

const valueAt = (path: string): string => readFileSync(path, 'utf8').trim()

/** Has somebody set the switch of all links since, as we had set this one? */
const reliedOn = ({ all, value }: Claim): boolean =>
  all !== undefined && all.before !== value && valueAt(all.path) === value

const LOCK_TRIES = 200
const pause = new Int32Array(new SharedArrayBuffer(4))

export class Claims {
  readonly #dir: string

  constructor(dir: string) {
    this.#dir = dir
  }

  /**
   * Set the switch at `path` (below /proc/sys/net/ipv4/conf) to `value` as long as `holder` wants it. Idempotent.
   * @param all the switch that sets this one, and that noid never sets itself
   */
  claim(path: string, value: string, holder: string, all?: string): void {
    this.#locked(() => {
      const was = readState<Claim>(this.#file(path))
      const now = valueAt(path)
      const c = was ?? {
        before: now,
        value,
        holders: [],
        ...(all === undefined ? {} : { all: { path: all, before: valueAt(all) } }),
      }
      if (!c.holders.includes(holder)) writeState(this.#file(path), { ...c, holders: [...c.holders, holder] })
      if (now !== value) writeFileSync(path, value)
    })
  }

  /** `holder` is gone. */
  releaseAll(holder: string): void {
    if (!existsSync(this.#dir)) return
    this.#locked(() => {
      for (const name of readdirSync(this.#dir)) {
        if (!name.endsWith('.json')) continue
        const path = decodeURIComponent(name.slice(0, -'.json'.length))
        const c = readState<Claim>(this.#file(path))
        if (!c?.holders.includes(holder)) continue
        const holders = c.holders.filter((h) => h !== holder)
        if (holders.length > 0) {
          writeState(this.#file(path), { ...c, holders })
          continue
        }
        try {
          if (c.before !== c.value && valueAt(path) === c.value && !reliedOn(c)) writeFileSync(path, c.before)
        } catch {
          // The link is gone, and its switches with it.
        }
        rmSync(this.#file(path), { force: true })
      }
    })
  }

  #file(path: string): string {
    return join(this.#dir, `${encodeURIComponent(path)}.json`)
  }

  #locked(work: () => void): void {
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
    const lock = join(this.#dir, 'lock')
    for (let t = 0; ; t++) {
      try {
        mkdirSync(lock)
        break
      } catch (e) {
        if ((e as NodeJS.ErrnoException).code !== 'EEXIST') throw e
        // Work under the lock takes milliseconds: who holds it longer was killed.
        if (t === LOCK_TRIES) rmSync(lock, { recursive: true, force: true })
        Atomics.wait(pause, 0, 0, 5)
      }
    }
    try {
      work()
    } finally {
      rmdirSync(lock)
    }
    try {
      // The last claim is gone.
      rmdirSync(this.#dir)
    } catch {
      // Others are there.
    }
  }
}
