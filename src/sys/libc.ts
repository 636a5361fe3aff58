/**
 * The door to libc: the one place where a C function is declared.
 *
 * Owns: how a call is made (koffi over the libc that Node itself has loaded) and how its result is told: a number, ≥ 0 or
 * −errno. Never does: deciding anything, allocating in a call, keeping state.
 *
 * Invariants:
 * - Addresses are Numbers passed as `uintptr_t` (47 ns; a buffer argument costs more). An address does not keep its memory
 *   alive: whoever takes one holds the buffer in something that lives as long as the address is used.
 * - Struct layouts below src/sys are those of 64-bit little-endian Linux (x86-64, arm64, riscv64).
 */
import koffi from 'koffi'

/** NULL is the program itself: its libc, glibc or musl. */
const program = koffi.load(null)

/**
 * Declare a function of libc by its C prototype. What it returns is untyped on purpose: the caller writes the signature.
 * `declare<(fd: number) => number>('int close(int)')`
 */
export function declare<F extends (...args: never[]) => unknown>(prototype: string): F {
  return program.func(prototype) as unknown as F
}

/** The result of the call just made: itself, or −errno when it was −1. */
export function result(r: number): number {
  return r < 0 ? -koffi.errno() : r
}

/** The address of a buffer's first byte. The buffer must not be one that moves: anything over an ArrayBuffer stays. */
export function addressOf(bytes: Uint8Array | ArrayBuffer | SharedArrayBuffer): number {
  return Number(koffi.address(bytes))
}

/** Memory for the structs of system calls: bytes, a view and an address that stay valid as long as the object lives. */
export class Scratch {
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly address: number

  /** @param size in bytes */
  constructor(size: number) {
    const buffer = new ArrayBuffer(size)
    this.bytes = new Uint8Array(buffer)
    this.view = new DataView(buffer)
    this.address = addressOf(this.bytes)
  }

  u16(at: number): number {
    return this.view.getUint16(at, true)
  }
  i32(at: number): number {
    return this.view.getInt32(at, true)
  }
  u32(at: number): number {
    return this.view.getUint32(at, true)
  }
  setU16(at: number, value: number): void {
    this.view.setUint16(at, value, true)
  }
  setI32(at: number, value: number): void {
    this.view.setInt32(at, value, true)
  }
  /** A 64-bit word below 2⁵³: a pointer or a size_t. */
  setWord(at: number, value: number): void {
    this.view.setUint32(at, value % 2 ** 32, true)
    this.view.setUint32(at + 4, Math.floor(value / 2 ** 32), true)
  }
  word(at: number): number {
    return this.view.getUint32(at, true) + this.view.getUint32(at + 4, true) * 2 ** 32
  }
  /** NUL-terminated UTF-8 at `at`; returns the bytes written with the NUL. Throws RangeError when it does not fit. */
  setText(at: number, text: string): number {
    const length = Buffer.byteLength(text)
    if (at + length + 1 > this.bytes.length) throw new RangeError(`no room for ${length} bytes of text`)
    Buffer.from(this.bytes.buffer).write(text, at)
    this.bytes[at + length] = 0
    return length + 1
  }
  /** The NUL-terminated text at `at`, at most `max` bytes. */
  text(at: number, max: number): string {
    const end = this.bytes.subarray(at, at + max).indexOf(0)
    return Buffer.from(this.bytes.buffer, at, end < 0 ? max : end).toString('utf8')
  }
}
