/**
 * A VM's serial line with any number of viewers, over a chardev socket of QEMU's that serves one client at a time.
 *
 * Connected while somebody looks, and only then: QEMU itself writes the log, and a line that nobody reads costs nothing.
 * A new viewer first gets the end of the log, so that the prompt it came for is there.
 * Invariants: the line is always read (a client that does not read stops the guest's console); a viewer that is too slow
 * misses bytes and is told so; the viewers hold HELD bytes each at most.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { createConnection, type Socket } from 'node:net'
import { Duplex } from 'node:stream'

const SCROLLBACK = 64 * 1024
const HELD = 1024 * 1024

export class SerialLine {
  readonly #path: string
  readonly #log: string
  readonly #viewers = new Set<Viewer>()
  #line: Promise<Socket> | undefined

  /** The chardev's socket, and the file that QEMU logs it to. */
  constructor(path: string, log: string) {
    this.#path = path
    this.#log = log
  }

  /** Bytes both ways; it ends when the VM does. Throws when the line is not there. */
  async open(): Promise<Duplex> {
    this.#line ??= this.#connect()
    const line = await this.#line
    const viewer: Viewer = new Viewer(line, () => {
      this.#viewers.delete(viewer)
      if (this.#viewers.size === 0) this.#hangUp(line)
    })
    this.#viewers.add(viewer)
    viewer.show(tail(this.#log))
    return viewer
  }

  #connect(): Promise<Socket> {
    const made = new Promise<Socket>((resolve, reject) => {
      const line = createConnection({ path: this.#path })
      line.once('connect', () => resolve(line))
      line.on('error', reject)
      line.on('data', (bytes: Buffer) => {
        for (const v of this.#viewers) v.show(bytes)
      })
      line.on('close', () => {
        if (this.#line === made) this.#line = undefined
        for (const v of [...this.#viewers]) v.over(line)
      })
    })
    made.catch(() => {
      if (this.#line === made) this.#line = undefined
    })
    return made
  }

  #hangUp(line: Socket): void {
    this.#line = undefined
    line.destroy()
  }
}

class Viewer extends Duplex {
  readonly #line: Socket
  readonly #left: () => void
  #missed = 0

  constructor(line: Socket, left: () => void) {
    super({ allowHalfOpen: true })
    this.#line = line
    this.#left = left
    this.on('error', () => {})
  }

  show(bytes: Buffer): void {
    if (bytes.length === 0 || this.destroyed || this.readableEnded) return
    if (this.readableLength + bytes.length > HELD) {
      this.#missed += bytes.length
      return
    }
    if (this.#missed > 0) {
      this.push(`\r\n[noid: ${this.#missed} bytes were left out, because this viewer was too slow]\r\n`)
      this.#missed = 0
    }
    this.push(bytes)
  }

  /** The line has ended. */
  over(line: Socket): void {
    if (line === this.#line) this.push(null)
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    // A line that has ended takes nothing; what was typed is of no use to anybody.
    if (!this.#line.writable) return done()
    this.#line.write(chunk, () => done())
  }

  override _destroy(e: Error | null, done: (e?: Error | null) => void): void {
    this.#left()
    done(e)
  }
}

/** The end of a file that only grows, from the beginning of a line. */
function tail(file: string): Buffer {
  let fd: number
  try {
    fd = openSync(file, 'r')
  } catch {
    return Buffer.alloc(0)
  }
  try {
    const { size } = fstatSync(fd)
    const b = Buffer.alloc(Math.min(size, SCROLLBACK))
    const n = readSync(fd, b, 0, b.length, size - b.length)
    const text = b.subarray(0, n)
    const line = size > b.length ? text.indexOf(0x0a) + 1 : 0
    return text.subarray(line)
  } finally {
    closeSync(fd)
  }
}
