/**
 * What is wished of one bridged network, written down before it is carried out, so that a daemon that was killed knows what the host should have.
 *
 * Owns: <dir>/bridge.json. A file that was torn is no wish: the daemon asks for everything again, and gc removes what it does not ask for.
 */
import { join } from 'node:path'
import { readState, writeState } from '../../state-file.ts'
import type { AttachmentId, AttachRequest } from '../contract.ts'
import type { PublishEntry } from '../host/publisher.ts'

interface Contents {
  readonly link?: string | undefined
  readonly attachments: Record<AttachmentId, AttachRequest>
  readonly publishes: Record<string, PublishEntry>
  readonly bound: readonly AttachmentId[]
}

export class Wish {
  readonly #file: string
  /** The bridge's name, for the day when somebody else has removed it. */
  link: string | undefined
  readonly attachments: Map<AttachmentId, AttachRequest>
  readonly publishes: Map<string, PublishEntry>
  /** Attachments whose client holds its lease. */
  readonly bound: Set<AttachmentId>

  constructor(dir: string) {
    this.#file = join(dir, 'bridge.json')
    const was = readState<Partial<Contents>>(this.#file) ?? {}
    this.link = was.link
    this.attachments = new Map(Object.entries(was.attachments ?? {}))
    this.publishes = new Map(Object.entries(was.publishes ?? {}))
    this.bound = new Set(was.bound)
  }

  save(): void {
    const now: Contents = {
      link: this.link,
      attachments: Object.fromEntries(this.attachments),
      publishes: Object.fromEntries(this.publishes),
      bound: [...this.bound],
    }
    writeState(this.#file, now)
  }
}
