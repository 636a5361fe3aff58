/**
 * The data plane's end of the control protocol (protocol.ts): newline-delimited JSON over a unix stream socket, descriptors
 * by SCM_RIGHTS. No event loop: every descriptor is non-blocking and lives in the reactor's epoll like a nic does.
 *
 * Owns: the listening socket, its file, the connected clients with their half-read lines, descriptors that arrived but
 * are not yet named by a message, and bytes that a client has not yet taken.
 * Never does: deciding what a request means (the handler does), blocking, growing without a bound.
 *
 * Theory. A daemon may be killed at any byte: a client that goes away takes its unfinished line and its unclaimed descriptors
 * with it, and nothing else. Several clients may be there (an old daemon dying, a new one connecting). A client that floods or
 * does not read is cut: packets of guests matter more. Only root and the user that started the data plane are let in
 * (SO_PEERCRED, unix(7)), and the file's mode says so too.
 *
 * Invariants: a descriptor belongs to a client's queue until a request takes it; whatever is not taken is closed. An answer is
 * queued for each request that parsed. A read handles at most TURN bytes, so that a client cannot starve the nics.
 */
import { unlinkSync } from 'node:fs'
import { errno, must } from '../sys/errno.ts'
import { close } from '../sys/fd.ts'
import { recvWithFds, sendWithFds } from '../sys/scm.ts'
import { AF_UNIX, accept, bind, listen, peerCredentials, SOCK_NONBLOCK, SOCK_STREAM, socket } from '../sys/socket.ts'
import { FileWatch } from './file-watch.ts'
import type { AnswerMessage, EventMessage, Request, RequestMessage } from './protocol.ts'

/** The longest line a client may send. */
const LINE_MAX = 256 * 1024
/** Bytes that may wait for a client that does not read. A stats answer of a full flow table is a few MiB. */
const QUEUE_MAX = 16 * 1024 * 1024
const CLIENTS_MAX = 8
const FDS_MAX = 64
const READ = 64 * 1024
/** Bytes read from one client per readiness, at most. */
const TURN = 4 * READ

/** What the reactor gives: level-triggered readiness of a descriptor. */
export interface ControlReactor {
  watch(fd: number, ready: (readable: boolean, writable: boolean) => void): void
  /** Ask, or no longer ask, to be told of write space. */
  wantWrite(fd: number, on: boolean): void
  unwatch(fd: number): void
}

/**
 * Carries a request out and returns its result. Throws: the message goes to the daemon as the answer's `error`. The handler owns `fds` from
 * then on, also when it throws.
 */
export type ControlHandler = (request: Request, fds: readonly number[]) => unknown

export class Control {
  readonly path: string
  readonly #reactor: ControlReactor
  readonly #handle: ControlHandler
  readonly #uid: number
  readonly #listener: number
  readonly #file: FileWatch
  readonly #clients = new Set<Client>()
  #open = true

  /**
   * Listen at `path`, replacing what a dead data plane left there. Call before privileges are given up.
   * @throws when the socket cannot be made
   */
  constructor(path: string, reactor: ControlReactor, handle: ControlHandler) {
    this.path = path
    this.#reactor = reactor
    this.#handle = handle
    this.#uid = process.geteuid?.() ?? 0
    try {
      unlinkSync(path)
    } catch (e) {
      if ((e as NodeJS.ErrnoException).code !== 'ENOENT') throw e
    }
    this.#listener = must('socket', socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK))
    const mask = process.umask(0o177)
    try {
      must(`bind ${path}`, bind(this.#listener, { family: 'unix', path }))
    } finally {
      process.umask(mask)
    }
    must(`listen on ${path}`, listen(this.#listener, CLIENTS_MAX))
    this.#file = new FileWatch(path)
    reactor.watch(this.#listener, () => this.#accept())
  }

  /** Tell every daemon that is connected. */
  notify(event: EventMessage): void {
    if (this.#clients.size === 0) return
    const line = encode(event)
    for (const c of [...this.#clients]) c.queue(line)
  }

  /** False when the socket's file is gone or another's: nobody can reach this process any more, so it has no reason to go on. */
  reachable(): boolean {
    return this.#file.exists()
  }

  /** Idempotent: a number that was closed may be somebody else's by now. */
  close(): void {
    if (!this.#open) return
    this.#open = false
    for (const c of [...this.#clients]) c.cut()
    this.#reactor.unwatch(this.#listener)
    close(this.#listener)
    if (this.reachable()) {
      try {
        unlinkSync(this.path)
      } catch {
        // Privileges are given up: the directory is the daemon's, and so is what is left in it.
      }
    }
    this.#file.close()
  }

  #accept(): void {
    for (;;) {
      const fd = accept(this.#listener, SOCK_NONBLOCK)
      if (fd < 0) return
      const peer = peerCredentials(fd)
      const admitted = typeof peer === 'object' && (peer.uid === 0 || peer.uid === this.#uid)
      if (!admitted || this.#clients.size >= CLIENTS_MAX) {
        close(fd)
        continue
      }
      const client = new Client(fd, this.#reactor, this.#handle, () => this.#clients.delete(client))
      this.#clients.add(client)
    }
  }
}

class Client {
  readonly #fd: number
  readonly #reactor: ControlReactor
  readonly #handle: ControlHandler
  readonly #gone: () => void
  /** The line so far, as pieces. */
  #line: Uint8Array[] = []
  #lineBytes = 0
  #fds: number[] = []
  #out: Uint8Array[] = []
  #outBytes = 0
  #open = true
  #waiting = false

  constructor(fd: number, reactor: ControlReactor, handle: ControlHandler, gone: () => void) {
    this.#fd = fd
    this.#reactor = reactor
    this.#handle = handle
    this.#gone = gone
    reactor.watch(fd, (readable, writable) => {
      if (writable) this.#flush()
      if (readable && this.#open) this.#read()
    })
  }

  /** Send, or keep for when there is space, or cut. */
  queue(line: Uint8Array): void {
    if (!this.#open) return
    this.#out.push(line)
    this.#outBytes += line.length
    if (this.#out.length === 1) this.#flush()
    // One answer may be as long as it is: it was asked for.
    if (this.#outBytes > QUEUE_MAX && this.#out.length > 1) this.cut()
  }

  cut(): void {
    if (!this.#open) return
    this.#open = false
    this.#reactor.unwatch(this.#fd)
    close(this.#fd)
    for (const fd of this.#fds) close(fd)
    this.#fds = []
    this.#line = []
    this.#out = []
    this.#gone()
  }

  #read(): void {
    for (let turn = 0; turn < TURN && this.#open; ) {
      const r = recvWithFds(this.#fd, READ)
      if (r === -errno.EAGAIN || r === -errno.EINTR) return
      if (typeof r === 'number') {
        this.cut()
        return
      }
      this.#fds.push(...r.fds)
      if (r.bytes.length === 0 || this.#fds.length > FDS_MAX) {
        this.cut()
        return
      }
      turn += r.bytes.length
      this.#take(r.bytes)
    }
  }

  #take(bytes: Uint8Array): void {
    for (let from = 0; from < bytes.length && this.#open; ) {
      const end = bytes.indexOf(0x0a, from)
      const piece = bytes.subarray(from, end < 0 ? bytes.length : end)
      this.#line.push(piece)
      this.#lineBytes += piece.length
      if (this.#lineBytes > LINE_MAX) {
        this.cut()
        return
      }
      if (end < 0) return
      const line = Buffer.concat(this.#line).toString()
      this.#line = []
      this.#lineBytes = 0
      from = end + 1
      if (line !== '') this.#request(line)
    }
  }

  #request(line: string): void {
    let message: RequestMessage
    try {
      message = JSON.parse(line) as RequestMessage
      if (typeof message !== 'object' || message === null || !Number.isSafeInteger(message.seq))
        throw new Error('no seq')
    } catch {
      this.cut()
      return
    }
    const { seq } = message
    const wanted = 'fds' in message ? message.fds : 0
    if (!Number.isSafeInteger(wanted) || wanted < 0 || wanted > this.#fds.length) {
      this.#answer({ seq, ok: false, error: `descriptors: ${wanted} named, ${this.#fds.length} came` })
      return
    }
    const fds = this.#fds.splice(0, wanted)
    let answer: AnswerMessage
    try {
      answer = { seq, ok: true, result: this.#handle(message, fds) }
    } catch (e) {
      answer = { seq, ok: false, error: e instanceof Error ? e.message : String(e) }
    }
    this.#answer(answer)
  }

  #answer(answer: AnswerMessage): void {
    this.queue(encode(answer))
  }

  #flush(): void {
    while (this.#out.length > 0) {
      const first = this.#out[0] as Uint8Array
      const n = sendWithFds(this.#fd, first, [])
      if (n === -errno.EAGAIN) {
        this.#wait()
        return
      }
      if (n === -errno.EINTR) continue
      if (n < 0) {
        this.cut()
        return
      }
      this.#outBytes -= n
      if (n < first.length) this.#out[0] = first.subarray(n)
      else this.#out.shift()
    }
    if (this.#waiting) this.#reactor.wantWrite(this.#fd, false)
    this.#waiting = false
  }

  #wait(): void {
    if (!this.#waiting) this.#reactor.wantWrite(this.#fd, true)
    this.#waiting = true
  }
}

const encode = (m: AnswerMessage | EventMessage): Uint8Array => Buffer.from(`${JSON.stringify(m)}\n`)
