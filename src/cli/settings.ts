/**
 * A backend's own settings, as people give them on the command line: a file with a JSON object, the object itself, or KEY=VALUE.
 *
 * A file is read here, because its path is this process's and the daemon may run elsewhere. A value is JSON where it can be
 * read as such and text otherwise. What is given later wins.
 */
import { readFileSync } from 'node:fs'
import { NoidError } from '../errors.ts'

const HINT = `write --config FILE, --config '{"key": 1}' or --config key=value`

const refuse = (what: string): never => {
  throw new NoidError('INVALID_INPUT', { what, hint: HINT })
}

export function parseSettings(given: readonly string[]): Record<string, unknown> {
  return Object.assign({}, ...given.map(one)) as Record<string, unknown>
}

function one(text: string): Record<string, unknown> {
  if (text.trimStart().startsWith('{')) return object(text, '--config')
  const pair = /^([A-Za-z][\w-]*)=(.*)$/s.exec(text)
  if (pair !== null) return { [pair[1] as string]: value(pair[2] as string) }
  let content: string
  try {
    content = readFileSync(text, 'utf8')
  } catch (e) {
    return refuse(`the file ${text} of --config cannot be read (${(e as NodeJS.ErrnoException).code})`)
  }
  return object(content, text)
}

function object(text: string, from: string): Record<string, unknown> {
  let v: unknown
  try {
    v = JSON.parse(text)
  } catch (e) {
    return refuse(`${from} is not JSON: ${(e as Error).message}`)
  }
  return typeof v === 'object' && v !== null && !Array.isArray(v)
    ? (v as Record<string, unknown>)
    : refuse(`${from} is not a JSON object`)
}

function value(text: string): unknown {
  try {
    return JSON.parse(text) as unknown
  } catch {
    return text
  }
}
