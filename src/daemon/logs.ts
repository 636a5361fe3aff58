/**
 * A file's last lines, and what is appended to it from then on.
 *
 * Follows by looking at the size, twice a second: inotify tells nothing on some file systems. A file that is not there yet
 * is empty; one that shrank is read from its beginning.
 */
import { open } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

const POLL_MS = 500
const CHUNK = 64 * 1024
/** At most so much of the end is looked through for lines. */
const TAIL_BYTES = 4 << 20

/** Ends at the end of the file, or with the signal when `follow` is true. */
export async function* tail(file: string, lines: number, follow: boolean, signal: AbortSignal): AsyncGenerator<Buffer> {
  let at: number | undefined
  while (!signal.aborted) {
    const f = await open(file).catch(() => undefined)
    if (f !== undefined) {
      try {
        const { size } = await f.stat()
        at = at === undefined ? await lastLines(f, size, lines) : size < at ? 0 : at
        while (at < size && !signal.aborted) {
          const { bytesRead, buffer } = await f.read(Buffer.alloc(Math.min(CHUNK, size - at)), 0, undefined, at)
          if (bytesRead === 0) break
          at += bytesRead
          yield buffer.subarray(0, bytesRead)
        }
      } finally {
        await f.close()
      }
    }
    if (!follow) return
    at ??= 0
    await sleep(POLL_MS, undefined, { signal }).catch(() => {})
  }
}

/** Where the last `lines` lines begin. */
async function lastLines(f: import('node:fs/promises').FileHandle, size: number, lines: number): Promise<number> {
  if (lines === 0) return size
  const from = Math.max(0, size - TAIL_BYTES)
  const { buffer, bytesRead } = await f.read(Buffer.alloc(size - from), 0, undefined, from)
  let left = lines
  // A final newline ends the last line; it does not begin another.
  for (let i = bytesRead - 2; i >= 0; i--) if (buffer[i] === 10 && --left === 0) return from + i + 1
  return from
}
