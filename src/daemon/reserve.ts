/**
 * Room for the end: a file of no use that lies beside the store, so that a full disk keeps no VM from being stopped or destroyed.
 *
 * Theory. VMs write to the file system that the store is on, and one of them can fill it. Taking it down is what gives the room back, and taking it down
 * wants a little room itself: the store writes what it is about to do, backends and runtimes what they have done. So the file is given up before a VM is
 * taken down when there is little else, and when the store finds no room for a word; it is made again when there is room for it and as much again.
 * Random bytes, because a file system that packs or shares its contents keeps no room for zeros.
 *
 * Owns: the file. Never throws: without the file all goes as it would without this one.
 */
import { randomBytes } from 'node:crypto'
import { existsSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'

const RESERVE_BYTES = 1 << 20

export class Reserve {
  readonly #file: string

  constructor(file: string) {
    this.#file = file
  }

  /** Make it, or make it again, unless it is there or would take what is left. */
  keep(): void {
    if (existsSync(this.#file) || this.#free() < 2 * RESERVE_BYTES) return
    try {
      writeFileSync(this.#file, randomBytes(RESERVE_BYTES), { mode: 0o600 })
    } catch {
      // Half of it would be taken for the whole.
      this.spend()
    }
  }

  /** Give it up when there is little else. */
  lend(): void {
    if (this.#free() < RESERVE_BYTES) this.spend()
  }

  /** Give it up; false when there was none. */
  spend(): boolean {
    try {
      rmSync(this.#file)
      return true
    } catch {
      return false
    }
  }

  /** What this process may write, as far as the file system tells; a quota may allow less. */
  #free(): number {
    try {
      const s = statfsSync(dirname(this.#file))
      return s.bsize * (process.getuid?.() === 0 ? s.bfree : s.bavail)
    } catch {
      return 0
    }
  }
}
