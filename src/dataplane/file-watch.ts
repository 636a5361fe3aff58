/**
 * Is a file still there? Asked through a descriptor opened before privileges were given up, since afterwards the path may lie
 * in a directory that is closed to us. O_PATH opens what cannot be opened otherwise, such as a socket (open(2)).
 */
import { closeSync, fstatSync, openSync } from 'node:fs'

const O_PATH = 0o10000000

export class FileWatch {
  readonly #fd: number

  /** @throws when there is no such file */
  constructor(path: string) {
    this.#fd = openSync(path, O_PATH)
  }

  /** False once its last name was removed. */
  exists(): boolean {
    return fstatSync(this.#fd).nlink > 0
  }

  close(): void {
    closeSync(this.#fd)
  }
}
