/**
 * The Internet checksum's inner loop by SIMD (WebAssembly, fixed-width vectors): 64 bytes in a step, for memory that is a WebAssembly.Memory.
 *
 * Owns: the kernel and which memory it reads. Never does: edges, byte order, the final fold (checksum.ts).
 * 64 KiB in 1.3 µs where the loop over words takes 7.8. Without WebAssembly, vectors or such a memory there is no kernel, and the loop is used.
 */

interface Instance {
  readonly exports: { readonly s: (off: number, len: number) => number }
}
// lib.esnext does not declare it, and lib.dom declares too much.
declare const WebAssembly:
  | {
      readonly Module: new (bytes: Uint8Array) => object
      readonly Instance: new (module: object, imports: object) => Instance
    }
  | undefined

/**
 * (func (export "s") (param $p i32) (param $n i32) (result i32) (local $a v128) (local $b v128)
 *   (local.set $n (i32.add (local.get $p) (local.get $n)))
 *   (loop                                            ;; twice for $a, twice for $b, at $p + 0, 16, 32, 48:
 *     (local.set $a (i32x4.add (local.get $a) (i32x4.extadd_pairwise_i16x8_u (v128.load (local.get $p)))))
 *     (br_if 0 (i32.lt_u (local.tee $p (i32.add (local.get $p) (i32.const 64))) (local.get $n))))
 *   (local.tee $a (i32x4.add (local.get $a) (local.get $b)))
 *   ;; $a = ($a & 0xffff) + ($a >> 16), and the sum of its four lanes is the result
 *   ...)
 * A lane takes less than 2³⁰ from 128 KiB.
 */
const MODULE =
  '0061736d0100000001070160027f7f017f020801016d016d02000003020100070501017300000a8e01018b0101027b200020016a' +
  '2101034020022000fd000000fd7ffdae01210220022000fd000010fd7ffdae01210220032000fd000020fd7ffdae012103200320' +
  '00fd000030fd7ffdae012103200041c0006a22002001490d000b20022003fdae01220241ffff03fd11fd4e20024110fdad01fdae' +
  '0121022002fd1b002002fd1b016a2002fd1b026a2002fd1b036a0b'

/** Bytes that the kernel takes at once. */
export const STEP = 64

/** The memory that `kernel` reads. */
export let vectorBuffer: ArrayBufferLike | undefined
/** The sum of `len` bytes at `off` as little-endian 16-bit words, below 2¹⁹. `len` is a multiple of STEP, at least one, at most 128 KiB. */
export let kernel: (off: number, len: number) => number = () => 0

/** Use the kernel for this WebAssembly.Memory, from now on. False: it cannot be had. */
export function useVectors(memory: { readonly buffer: ArrayBufferLike }): boolean {
  try {
    if (WebAssembly === undefined) return false
    const bytes = Uint8Array.from(MODULE.match(/../g) as string[], (x) => Number.parseInt(x, 16))
    kernel = new WebAssembly.Instance(new WebAssembly.Module(bytes), { m: { m: memory } }).exports.s
    vectorBuffer = memory.buffer
    return true
  } catch {
    // A machine without SIMD: the module does not validate.
    return false
  }
}
