/**
 * What is known of attachments, on disk: each is written before its ADD, so that a daemon that dies at any moment leaves
 * nothing that nobody would DEL. It outlives a reboot, because the addresses that an IPAM plugin has handed out do, too.
 *
 * Owns: <stateDir>/attachments/ID.json. What DEL and CHECK must be given again is all in there, the chain as it was at ADD included.
 */
import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { readState, writeState } from '../../state-file.ts'
import type { CapabilityArgs, Chain, Target } from './chain.ts'
import type { CniResult } from './result.ts'

export interface AttachmentRecord {
  readonly id: string
  readonly network: string
  readonly name: string
  /** `netns` is the anchor (anchor.ts), not what the runtime named. */
  readonly target: Target
  readonly chain: Chain
  readonly caps: CapabilityArgs
  /** One for each plugin; empty until ADD has ended. */
  readonly results: readonly CniResult[]
  /** The published ports of `caps.portMappings`, by their id. */
  readonly publishes: Readonly<Record<string, number>>
}

export class Records {
  readonly #dir: string
  readonly #known = new Map<string, AttachmentRecord>()

  constructor(stateDir: string) {
    this.#dir = join(stateDir, 'attachments')
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
    for (const f of readdirSync(this.#dir)) {
      if (!f.endsWith('.json')) continue
      const r = readState<AttachmentRecord>(join(this.#dir, f))
      if (r !== undefined) this.#known.set(r.id, r)
    }
  }

  get = (id: string): AttachmentRecord | undefined => this.#known.get(id)

  of = (network: string): AttachmentRecord[] => [...this.#known.values()].filter((r) => r.network === network)

  all = (): AttachmentRecord[] => [...this.#known.values()]

  set(r: AttachmentRecord): void {
    writeState(this.#file(r.id), r)
    this.#known.set(r.id, r)
  }

  delete(id: string): void {
    rmSync(this.#file(id), { force: true })
    this.#known.delete(id)
  }

  #file = (id: string): string => join(this.#dir, `${encodeURIComponent(id)}.json`)
}
