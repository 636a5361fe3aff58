/**
 * One daemon for one store.
 *
 * The lock is an exclusive transaction on an SQLite file of its own that is never written: the kernel's record lock under
 * it goes with the process, however that ends, so there is no stale lock to recognise. Who holds it is said by the pid
 * file, which is for people and for `noid daemon status`, never for deciding.
 */
import { DatabaseSync } from 'node:sqlite'

export class Lock {
  readonly #db: DatabaseSync

  private constructor(db: DatabaseSync) {
    this.#db = db
  }

  /** undefined when another process has it. */
  static take(file: string): Lock | undefined {
    const db = new DatabaseSync(file)
    try {
      db.exec('PRAGMA busy_timeout = 0; BEGIN EXCLUSIVE')
      return new Lock(db)
    } catch {
      db.close()
      return undefined
    }
  }

  release(): void {
    this.#db.close()
  }
}
