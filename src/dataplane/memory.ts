/**
 * The process's arena: one WebAssembly.Memory of fixed size, so that system calls, a SIMD kernel and TypeScript can address the same
 * bytes (netstack/arena.ts). Its pages cost memory only once they are used; `grow` would detach every view, so it cannot.
 */
import { Arena } from '../netstack/arena.ts'
import { useVectors } from '../netstack/wire/checksum-simd.ts'

// lib.esnext does not declare it, and lib.dom declares too much.
declare const WebAssembly: {
  Memory: new (size: { readonly initial: number; readonly maximum: number }) => { readonly buffer: ArrayBuffer }
}
const PAGE = 65536

/** @param mebibytes of address space */
export function makeArena(mebibytes: number): Arena {
  const pages = (mebibytes * 1024 * 1024) / PAGE
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages })
  useVectors(memory)
  return new Arena(memory.buffer)
}
