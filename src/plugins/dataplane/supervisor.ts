/**
 * One data plane kept running: the link to it, what it says on its own, whether it still answers, and its way back when it is lost.
 *
 * Theory. A data plane that crashes is replaced before its VMs notice more than ended connections: at once. One that crashes again and again must not keep a
 * processor busy with being started, so each further attempt waits longer, until it has lived for STABLE_MS: then the next loss is a first one again. What
 * fails on its first way up is tried again like what was lost: its VMs run, and nobody else would ask for it. One that hangs moves no frame and says nothing, so it is asked now and then, and killed when it does not answer.
 *
 * Owns: the link, and when something is tried. Never does: starting and ending the process (process.ts), and what the data plane carries: whoever
 * has the network gives it that again, beginning with `connect`, in the order of its other work.
 * Invariants: one attempt waits at most; after `stop` nothing is brought back.
 */
import type { EventMessage } from '../../dataplane/protocol.ts'
import { NoidError } from '../../errors.ts'
import type { AttachmentId, BackendContext, LeaseRow, NetworkId } from '../contract.ts'
import type { Link } from './link.ts'
import type { DataPlaneProcess, Running } from './process.ts'

const HEALTH_MS = 15_000
const BACKOFF_MS = [0, 100, 500, 2000, 10_000] as const
/** Who lived this long was well. */
const STABLE_MS = 60_000

export interface Supervised {
  /** What the data plane is to the network, for the log. */
  readonly what: 'data plane' | 'services'
  readonly network: NetworkId
  readonly ctx: Pick<BackendContext, 'log' | 'notify'>
  /** Beside the daemon's being told. */
  readonly onLease?: (id: AttachmentId, state: LeaseRow['state']) => void
  /** The owner's own way up, `connect` in it. Called when the link was lost, and again after either has failed. */
  readonly bringBack: () => Promise<unknown>
}

export class Supervisor {
  readonly #process: Pick<DataPlaneProcess, 'network' | 'ensure' | 'kill'>
  readonly #o: Supervised
  readonly #health: NodeJS.Timeout
  #link: Link | undefined
  /** The last link was lost because its answers did not come. */
  #hung = false
  #failures = 0
  #upSince = 0
  #attempt: NodeJS.Timeout | undefined
  #stopped = false

  constructor(process: Pick<DataPlaneProcess, 'network' | 'ensure' | 'kill'>, o: Supervised) {
    this.#process = process
    this.#o = o
    // A link that does not answer closes itself, which begins the way back.
    this.#health = setInterval(() => this.link?.request({ op: 'hello' }).catch(() => {}), HEALTH_MS)
    this.#health.unref()
  }

  /** Somebody let go of the data plane for good. */
  get stopped(): boolean {
    return this.#stopped
  }

  /** The open one. */
  get link(): Link | undefined {
    return this.#link?.open ? this.#link : undefined
  }

  /**
   * Find the data plane or start it, and give it what it should carry, where there is no open link. One call at a time.
   * @param give when it throws the link is dropped, for what was half given is given again by the next one
   * @throws NoidError DATAPLANE_LOST after `stop`, DATAPLANE_FAILED when it does not come up
   */
  async connect(signal: AbortSignal, give: (running: Running) => Promise<void>): Promise<Link> {
    this.#mayRun()
    this.#cancel()
    try {
      return await this.#up(signal, give)
    } catch (e) {
      // Not at once: whoever asked may have the network removed for it. What was lost on its way up waits already.
      if (this.#failures === 0) this.#failures = 1
      if (!this.#stopped && this.#attempt === undefined) this.#schedule()
      throw e
    }
  }

  async #up(signal: AbortSignal, give: (running: Running) => Promise<void>): Promise<Link> {
    if (this.#hung) await this.#process.kill()
    this.#hung = false
    const running = await this.#process.ensure(signal)
    const { link } = running
    if (this.#stopped) link.close()
    this.#mayRun()
    this.#link = link
    this.#upSince = Date.now()
    link.onEvent = (e) => this.#told(e)
    link.onClose = () => this.#lost(link)
    try {
      await give(running)
    } catch (e) {
      if (this.#link === link) this.#link = undefined
      link.close()
      throw e
    }
    return link
  }

  /** Let go of the data plane, which goes on. @returns the link, for whoever ends it */
  stop(): Link | undefined {
    const link = this.link
    this.#stopped = true
    this.#link = undefined
    clearInterval(this.#health)
    this.#cancel()
    return link
  }

  #mayRun(): void {
    if (this.#stopped) throw new NoidError('DATAPLANE_LOST', { network: this.#process.network })
  }

  #cancel(): void {
    clearTimeout(this.#attempt)
    this.#attempt = undefined
  }

  #told(e: EventMessage): void {
    const { network, ctx, onLease } = this.#o
    if (e.event === 'warning') return ctx.notify({ type: 'warning', network, message: e.message })
    const { id: attachment, address, state } = e
    onLease?.(attachment, state)
    const expiresAt = e.expiresInMs === null ? null : Date.now() + e.expiresInMs
    ctx.notify({ type: 'lease', network, attachment, address, state, expiresAt })
  }

  #lost(link: Link): void {
    if (this.#stopped || this.#link !== link) return
    this.#link = undefined
    this.#hung = link.silent
    if (Date.now() - this.#upSince > STABLE_MS) this.#failures = 0
    this.#o.ctx.log('warn', `lost the ${this.#o.what} of ${this.#process.network}: starting anew`)
    this.#schedule()
  }

  #schedule(): void {
    const wait = BACKOFF_MS[Math.min(this.#failures++, BACKOFF_MS.length - 1)]
    this.#cancel()
    this.#attempt = setTimeout(() => {
      this.#attempt = undefined
      this.#o.bringBack().catch((e: Error) => {
        this.#o.ctx.log('error', `could not bring back the ${this.#o.what} of ${this.#process.network}: ${e.message}`)
        // What was lost on its way up waits already.
        if (!this.#stopped && this.link === undefined && this.#attempt === undefined) this.#schedule()
      })
    }, wait)
    this.#attempt.unref()
  }
}
