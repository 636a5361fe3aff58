/**
 * The daemon's log: lines appended to a file that is renamed to FILE.1 when it grows past a size, and that one to FILE.2, so that
 * three files are all there ever is. Synchronous, because the last line before a death is the one that is wanted; there are few lines.
 */
import { appendFileSync, statSync } from 'node:fs'
import { LOG_FILES } from '../logs.ts'
import type { Log } from './control.ts'
import { LOG_BYTES, moved } from './rotate.ts'

export function fileLog(file: string, debug: boolean, maxBytes = LOG_BYTES): Log {
  let size = sizeOf(file)
  return (level, message) => {
    if (level === 'debug' && !debug) return
    const line = `${new Date().toISOString()} ${level.padEnd(5)} ${message.replaceAll('\n', '\n  ')}\n`
    try {
      if (size + line.length > maxBytes) {
        for (let i = LOG_FILES - 1; i > 0; i--) moved(i === 1 ? file : `${file}.${i - 1}`, `${file}.${i}`)
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
