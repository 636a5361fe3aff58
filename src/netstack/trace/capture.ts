/**
 * A live capture of one network, or of one VM of it: frames go into a ring of bytes as pcapng, a reader takes them out.
 *
 * Owns: the ring, which interfaces have been described, what was missed. Never does: writing to a descriptor (the data plane
 * takes `pending` away when its reader has room), touching a frame, waiting.
 *
 * Invariants: the ring holds whole blocks only, and the reader always sees a prefix of the file. A frame that does not fit is not
 * captured and counted on its interface; as soon as there is room again an interface statistics block says how many. So a slow reader
 * costs frames of the capture and never a frame of the network. While nobody captures, `Captures.active` is false and that is all it costs.
 *
 * A frame that comes in is written once, when it is known what became of it: with the reason when it was refused, else before the first
 * frame that it caused. It is kept aside meanwhile, because who forwards a frame may change its bytes.
 */
import { FRAME_MAX } from '../arena.ts'
import type { DropObserver } from './drops.ts'
import {
  INBOUND,
  INTERFACE_STATISTICS_LENGTH,
  interfaceDescription,
  interfaceStatistics,
  OUTBOUND,
  packetLength,
  putPacket,
  sectionHeader,
} from './pcapng.ts'

/** What a reader may lag behind before frames are missed. */
export const CAPTURE_RING = 4 * 1024 * 1024

export class Capture {
  readonly #ring: Uint8Array
  readonly #view: DataView
  /** Bytes kept of each frame. */
  readonly snapLength: number
  /** The switch port that is captured, −1 for all. */
  readonly only: number
  /** Microseconds since 1970. */
  readonly #clock: () => number
  readonly #describe: (port: number) => string
  /** Switch port → interface number of the file. */
  readonly #interfaces = new Map<number, number>()
  #described = 0
  readonly #missed = new Map<number, number>()
  #owed = false
  /** The ring is used from `#tail` (oldest) to `#head`; a block never wraps: `#end` is where the upper part ends. */
  #head = 0
  #tail = 0
  #end = 0
  missed = 0
  captured = 0

  /**
   * @param only the switch port to capture, −1 for all
   * @param describe the name of a switch port, asked once for each
   */
  constructor(o: {
    readonly only: number
    readonly snapLength?: number
    readonly ring?: number
    readonly clock: () => number
    readonly describe: (port: number) => string
  }) {
    this.#ring = new Uint8Array(o.ring ?? CAPTURE_RING)
    this.#view = new DataView(this.#ring.buffer)
    this.snapLength = o.snapLength ?? 262_144
    this.only = o.only
    this.#clock = o.clock
    this.#describe = o.describe
    this.#end = this.#ring.length
    this.#put(sectionHeader('noid'))
  }

  /** A frame came in by, or went out of, a switch port; `comment` says why it was refused, when it was. */
  frame(
    port: number,
    direction: number,
    bytes: Uint8Array,
    off: number,
    len: number,
    comment: Uint8Array | undefined,
  ): void {
    if (this.only >= 0 && port !== this.only) return
    const at = this.#clock()
    const captured = Math.min(len, this.snapLength)
    const length = packetLength(captured, comment === undefined ? 0 : comment.length)
    // Not before the frame itself has room: statistics would fill what little there is.
    if (this.#owed && this.#room(length + this.#missed.size * INTERFACE_STATISTICS_LENGTH) >= 0) this.#payStatistics(at)
    const id = this.#interfaceOf(port)
    const to = id < 0 ? -1 : this.#room(length)
    if (to < 0) {
      this.missed++
      this.#missed.set(port, (this.#missed.get(port) ?? 0) + 1)
      this.#owed = true
      return
    }
    putPacket(this.#ring, this.#view, to, id, at, bytes, off, captured, len, direction, comment)
    this.#head = to + length
    this.captured++
  }

  /** The next bytes of the file that lie together; empty when the reader has everything. Valid until `taken`. */
  pending(): Uint8Array {
    if (this.#tail > this.#head && this.#tail === this.#end) {
      this.#tail = 0
      this.#end = this.#ring.length
    }
    return this.#ring.subarray(this.#tail, this.#tail > this.#head ? this.#end : this.#head)
  }

  /** The reader took `n` of what was pending. */
  taken(n: number): void {
    this.#tail += n
    if (this.#tail === this.#head) {
      this.#tail = this.#head = 0
      this.#end = this.#ring.length
      if (this.#owed) this.#payStatistics(this.#clock())
    }
  }

  /** The port is somebody else's from now on: it is described again when it is seen again. */
  forget(port: number): void {
    this.#interfaces.delete(port)
    this.#missed.delete(port)
  }

  /** Where `length` bytes fit in one piece, or −1. Bytes are the reader's only when `#head` has moved past them. */
  #room(length: number): number {
    if (this.#tail > this.#head) return this.#tail - this.#head > length ? this.#head : -1
    if (this.#ring.length - this.#head >= length) return this.#head
    if (this.#tail > length) {
      this.#end = this.#head
      this.#head = 0
      return 0
    }
    return -1
  }

  #put(block: Uint8Array): boolean {
    const to = this.#room(block.length)
    if (to < 0) return false
    this.#ring.set(block, to)
    this.#head = to + block.length
    return true
  }

  #interfaceOf(port: number): number {
    const known = this.#interfaces.get(port)
    if (known !== undefined) return known
    const name = this.#describe(port)
    if (!this.#put(interfaceDescription(name, `switch port of ${name}`, this.snapLength))) return -1
    this.#interfaces.set(port, this.#described)
    return this.#described++
  }

  #payStatistics(at: number): void {
    for (const [port, missed] of this.#missed) {
      const id = this.#interfaceOf(port)
      if (id < 0 || !this.#put(interfaceStatistics(id, at, missed))) return
    }
    this.#owed = false
  }
}

/** The captures of a network that run now. The switch asks `active` for each frame, and nothing else while it is false. */
export class Captures implements DropObserver {
  active = false
  #list: readonly Capture[] = []
  // The frame that came in and whose fate is not known yet; port −1: none.
  #kept = new Uint8Array(0)
  #keptLength = 0
  /** What the captures keep of a frame, at most. */
  #snapLength = 0
  #keptPort = -1

  add(c: Capture): void {
    if (this.#kept.length === 0) this.#kept = new Uint8Array(FRAME_MAX)
    this.#list = [...this.#list, c]
    this.#snapLength = Math.max(this.#snapLength, c.snapLength)
    this.active = true
  }

  remove(c: Capture): void {
    this.#list = this.#list.filter((x) => x !== c)
    this.active = this.#list.length > 0
    this.#snapLength = Math.max(0, ...this.#list.map((x) => x.snapLength))
    if (!this.active) this.#keptPort = -1
  }

  /** The port's index is free, or somebody else's. */
  forget(port: number): void {
    if (this.#keptPort === port) this.#keptPort = -1
    for (const c of this.#list) c.forget(port)
  }

  /** A frame came in by a switch port. `settle` follows when it has been dealt with. */
  arrived(port: number, bytes: Uint8Array, off: number, len: number): void {
    this.settle()
    if (!this.#wanted(port)) return
    this.#kept.set(bytes.subarray(off, off + Math.min(len, this.#snapLength)))
    this.#keptLength = len
    this.#keptPort = port
  }

  /** Nothing more will become of the frame that came in. */
  settle(): void {
    if (this.#keptPort >= 0) this.#write(undefined)
  }

  /** A frame went out by a switch port; `comment` says why the port did not take it, when it did not. */
  left(port: number, bytes: Uint8Array, off: number, len: number, comment: Uint8Array | undefined): void {
    this.settle()
    for (const c of this.#list) c.frame(port, OUTBOUND, bytes, off, len, comment)
  }

  /** The frame that came in by `port` was refused. A refusal after the frame had its effect is counted, and not shown. */
  dropped(port: number, comment: Uint8Array): void {
    if (this.#keptPort === port && port >= 0) this.#write(comment)
  }

  #write(comment: Uint8Array | undefined): void {
    const port = this.#keptPort
    this.#keptPort = -1
    for (const c of this.#list) c.frame(port, INBOUND, this.#kept, 0, this.#keptLength, comment)
  }

  #wanted(port: number): boolean {
    for (const c of this.#list) if (c.only < 0 || c.only === port) return true
    return false
  }
}
