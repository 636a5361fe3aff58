/**
 * One command in a guest, as Node's streams over the frames of one stream number.
 *
 * Credit: of each output at most WINDOW bytes are held here and on their way together, and what the reader took is given
 * back; of stdin as much is sent as the guest granted. So a reader, a writer or a command that stalls stops itself only.
 * A guest that sends more than it was given, or what cannot come now, has broken the wire.
 * Never does: the connection (client.ts).
 */
import { Readable, Writable } from 'node:stream'
import type { NoidError } from '../../../errors.ts'
import type { ExecSession } from '../../contract.ts'
import { ask, BrokenWire, CHUNK, tell, WINDOW } from './protocol.ts'

/** What a session needs of the connection it runs over. */
export interface Wire {
  send(type: number, stream: number, payload?: Uint8Array): void
  /** May more be written, or is the connection full? */
  readonly roomy: boolean
  whenRoomy(then: () => void): void
  forget(stream: number): void
}

const SIGNAL = /^SIG[A-Z0-9]{2,10}$/
/** What a shell says of a command that was hung up. */
const HUNG_UP = 129

export class Session implements ExecSession {
  readonly stdin: Writable
  readonly stdout: Readable
  readonly stderr: Readable | undefined
  readonly exit: Promise<number>
  /** Resolves when the command runs; rejects with the guest's sentence when it cannot. */
  readonly started: Promise<void>
  readonly #wire: Wire
  readonly #id: number
  readonly #outputs: (Output | undefined)[]
  readonly #input: Input
  #settle: { exit: (code: number) => void; fail: (e: unknown) => void; start: () => void; refuse: (e: unknown) => void }
  #state: 'asked' | 'running' | 'exited' | 'over' = 'asked'

  constructor(wire: Wire, id: number, tty: boolean) {
    this.#wire = wire
    this.#id = id
    const exit = Promise.withResolvers<number>()
    const started = Promise.withResolvers<void>()
    this.exit = exit.promise
    this.started = started.promise
    // Whoever asks hears it; nobody has to.
    exit.promise.catch(() => {})
    started.promise.catch(() => {})
    this.#settle = { exit: exit.resolve, fail: exit.reject, start: started.resolve, refuse: started.reject }
    this.#input = new Input(wire, id)
    const outputs = (tty ? [1] : [1, 2]).map((which) => new Output(wire, id, which, () => this.#closed()))
    this.#outputs = [undefined, ...outputs]
    this.stdin = this.#input.stream
    this.stdout = (outputs[0] as Output).stream
    this.stderr = outputs[1]?.stream
  }

  signal(name: string): void {
    if (this.#state === 'running' && SIGNAL.test(name)) this.#wire.send(ask.signal, this.#id, Buffer.from(name))
  }

  resize(rows: number, cols: number): void {
    if (this.#state !== 'running') return
    const size = Buffer.alloc(4)
    size.writeUInt16BE(rows & 0xffff, 0)
    size.writeUInt16BE(cols & 0xffff, 2)
    this.#wire.send(ask.resize, this.#id, size)
  }

  /** A frame of this stream. Throws BrokenWire. */
  take(type: number, payload: Buffer): void {
    if (this.#state === 'asked') {
      if (type === tell.started) {
        this.#state = 'running'
        this.#input.open()
        this.#settle.start()
      } else if (type === tell.failed) {
        const refused = new Error(payload.toString('utf8', 0, 500))
        this.#settle.refuse(refused)
        this.#over()
      } else throw new BrokenWire(`a frame of type ${type} before the command runs`)
      return
    }
    if (type === tell.stdout || type === tell.stderr) this.#output(type === tell.stdout ? 1 : 2).take(payload)
    else if (type === tell.grant) this.#input.grant(number(payload))
    else if (type === tell.end) {
      const which = payload.length === 1 ? (payload[0] as number) : -1
      if (which === 0) this.#input.refused()
      else this.#output(which).end()
    } else if (type === tell.exit && this.#state === 'running') {
      this.#state = 'exited'
      this.#settle.exit(number(payload) & 0x7fffffff)
    } else throw new BrokenWire(`a frame of type ${type} for a command`)
    if (this.#state === 'exited' && this.#outputs.every((o) => o === undefined || o.ended)) this.#over()
  }

  /** The connection is gone. */
  lose(e: NoidError): void {
    if (this.#state === 'over') return
    this.#settle.refuse(e)
    this.#settle.fail(e)
    this.#over()
  }

  #output(which: number): Output {
    const o = this.#outputs[which]
    if (o === undefined) throw new BrokenWire(`output ${which} of a command`)
    return o
  }

  #over(): void {
    this.#state = 'over'
    this.#wire.forget(this.#id)
    this.#input.refused()
    for (const o of this.#outputs) if (o !== undefined && !o.ended) o.end()
  }

  /** Nobody listens any more: the command is told as a terminal that is closed tells it. */
  #closed(): void {
    if (this.#state === 'over' || this.#outputs.some((o) => o !== undefined && !o.stream.destroyed)) return
    if (this.#state === 'exited' || this.#outputs.every((o) => o === undefined || o.ended)) return
    this.#wire.send(ask.close, this.#id)
    this.#settle.exit(HUNG_UP)
    this.#over()
  }
}

function number(payload: Buffer): number {
  if (payload.length !== 4) throw new BrokenWire(`a number of ${payload.length} bytes`)
  return payload.readUInt32BE(0)
}

/** stdout or stderr. */
class Output {
  readonly stream: Readable
  readonly #wire: Wire
  readonly #id: number
  readonly #which: number
  /** What the guest may still send. */
  #credit = WINDOW
  ended = false

  constructor(wire: Wire, id: number, which: number, closed: () => void) {
    this.#wire = wire
    this.#id = id
    this.#which = which
    this.stream = new Readable({ highWaterMark: 2 * CHUNK, read: () => this.#refill() })
    this.stream.on('error', () => {}).once('close', closed)
  }

  take(bytes: Buffer): void {
    if (bytes.length === 0 || bytes.length > this.#credit || this.ended)
      throw new BrokenWire(`${bytes.length} bytes of output where ${this.#credit} were allowed`)
    this.#credit -= bytes.length
    if (!this.stream.destroyed) this.stream.push(bytes)
    this.#refill()
  }

  end(): void {
    if (this.ended) throw new BrokenWire('an output that ends twice')
    this.ended = true
    this.stream.push(null)
  }

  /** What the reader took may be sent again, in portions that are worth a frame. */
  #refill(): void {
    const held = this.stream.destroyed ? 0 : this.stream.readableLength
    const more = WINDOW - this.#credit - held
    if (this.ended || more < WINDOW / 4) return
    this.#credit += more
    const payload = Buffer.alloc(5)
    payload[0] = this.#which
    payload.writeUInt32BE(more, 1)
    this.#wire.send(ask.credit, this.#id, payload)
  }
}

/** stdin. */
class Input {
  readonly stream: Writable
  readonly #wire: Wire
  readonly #id: number
  #credit = 0
  #rest: Buffer | undefined
  #done: (() => void) | undefined
  #waiting = false
  #open = false
  #refused = false

  constructor(wire: Wire, id: number) {
    this.#wire = wire
    this.#id = id
    this.stream = new Writable({
      highWaterMark: 2 * CHUNK,
      write: (chunk: Buffer, _encoding, done) => {
        this.#rest = chunk
        this.#done = done
        this.#pump()
      },
      final: (done) => {
        if (this.#refused) return done()
        if (!this.#open) {
          this.#done = () => this.#finish(done)
          return
        }
        this.#finish(done)
      },
      destroy: (e, done) => {
        // Given up in the middle: the command need not wait for more.
        if (this.#open && !this.#refused && !this.stream.writableFinished) this.#wire.send(ask.stdinEnd, this.#id)
        this.#refused = true
        done(e)
      },
    })
    this.stream.on('error', () => {})
  }

  #finish(done: () => void): void {
    if (!this.#refused) this.#wire.send(ask.stdinEnd, this.#id)
    done()
  }

  /** The command runs. */
  open(): void {
    this.#open = true
    this.#credit = WINDOW
    this.#pump()
  }

  grant(bytes: number): void {
    this.#credit += bytes
    if (this.#credit > WINDOW) throw new BrokenWire(`credit of ${this.#credit} bytes`)
    this.#pump()
  }

  /** The command takes no more: what is written from here on goes nowhere, as in a pipe nobody reads. */
  refused(): void {
    this.#refused = true
    this.#rest = undefined
    this.#next()
    if (!this.stream.writableEnded) this.stream.destroy()
  }

  #pump(): void {
    if (this.#refused) {
      this.#rest = undefined
      return this.#next()
    }
    while (this.#open && this.#rest !== undefined && this.#credit > 0) {
      if (!this.#wire.roomy) {
        if (this.#waiting) return
        this.#waiting = true
        this.#wire.whenRoomy(() => {
          this.#waiting = false
          this.#pump()
        })
        return
      }
      const part = this.#rest.subarray(0, Math.min(CHUNK, this.#credit))
      this.#credit -= part.length
      this.#rest = part.length < this.#rest.length ? this.#rest.subarray(part.length) : undefined
      this.#wire.send(ask.stdin, this.#id, part)
    }
    if (this.#open && this.#rest === undefined) this.#next()
  }

  #next(): void {
    const done = this.#done
    this.#done = undefined
    done?.()
  }
}
