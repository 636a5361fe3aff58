/**
 * The leases of one network in one family: which attachment has which address, and how far the client has got with it.
 *
 * Owns: states and expiry. A lease belongs to a switch port (the attachment behind it), never to a MAC or a client id: the
 * same VM has the same address after a restart, with another MAC, under another operating system. Addresses are given by
 * the control plane, which also stores them; what changes here is reported through `changed`.
 *
 * In DHCPv6's words DISCOVER is SOLICIT; CONFIRM changes nothing.
 *
 *   reserved ──DISCOVER──▶ offered ──REQUEST──▶ bound ──time──▶ expired      (RELEASE leads back to reserved)
 *                                                 └──DECLINE──▶ declined ──HOLD_OFF──▶ may be offered again
 *
 * Never does: reading a clock, building packets, choosing addresses.
 * Invariants: `expiresAt` is finite exactly when the state is bound or offered; a port has at most one lease.
 */
export type LeaseState = 'reserved' | 'offered' | 'bound' | 'expired' | 'declined'

export interface Binding {
  /** The VM's name, which is its DNS name. */
  readonly name: string
  readonly mac: string
  readonly address: string
  /** The client holds the lease already: the data plane was restarted under it. */
  readonly bound: boolean
}

export interface Lease {
  readonly port: number
  name: string
  address: string
  /** The MAC that last asked; the attachment's own until then. */
  mac: string
  /** What the client calls itself (option 12), as it says it. */
  hostname: string
  state: LeaseState
  /** Milliseconds of the host's clock. */
  expiresAt: number
  /** When an address that was declined may be offered again. */
  heldUntil: number
}

/** A lease as people see it. */
export interface LeaseInfo {
  readonly vm: string
  readonly address: string
  readonly mac: string
  readonly hostname: string
  readonly state: LeaseState
  readonly expiresInMs: number | null
}

/** An offer that is not taken up is forgotten after this long, in ms. */
const OFFER_LIFE = 60_000
/** How long a declined address is not offered, in ms (RFC 2131 §3.1.5 has the client wait as long before it starts over). */
export const HOLD_OFF = 10_000

export class Leases {
  readonly #byPort = new Map<number, Lease>()
  readonly #changed: (lease: Lease) => void

  constructor(changed: (lease: Lease) => void) {
    this.#changed = changed
  }

  get(port: number): Lease | undefined {
    return this.#byPort.get(port)
  }

  /** For people. */
  rows(now: number): LeaseInfo[] {
    return Array.from(this.#byPort.values(), (l) => ({
      vm: l.name,
      address: l.address,
      mac: l.mac,
      hostname: l.hostname,
      state: l.state,
      expiresInMs: l.state === 'bound' ? Math.max(0, l.expiresAt - now) : null,
    }))
  }

  /** Idempotent: the same address on the same port keeps the lease's state. */
  bind(port: number, b: Binding, now: number, leaseMs: number): void {
    const old = this.#byPort.get(port)
    if (old !== undefined && old.address === b.address) {
      old.name = b.name
      return
    }
    this.#byPort.set(port, {
      port,
      name: b.name,
      address: b.address,
      mac: b.mac,
      hostname: '',
      state: b.bound ? 'bound' : 'reserved',
      // How much of it is left is not known here; a full term errs towards the client's side.
      expiresAt: b.bound ? now + leaseMs : Infinity,
      heldUntil: 0,
    })
  }

  unbind(port: number): void {
    this.#byPort.delete(port)
  }

  offer(l: Lease, now: number): void {
    // A client that starts over keeps what it holds until it asks for it again.
    if (l.state === 'bound') return
    l.state = 'offered'
    l.expiresAt = now + OFFER_LIFE
  }

  /** The client has it now, or has it for another term. */
  acknowledge(l: Lease, now: number, leaseMs: number): void {
    l.state = 'bound'
    l.expiresAt = now + leaseMs
    this.#changed(l)
  }

  release(l: Lease): void {
    const was = l.state
    l.state = 'reserved'
    l.expiresAt = Infinity
    if (was === 'bound') this.#changed(l)
  }

  decline(l: Lease, now: number): void {
    l.state = 'declined'
    l.expiresAt = Infinity
    l.heldUntil = now + HOLD_OFF
    this.#changed(l)
  }

  tick(now: number): void {
    for (const l of this.#byPort.values()) {
      if (now < l.expiresAt) continue
      const was = l.state
      l.state = was === 'bound' ? 'expired' : 'reserved'
      l.expiresAt = Infinity
      if (was === 'bound') this.#changed(l)
    }
  }
}
