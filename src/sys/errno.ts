/**
 * errno: numbers with names and sentences (asm-generic/errno-base.h, errno.h; the same on every architecture we run on).
 *
 * The table is Node's own (os.constants.errno, util.getSystemErrorMap), so that nothing is typed twice.
 */
import { constants } from 'node:os'
import { getSystemErrorMap } from 'node:util'

/** `errno.EAGAIN` is 11. */
export const errno = constants.errno

/** The name of an error, given either sign: "EADDRINUSE"; "errno 999" when it has none. */
export function errnoName(n: number): string {
  return getSystemErrorMap().get(-Math.abs(n))?.[0] ?? `errno ${Math.abs(n)}`
}

/** A sentence fragment for a person: "address already in use (EADDRINUSE)". */
export function errnoText(n: number): string {
  const entry = getSystemErrorMap().get(-Math.abs(n))
  return entry ? `${entry[1]} (${entry[0]})` : `errno ${Math.abs(n)}`
}

/** A failed call where a failure is a fault: what was tried and why it did not work. */
export class SysError extends Error {
  readonly errno: number
  readonly code: string

  constructor(what: string, n: number) {
    super(`${what}: ${errnoText(n)}`)
    this.name = 'SysError'
    this.errno = Math.abs(n)
    this.code = errnoName(n)
  }
}

/** The result when it is ≥ 0; throws SysError otherwise. For set-up code; hot paths look at the number. */
export function must(what: string, r: number): number {
  if (r < 0) throw new SysError(what, r)
  return r
}
