/**
 * The back-end's end of one vhost-user connection (QEMU's docs/interop/vhost-user.rst): messages in, answers out, and the two rings of a virtio-net
 * device of one queue pair.
 *
 * Owns: the connection, what was negotiated, the guest's memory, the rings and their eventfds.
 * Never does: a frame (port.ts).
 * Theory. The front-end is QEMU, which a guest may have broken into: sizes, counts and orders are checked, and what makes no sense throws, which ends
 * the connection. A ring runs once it has a kick, addresses and is enabled; it stops by GET_VRING_BASE, which says how far it is. A back-end that
 * comes after us is told that by the used ring, because nothing is kept from one turn to the next.
 */

import type { Arena } from '../../netstack/arena.ts'
import { close } from '../../sys/fd.ts'
import { recvWithFds, sendWithFds } from '../../sys/scm.ts'
import { GuestMemory, REGIONS_MAX } from './memory.ts'
import { Ring, type RingAddresses, SIZE_MAX } from './ring.ts'

const HEADER = 12
const PAYLOAD_MAX = 8 + 32 * REGIONS_MAX
const VERSION = 1
const REPLY = 1 << 2
const NEED_REPLY = 1 << 3
const NO_DESCRIPTOR = 1 << 8
const EAGAIN = 11
const EINTR = 4

const R = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
} as const

/** Bits of virtio-net (virtio 1.2 §5.1.3), of rings, and of vhost. */
export const F = {
  CSUM: 0,
  GUEST_CSUM: 1,
  MTU: 3,
  GUEST_TSO4: 7,
  GUEST_TSO6: 8,
  GUEST_ECN: 9,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  HOST_ECN: 13,
  MRG_RXBUF: 15,
  LOG_ALL: 26,
  INDIRECT_DESC: 28,
  EVENT_IDX: 29,
  PROTOCOL_FEATURES: 30,
  VERSION_1: 32,
} as const
const FEATURES = Object.values(F).reduce((all, bit) => all | (1n << BigInt(bit)), 0n)
/** LOG_SHMFD, RARP, REPLY_ACK. Not NET_MTU: the MTU is the network's, and the guest is told by QEMU in any case. */
const PROTOCOL_FEATURES = (1n << 1n) | (1n << 2n) | (1n << 3n)

/** The queues of a virtio-net device without multi-queue. */
export const RECEIVE = 0
export const SEND = 1
const QUEUES = 2

interface Queue {
  size: number
  base: number
  addresses: RingAddresses | undefined
  kick: number
  call: number
  enabled: boolean
  ring: Ring | undefined
}

export interface SessionOwner {
  /** A ring was started, or stopped: look at `ring`, and watch its `kick` as long as there is one. */
  changed(queue: number): void
  /** The connection has ended by `why`, empty when the front-end has closed it. */
  ended(why: string): void
}

export class Session {
  readonly fd: number
  readonly #owner: SessionOwner
  readonly #arena: Arena
  readonly #base: number
  memory: GuestMemory
  readonly #queues: Queue[] = []
  #features = 0n
  // The message that is being read.
  #bytes: Uint8Array = new Uint8Array(0)
  #fds: number[] = []

  constructor(fd: number, arena: Arena, base: number, owner: SessionOwner) {
    this.fd = fd
    this.#owner = owner
    this.#arena = arena
    this.#base = base
    this.memory = new GuestMemory(arena, base)
    for (let q = 0; q < QUEUES; q++)
      this.#queues.push({ size: 0, base: 0, addresses: undefined, kick: -1, call: -1, enabled: false, ring: undefined })
  }

  has(feature: number): boolean {
    return ((this.#features >> BigInt(feature)) & 1n) === 1n
  }

  ring(queue: number): Ring | undefined {
    return this.#queues[queue]?.ring
  }

  kick(queue: number): number {
    return this.#queues[queue]?.kick ?? -1
  }

  call(queue: number): number {
    return this.#queues[queue]?.call ?? -1
  }

  /** The connection has something to read. */
  read(): void {
    try {
      for (;;) {
        const want = this.#bytes.length < HEADER ? HEADER : HEADER + this.#payloadLength()
        const r = recvWithFds(this.fd, want - this.#bytes.length)
        if (r === -EAGAIN || r === -EINTR) return
        if (typeof r === 'number') throw new Error(`the connection failed: ${r}`)
        this.#fds.push(...r.fds)
        if (this.#fds.length > REGIONS_MAX) throw new Error('more descriptors than a message has')
        if (r.bytes.length === 0) {
          this.#owner.ended('')
          return
        }
        this.#bytes = this.#bytes.length === 0 ? r.bytes : Buffer.concat([this.#bytes, r.bytes])
        if (this.#bytes.length < HEADER || this.#bytes.length < HEADER + this.#payloadLength()) continue
        const bytes = this.#bytes
        this.#bytes = new Uint8Array(0)
        this.#message(new DataView(bytes.buffer, bytes.byteOffset, bytes.length))
      }
    } catch (e) {
      this.#owner.ended((e as Error).message)
    }
  }

  #payloadLength(): number {
    const length = new DataView(this.#bytes.buffer, this.#bytes.byteOffset).getUint32(8, true)
    if (length > PAYLOAD_MAX) throw new Error(`a message of ${length} bytes`)
    return length
  }

  /** Descriptors that the message has not given to anybody are closed. */
  #message(m: DataView): void {
    const request = m.getUint32(0, true)
    const flags = m.getUint32(4, true)
    try {
      if ((flags & 3) !== VERSION) throw new Error(`version ${flags & 3} of the protocol`)
      const payload = new DataView(m.buffer, m.byteOffset + HEADER, m.byteLength - HEADER)
      const answer = this.#handle(request, payload)
      if (answer !== undefined) this.#reply(request, answer)
      else if ((flags & NEED_REPLY) !== 0) this.#reply(request, word(0n))
    } finally {
      for (const fd of this.#fds.splice(0)) close(fd)
    }
  }

  #reply(request: number, payload: Uint8Array): void {
    const bytes = new Uint8Array(new ArrayBuffer(HEADER + payload.length))
    const view = new DataView(bytes.buffer)
    view.setUint32(0, request, true)
    view.setUint32(4, VERSION | REPLY, true)
    view.setUint32(8, payload.length, true)
    bytes.set(payload, HEADER)
    const r = sendWithFds(this.fd, bytes, [])
    if (r !== bytes.length) throw new Error(`the front-end takes no answer: ${r}`)
  }

  #handle(request: number, p: DataView): Uint8Array | undefined {
    switch (request) {
      case R.GET_FEATURES:
        return word(FEATURES)
      case R.SET_FEATURES:
        return this.#setFeatures(p.getBigUint64(0, true))
      case R.GET_PROTOCOL_FEATURES:
        return word(PROTOCOL_FEATURES)
      case R.SET_PROTOCOL_FEATURES:
        if ((p.getBigUint64(0, true) & ~PROTOCOL_FEATURES) !== 0n) throw new Error('features that were not offered')
        return
      case R.GET_QUEUE_NUM:
        return word(1n)
      case R.SET_MEM_TABLE:
        return this.#setMemory(p)
      case R.SET_LOG_BASE:
        this.memory.logTo(this.#take(), number(p, 8), number(p, 0))
        return word(0n)
      case R.SET_VRING_NUM:
        return this.#setSize(this.#queue(p.getUint32(0, true)), p.getUint32(4, true))
      case R.SET_VRING_ADDR:
        return this.#setAddresses(p)
      case R.SET_VRING_BASE:
        this.#queue(p.getUint32(0, true)).base = p.getUint32(4, true) & 0xffff
        return
      case R.GET_VRING_BASE:
        return this.#stop(p.getUint32(0, true))
      case R.SET_VRING_KICK:
        return this.#setKick(p)
      case R.SET_VRING_CALL:
        return this.#setCall(p)
      case R.SET_VRING_ENABLE:
        this.#queue(p.getUint32(0, true)).enabled = p.getUint32(4, true) === 1
        return this.#settle(p.getUint32(0, true))
      case R.SET_OWNER:
      // Its descriptor is closed: it would tell QEMU's migration that the log has changed, which looks by itself.
      case R.SET_LOG_FD:
      case R.SET_VRING_ERR:
      // The guest announces its address itself; the switch learns it from any frame.
      case R.SEND_RARP:
        return
      case R.RESET_OWNER:
        for (let q = 0; q < QUEUES; q++) this.#stop(q)
        return
      default:
        throw new Error(`request ${request}, which was not offered`)
    }
  }

  /** The one descriptor of the message; closed when the message has been dealt with. */
  #take(): number {
    const [fd] = this.#fds
    if (fd === undefined || this.#fds.length !== 1) throw new Error(`${this.#fds.length} descriptors instead of one`)
    return fd
  }

  #queue(index: number): Queue {
    const q = this.#queues[index]
    if (q === undefined) throw new Error(`queue ${index} of ${QUEUES}`)
    return q
  }

  #setFeatures(features: bigint): undefined {
    if ((features & ~FEATURES) !== 0n) throw new Error('features that were not offered')
    const before = this.#features
    this.#features = features
    const eventIndex = 1n << BigInt(F.EVENT_IDX)
    if (((before ^ features) & eventIndex) !== 0n) for (let q = 0; q < QUEUES; q++) this.#renew(q)
    // Without VHOST_USER_F_PROTOCOL_FEATURES rings are enabled from the start.
    if (!this.has(F.PROTOCOL_FEATURES)) for (let q = 0; q < QUEUES; q++) this.#enable(q)
  }

  #enable(q: number): void {
    this.#queue(q).enabled = true
    this.#settle(q)
  }

  #setMemory(p: DataView): undefined {
    const count = p.getUint32(0, true)
    if (count > REGIONS_MAX || count !== this.#fds.length)
      throw new Error(`${count} regions, ${this.#fds.length} files`)
    const next = new GuestMemory(this.#arena, this.#base)
    try {
      for (let i = 0; i < count; i++) {
        const at = 8 + 32 * i
        const [guest, size, user, offset] = [0, 8, 16, 24].map((o) => number(p, at + o)) as [
          number,
          number,
          number,
          number,
        ]
        next.add({ guest, size, user, offset }, this.#fds[i] as number)
      }
    } catch (e) {
      next.close()
      throw e
    }
    const before = this.memory
    this.memory = next
    next.adoptLog(before)
    // Rings that run go on where they are, in the new memory: nobody may keep a view of the old one.
    try {
      for (let q = 0; q < QUEUES; q++) this.#renew(q)
    } catch (e) {
      for (let q = 0; q < QUEUES; q++) this.#pause(q)
      throw e
    } finally {
      before.close()
    }
  }

  #setSize(q: Queue, size: number): undefined {
    if (size > SIZE_MAX) throw new Error(`a ring of ${size} descriptors`)
    q.size = size
  }

  #setAddresses(p: DataView): undefined {
    const index = p.getUint32(0, true)
    const logged = (p.getUint32(4, true) & 1) !== 0
    this.#queue(index).addresses = {
      descriptors: number(p, 8),
      used: number(p, 16),
      available: number(p, 24),
      log: logged ? number(p, 32) : -1,
    }
    this.#renew(index)
  }

  #setKick(p: DataView): undefined {
    const index = p.getUint8(0)
    const q = this.#queue(index)
    const given = (p.getUint8(1) & (NO_DESCRIPTOR >> 8)) === 0
    if (!given) throw new Error('a ring without a kick: polling is not offered')
    const fd = this.#take()
    this.#pause(index)
    this.#fds.length = 0
    if (q.kick >= 0) close(q.kick)
    q.kick = fd
    this.#settle(index)
  }

  #setCall(p: DataView): undefined {
    const q = this.#queue(p.getUint8(0))
    if (q.call >= 0) close(q.call)
    q.call = -1
    if ((p.getUint8(1) & (NO_DESCRIPTOR >> 8)) !== 0) return
    q.call = this.#take()
    this.#fds.length = 0
  }

  /** Run the ring if it may, or not. */
  #settle(index: number): undefined {
    const q = this.#queue(index)
    const runs = q.enabled && q.kick >= 0 && q.addresses !== undefined && q.size > 0
    if (runs === (q.ring !== undefined)) return
    if (!runs) return this.#pause(index)
    q.ring = new Ring(this.memory, q.size, q.addresses as RingAddresses, q.base, this.has(F.EVENT_IDX))
    this.#owner.changed(index)
  }

  /** It runs no more; how far it is stays known. */
  #pause(index: number): undefined {
    const q = this.#queue(index)
    if (q.ring === undefined) return
    q.base = q.ring.taken
    q.ring = undefined
    this.#owner.changed(index)
  }

  /** A running ring goes on with what has changed. */
  #renew(index: number): void {
    if (this.#queue(index).ring === undefined) return
    this.#pause(index)
    this.#settle(index)
  }

  #stop(index: number): Uint8Array {
    this.#pause(index)
    const q = this.#queue(index)
    for (const fd of [q.kick, q.call]) if (fd >= 0) close(fd)
    q.kick = q.call = -1
    const answer = new Uint8Array(new ArrayBuffer(8))
    new DataView(answer.buffer).setUint32(0, index, true)
    new DataView(answer.buffer).setUint32(4, q.base, true)
    return answer
  }

  /** Everything is given up. The owner has been told of each ring that stopped. */
  close(): void {
    for (let q = 0; q < QUEUES; q++) this.#stop(q)
    for (const fd of this.#fds.splice(0)) close(fd)
    this.memory.close()
    close(this.fd)
  }
}

function word(value: bigint): Uint8Array {
  const bytes = new Uint8Array(new ArrayBuffer(8))
  new DataView(bytes.buffer).setBigUint64(0, value, true)
  return bytes
}

/** A 64-bit word below 2⁵³. @throws when it is more */
function number(p: DataView, at: number): number {
  const value = p.getBigUint64(at, true)
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new Error('an address that no machine has')
  return Number(value)
}
