/**
 * A VM's disk: a copy-on-write layer over an image that is never written to (qcow2; qemu-img(1)).
 *
 * Invariant: the file appears when it is whole. Never does: looking into either.
 */
import { execFile } from 'node:child_process'
import { constants, renameSync, rmSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { promisify } from 'node:util'

const MS = 60_000

export async function freshOverlay(
  path: string,
  base: string,
  format: 'qcow2' | 'raw',
  signal?: AbortSignal,
): Promise<void> {
  const fresh = `${path}.new`
  rmSync(fresh, { force: true })
  await promisify(execFile)('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', format, '-b', base, fresh], {
    timeout: MS,
    ...(signal === undefined ? {} : { signal }),
  })
  renameSync(fresh, path)
}

/** The layer of a template, which has not more than a boot wrote: a few megabytes. */
export async function copyOverlay(path: string, from: string): Promise<void> {
  const fresh = `${path}.new`
  rmSync(fresh, { force: true })
  await copyFile(from, fresh, constants.COPYFILE_FICLONE)
  renameSync(fresh, path)
}
