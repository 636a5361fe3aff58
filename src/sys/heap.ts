/** glibc's heap: what was freed goes back to the machine (malloc_trim(3)). */
import { declare } from './libc.ts'

let trim: ((pad: number) => number) | undefined
try {
  trim = declare<(pad: number) => number>('int malloc_trim(size_t)')
} catch {
  // musl gives back on its own.
}

/** Give free pages back: up to a millisecond. */
export function trimHeap(): void {
  trim?.(0)
}
