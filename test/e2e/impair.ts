/**
 * A wire that loses, repeats and reorders: two links of this namespace joined by a loop, for want of netem.
 *
 *   node impair.ts A B LOSS REORDER DUPLICATE SEED
 *
 * The shares are of frames, each way; with offloads a frame may carry 64 KiB. A frame that is reordered is sent after the next one to three frames
 * of its direction, or after HOLD_MS. The random numbers are seeded, so a failure can be tried again.
 */
import { EPOLLIN, Epoll } from '../../src/sys/epoll.ts'
import { addressOf } from '../../src/sys/libc.ts'
import { linkIndex, setLinkUp } from '../../src/sys/netdev.ts'
import { openPacket } from '../../src/sys/packet.ts'
import { recv, send } from '../../src/sys/socket.ts'

const HOLD_MS = 5
const BURST = 64
const EAGAIN = 11
const [a = '', b = '', loss = '0', reorder = '0', duplicate = '0', seed = '1'] = process.argv.slice(2)
const [pLoss, pReorder, pDuplicate] = [Number(loss), Number(reorder), Number(duplicate)]

/** mulberry32. */
let state = Number(seed)
const random = (): number => {
  state = (state + 0x6d2b79f5) | 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296
}

const frame = new Uint8Array(new ArrayBuffer(1 << 17))
const at = addressOf(frame)
/** One frame of each direction that waits. Its memory stays where it is. */
class Direction {
  readonly from: number
  readonly to: number
  readonly #held = new Uint8Array(new ArrayBuffer(1 << 17))
  readonly #heldAt = addressOf(this.#held)
  #length = 0
  #after = 0
  #since = 0

  constructor(from: number, to: number) {
    this.from = from
    this.to = to
  }

  read(): void {
    for (let n = 0; n < BURST; n++) {
      const len = recv(this.from, at, frame.length)
      if (len < 0) return
      if (random() < pLoss) continue
      if (this.#length === 0 && random() < pReorder) {
        this.#held.set(frame.subarray(0, len))
        this.#length = len
        this.#after = 1 + Math.floor(random() * 3)
        this.#since = performance.now()
        continue
      }
      put(this.to, at, len)
      if (random() < pDuplicate) put(this.to, at, len)
      if (this.#length > 0 && --this.#after === 0) this.release()
    }
  }

  release(): void {
    if (this.#length > 0) put(this.to, this.#heldAt, this.#length)
    this.#length = 0
  }

  tick(): void {
    if (this.#length > 0 && performance.now() - this.#since > HOLD_MS) this.release()
  }
}

/** A full queue is waited for: what is lost should be lost by chance alone. */
function put(fd: number, addr: number, len: number): void {
  for (let tries = 0; tries < 1000; tries++) {
    const r = send(fd, addr, len)
    if (r !== -EAGAIN && r !== -105) return
  }
}

setLinkUp(a)
setLinkUp(b)
const [fa, fb] = [openPacket(linkIndex(a), true), openPacket(linkIndex(b), true)]
if (fa < 0 || fb < 0) throw new Error(`cannot open ${a} (${fa}) or ${b} (${fb})`)
const ways = [new Direction(fa, fb), new Direction(fb, fa)]
const epoll = new Epoll(2)
for (const w of ways) epoll.add(w.from, EPOLLIN, 1)
for (;;) {
  const n = epoll.wait(HOLD_MS)
  for (let i = 0; i < n; i++) for (const w of ways) if (w.from === epoll.fdOf(i)) w.read()
  for (const w of ways) w.tick()
}
