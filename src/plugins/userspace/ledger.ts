/**
 * What a data plane was given, written down beside its socket, so that a daemon that was killed knows what it finds.
 *
 * Owns: <dir>/ledger.json. It is a hint, never the truth: the truth is what the data plane names in `hello`; an entry that it does not
 * name means nothing. Synchronous and atomic (written aside, then renamed).
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { AttachRequest, PublishSpec } from '../contract.ts'
import type { NicRecord } from './nic.ts'

export interface NicEntry {
  readonly request: AttachRequest
  readonly nic: NicRecord
}
export interface PublishEntry {
  readonly spec: PublishSpec
  /** The real one, where the specification says 0. */
  readonly hostPort: number
}
interface Contents {
  nics: Record<string, NicEntry>
  publishes: Record<string, PublishEntry>
}

export class Ledger {
  readonly #file: string
  readonly nics: Map<string, NicEntry>
  readonly publishes: Map<string, PublishEntry>

  constructor(dir: string) {
    this.#file = join(dir, 'ledger.json')
    let was: Contents = { nics: {}, publishes: {} }
    try {
      was = JSON.parse(readFileSync(this.#file, 'utf8')) as Contents
    } catch {
      // None yet, or torn by a power cut: the data plane's own word is enough to clean up.
    }
    this.nics = new Map(Object.entries(was.nics))
    this.publishes = new Map(Object.entries(was.publishes))
  }

  save(): void {
    const now: Contents = { nics: Object.fromEntries(this.nics), publishes: Object.fromEntries(this.publishes) }
    writeFileSync(`${this.#file}.new`, JSON.stringify(now), { mode: 0o600 })
    renameSync(`${this.#file}.new`, this.#file)
  }
}
