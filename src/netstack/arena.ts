/**
 * The arena: the one piece of memory that frames live in, addressed by offset.
 *
 * The data plane gives it (a WebAssembly.Memory of fixed size, so that system calls, a SIMD kernel and TypeScript address
 * the same bytes); tests give a plain ArrayBuffer. Allocation happens at composition only; nothing is ever given back.
 *
 * A frame is (offset, length) of its Ethernet bytes. Directly before it, VNET bytes, lies its virtio_net_hdr
 * (linux/virtio_net.h, 10 bytes, little endian), so that a port with offloads takes both in one write.
 * A slot places the frame so that the IP header behind 14 Ethernet bytes is 4-byte aligned, and so that the payload of a TCP segment of IPv4
 * with timestamps, which is what nearly all bytes come in, begins on a cache line. The kernel's copies are up to a quarter dearer where the places of
 * the two sides differ by something else than a multiple of EVEN (docs/benchmarking.md).
 */

/** Bytes of struct virtio_net_hdr without num_buffers. */
export const VNET = 10
/** Where the frame begins in a slot: 62 ≡ 2 (mod 4), and 66 bytes of headers lead to 128. Its vnet header begins at 52. */
export const SLOT_FRAME = 62
/** What copies like lengths and places of payload to be multiples of. */
export const EVEN = 16
/** 64 KiB of IP packet, Ethernet, vnet header and room for a longer header pushed in front. */
export const SLOT = 68 * 1024
/** The longest frame a slot holds. */
export const FRAME_MAX = SLOT - SLOT_FRAME

export class Arena {
  readonly bytes: Uint8Array
  readonly view: DataView
  #next = 64

  constructor(buffer: ArrayBufferLike) {
    this.bytes = new Uint8Array(buffer)
    this.view = new DataView(buffer)
  }

  /** Reserve `size` bytes for ever; offset 0 is never handed out. Throws when the arena is full: a fault of composition. */
  alloc(size: number, align = 64): number {
    const at = Math.ceil(this.#next / align) * align
    if (at + size > this.bytes.length)
      throw new RangeError(`arena full: ${size} bytes at ${at} of ${this.bytes.length}`)
    this.#next = at + size
    return at
  }

  /** A slot's frame offset. */
  slot(): number {
    return this.alloc(SLOT, 64) + SLOT_FRAME
  }
}
