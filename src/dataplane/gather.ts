/**
 * Datagrams that one flow sends within one burst leave together: one sendmsg with UDP_SEGMENT instead of one for each (udp.ts).
 *
 * Owns: at most one flow's datagrams, of one size (the last may be shorter), between their arrival and the end of the burst.
 * Theory. A guest without segmentation offload for UDP sends them one by one, and a system call for each costs five times what
 * everything else does. Waiting until the burst ends (some tens of frames that have already arrived) delays none of them noticeably.
 * A datagram counts as sent when it is gathered. If the kernel then takes no more, it is counted as lost; if it refuses for another reason,
 * the flow's next datagram goes out alone, so that its sender is told why.
 * Invariant: a socket's datagrams keep their order, also against its options: `settle` comes before those change.
 */
import type { Arena } from '../netstack/arena.ts'
import type { Sock } from '../netstack/host.ts'
import type { UdpSockets } from './udp.ts'

const EAGAIN = 11
const ROOM = 65507
/** UDP_MAX_SEGMENTS of kernels before 6.9. */
const COUNT_MAX = 64
/** A longer datagram is not worth a copy. */
const LENGTH_MAX = 2048

export class Gather {
  readonly #udp: UdpSockets
  readonly #bytes: Uint8Array
  readonly #at: number
  /** 1: the last attempt was refused; the next goes alone. */
  readonly #alone: Uint8Array
  #sock: Sock = -1
  #each = 0
  #length = 0
  #count = 0
  /** Called with how many datagrams the kernel had no room for. */
  onLost: (datagrams: number) => void = () => {}

  /** @param capacity descriptors are 0 … capacity−1 */
  constructor(udp: UdpSockets, arena: Arena, capacity: number) {
    this.#udp = udp
    this.#bytes = arena.bytes
    this.#at = arena.alloc(ROOM + 1)
    this.#alone = new Uint8Array(capacity)
  }

  /** One datagram of a connected socket: `len`, or −errno. */
  send(fd: Sock, off: number, len: number): number {
    if (fd === this.#sock && len > 0 && len <= this.#each && this.#length + len <= ROOM) {
      this.#append(off, len)
      if (len < this.#each || this.#count === COUNT_MAX) this.flush()
      return len
    }
    this.flush()
    if (len === 0 || len > LENGTH_MAX || this.#alone[fd] === 1) {
      const r = this.#udp.send(fd, off, len, 0)
      this.#alone[fd] = r < 0 ? 1 : 0
      return r
    }
    this.#sock = fd
    this.#each = len
    this.#append(off, len)
    return len
  }

  #append(off: number, len: number): void {
    this.#bytes.copyWithin(this.#at + this.#length, off, off + len)
    this.#length += len
    this.#count++
  }

  /** Send what is gathered for this socket, if anything is. */
  settle(fd: Sock): void {
    if (fd === this.#sock) this.flush()
  }

  /** The end of a burst. */
  flush(): void {
    const fd = this.#sock
    if (fd < 0) return
    const length = this.#length
    const each = this.#each
    this.#sock = -1
    this.#length = 0
    this.#count = 0
    const r = this.#udp.send(fd, this.#at, length, length > each ? each : 0)
    if (r >= length) return
    if (r < 0 && r !== -EAGAIN) this.#alone[fd] = 1
    this.onLost(Math.ceil((length - Math.max(0, r)) / each))
  }
}
