/**
 * The directory's active VM: the nearest `.noid-vm` from the working directory upwards, one name in it.
 * `noid use NAME` writes it; commands that take a NAME use it when none is given.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { NoidError } from '../errors.ts'

export const ACTIVE_FILE = '.noid-vm'

export interface Active {
  readonly name: string
  readonly file: string
}

export function activeVm(cwd = process.cwd()): Active | undefined {
  for (let dir = resolve(cwd); ; dir = dirname(dir)) {
    const file = join(dir, ACTIVE_FILE)
    if (existsSync(file)) {
      const name = readFileSync(file, 'utf8').trim()
      if (name !== '') return { name, file }
    }
    if (dir === dirname(dir)) return undefined
  }
}

export function setActiveVm(name: string, cwd = process.cwd()): Active {
  const file = join(cwd, ACTIVE_FILE)
  writeFileSync(file, `${name}\n`)
  return { name, file }
}

/** The VM a command is about. */
export function vmNamed(given: string | undefined): string {
  const name = given ?? activeVm()?.name
  if (name === undefined) throw new NoidError('NO_ACTIVE_VM')
  return name
}
