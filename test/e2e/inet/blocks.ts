/**
 * One MiB that repeats: cheap to make, and any byte out of place changes the hash. `node blocks.ts N` prints N bytes of it.
 */
export const block = Buffer.alloc(1 << 20)
for (let i = 0, x = 1; i < block.length; i++) {
  x = (Math.imul(x, 1103515245) + 12345) & 0x7fffffff
  block[i] = x >> 16
}

if (import.meta.main) {
  let left = Number(process.argv[2])
  const more = (): void => {
    while (left > 0) {
      const piece = left < block.length ? block.subarray(0, left) : block
      left -= piece.length
      if (!process.stdout.write(piece)) {
        process.stdout.once('drain', more)
        return
      }
    }
  }
  more()
}
