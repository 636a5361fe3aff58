/**
 * Small files in which a process writes down what it has done or is about to do, for the one that comes after it was killed.
 *
 * Theory. A file is replaced as a whole: written aside, then renamed (rename(2) is atomic), so whoever reads finds the old text or the new one, never half
 * of it. Not flushed: a power cut may lose the last words, and the machine that comes up then has none of what they were about. A file that is torn
 * nevertheless reads as none.
 *
 * Owns: nothing. Invariant: one writer for each file; two would share the name aside.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs'

/** undefined when there is none, or it is no JSON. The text is trusted to be of type T: its writer was this program. */
export function readState<T>(file: string): T | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as T
  } catch {
    return undefined
  }
}

/** Synchronous, readable by its owner only. Throws when the directory is not there, or full. */
export function writeState(file: string, value: unknown): void {
  writeFileSync(`${file}.new`, JSON.stringify(value), { mode: 0o600 })
  renameSync(`${file}.new`, file)
}
