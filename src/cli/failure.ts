/**
 * Every error a command can end with, as a person or a program reads it.
 *
 * A NoidError speaks for itself. oclif's own errors (a wrong flag, a missing argument, an unknown command) become
 * INVALID_INPUT; anything else is a mistake of noid (INTERNAL). With `--json` the error goes to stdout as
 * {"error": {code, message, hint, details}}, so that one stream carries the answer either way.
 */
import { type ErrorBody, NoidError } from '../errors.ts'

interface OclifError extends Error {
  readonly oclif?: { readonly exit?: number | false }
  readonly parse?: unknown
  /** Of oclif's RequiredArgsError. */
  readonly args?: readonly { readonly name: string }[]
  readonly code?: string
}

/** Print the error; returns the exit code. */
export function report(thrown: unknown, json: boolean): number {
  const error = thrown as OclifError
  if (error?.code === 'EEXIT') return typeof error.oclif?.exit === 'number' ? error.oclif.exit : 0
  const e = toNoidError(thrown)
  if (json) process.stdout.write(`${JSON.stringify({ error: e.toJSON() }, null, 2)}\n`)
  else process.stderr.write(sentence(e.toJSON()))
  if (process.env.NOID_DEBUG) process.stderr.write(`${(e.cause as Error)?.stack ?? e.stack}\n`)
  return e.exit
}

/** One sentence and the code, the daemon's last words when there are any, the hint. */
export function sentence(e: ErrorBody): string {
  const log = Array.isArray(e.details.log) ? (e.details.log as string[]) : []
  return [
    `noid: ${e.message} (${e.code})`,
    ...log.map((line) => `  | ${line}`),
    ...(e.hint ? e.hint.split('\n').map((line) => `  ${line}`) : []),
    '',
  ].join('\n')
}

export function toNoidError(thrown: unknown): NoidError {
  if (thrown instanceof NoidError) return thrown
  const e = thrown as OclifError
  if (e instanceof Error && (e.oclif !== undefined || e.parse !== undefined)) {
    const missing = /^Missing \d+ required arg/.test(e.message) ? (e.args ?? []) : []
    const { what, hint } = missing.length > 0 ? missingArgs(missing.map((a) => a.name)) : usage(e.message)
    return new NoidError('INVALID_INPUT', { what, hint }, { cause: e })
  }
  const why = e instanceof Error ? firstLine(e.message) : String(thrown)
  return new NoidError('INTERNAL', { why }, { cause: e })
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: an escape sequence begins with a control character
const ANSI = /\u001b\[[0-9;]*m/g

/** oclif's message is a sentence, sometimes with a list below it and always with "See more help with --help". */
function usage(message: string): { what: string; hint: string } {
  const lines = message
    .replace(ANSI, '')
    .split('\n')
    .map((l) => l.trim())
    .filter((l) => l !== '' && l !== 'See more help with --help')
  const [first = 'wrong usage', ...rest] = lines
  const said = rest.length > 0 ? `${first} ${rest.join(', ')}` : first
  return { what: said.replace(/\.$/, ''), hint: 'add --help to see how the command is used' }
}

function missingArgs(names: readonly string[]): { what: string; hint: string } {
  const list = names.map((n) => n.toUpperCase()).join(' and ')
  return {
    what: `${list} ${names.length > 1 ? 'are' : 'is'} missing`,
    hint: 'add --help to see how the command is used',
  }
}

const firstLine = (s: string): string => s.split('\n')[0] ?? s
