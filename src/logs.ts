/**
 * Log files as people read them: the last lines, and what is appended from then on, across rotations.
 *
 * A log is FILE and what was before it, FILE.1 and FILE.2. However it was rotated (renamed, or copied and cut to nothing: src/daemon/rotate.ts), FILE.1 is
 * another file afterwards and has at each place what FILE had there. So that a reader who was at byte N of FILE goes on at byte N of FILE.1, and then
 * at the beginning of FILE.
 * Follows by looking, twice a second: inotify tells nothing on some file systems. A file that is not there yet is empty.
 */
import { type FileHandle, open, stat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

const POLL_MS = 500
const CHUNK = 64 * 1024
/** At most so much of each file's end is looked through for lines. */
const TAIL_BYTES = 4 << 20
/** Files of one log, this one included. */
export const LOG_FILES = 3

/** Ends at the end of the log, or with the signal when `follow` is true. */
export async function* tail(file: string, lines: number, follow: boolean, signal: AbortSignal): AsyncGenerator<Buffer> {
  let before = await identity(`${file}.1`)
  const last = await lastLines(file, lines)
  yield* last.chunks
  let at = last.end
  while (follow && !signal.aborted) {
    await sleep(POLL_MS, undefined, { signal }).catch(() => {})
    const now = await identity(`${file}.1`)
    if (now !== before) {
      before = now
      // One that is shorter was not what was read here.
      yield* read(`${file}.1`, at, signal)
      at = 0
    }
    let seen = 0
    for await (const chunk of read(file, at, signal)) {
      // It was rotated while it was opened: what is here belongs behind the rest of what is FILE.1 now.
      if (seen === 0 && (await identity(`${file}.1`)) !== before) break
      seen += chunk.length
      yield chunk
    }
    const size = await sizeOf(file)
    at = seen === 0 && size < at && (await identity(`${file}.1`)) === before ? 0 : at + seen
  }
}

const sizeOf = (file: string): Promise<number> =>
  stat(file).then(
    (s) => s.size,
    () => 0,
  )

/** Which file it is; 0 for none. */
const identity = (file: string): Promise<number> =>
  stat(file).then(
    (s) => s.ino,
    () => 0,
  )

async function* read(file: string, from: number, signal: AbortSignal): AsyncGenerator<Buffer> {
  const f = await open(file).catch(() => undefined)
  if (f === undefined) return
  try {
    const { size } = await f.stat()
    for (let at = from; at < size && !signal.aborted; ) {
      const { bytesRead, buffer } = await f.read(Buffer.alloc(Math.min(CHUNK, size - at)), 0, undefined, at)
      if (bytesRead === 0) return
      at += bytesRead
      yield buffer.subarray(0, bytesRead)
    }
  } finally {
    await f.close()
  }
}

/** The last lines of a log, oldest first, and where FILE ended. */
async function lastLines(file: string, lines: number): Promise<{ chunks: Buffer[]; end: number }> {
  const chunks: Buffer[] = []
  let end = 0
  let left = lines
  for (let i = 0; i < LOG_FILES; i++) {
    if (i > 0 && left === 0) break
    const f = await open(i === 0 ? file : `${file}.${i}`).catch(() => undefined)
    if (f === undefined) continue
    try {
      const part = await endOf(f, left)
      if (i === 0) end = part.end
      if (part.bytes.length > 0) chunks.unshift(part.bytes)
      left -= part.lines
    } finally {
      await f.close()
    }
  }
  return { chunks, end }
}

async function endOf(f: FileHandle, wanted: number): Promise<{ bytes: Buffer; lines: number; end: number }> {
  const { size } = await f.stat()
  if (wanted === 0 || size === 0) return { bytes: Buffer.alloc(0), lines: 0, end: size }
  const from = Math.max(0, size - TAIL_BYTES)
  const { buffer, bytesRead } = await f.read(Buffer.alloc(size - from), 0, undefined, from)
  const bytes = buffer.subarray(0, bytesRead)
  let lines = 1
  // A final newline ends the last line; it does not begin another.
  for (let i = bytes.length - 2; i >= 0; i--) {
    if (bytes[i] !== 10) continue
    if (lines === wanted) return { bytes: bytes.subarray(i + 1), lines, end: from + bytesRead }
    lines += 1
  }
  return { bytes, lines, end: from + bytesRead }
}
