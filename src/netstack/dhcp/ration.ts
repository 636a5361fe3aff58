/**
 * What one VM may cost the DHCP servers: messages that are looked into, and reports that reach the store.
 *
 * Owns: an allowance for each port (a burst, then so many per second), and the state and time of its last report, so that a client which keeps
 * asking does not keep the store writing. Never does: reading a clock.
 */
import type { Host } from '../host.ts'
import type { Lease } from './leases.ts'

/** Messages a port may send at once, and per second after that. */
const BURST = 30
const RATE = 10
const REPORT_INTERVAL = 1000

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

export class Reports {
  readonly #host: Host
  readonly #last = new Map<number, { state: string; at: number }>()

  constructor(host: Host) {
    this.#host = host
  }

  /** A lease changed: the control plane is told, of the same state not more than once a second. */
  lease(l: Lease): void {
    const now = this.#host.now()
    const last = this.#last.get(l.port)
    if (last !== undefined && last.state === l.state && now - last.at < REPORT_INTERVAL) return
    this.#last.set(l.port, { state: l.state, at: now })
    this.#host.notify({
      type: 'lease',
      port: l.port,
      address: l.address,
      state: l.state,
      expiresInMs: l.state === 'bound' ? l.expiresAt - now : null,
    })
  }

  forget(port: number): void {
    this.#last.delete(port)
  }
}

/** What a client calls itself ends up on terminals: nothing but visible ASCII, and not much of it. */
export const printable = (s: string): string => s.replace(/[^\x21-\x7e]/g, '?').slice(0, 63)
