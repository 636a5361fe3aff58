/**
 * Restart policies: whether a VM that ended on its own is started again, and when.
 *
 * Theory. `noid stop` and `noid start` are a person's word and always hold: both forget what was planned. A VM that ended without one is started
 * again after a pause that doubles with each time, so that a VM that cannot live costs little; one that ran for a while begins anew.
 * What is planned is the column `restart_at`: no timer holds it, so that a daemon that is killed forgets nothing. The reconciler looks each second.
 * It is a time of the wall's clock, the only one that survives a reboot. One that is further away than the longest pause was written before that clock was
 * set back: nobody planned so long a wait, so it is due.
 *   no          never
 *   on-failure  when it ended otherwise than by shutting itself down; `:N` at most N times in a row
 *   always      however it ended; also after the machine, or what the VM needs of it, was started again
 */
import { NoidError } from '../errors.ts'
import type { VmRecord } from './store.ts'

export interface Policy {
  readonly when: 'no' | 'on-failure' | 'always'
  /** How often in a row. */
  readonly max: number
}

export interface Backoff {
  readonly firstMs: number
  readonly mostMs: number
  /** Who ran so long has lived: the next pause is the first again. */
  readonly steadyMs: number
}

export const BACKOFF: Backoff = { firstMs: 1_000, mostMs: 60_000, steadyMs: 60_000 }

/** Throws when it is none. */
export function parsePolicy(text: string): Policy {
  const m = /^(no|always|on-failure)(?::([1-9]\d{0,3}))?$/.exec(text)
  const when = m?.[1] as Policy['when'] | undefined
  const limited = m?.[2] !== undefined
  if (when === undefined || (limited && when !== 'on-failure'))
    throw new NoidError('INVALID_INPUT', {
      what: `"${text}" is not a restart policy`,
      hint: 'use no, always, on-failure, or on-failure:5 for at most five times in a row',
    })
  return { when, max: limited ? Number(m?.[2]) : Number.POSITIVE_INFINITY }
}

/** What changes in the record of a VM that has ended: when it is started again (null: never), for the how manyth time. */
export function plan(
  v: Pick<VmRecord, 'restart' | 'restarts' | 'startedAt'>,
  orderly: boolean,
  now: number,
  b: Backoff,
): Pick<VmRecord, 'restartAt' | 'restarts'> {
  const policy = parsePolicy(v.restart)
  const lived = v.startedAt !== null && now - Date.parse(v.startedAt) >= b.steadyMs
  const before = lived ? 0 : v.restarts
  const wanted = policy.when === 'always' || (policy.when === 'on-failure' && !orderly)
  if (!wanted || before >= policy.max) return { restartAt: null, restarts: before }
  const pause = Math.min(b.mostMs, b.firstMs * 2 ** Math.min(before, 30))
  return { restartAt: new Date(now + pause).toISOString(), restarts: before + 1 }
}

/** Is it time? */
export function due(v: Pick<VmRecord, 'restartAt' | 'phase'>, now: number, b: Backoff): boolean {
  if (v.restartAt === null || (v.phase !== 'failed' && v.phase !== 'stopped')) return false
  const left = Date.parse(v.restartAt) - now
  return left <= 0 || left > b.mostMs
}
