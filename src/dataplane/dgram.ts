/**
 * A nic over a unix datagram socket, one Ethernet frame to a datagram: QEMU's `-netdev dgram`.
 *
 * Owns: the descriptor, the frames that wait for it. Never does: naming anybody. Whoever handed the socket over has bound it, and connects it to
 * the VM's socket whenever there is a new one: this process may open no path. A connected socket takes datagrams from its peer only
 * (unix(7)), so nobody else's frames come in.
 *
 * Theory. No virtio_net_hdr: what comes is finished, what goes is finished by the switch (netstack/switch/segment.ts), so a TCP frame of
 * 64 KiB becomes 45 datagrams at once, while the kernel queues ten of them (net.unix.max_dgram_qlen) if nobody has allowed more. So frames are
 * collected for a turn and leave by one sendmmsg; what the kernel does not take waits (backlog.ts) until it says that there is room.
 * A VM that is off, or not yet on, is no fault: its frames are counted and forgotten, and the nic goes on.
 */

import { Lot } from '../sys/mmsg.ts'
import { MSG_DONTWAIT, MSG_NOSIGNAL, recv } from '../sys/socket.ts'
import type { Backlog } from './backlog.ts'
import { Queue } from './backlog.ts'
import { type NicOptions, NicPort } from './ports.ts'
import type { TurnEnd } from './turn-end.ts'

const EAGAIN = 11
const EINTR = 4
const ENOBUFS = 105
const EMSGSIZE = 90
/** Datagrams in one system call. */
const LOT = 64

export class DgramPort extends NicPort {
  readonly #queue: Queue
  readonly #lot: Lot
  readonly #turnEnd: TurnEnd
  /** The kernel said that it takes no more, and will say when it does. */
  #full = false
  /** `flush` will be called at the turn's end. */
  #asked = false

  constructor(o: NicOptions, backlog: Backlog, turnEnd: TurnEnd) {
    super({ ...o, vnetHdr: false })
    this.#queue = new Queue(backlog)
    this.#lot = new Lot(LOT, o.base)
    this.#turnEnd = turnEnd
  }

  protected get(addr: number, len: number): number {
    return recv(this.fd, addr, len)
  }

  /** Nothing that a peer does ends a socket that is bound: ECONNRESET and the like say that there is a new one, or none. */
  protected override breaks(): boolean {
    return false
  }

  override transmit(off: number, len: number): number {
    const queue = this.#queue
    if (!queue.fits(len)) return -EMSGSIZE
    if (!queue.push(off, len)) return -EAGAIN
    if (this.#full) return len
    if (queue.count >= LOT) this.#send()
    else if (!this.#asked) {
      this.#asked = true
      this.#turnEnd.put(this)
    }
    return len
  }

  override flush(): void {
    this.#asked = false
    if (this.#queue.count > 0) this.#send()
  }

  #send(): void {
    const queue = this.#queue
    while (queue.count > 0) {
      const n = Math.min(queue.count, LOT)
      for (let i = 0; i < n; i++) this.#lot.set(i, queue.at(i), queue.lengthOf(i))
      const r = this.#lot.send(this.fd, n, MSG_DONTWAIT | MSG_NOSIGNAL)
      if (r > 0) for (let i = 0; i < r; i++) queue.shift()
      else if (r === -EAGAIN || r === -ENOBUFS) return this.#wait(true)
      else if (r !== -EINTR) this.#forget(r)
    }
    this.#wait(false)
  }

  #wait(on: boolean): void {
    if (on !== this.#full) this.reactor.wantWrite(this.fd, on)
    this.#full = on
  }

  /** There is nobody to send to: what waits is lost. */
  #forget(error: number): void {
    const queue = this.#queue
    for (; queue.count > 0; queue.shift()) this.lost(error, queue.lengthOf(0))
  }

  override close(): void {
    super.close()
    this.#forget(-EAGAIN)
  }
}
