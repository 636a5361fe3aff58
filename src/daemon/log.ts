/**
 * The daemon's log: lines appended to a file that is renamed to FILE.1 when it grows past a size, so that two files are
 * all there ever is. Synchronous, because the last line before a death is the one that is wanted; there are few lines.
 */
import { appendFileSync, renameSync, statSync } from 'node:fs'
import type { Log } from './control.ts'

const MAX_BYTES = 4 << 20

export function fileLog(file: string, debug: boolean, maxBytes = MAX_BYTES): Log {
  let size = sizeOf(file)
  return (level, message) => {
    if (level === 'debug' && !debug) return
    const line = `${new Date().toISOString()} ${level.padEnd(5)} ${message.replaceAll('\n', '\n  ')}\n`
    try {
      if (size + line.length > maxBytes) {
        renameSync(file, `${file}.1`)
        size = 0
      }
      appendFileSync(file, line, { mode: 0o600 })
      size += Buffer.byteLength(line)
    } catch {
      // A full disk must not stop the daemon.
    }
  }
}

function sizeOf(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0
}
