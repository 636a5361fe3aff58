/**
 * Captures that are being read: each a ring of the network's (netstack/trace/capture.ts) and the descriptor of who reads it.
 *
 * Owns: the descriptors, when bytes leave the rings. Never does: looking into them, waiting for a reader.
 *
 * Theory. Frames go into a ring while the switch works, bytes leave it before the data plane sleeps and whenever the reader has room. A reader that is slow
 * finds its ring full, so that frames are missed and counted, and the network does not notice. A reader that goes away ends its capture. A capture
 * that ends otherwise (its VM is gone) is read to its end first.
 */
import type { Network } from '../netstack/network.ts'
import type { Capture } from '../netstack/trace/capture.ts'
import { close, setNonblock } from '../sys/fd.ts'
import { addressOf } from '../sys/libc.ts'
import { send } from '../sys/socket.ts'
import type { ControlReactor } from './control.ts'

const EAGAIN = 11
const EINTR = 4
/** Captures of one network at once. Each has a ring of 4 MiB. */
export const CAPTURES_MAX = 8
/** Bytes written to one reader in one turn, at most: frames of guests matter more. */
const TURN = 512 * 1024

interface Stream {
  readonly id: string
  readonly fd: number
  readonly network: Network
  readonly attachment: string | undefined
  readonly capture: Capture
  /** The reader has no room; the reactor tells when it has. */
  blocked: boolean
  /** No more frames: closed when the ring is empty. */
  ending: boolean
}

export class CaptureStreams {
  readonly #reactor: ControlReactor
  readonly #log: (line: string) => void
  #streams: readonly Stream[] = []

  constructor(reactor: ControlReactor, log: (line: string) => void) {
    this.#reactor = reactor
    this.#log = log
  }

  /** Somebody captures: `pump` has something to do. */
  get active(): boolean {
    return this.#streams.length > 0
  }

  /**
   * Begin to write to the stream socket `fd`, which belongs to the capture from now on.
   * @param o.only index of the switch port, −1 for all
   * @throws when there are CAPTURES_MAX already; `fd` is the caller's then
   */
  begin(
    network: Network,
    fd: number,
    o: { readonly id: string; readonly attachment?: string; readonly only: number; readonly snapLength?: number },
  ): void {
    if (this.#streams.length >= CAPTURES_MAX) throw new Error(`${CAPTURES_MAX} captures run already`)
    setNonblock(fd, true)
    // A reader has nothing to say: what can be read is its end.
    this.#reactor.watch(fd, (readable) => (readable ? this.#close(s, 'its reader is gone') : this.#write(s)))
    // The clock that never jumps, set once: frames of one capture stay in order when somebody sets the time.
    const began = Date.now() - performance.now()
    const clock = (): number => Math.floor((began + performance.now()) * 1000)
    const capture = network.capture({ only: o.only, snapLength: o.snapLength, clock })
    const { id, attachment } = o
    const s: Stream = { id, fd, network, attachment, capture, blocked: false, ending: false }
    this.#streams = [...this.#streams, s]
    this.#write(s)
  }

  /** The nic is gone: what was captured of it alone is complete. */
  gone(attachment: string): void {
    for (const s of this.#streams) {
      if (s.attachment !== attachment) continue
      s.ending = true
      s.network.endCapture(s.capture)
      this.#write(s)
    }
  }

  /** Before a sleep: what was captured leaves, as far as readers have room. */
  pump(): void {
    for (const s of this.#streams) if (!s.blocked) this.#write(s)
  }

  #write(s: Stream): void {
    for (let turn = 0; turn < TURN; ) {
      const bytes = s.capture.pending()
      if (bytes.length === 0) {
        if (s.ending) this.#close(s, 'its nic is gone')
        else this.#wait(s, false)
        return
      }
      const n = send(s.fd, addressOf(bytes), bytes.length)
      if (n === -EINTR) continue
      if (n === -EAGAIN) break
      if (n < 0) {
        this.#close(s, 'its reader is gone')
        return
      }
      s.capture.taken(n)
      turn += n
    }
    this.#wait(s, true)
  }

  #wait(s: Stream, on: boolean): void {
    if (s.blocked !== on) this.#reactor.wantWrite(s.fd, on)
    s.blocked = on
  }

  #close(s: Stream, why: string): void {
    this.#streams = this.#streams.filter((x) => x !== s)
    s.network.endCapture(s.capture)
    this.#reactor.unwatch(s.fd)
    close(s.fd)
    this.#log(`capture ${s.id} ended, ${why}: ${s.capture.captured} frames captured, ${s.capture.missed} missed`)
  }
}
