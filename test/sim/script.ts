/**
 * A guest that does exactly what a test says, segment by segment: `send` puts one on the link, `take` gives what came back.
 * Sequence numbers are relative: `seq` to the guest's ISN (its SYN is 0), `ack` to the relay's (its SYN is 0).
 */
import assert from 'node:assert/strict'
import { buildSegment, parseSegment, type Segment } from './guest.ts'
import type { MemorySocket, Remote } from './memory-host.ts'
import { GUEST, PEER, remote, World } from './world.ts'

export const FIN = 1
export const SYN = 2
export const RST = 4
export const PSH = 8
export const ACK = 16

export interface Sent {
  readonly flags?: number
  readonly seq?: number
  readonly ack?: number
  readonly window?: number
  readonly payload?: string | Uint8Array
  readonly options?: readonly number[]
}

/** What the relay sent: relative numbers, payload as text. */
export interface Taken {
  readonly flags: number
  readonly seq: number
  readonly ack: number
  readonly window: number
  readonly payload: string
  readonly sack: readonly (readonly [number, number])[]
  readonly raw: Segment
}

export class Script {
  readonly world: World
  readonly isn: number
  readonly guestPort = 40000
  readonly peerPort = 80
  iss = 0
  #taken: Taken[] = []

  constructor(of: { remote?: Partial<Remote>; isn?: number; world?: ConstructorParameters<typeof World>[1] } = {}) {
    this.isn = of.isn ?? 0x7fffff00
    this.world = new World(7, { next: () => remote({ ...of.remote }), ...of.world })
    this.world.toGuest = (p) => {
      const s = parseSegment(p.bytes)
      assert.ok(s !== undefined, 'the relay sent a segment with a wrong checksum')
      if (s.flags & SYN) this.iss = s.seq
      this.#taken.push({
        flags: s.flags,
        seq: (s.seq - this.iss) | 0,
        ack: s.flags & ACK ? (s.ack - this.isn) | 0 : 0,
        window: s.window,
        payload: Buffer.from(s.payload).toString('latin1'),
        sack: s.blocks.map(([l, r]) => [(l - this.isn) | 0, (r - this.isn) | 0] as const),
        raw: s,
      })
    }
  }

  get socket(): MemorySocket {
    return this.world.host.sockets[this.world.host.sockets.length - 1]
  }

  get state(): string {
    for (let i = 0; i < this.world.flows.capacity; i++)
      if (this.world.flows.inUse(i)) return this.world.relay.stateName(i)
    return 'gone'
  }

  bytes(s: Sent, guestPort = this.guestPort): Uint8Array {
    const payload = typeof s.payload === 'string' ? Buffer.from(s.payload, 'latin1') : (s.payload ?? new Uint8Array(0))
    return buildSegment(
      GUEST,
      PEER,
      guestPort,
      this.peerPort,
      this.isn + (s.seq ?? 0),
      s.ack === undefined ? 0 : this.iss + s.ack,
      s.flags ?? ACK,
      s.window ?? 65535,
      s.options ?? [],
      payload,
    )
  }

  send(s: Sent, guestPort?: number): void {
    this.world.inject(this.bytes(s, guestPort))
  }

  wait(ms: number): void {
    let over = false
    this.world.clock.after(ms, () => {
      over = true
    })
    this.world.clock.run(() => over, Infinity)
  }

  /** Everything since the last time. */
  take(ms = 1): Taken[] {
    this.wait(ms)
    const t = this.#taken
    this.#taken = []
    return t
  }

  /** Exactly one segment came. */
  one(ms = 1): Taken {
    const t = this.take(ms)
    assert.equal(
      t.length,
      1,
      `one segment expected, got ${JSON.stringify(t.map((x) => [x.flags, x.seq, x.ack, x.payload]))}`,
    )
    return t[0]
  }

  none(ms = 1): void {
    const t = this.take(ms)
    assert.equal(
      t.length,
      0,
      `silence expected, got ${JSON.stringify(t.map((x) => [x.flags, x.seq, x.ack, x.payload]))}`,
    )
  }

  /** The three-way handshake; the guest's options are MSS 1000 and, with `shift`, window scale. */
  open(window = 65535, shift = -1): void {
    const options = [2, 4, 1000 >> 8, 1000 & 255]
    if (shift >= 0) options.push(1, 3, 3, shift)
    this.send({ flags: SYN, seq: 0, options, window })
    const s = this.one(5)
    assert.equal(s.flags, SYN | ACK)
    assert.equal(s.ack, 1)
    this.send({ seq: 1, ack: 1, window })
  }
}
