/**
 * Is a file still there? Asked through a descriptor opened before privileges were given up, since afterwards the path may lie
 * in a directory that is closed to us. O_PATH opens what cannot be opened otherwise, such as a socket (open(2)).
 */
import { closeSync, fstatSync, openSync } from 'node:fs'

const O_PATH = 0o10000000

export class FileWatch {
  #fd: number

  /** @throws when there is no such file */
  constructor(path: string) {
    this.#fd = openSync(path, O_PATH)
  }

  /** False once its last name was removed, or nobody looks any more. */
  exists(): boolean {
    return this.#fd >= 0 && fstatSync(this.#fd).nlink > 0
  }

  /** Idempotent. */
  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd)
    this.#fd = -1
  }
}
