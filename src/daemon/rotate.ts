/**
 * Logs stay small: what processes of VMs and networks print, and they never end.
 *
 * Theory. A writer that lives for months has its file open; it cannot be told to open another. So its file is copied to FILE.1 and cut to nothing, and a
 * writer that appends (O_APPEND) goes on at its beginning. Between the last look at its size and the cut lie microseconds; what is
 * written in them is lost. A file that has grown beyond all measure between two looks is copied only at its end.
 * Which: every `*.log` of a running VM's directory, and of the directories that backends have for their networks. FILE, FILE.1 and FILE.2 are all there is.
 * Synchronous: a copy is a megabyte. Killed in the middle, it is done again; some lines may then be there twice.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { LOG_FILES } from '../logs.ts'
import { type Control, vmDir } from './control.ts'

export const LOG_BYTES = 1 << 20
const CHUNK = 64 * 1024

/** True when it was too large. Throws what the file system says. */
export function rotate(file: string, maxBytes = LOG_BYTES): boolean {
  const from = openSync(file, constants.O_RDWR | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    const s = fstatSync(from)
    if (!s.isFile() || s.size <= maxBytes) return false
    const copy = `${file}.new`
    const to = openSync(copy, 'w', 0o600)
    try {
      const left = s.size > 2 * maxBytes ? s.size - maxBytes : 0
      if (left > 0) writeSync(to, `noid: ${left} bytes were printed too fast and are left out\n`)
      const chunk = Buffer.allocUnsafe(CHUNK)
      // Once more whatever came while it was copied, but never after somebody who is quicker than that.
      for (let at = left, end = s.size + maxBytes; at < end; ) {
        const n = readSync(from, chunk, 0, Math.min(CHUNK, end - at), at)
        if (n === 0) break
        writeSync(to, chunk, 0, n)
        at += n
      }
    } finally {
      closeSync(to)
    }
    for (let i = LOG_FILES - 1; i > 1; i--) moved(`${file}.${i - 1}`, `${file}.${i}`)
    renameSync(copy, `${file}.1`)
    ftruncateSync(from, 0)
    return true
  } finally {
    closeSync(from)
  }
}

/** As rename(2), and nothing when there is nothing. */
export function moved(from: string, to: string): void {
  try {
    renameSync(from, to)
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code !== 'ENOENT') throw e
  }
}

export class LogKeeper {
  readonly #c: Control
  /** Of which a fault was told. */
  readonly #told = new Set<string>()

  constructor(c: Control) {
    this.#c = c
  }

  /** Looks at every log there is. Never throws. */
  sweep(): void {
    const { store, paths } = this.#c
    for (const v of store.vms()) if (v.phase === 'running') this.#directory(vmDir(paths, v.id))
    for (const backend of directories(paths.runDir))
      for (const network of directories(join(paths.runDir, backend)))
        this.#directory(join(paths.runDir, backend, network))
  }

  #directory(dir: string): void {
    for (const name of names(dir)) {
      if (!name.endsWith('.log')) continue
      const file = join(dir, name)
      try {
        rotate(file)
      } catch (e) {
        rmSync(`${file}.new`, { force: true })
        if ((e as NodeJS.ErrnoException).code === 'ENOENT' || this.#told.has(file)) continue
        this.#told.add(file)
        this.#c.log('warn', `${file} cannot be kept small: ${(e as Error).message}`)
      }
    }
  }
}

function names(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}

function directories(dir: string): string[] {
  try {
    return readdirSync(dir, { withFileTypes: true }).flatMap((e) => (e.isDirectory() ? [e.name] : []))
  } catch {
    return []
  }
}
