/**
 * The daemon's end of the control protocol (src/dataplane/protocol.ts): one connection to one data plane.
 *
 * Owns: the socket, requests that wait for their answer, bytes not yet taken by the kernel.
 * Never does: starting or ending the data plane (process.ts), knowing what the network should look like (its backend).
 *
 * Theory. Requests leave through sendmsg, because some carry descriptors and their order must hold; answers and events come
 * in through a net.Socket over the same descriptor. A data plane that does not answer within WAIT_MS is treated as lost: it is
 * one thread, so an answer that is late means that no packet moves either.
 * Invariant: after `close` or a loss every waiting request is rejected with DATAPLANE_LOST, and `onClose` is called once.
 */
import { Socket } from 'node:net'
import type { AnswerMessage, EventMessage, Request } from '../../dataplane/protocol.ts'
import { NoidError } from '../../errors.ts'
import { errno, must } from '../../sys/errno.ts'
import { close, dup } from '../../sys/fd.ts'
import { sendWithFds } from '../../sys/scm.ts'
import { AF_UNIX, connect, SOCK_NONBLOCK, SOCK_STREAM, socket } from '../../sys/socket.ts'

const WAIT_MS = 6000
const RETRY_MS = 5
const LINE_MAX = 64 * 1024 * 1024

interface Waiting {
  readonly resolve: (result: unknown) => void
  readonly reject: (e: Error) => void
  readonly timer: NodeJS.Timeout
}
interface Outgoing {
  bytes: Uint8Array
  /** Duplicates of the caller's, closed when they have left. */
  fds: readonly number[]
}

/** What a request said no to: the data plane is well, the request was not. */
export class Refused extends Error {}

export class Link {
  onEvent: (e: EventMessage) => void = () => {}
  onClose: () => void = () => {}
  /** It was closed because an answer did not come. */
  silent = false
  readonly #network: string
  readonly #fd: number
  readonly #socket: Socket
  readonly #waiting = new Map<number, Waiting>()
  readonly #out: Outgoing[] = []
  #retry: NodeJS.Timeout | undefined
  #seq = 0
  #open = true
  #text = ''

  /**
   * Connect to a data plane's socket. @param network its name, for errors
   * @throws SysError (ENOENT, ECONNREFUSED: nobody is there)
   */
  constructor(path: string, network: string) {
    this.#network = network
    this.#fd = must('socket', socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK))
    const r = connect(this.#fd, { family: 'unix', path })
    if (r < 0) close(this.#fd)
    must(`connect to ${path}`, r)
    this.#socket = new Socket({ fd: this.#fd, readable: true, writable: true, allowHalfOpen: false })
    this.#socket.setEncoding('utf8')
    this.#socket.on('data', (d: unknown) => this.#take(String(d)))
    this.#socket.on('error', () => {})
    this.#socket.on('close', () => this.close())
    this.#socket.resume()
  }

  get open(): boolean {
    return this.#open
  }

  /** Ask with descriptors that are the link's to close, whatever the answer is. */
  async give(request: Request, ...fds: number[]): Promise<void> {
    try {
      await this.request(request, fds)
    } finally {
      for (const fd of fds) close(fd)
    }
  }

  /**
   * Ask, and wait for the answer. Descriptors are duplicated: the caller may close its own at once.
   * @throws NoidError DATAPLANE_LOST; Refused when the data plane says no
   */
  request<T = unknown>(request: Request, fds: readonly number[] = []): Promise<T> {
    if (!this.#open) return Promise.reject(this.#lost())
    const seq = ++this.#seq
    return new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.silent = true
        this.close()
      }, WAIT_MS)
      this.#waiting.set(seq, { resolve: resolve as (r: unknown) => void, reject, timer })
      this.#out.push({
        bytes: Buffer.from(`${JSON.stringify({ ...request, seq })}\n`),
        fds: fds.map((fd) => must('dup', dup(fd))),
      })
      this.#flush()
    })
  }

  /** Let go; the data plane goes on. */
  close(): void {
    if (!this.#open) return
    this.#open = false
    clearTimeout(this.#retry)
    for (const o of this.#out) for (const fd of o.fds) close(fd)
    this.#out.length = 0
    this.#socket.destroy()
    const waiting = [...this.#waiting.values()]
    this.#waiting.clear()
    for (const w of waiting) {
      clearTimeout(w.timer)
      w.reject(this.#lost())
    }
    this.onClose()
  }

  #lost(): NoidError {
    return new NoidError('DATAPLANE_LOST', { network: this.#network })
  }

  #flush(): void {
    clearTimeout(this.#retry)
    while (this.#open && this.#out.length > 0) {
      const first = this.#out[0] as Outgoing
      const n = sendWithFds(this.#fd, first.bytes, first.fds)
      if (n === -errno.EINTR) continue
      if (n === -errno.EAGAIN) {
        this.#retry = setTimeout(() => this.#flush(), RETRY_MS)
        return
      }
      if (n < 0) {
        this.close()
        return
      }
      // The descriptors left with the first byte.
      for (const fd of first.fds) close(fd)
      first.fds = []
      if (n < first.bytes.length) first.bytes = first.bytes.subarray(n)
      else this.#out.shift()
    }
  }

  #take(text: string): void {
    const lines = (this.#text + text).split('\n')
    this.#text = lines.pop() ?? ''
    if (this.#text.length > LINE_MAX) {
      this.close()
      return
    }
    for (const line of lines) {
      let m: AnswerMessage | EventMessage
      try {
        m = JSON.parse(line) as AnswerMessage | EventMessage
      } catch {
        this.close()
        return
      }
      if ('event' in m) this.onEvent(m)
      else this.#answer(m)
    }
  }

  #answer(m: AnswerMessage): void {
    const w = this.#waiting.get(m.seq)
    if (!w) return
    this.#waiting.delete(m.seq)
    clearTimeout(w.timer)
    if (m.ok) w.resolve(m.result)
    else w.reject(new Refused(m.error))
  }
}
