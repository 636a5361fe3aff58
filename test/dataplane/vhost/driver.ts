/** The front-end and the guest's driver in one: memory in a memfd, vhost-user messages, two split rings that a test may fill with anything. */
import assert from 'node:assert/strict'
import { ftruncateSync } from 'node:fs'
import { close } from '../../../src/sys/fd.ts'
import { clearEvent, eventfd, type Mapping, mapShared, memfd, unmap } from '../../../src/sys/memory.ts'
import { recvWithFds, sendWithFds } from '../../../src/sys/scm.ts'
import { AF_UNIX, connect, SOCK_NONBLOCK, SOCK_STREAM, socket } from '../../../src/sys/socket.ts'

export const SIZE = 64
export const MEMORY = 1 << 20
/** Where QEMU says that it has the memory, and where the guest does. */
const USER = 0x7f00_0000_0000
export const GUEST = 0x1_0000_0000
const TABLE = [0x1000, 0x4000]
const AVAILABLE = [0x2000, 0x5000]
const USED = [0x3000, 0x6000]
export const HEADER = 12

export const NEXT = 1
export const WRITE = 2
export const INDIRECT = 4
/** VERSION_1, PROTOCOL_FEATURES, MRG_RXBUF, the checksum and segments of TCP both ways. */
export const FEATURES = (1n << 32n) | (1n << 30n) | (1n << 15n) | 0x1983n
export const EVENT_IDX = 1n << 29n

export class Driver {
  readonly fd: number
  readonly file = memfd('guest')
  readonly memory: Mapping
  readonly view: DataView
  readonly bytes: Uint8Array
  readonly kick = [eventfd(), eventfd()]
  readonly call = [eventfd(), eventfd()]
  readonly #offered = [0, 0]

  constructor(path: string) {
    ftruncateSync(this.file, MEMORY)
    this.memory = mapShared(this.file, 0, MEMORY) as Mapping
    this.view = new DataView(this.memory.buffer)
    this.bytes = new Uint8Array(this.memory.buffer)
    this.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
    assert.equal(connect(this.fd, { family: 'unix', path }), 0)
  }

  send(request: number, payload: readonly bigint[] | Uint8Array, fds: readonly number[] = [], flags = 1): void {
    const body = payload instanceof Uint8Array ? payload : new Uint8Array(new BigUint64Array(payload).buffer)
    const bytes = new Uint8Array(12 + body.length)
    new Uint32Array(bytes.buffer, 0, 3).set([request, flags, body.length])
    bytes.set(body, 12)
    sendWithFds(this.fd, bytes, fds)
  }

  /** The next answer's payload as 64-bit words; undefined when there is none, null when the other side has closed. */
  answer(): BigUint64Array | undefined | null {
    const r = recvWithFds(this.fd, 20)
    if (typeof r === 'number') return r === -104 ? null : undefined
    return r.bytes.length === 0 ? null : new BigUint64Array(r.bytes.slice(12).buffer)
  }

  /** Everything up to rings that run. @param bases how far they are */
  setUp(features = FEATURES, bases: readonly [number, number] = [0, 0]): void {
    this.send(2, [features])
    this.send(3, [])
    this.send(5, [1n, BigInt(GUEST), BigInt(MEMORY), BigInt(USER), 0n], [this.file])
    for (const q of [0, 1]) {
      this.send(8, [BigInt(q) | (BigInt(SIZE) << 32n)])
      this.send(10, [BigInt(q) | (BigInt(bases[q] as number) << 32n)])
      this.send(9, [BigInt(q), ...[TABLE, USED, AVAILABLE].map((at) => BigInt(USER + (at[q] as number))), 0n])
      this.send(13, [BigInt(q)], [this.call[q] as number])
      this.send(12, [BigInt(q)], [this.kick[q] as number])
      this.send(18, [BigInt(q) | (1n << 32n)])
    }
  }

  /** One descriptor of a queue's table, or of a table at `table`. */
  descriptor(q: number, i: number, at: number, len: number, flags: number, next = 0, table = TABLE[q] as number): void {
    this.view.setBigUint64(table + 16 * i, BigInt(at), true)
    this.view.setUint32(table + 16 * i + 8, len, true)
    this.view.setUint16(table + 16 * i + 12, flags, true)
    this.view.setUint16(table + 16 * i + 14, next, true)
  }

  /** Offer a head; the device is told by `kicked`. */
  offer(q: number, head: number): void {
    const n = this.#offered[q] as number
    this.view.setUint16((AVAILABLE[q] as number) + 4 + 2 * (n % SIZE), head, true)
    this.setOffered(q, n + 1)
  }

  setOffered(q: number, n: number): void {
    this.#offered[q] = n & 0xffff
    this.view.setUint16((AVAILABLE[q] as number) + 2, n, true)
  }

  used(q: number): number {
    return this.view.getUint16((USED[q] as number) + 2, true)
  }

  usedAt(q: number, n: number): { head: number; length: number } {
    const at = (USED[q] as number) + 4 + 8 * (n % SIZE)
    return { head: this.view.getUint32(at, true), length: this.view.getUint32(at + 4, true) }
  }

  called(q: number): boolean {
    return clearEvent(this.call[q] as number) > 0
  }

  close(): void {
    for (const fd of [this.fd, this.file, ...this.kick, ...this.call]) close(fd)
    unmap(this.memory)
  }
}
