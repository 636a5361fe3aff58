/**
 * Switch ports over descriptors: a TAP, or a packet socket on the far end of a veth.
 *
 * Owns: the descriptor of one nic, reading its frames in bursts, writing frames to it, counting what it refused.
 * Never does: looking into a frame.
 *
 * Theory. A frame is read with its virtio_net_hdr into the receive slot (arena.ts), given to the network, and the slot is used
 * again: one slot that stays in the cache is faster than a burst of 68 KiB slots. Reading ends when nothing is left or BURST frames
 * were read; the descriptor is level-triggered, so the rest comes in the next turn, after the others had theirs.
 * A port sends at once, so `flush` has nothing to do. (io_uring, which is faster for small frames, would gather here.)
 *
 * A nic that is gone (its namespace died) reports an error for ever: it is no longer watched, and stays attached until the daemon
 * detaches it.
 */

import { type Arena, FRAME_MAX, VNET } from '../netstack/arena.ts'
import type { Port } from '../netstack/switch/port.ts'
import { close, read, setNonblock, write } from '../sys/fd.ts'
import { recv, SO_SNDBUF, SO_SNDBUFFORCE, SOL_SOCKET, send, setOption } from '../sys/socket.ts'
import type { Reactor } from './reactor.ts'

const EINTR = 4
const EAGAIN = 11
/** Frames of one nic in one turn. With offloads they may be 64 KiB each. */
const BURST = 32
/** Bytes in flight to a veth: several frames of 64 KiB with their overhead. */
const SEND_BUFFER = 4 << 20

/** What a port needs of the network (netstack/network.ts). */
export interface Receiver {
  receive(index: number, off: number, len: number): void
}

export interface NicOptions {
  readonly fd: number
  readonly vnetHdr: boolean
  readonly reactor: Reactor
  readonly arena: Arena
  /** Address of the arena's first byte. */
  readonly base: number
  /** The frame offset of the slot to read into; shared by all ports. */
  readonly slot: number
  readonly network: Receiver
  /** Called after each burst: what was put off goes out. */
  readonly endOfBurst: () => void
}

export abstract class NicPort implements Port {
  readonly offload: boolean
  protected readonly fd: number
  protected readonly base: number
  /** Bytes of header before each frame on the wire of the descriptor. */
  protected readonly header: number
  readonly #reactor: Reactor
  readonly #slot: number
  readonly #network: Receiver
  readonly #endOfBurst: () => void
  readonly #arena: Arena
  #watched = false
  /** The switch's index for it; set when it is attached. */
  index = -1
  /** Errors other than a full queue, by which it lost frames. */
  errors = 0

  constructor(o: NicOptions) {
    this.fd = o.fd
    this.offload = o.vnetHdr
    this.base = o.base
    this.header = o.vnetHdr ? VNET : 0
    this.#reactor = o.reactor
    this.#slot = o.slot
    this.#network = o.network
    this.#endOfBurst = o.endOfBurst
    this.#arena = o.arena
    setNonblock(o.fd, true)
  }

  protected abstract get(addr: number, len: number): number
  protected abstract put(addr: number, len: number): number

  /** Begin to read. The index must be known. */
  start(): void {
    this.#watched = true
    this.#reactor.watch(this.fd, () => this.#read())
  }

  /** Give the descriptor up. */
  close(): void {
    this.#stop()
    close(this.fd)
  }

  #stop(): void {
    if (this.#watched) this.#reactor.unwatch(this.fd)
    this.#watched = false
  }

  /** Is it the one over this descriptor? */
  is(fd: number): boolean {
    return this.fd === fd
  }

  #read(): void {
    const header = this.header
    const at = this.base + this.#slot - header
    for (let n = 0; n < BURST; n++) {
      const len = this.get(at, FRAME_MAX + header)
      if (len < 0) {
        if (len === -EAGAIN || len === -EINTR) break
        this.errors++
        this.#stop()
        break
      }
      if (len <= header) continue
      if (header === 0) this.#arena.bytes.fill(0, this.#slot - VNET, this.#slot)
      this.#network.receive(this.index, this.#slot, len - header)
      // The frame may have led to this port's end.
      if (!this.#watched) break
    }
    this.#endOfBurst()
  }

  transmit(off: number, len: number): number {
    const header = this.header
    const r = this.put(this.base + off - header, len + header)
    if (r < 0 && r !== -EAGAIN) this.errors++
    return r
  }

  flush(): void {}
}

export class TapPort extends NicPort {
  protected get(addr: number, len: number): number {
    return read(this.fd, addr, len)
  }
  protected put(addr: number, len: number): number {
    return write(this.fd, addr, len)
  }
}

export class PacketPort extends NicPort {
  constructor(o: NicOptions) {
    super(o)
    if (setOption(o.fd, SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER) < 0)
      setOption(o.fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
  }
  protected get(addr: number, len: number): number {
    return recv(this.fd, addr, len)
  }
  protected put(addr: number, len: number): number {
    return send(this.fd, addr, len)
  }
}
