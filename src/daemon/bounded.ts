/**
 * Calls into backends and runtimes, which may hang: each has a time limit and may be cancelled, and the caller goes on
 * when either happens, whether or not the other side looks at its signal.
 *
 * The error a person gets is the other side's NoidError as it is; anything else becomes INTERNAL with what was being done.
 */
import { NoidError } from '../errors.ts'

export const limitMs = {
  status: 10_000,
  network: 30_000,
  publish: 10_000,
  attach: 30_000,
  /** An image may have to be unpacked. */
  prepare: 300_000,
  /** A VM with a kernel of its own, booted cold on a busy machine that emulates it; twice, when the first try hangs. */
  start: 300_000,
  renic: 60_000,
  enter: 60_000,
  stop: 60_000,
  stats: 5_000,
} as const

/** The caller of an operation went away: what it began is undone. */
export class Cancelled extends Error {}

export async function bounded<T>(
  what: string,
  /** undefined: as long as it takes, until the caller goes away. */
  ms: number | undefined,
  fn: (signal: AbortSignal) => Promise<T>,
  cancel?: AbortSignal,
): Promise<T> {
  if (cancel?.aborted) throw new Cancelled(what)
  const stop = new AbortController()
  const { promise: cut, reject } = Promise.withResolvers<never>()
  const late = (): void => {
    const why = `${what} took longer than ${(ms ?? 0) / 1000} s`
    reject(new NoidError('INTERNAL', { why }))
    stop.abort(new Error(why))
  }
  const timer = ms === undefined ? undefined : setTimeout(late, ms)
  const onCancel = (): void => {
    reject(new Cancelled(what))
    stop.abort(new Error('cancelled'))
  }
  cancel?.addEventListener('abort', onCancel, { once: true })
  try {
    return await Promise.race([Promise.resolve().then(() => fn(stop.signal)), cut])
  } catch (e) {
    throw e instanceof NoidError || e instanceof Cancelled ? e : asNoidError(e, what)
  } finally {
    clearTimeout(timer)
    cancel?.removeEventListener('abort', onCancel)
  }
}

/** Any fault as an error that may cross the API: one sentence, never a stack. */
export function asNoidError(e: unknown, what?: string): NoidError {
  if (e instanceof NoidError) return e
  if (e instanceof Cancelled) return new NoidError('INTERNAL', { why: `${e.message} was cancelled` })
  const text = e instanceof Error ? e.message.split('\n', 1)[0] : String(e)
  return new NoidError('INTERNAL', { why: what === undefined ? text : `${what}: ${text}` }, { cause: e })
}
