/**
 * The wire between the host and the agent in a guest (../guest/agent.pl): one byte stream, a virtio-serial port.
 *
 *   frame    epoch[8] type(u8) 0(u8) stream(u16) length(u32) payload epoch[8]        numbers are big endian
 *   HELLO    "noid-agent-hello" epoch[8] version(u16)      host → guest, begins a conversation
 *   WELCOME  "noid-agent-reply" epoch[8] version(u16)      guest → host
 *
 * The stream outlives both ends and says nothing of their beginning and end, so the epoch (8 random bytes of this host's
 * choice) stands before and behind every frame: the rest of a dead conversation's frame is never taken for one of this.
 * Owns: the codec, and what either end may send. Never does: I/O, deciding what a frame means.
 * A guest is hostile: a length is checked before anything is kept, and what is no frame is a BrokenWire, never a guess.
 */
export const VERSION = 1
export const EPOCH_BYTES = 8
const HEADER = 16
const HELLO = Buffer.from('noid-agent-hello')
const WELCOME = Buffer.from('noid-agent-reply')
const GREETING = HELLO.length + EPOCH_BYTES + 2

/** Credit of a stream at its beginning, and the most there may ever be: so much of it may be held at either end. */
export const WINDOW = 256 * 1024
/** Payload of one data frame, either way. */
export const CHUNK = 32 * 1024
/** The longest payload a guest may send. */
export const MAX_FROM_GUEST = 64 * 1024
/** The longest request (a command with its arguments and variables). */
export const MAX_REQUEST = 1088 * 1024
/** Looked through for a WELCOME before it is given up: what the dead conversation had on its way. */
const MAX_LEFTOVER = 4 * 1024 * 1024

/** Host → guest. */
export const ask = {
  /** flags(u8, 1 terminal) rows(u16) cols(u16) count of variables(u32), texts: user, directory, K=V..., argv... */
  exec: 1,
  stdin: 2,
  stdinEnd: 3,
  /** a name, "SIGINT" */
  signal: 4,
  /** rows(u16) cols(u16) */
  resize: 5,
  /** which(u8: 1 stdout, 2 stderr) bytes(u32) */
  credit: 6,
  /** Nobody cares for the command any more: it is hung up, and nothing of it is told. */
  close: 7,
  /** texts: name, key, value, ... */
  call: 8,
} as const

/** Guest → host. */
export const tell = {
  /** pid(u32) */
  started: 32,
  /** a sentence: the command was not started */
  failed: 33,
  stdout: 34,
  stderr: 35,
  /** which(u8: 0 stdin is taken no more, 1 stdout, 2 stderr) */
  end: 36,
  /** code(u32), 128+n after a signal */
  exit: 37,
  /** bytes(u32) of stdin that may be sent again */
  grant: 38,
  /** ok(u8), texts: key, value, ... or one sentence */
  reply: 39,
} as const

/** What came is not this protocol. */
export class BrokenWire extends Error {}

export interface Frame {
  readonly type: number
  readonly stream: number
  readonly payload: Buffer
}

const NONE = Buffer.alloc(0)

export function hello(epoch: Buffer): Buffer {
  const version = Buffer.alloc(2)
  version.writeUInt16BE(VERSION)
  return Buffer.concat([HELLO, epoch, version])
}

export function frame(epoch: Buffer, type: number, stream: number, payload: Uint8Array = NONE): Buffer {
  const b = Buffer.allocUnsafe(HEADER + payload.length + EPOCH_BYTES)
  epoch.copy(b, 0)
  b[8] = type
  b[9] = 0
  b.writeUInt16BE(stream, 10)
  b.writeUInt32BE(payload.length, 12)
  b.set(payload, HEADER)
  epoch.copy(b, HEADER + payload.length)
  return b
}

/** length(u32) bytes, each. */
export function texts(values: readonly (string | Uint8Array)[]): Buffer {
  const parts: Uint8Array[] = []
  for (const v of values) {
    const bytes = typeof v === 'string' ? Buffer.from(v) : v
    const length = Buffer.alloc(4)
    length.writeUInt32BE(bytes.length)
    parts.push(length, bytes)
  }
  return Buffer.concat(parts)
}

export function readTexts(b: Buffer): string[] {
  const out: string[] = []
  let at = 0
  while (at < b.length) {
    if (at + 4 > b.length) throw new BrokenWire('a text without its length')
    const length = b.readUInt32BE(at)
    if (length > b.length - at - 4) throw new BrokenWire(`a text of ${length} bytes in ${b.length}`)
    out.push(b.toString('utf8', at + 4, at + 4 + length))
    at += 4 + length
  }
  return out
}

/** Cuts what a guest sends: first for the WELCOME of this conversation, then into frames. */
export class GuestReader {
  readonly #epoch: Buffer
  #held: Buffer = NONE
  #skipped = 0
  /** The guest's version, once it has answered. */
  version: number | undefined

  constructor(epoch: Buffer) {
    this.#epoch = epoch
  }

  *push(chunk: Buffer): Generator<Frame> {
    this.#held = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk])
    if (this.version === undefined && !this.#greeted()) return
    for (;;) {
      const b = this.#held
      if (b.length < HEADER) return
      if (!b.subarray(0, EPOCH_BYTES).equals(this.#epoch)) {
        if (!this.#again()) return
        continue
      }
      const length = b.readUInt32BE(12)
      if (length > MAX_FROM_GUEST) throw new BrokenWire(`a frame of ${length} bytes`)
      const whole = HEADER + length + EPOCH_BYTES
      if (b.length < whole) return
      if (!b.subarray(HEADER + length, whole).equals(this.#epoch)) throw new BrokenWire('a frame without its end')
      this.#held = b.subarray(whole)
      yield { type: b[8] as number, stream: b.readUInt16BE(10), payload: b.subarray(HEADER, HEADER + length) }
    }
  }

  /** Skip what a dead conversation left until our own WELCOME. */
  #greeted(): boolean {
    const wanted = Buffer.concat([WELCOME, this.#epoch])
    const at = this.#held.indexOf(wanted)
    if (at >= 0 && this.#held.length >= at + GREETING) {
      this.version = this.#held.readUInt16BE(at + wanted.length)
      this.#held = this.#held.subarray(at + GREETING)
      return true
    }
    const keep = at >= 0 ? this.#held.length - at : Math.min(this.#held.length, wanted.length - 1)
    this.#skipped += this.#held.length - keep
    if (this.#skipped > MAX_LEFTOVER) throw new BrokenWire('no answer to the greeting, but something else without end')
    this.#held = Buffer.from(this.#held.subarray(this.#held.length - keep))
    return false
  }

  /** In place of a frame: our WELCOME once more, because the greeting was repeated. False when more of it must come. */
  #again(): boolean {
    const b = this.#held
    if (!b.subarray(0, HEADER).equals(WELCOME)) throw new BrokenWire('what is no frame')
    if (b.length < GREETING) return false
    if (!b.subarray(HEADER, HEADER + EPOCH_BYTES).equals(this.#epoch)) throw new BrokenWire('an answer to another host')
    this.#held = b.subarray(GREETING)
    return true
  }
}
