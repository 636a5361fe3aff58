/**
 * One process at a time: the daemon of a store, the one that makes a network or builds an image.
 *
 * A lock is an exclusive transaction on an SQLite file of its own that is never written: the kernel's record lock under
 * it goes with the process, however that ends, so there is no stale lock to recognise. The daemon's pid file is
 * for people, never for deciding.
 * Its journal is kept in memory, so that a lock can be had on a disk that is full.
 */
import { DatabaseSync } from 'node:sqlite'

/** https://sqlite.org/rescode.html#busy */
const SQLITE_BUSY = 5

export class Lock {
  readonly #db: DatabaseSync

  private constructor(db: DatabaseSync) {
    this.#db = db
  }

  /** undefined when somebody has it. Throws when the file cannot be made. */
  static take(file: string): Lock | undefined {
    const db = new DatabaseSync(file)
    try {
      db.exec('PRAGMA busy_timeout = 0; PRAGMA journal_mode = MEMORY; BEGIN EXCLUSIVE')
      return new Lock(db)
    } catch (e) {
      db.close()
      if ((e as { errcode?: number }).errcode === SQLITE_BUSY) return undefined
      throw e
    }
  }

  release(): void {
    this.#db.close()
  }
}
