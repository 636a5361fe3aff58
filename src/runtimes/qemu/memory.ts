/**
 * A VM's own memory, filled from a template's file: an anonymous file (memfd), because a vhost-user back-end maps what the guest writes, which
 * memory that is mapped copy-on-write from the template cannot be shared for.
 *
 * Only what the template has is copied (its file is sparse: some 80 MB of a small guest, 20 to 80 ms); nothing lies in any directory, and the memory goes
 * with the last process that holds it. The caller closes the descriptor.
 */
import { spawn } from 'node:child_process'
import { closeSync } from 'node:fs'
import { must } from '../../sys/errno.ts'
import { memfd } from '../../sys/memory.ts'

const COPY_MS = 30_000

export async function copyMemory(file: string, signal: AbortSignal): Promise<number> {
  const fd = must('make an anonymous file', memfd('noid-vm'))
  try {
    await new Promise<void>((resolve, reject) => {
      const child = spawn('cp', ['--sparse=auto', file, '/proc/self/fd/3'], {
        stdio: ['ignore', 'ignore', 'pipe', fd],
        signal,
        timeout: COPY_MS,
      })
      let said = ''
      child.stderr?.setEncoding('utf8').on('data', (t: string) => {
        said = (said + t).slice(-300)
      })
      child.once('error', reject)
      child.once('close', (code) =>
        code === 0 ? resolve() : reject(new Error(`the template's memory was not copied: ${said.trim() || code}`)),
      )
    })
    return fd
  } catch (e) {
    closeSync(fd)
    throw e
  }
}
