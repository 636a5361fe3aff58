/**
 * A live capture of one network, or of one VM of it: frames go into a ring of bytes as pcapng, a reader takes them out.
 *
 * Owns: the ring, which interfaces have been described, what was missed. Never does: writing to a descriptor (the data plane
 * takes `pending` away when its reader has room), touching a frame, waiting.
 *
 * Invariants: the ring holds whole blocks only, and the reader always sees a prefix of the file. A frame that does not fit is not
 * captured and counted on its interface; as soon as there is room again an interface statistics block says how many. So a slow reader
 * costs frames of the capture and never a frame of the network. While nobody captures, `Captures.active` is false and that is all it costs.
 */
import { INBOUND, interfaceDescription, interfaceStatistics, packetLength, putPacket, sectionHeader } from './pcapng.ts'

/** What a reader may lag behind before frames are missed. */
export const CAPTURE_RING = 4 * 1024 * 1024

export class Capture {
  readonly #ring: Uint8Array
  readonly #view: DataView
  readonly #snapLength: number
  readonly #only: number
  /** Microseconds since 1970. */
  readonly #clock: () => number
  readonly #describe: (port: number) => string
  /** Switch port → interface number of the file. */
  readonly #interfaces = new Map<number, number>()
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
    this.#snapLength = o.snapLength ?? 262_144
    this.#only = o.only
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
    if (this.#only >= 0 && port !== this.#only) return
    const at = this.#clock()
    if (this.#owed) this.#payStatistics(at)
    const id = this.#interfaceOf(port)
    const captured = Math.min(len, this.#snapLength)
    const length = packetLength(captured, comment === undefined ? 0 : comment.length)
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
    }
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
    if (!this.#put(interfaceDescription(name, `switch port of ${name}`, this.#snapLength))) return -1
    this.#interfaces.set(port, this.#interfaces.size)
    return this.#interfaces.size - 1
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
export class Captures {
  active = false
  #list: readonly Capture[] = []

  add(c: Capture): void {
    this.#list = [...this.#list, c]
    this.active = true
  }

  remove(c: Capture): void {
    this.#list = this.#list.filter((x) => x !== c)
    this.active = this.#list.length > 0
  }

  frame(port: number, direction: number, bytes: Uint8Array, off: number, len: number): void {
    for (const c of this.#list) c.frame(port, direction, bytes, off, len, undefined)
  }

  /** A frame that was refused: captured as it came in, annotated with the reason. */
  refused(port: number, bytes: Uint8Array, off: number, len: number, comment: Uint8Array): void {
    for (const c of this.#list) c.frame(port, INBOUND, bytes, off, len, comment)
  }
}
