/**
 * What a data plane was given, written down beside its socket, so that a daemon that was killed knows what it finds.
 *
 * Owns: <dir>/ledger.json. It is a hint, never the truth: the truth is what the data plane names in `hello`; an entry that it does not
 * name means nothing.
 */
import { join } from 'node:path'
import { readState, writeState } from '../../state-file.ts'
import type { AttachRequest } from '../contract.ts'
import type { PublishEntry } from '../host/publisher.ts'
import type { NicRecord } from './nic.ts'

export interface NicEntry {
  readonly request: AttachRequest
  readonly nic: NicRecord
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
    // None yet, or torn by a power cut: the data plane's own word is enough to clean up.
    const was = readState<Contents>(this.#file) ?? { nics: {}, publishes: {} }
    this.nics = new Map(Object.entries(was.nics))
    this.publishes = new Map(Object.entries(was.publishes))
  }

  save(): void {
    const now: Contents = { nics: Object.fromEntries(this.nics), publishes: Object.fromEntries(this.publishes) }
    writeState(this.#file, now)
  }
}
