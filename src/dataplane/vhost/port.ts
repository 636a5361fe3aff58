/**
 * A nic whose guest is reached through its own memory: virtio-net of a QEMU that has this process as its vhost-user back-end.
 *
 * Owns: the listening socket, at most one connection (session.ts), how frames pass between the arena and the two rings, who is told when.
 * Never does: looking into a frame.
 *
 * Theory. A frame is copied once, with its virtio_net_hdr, and may have 64 KiB both ways. What the guest's driver cannot take (segments of UDP, or
 * anything if it negotiated nothing) is finished here, for this port alone.
 * Guest → switch: while there is something in the ring the guest need not kick (ring.ts `listen`); a turn is bounded like any nic's (ports.ts), and
 * the kick stays unread until the ring was found empty, so that the next turn comes without anybody's help.
 * Switch → guest: into the buffers that the guest offers, as many as the frame takes if it said that it can (VIRTIO_NET_F_MRG_RXBUF); none left is −EAGAIN,
 * as with any port that is full. The guest is told once in a turn.
 * A restart of this process: QEMU connects again (`reconnect=1`), and a used ring says how far its predecessor was.
 * A ring that contradicts itself ends its connection and nothing else: it is said, counted, and the guest's next driver may try again.
 */
import { type Arena, FRAME_MAX, VNET } from '../../netstack/arena.ts'
import type { Port } from '../../netstack/switch/port.ts'
import type { SoftwareOffload } from '../../netstack/switch/segment.ts'
import * as vnet from '../../netstack/wire/vnet.ts'
import { close } from '../../sys/fd.ts'
import { clearEvent, signalEvent } from '../../sys/memory.ts'
import { accept, SOCK_NONBLOCK } from '../../sys/socket.ts'
import { BURST } from '../burst.ts'
import type { Nic, Receiver } from '../ports.ts'
import type { Reactor } from '../reactor.ts'
import type { TurnEnd } from '../turn-end.ts'
import type { Region } from './memory.ts'
import { type Ring, WRITE } from './ring.ts'
import { F, RECEIVE, SEND, Session, type SessionOwner } from './session.ts'

const EAGAIN = 11
const EMSGSIZE = 90
const ENOTCONN = 107
/** struct virtio_net_hdr_mrg_rxbuf: with num_buffers. */
const HEADER = 12
const NUM_BUFFERS = 10
/** The time of one nic in one turn, in ms; looked at after every few frames. */
const QUANTUM = 0.5
const FEW = 8
/** QEMU connects again after a second, to a ring that is as broken as before: that is said now and then, in ms. */
const SAY_EVERY = 60_000

export interface VhostOptions {
  /** A listening unix socket. */
  readonly fd: number
  readonly reactor: Reactor
  readonly arena: Arena
  readonly base: number
  /** The frame offset of the slot to read into; shared by all ports. */
  readonly slot: number
  readonly network: Receiver
  readonly endOfBurst: () => void
  readonly turnEnd: TurnEnd
  readonly software: SoftwareOffload
  /** The connection was ended for this reason. */
  readonly broken: (index: number, why: string) => void
}

export class VhostPort implements Nic, Port, SessionOwner {
  readonly offload = true
  index = -1
  readonly #o: VhostOptions
  readonly #bytes: Uint8Array
  /** Where a header is put together. */
  readonly #headerAt: number
  #session: Session | undefined
  #receive: Ring | undefined
  #send: Ring | undefined
  #kick = -1
  /** Bytes of header in the rings. */
  #header = HEADER
  #mergeable = false
  /** Bit n: gso type n may be given to the guest; bit 0: an unfinished checksum. */
  #takes = 0
  #ecn = false
  #asked = false
  #saidAt = Number.NEGATIVE_INFINITY
  #open = false

  constructor(o: VhostOptions, headerAt: number) {
    this.#o = o
    this.#bytes = o.arena.bytes
    this.#headerAt = headerAt
  }

  start(): void {
    this.#open = true
    this.#listen()
  }

  close(): void {
    if (!this.#open) return
    this.#open = false
    if (this.#session === undefined) this.#o.reactor.unwatch(this.#o.fd)
    else this.#end()
    close(this.#o.fd)
  }

  is(fd: number): boolean {
    return fd === this.#o.fd || fd === this.#kick || fd === this.#session?.fd
  }

  /** One front-end at a time: the next one waits until this one has gone. */
  #listen(): void {
    const { reactor, arena, base, fd: listener } = this.#o
    reactor.watch(listener, () => {
      const fd = accept(listener, SOCK_NONBLOCK)
      if (fd < 0) return
      reactor.unwatch(listener)
      const session = new Session(fd, arena, base, this)
      this.#session = session
      reactor.watch(fd, () => session.read())
    })
  }

  #end(): void {
    const session = this.#session
    if (session === undefined) return
    this.#session = undefined
    this.#o.reactor.unwatch(session.fd)
    this.#unwatchKick()
    this.#receive = this.#send = undefined
    session.close()
    if (this.#open) this.#listen()
  }

  // -- what the session tells ----------------------------------------------------------------------------------------

  changed(queue: number): void {
    const session = this.#session
    if (session === undefined) return
    const ring = session.ring(queue)
    this.#header = session.has(F.VERSION_1) || session.has(F.MRG_RXBUF) ? HEADER : VNET
    this.#mergeable = session.has(F.MRG_RXBUF)
    const csum = session.has(F.GUEST_CSUM)
    this.#ecn = session.has(F.GUEST_ECN)
    this.#takes =
      (csum ? 1 << vnet.GSO_NONE : 0) |
      (csum && session.has(F.GUEST_TSO4) ? 1 << vnet.GSO_TCPV4 : 0) |
      (csum && session.has(F.GUEST_TSO6) ? 1 << vnet.GSO_TCPV6 : 0)
    if (queue === RECEIVE) {
      this.#receive = ring
      // Buffers are looked for when there is a frame.
      ring?.listen(false)
      return
    }
    this.#unwatchKick()
    this.#send = ring
    if (ring === undefined) return
    this.#kick = session.kick(SEND)
    this.#o.reactor.watch(this.#kick, () => this.#read())
    // What was offered before we came has been kicked already, or never will be.
    signalEvent(this.#kick)
  }

  ended(why: string): void {
    this.#end()
    const now = performance.now()
    if (why === '' || now - this.#saidAt < SAY_EVERY) return
    this.#saidAt = now
    this.#o.broken(this.index, why)
  }

  #unwatchKick(): void {
    if (this.#kick >= 0) this.#o.reactor.unwatch(this.#kick)
    this.#kick = -1
  }

  // -- from the guest ------------------------------------------------------------------------------------------------

  #read(): void {
    const ring = this.#send
    if (ring === undefined) return
    ring.listen(false)
    if (this.#readSome(ring, BURST)) {
      // Found empty: from now on the guest kicks. What it offered in between is seen here.
      clearEvent(this.#kick)
      ring.listen(true)
      if (ring.broken === '' && ring.pending() > 0) signalEvent(this.#kick)
    }
    this.#tell(ring, SEND)
    this.#o.endOfBurst()
    if (ring.broken !== '' && this.#send === ring) this.ended(ring.broken)
  }

  /** True when the ring was found empty, or broken. */
  #readSome(ring: Ring, frames: number): boolean {
    const { slot, network } = this.#o
    const header = this.#header
    const at = slot - header
    const from = performance.now()
    let left = ring.pending()
    for (let n = 0; n < frames; n++) {
      if (left === 0) {
        left = ring.pending()
        if (left === 0) return true
      }
      if (n % FEW === FEW - 1 && performance.now() - from > QUANTUM) return false
      left--
      const head = ring.begin()
      const len = this.#gather(ring, at, FRAME_MAX + header)
      if (ring.broken !== '') return true
      ring.give(head, 0)
      ring.show()
      if (len <= header) continue
      // virtio_net_hdr_mrg_rxbuf has two bytes more than what lies before a frame here.
      if (header === HEADER) this.#bytes.copyWithin(slot - VNET, at, at + VNET)
      network.receive(this.index, slot, len - header)
      if (this.#send !== ring) return true
    }
    return false
  }

  /** Copy a chain to `at`: its length; 0 when it is longer than `max`. */
  #gather(ring: Ring, at: number, max: number): number {
    const { memory } = this.#session as Session
    let length = 0
    let fits = true
    while (ring.step()) {
      if ((ring.flags & WRITE) !== 0) ring.broken = 'a buffer for the device to write among those to send'
      else if (length + ring.length > max) fits = false
      else if (ring.region === undefined || !memory.read(ring.region, ring.at, ring.length, at + length))
        ring.broken = 'a buffer outside the memory'
      if (ring.broken !== '') return 0
      length += ring.length
    }
    return fits ? length : 0
  }

  // -- to the guest --------------------------------------------------------------------------------------------------

  transmit(off: number, len: number): number {
    const ring = this.#receive
    if (ring === undefined) return -ENOTCONN
    const hdr = off - VNET
    const gso = vnet.gsoType(this.#bytes, hdr)
    if (((vnet.flags(this.#bytes, hdr) & vnet.NEEDS_CSUM) | gso) !== 0 && !this.#takesGso(gso))
      return this.#o.software.transmit(this, off, len)
    const r = this.#scatter(ring, off, len)
    if (r >= 0 && !this.#asked) {
      this.#asked = true
      this.#o.turnEnd.put(this)
    }
    if (ring.broken !== '') {
      // Not from within: the switch is in the middle of a frame.
      this.#receive = undefined
      if (!this.#asked) this.#o.turnEnd.put(this)
      this.#asked = true
    }
    return r
  }

  #takesGso(gso: number): boolean {
    return (this.#takes & (1 << (gso & ~vnet.GSO_ECN))) !== 0 && ((gso & vnet.GSO_ECN) === 0 || this.#ecn)
  }

  #scatter(ring: Ring, off: number, len: number): number {
    const { memory } = this.#session as Session
    const header = this.#header
    const total = header + len
    const { taken, given } = ring
    let left = ring.pending()
    let done = 0
    let buffers = 0
    // Where the first buffer's header is.
    let first: Region | undefined
    let firstAt = 0
    this.#bytes.copyWithin(this.#headerAt, off - VNET, off)
    while (done < total) {
      if (left === 0 || (buffers > 0 && !this.#mergeable)) {
        ring.rewind(taken, given)
        return left === 0 ? -EAGAIN : -EMSGSIZE
      }
      left--
      buffers++
      const head = ring.begin()
      let wrote = 0
      while (done < total && ring.step()) {
        if ((ring.flags & WRITE) === 0) ring.broken = 'a buffer to send among those for the device to write'
        const { region, at, length: room } = ring
        let used = 0
        if (region === undefined) ring.broken = 'a buffer outside the memory'
        else if (first === undefined) {
          if (room < header || at + header > region.size) ring.broken = 'a buffer too short for a header'
          first = region
          firstAt = at
          used = header
        }
        if (ring.broken !== '') return -EAGAIN
        const n = Math.min(room - used, total - done - used)
        if (n > 0 && !memory.write(region as Region, at + used, n, off + done + used - header))
          ring.broken = 'a buffer outside the memory'
        if (ring.broken !== '') return -EAGAIN
        done += used + n
        wrote += used + n
      }
      if (ring.broken !== '') return -EAGAIN
      ring.give(head, wrote)
    }
    this.#bytes[this.#headerAt + NUM_BUFFERS] = buffers
    this.#bytes[this.#headerAt + NUM_BUFFERS + 1] = buffers >>> 8
    if (!memory.write(first as Region, firstAt, header, this.#headerAt)) {
      ring.broken = 'a buffer outside the memory'
      return -EAGAIN
    }
    ring.show()
    return len
  }

  /** The end of a turn. */
  flush(): void {
    this.#asked = false
    const ring = this.#session?.ring(RECEIVE)
    if (ring === undefined) return
    this.#tell(ring, RECEIVE)
    if (ring.broken !== '') this.ended(ring.broken)
  }

  #tell(ring: Ring, queue: number): void {
    const call = this.#session?.call(queue) ?? -1
    if (call >= 0 && ring.mustTell()) signalEvent(call)
  }
}

export const headerScratch = (arena: Arena): number => arena.alloc(HEADER)
