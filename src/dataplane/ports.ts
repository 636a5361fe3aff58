/**
 * Switch ports over descriptors: a TAP, or a packet socket on the far end of a veth (dgram.ts: a unix socket).
 *
 * Owns: the descriptors of one nic, reading its frames in bursts, writing frames to it, counting what it refused.
 * Never does: looking into a frame.
 *
 * Theory. A nic is read in turns, with as many frames as the last turns lead to expect: a turn that found all of them doubles
 * the number, one that found fewer sets it to what there was, or to half, because a read that finds nothing costs as much as one that does. The
 * descriptor is level-triggered, so the rest comes in the next turn, after the others had theirs. A turn is bounded by frames (BURST) and by
 * time (QUANTUM): a nic whose frames are dear (each opens a flow, say) gets fewer of them.
 *
 * Few frames, or long ones, are read one by one into one slot, which stays in the cache, and written at once. Many short ones are read and
 * forwarded by io_uring (burst.ts), at two thirds of the cost for each. A port's frames keep their order in both: what is written at once comes after
 * what had been put off.
 *
 * A nic that is gone (its namespace died) reports an error for ever: it is no longer watched, and stays attached until the daemon
 * detaches it.
 */

import { type Arena, FRAME_MAX, VNET } from '../netstack/arena.ts'
import { type Port, WAY, type Way } from '../netstack/switch/port.ts'
import { close, read, setNonblock, write } from '../sys/fd.ts'
import { recv, SO_SNDBUF, SO_SNDBUFFORCE, SOL_SOCKET, send, setOption } from '../sys/socket.ts'
import { BURST, type Burst, type Loser } from './burst.ts'
import type { Reactor } from './reactor.ts'

const EINTR = 4
const EAGAIN = 11
const EOPNOTSUPP = 95
/** From how many expected frames on a ring is the cheaper way. */
const RING_LEAST = 4
/** Mean length up to which it is: 32 of these fit the second cache. */
const SHORT = 4096
/** The time of one nic in one turn, in ms, that its next turn is cut to; a turn of a few frames is not measured. */
const QUANTUM = 0.5
const FEW = 8
/** Bytes in flight to a veth: several frames of 64 KiB with their overhead. */
const SEND_BUFFER = 4 << 20

/** What a port needs of the network (netstack/network.ts). */
export interface Receiver {
  receive(index: number, off: number, len: number): void
  lost(index: number, error: number, len: number): void
}

export interface NicOptions {
  /** One, the queues of a TAP, or a group of packet sockets in the order in which the kernel fills them (sys/packet.ts). */
  readonly fds: readonly number[]
  readonly vnetHdr: boolean
  readonly reactor: Reactor
  readonly arena: Arena
  /** Address of the arena's first byte. */
  readonly base: number
  /** The frame offset of the slot to read single frames into; shared by all ports. */
  readonly slot: number
  /** Where io_uring is allowed; shared by all ports. */
  readonly burst: Burst | undefined
  readonly network: Receiver
  /** Called after each burst: what was put off goes out. */
  readonly endOfBurst: () => void
}

/** A port of the data plane: what the control protocol can do with it. */
export interface Nic extends Port {
  /** The switch's index for it; set when it is attached. */
  index: number
  /** Begin to read. */
  start(): void
  /** Give its descriptors up. */
  close(): void
  /** Is it the one over this descriptor? */
  is(fd: number): boolean
}

/** Reading, which all have in common. */
export abstract class NicPort implements Nic, Loser {
  readonly offload: boolean
  /** Written to. */
  protected readonly fd: number
  protected readonly fds: readonly number[]
  /** Read from. */
  protected source: number
  protected readonly base: number
  /** Bytes of header before each frame on the wire of the descriptor. */
  protected readonly header: number
  joins: boolean
  protected readonly reactor: Reactor
  readonly #slot: number
  protected readonly network: Receiver
  readonly #endOfBurst: () => void
  readonly #arena: Arena
  protected burst: Burst | undefined
  #watched = false
  /** Frames to try for in the next turn, at most `#ceiling`. */
  #expected = 1
  #ceiling = BURST
  /** The frames of the last turn were short. */
  #short = false
  /** The switch's index for it; set when it is attached. */
  index = -1
  /** Errors other than a full queue, by which it lost frames. */
  errors = 0

  constructor(o: NicOptions) {
    const [fd] = o.fds
    if (fd === undefined) throw new RangeError('a nic without a descriptor')
    this.fd = this.source = fd
    this.fds = o.fds
    this.offload = this.joins = o.vnetHdr
    this.base = o.base
    this.header = o.vnetHdr ? VNET : 0
    this.reactor = o.reactor
    this.#slot = o.slot
    this.network = o.network
    this.#endOfBurst = o.endOfBurst
    this.#arena = o.arena
    this.burst = o.burst
    for (const each of o.fds) setNonblock(each, true)
  }

  protected abstract get(addr: number, len: number): number
  abstract transmit(off: number, len: number, way: Way): number
  abstract flush(): void

  /** `fds[k]` has something to read. */
  protected told(_k: number): void {}

  /** `source` is empty: is there another one that is not? It is `source` then. */
  protected drained(): boolean {
    return false
  }

  /** Does this error of a read end the nic? */
  protected breaks(error: number): boolean {
    return error !== -EAGAIN && error !== -EINTR
  }

  /** Begin to read. The index must be known. */
  start(): void {
    this.#watched = true
    this.fds.forEach((fd, k) => {
      this.reactor.watch(fd, (readable, writable) => {
        if (writable) this.flush()
        if (!readable) return
        this.told(k)
        this.#read()
      })
    })
  }

  /** Give the descriptor up. */
  close(): void {
    this.flush()
    this.#stop()
    for (const fd of this.fds) close(fd)
  }

  #stop(): void {
    if (this.#watched) for (const fd of this.fds) this.reactor.unwatch(fd)
    this.#watched = false
  }

  /** Is it the one over this descriptor? */
  is(fd: number): boolean {
    return this.fds.includes(fd)
  }

  #read(): void {
    const tries = this.#expected
    const timed = tries > FEW
    const from = timed ? performance.now() : 0
    const burst = this.burst
    const short = this.#short && tries >= RING_LEAST
    const came = burst !== undefined && short ? this.#readMany(burst, tries) : this.#readEach(tries)
    const took = timed ? performance.now() - from : 0
    this.#ceiling = took <= QUANTUM ? BURST : Math.max(FEW, Math.floor((tries * QUANTUM) / took))
    this.#expected = Math.min(this.#ceiling, came === tries ? tries * 2 : Math.max(1, came, tries >> 1))
    this.#endOfBurst()
  }

  /** Read and deal with one frame after the other; how many there were. */
  #readEach(tries: number): number {
    const header = this.header
    const slot = this.#slot
    const at = this.base + slot - header
    let bytes = 0
    let n = 0
    while (n < tries && this.#watched) {
      const len = this.get(at, FRAME_MAX + header)
      if (len < 0) {
        if (this.breaks(len)) this.#broken()
        else if (this.drained()) continue
        break
      }
      n++
      bytes += len
      this.#receive(slot, len - header)
    }
    this.#short = bytes <= n * SHORT
    return n
  }

  /** Read many into their slots, then deal with them, then write what is forwarded; how many there were. */
  #readMany(burst: Burst, tries: number): number {
    const header = this.header
    burst.read(this.source, tries, header)
    const { results } = burst
    let bytes = 0
    let n = 0
    for (let i = 0; i < tries && this.#watched; i++) {
      const len = results[i] as number
      if (len < 0) {
        // The driver of an older kernel cannot be asked not to wait.
        if (len === -EOPNOTSUPP) this.burst = undefined
        else if (this.breaks(len)) this.#broken()
        else continue
        break
      }
      n++
      bytes += len
      this.#receive(burst.slot(i), len - header)
    }
    burst.flush()
    if (n < tries) this.drained()
    this.#short = bytes <= n * SHORT
    return n
  }

  #receive(off: number, len: number): void {
    if (len <= 0) return
    if (this.header === 0) this.#arena.bytes.fill(0, off - VNET, off)
    this.network.receive(this.index, off, len)
  }

  #broken(): void {
    this.errors++
    this.#stop()
  }

  lost(error: number, len: number): void {
    if (error !== -EAGAIN) this.errors++
    this.network.lost(this.index, error, len)
  }
}

/**
 * A device of one or several queues: what is sent is written at once, or with a burst.
 *
 * Frames of a flow keep their order because a queue is left for the next one that was told of only when it is empty: with packet sockets, whoever is told
 * of was filled after the kernel had left those before it; with a TAP, a flow's frames come from one queue, but for the moment in which it changes.
 */
abstract class DevicePort extends NicPort {
  #at = 0
  /** 1: told of, and not found empty since. */
  readonly #ready: Uint8Array
  /** The lot of writes that has something of this port. */
  #lot = -1

  constructor(o: NicOptions) {
    super(o)
    this.#ready = new Uint8Array(o.fds.length)
  }

  protected abstract put(addr: number, len: number, way: Way): number

  protected override told(k: number): void {
    this.#ready[k] = 1
  }

  protected override drained(): boolean {
    this.#ready[this.#at] = 0
    if (!this.#ready.includes(1)) return false
    // One step, though it may be empty: those between here and the one that was told of may have been filled as well.
    this.#at = (this.#at + 1) % this.fds.length
    this.source = this.fds[this.#at] as number
    return true
  }

  transmit(off: number, len: number, way: Way): number {
    const header = this.header
    const burst = this.burst
    if (burst !== undefined) {
      if (way === WAY.stays && burst.holds(off)) {
        burst.put(this, this.fd, off, len, header)
        this.#lot = burst.lot
        return len
      }
      if (this.#lot === burst.lot) burst.flush()
    }
    const r = this.put(this.base + off - header, len + header, way)
    if (r < 0 && r !== -EAGAIN) this.errors++
    return r
  }

  flush(): void {
    if (this.burst !== undefined && this.#lot === this.burst.lot) this.burst.flush()
  }
}

/**
 * A TAP. What goes the way of streams (netstack/tcp/streams.ts) is written to its last queue, which a thread of the kernel's receives
 * (plugins/userspace/device.ts). The guest's frames come through both: a flow's through the one by which it was spoken to last.
 */
export class TapPort extends DevicePort {
  readonly #streams: number

  constructor(o: NicOptions) {
    super(o)
    this.#streams = o.fds.at(-1) as number
  }
  protected get(addr: number, len: number): number {
    return read(this.source, addr, len)
  }
  protected put(addr: number, len: number, way: Way): number {
    return write(way === WAY.stream ? this.#streams : this.fd, addr, len)
  }
}

/** The far end of a veth, under one packet socket or a group of them. */
export class PacketPort extends DevicePort {
  constructor(o: NicOptions) {
    super(o)
    if (setOption(this.fd, SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER) < 0)
      setOption(this.fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
  }
  protected get(addr: number, len: number): number {
    return recv(this.source, addr, len)
  }
  protected put(addr: number, len: number): number {
    return send(this.fd, addr, len)
  }
}
