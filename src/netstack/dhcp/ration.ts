/**
 * What one VM may cost the DHCP servers: messages that are looked into, reports that reach the store, warnings that reach the log.
 *
 * Owns: an allowance for each port (a burst, then so many per second), what was told of it last and when, and what is still to be told, so that a
 * client which keeps asking, or changes its mind without end, does not keep the store writing. Never does: reading a clock.
 */
import type { Host } from '../host.ts'
import type { Lease } from './leases.ts'

/** Messages a port may send at once, and per second after that. */
const BURST = 30
const RATE = 10
const REPORT_INTERVAL = 1000
const WARN_INTERVAL = 60_000

export class Ration {
  readonly #allowance = new Map<number, { left: number; at: number }>()

  /** May the port's message be looked into? It is counted. */
  allows(port: number, now: number): boolean {
    const a = this.#allowance.get(port)
    if (a === undefined) {
      this.#allowance.set(port, { left: BURST - 1, at: now })
      return true
    }
    a.left = Math.min(BURST, a.left + ((now - a.at) * RATE) / 1000)
    a.at = now
    if (a.left < 1) return false
    a.left--
    return true
  }

  forget(port: number): void {
    this.#allowance.delete(port)
  }
}

/** What is said of a port's lease. */
interface Report {
  readonly address: string
  readonly state: string
  /** 0 when the state is not bound. */
  readonly expiresAt: number
}

interface Told extends Report {
  readonly at: number
  /** What has become of it since, to be told as soon as the store may be bothered again. */
  next: Report | undefined
}

export class Reports {
  readonly #host: Host
  readonly #told = new Map<number, Told>()
  readonly #declinedAt = new Map<number, number>()

  constructor(host: Host) {
    this.#host = host
  }

  /** A lease changed: the control plane is told, not more than once a second, and of the last state in any case. */
  lease(l: Lease): void {
    const now = this.#host.now()
    const told = this.#told.get(l.port)
    const report = { address: l.address, state: l.state, expiresAt: l.state === 'bound' ? l.expiresAt : 0 }
    if (told === undefined || now - told.at >= REPORT_INTERVAL) this.#tell(l.port, report, now)
    else told.next = told.state === l.state && told.address === l.address ? undefined : report
  }

  #tell(port: number, report: Report, now: number): void {
    this.#told.set(port, { ...report, at: now, next: undefined })
    const { address, state, expiresAt } = report
    this.#host.notify({ type: 'lease', port, address, state, expiresInMs: expiresAt > 0 ? expiresAt - now : null })
  }

  /** The client says that somebody else uses its address: people are told, once a minute. */
  declined(l: Lease): void {
    const now = this.#host.now()
    const at = this.#declinedAt.get(l.port)
    if (at !== undefined && now - at < WARN_INTERVAL) return
    this.#declinedAt.set(l.port, now)
    this.#host.notify({
      type: 'warning',
      message: `${l.name} says that its address ${l.address} is in use by somebody else`,
    })
  }

  tick(now: number): void {
    for (const [port, { next, at }] of this.#told)
      if (next !== undefined && now - at >= REPORT_INTERVAL) this.#tell(port, next, now)
  }

  forget(port: number): void {
    this.#told.delete(port)
    this.#declinedAt.delete(port)
  }
}

/** What a client calls itself ends up on terminals: nothing but visible ASCII, and not much of it. */
export const printable = (s: string): string => s.replace(/[^\x21-\x7e]/g, '?').slice(0, 63)
