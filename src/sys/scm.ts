/**
 * Descriptors over unix sockets: SCM_RIGHTS (unix(7)).
 *
 * A descriptor that was received belongs to the receiver and is close-on-exec. If the kernel had no room for all of them
 * (MSG_CTRUNC) what arrived is still returned: the receiver counts.
 */
import { fcntl } from './fd.ts'
import { addressOf, declare, result, Scratch } from './libc.ts'
import { CMSG, CONTROL, Message } from './message.ts'
import { AF_UNIX, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET } from './socket.ts'

const c = {
  socketpair: declare<(domain: number, type: number, protocol: number, addr: number) => number>(
    'int socketpair(int, int, int, uintptr_t)',
  ),
}
const SCM_RIGHTS = 1
/** SCM_MAX_FD of the kernel is 253; nobody here needs more than a handful. */
export const FDS_MAX = 64
const SOCK_CLOEXEC = 0o2000000

const message = new Message(CMSG + 4 * FDS_MAX)
const pair = new Scratch(8)

/** Two connected unix sockets, close-on-exec; or −errno. `type`: SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET. */
export function socketpair(type = SOCK_STREAM, nonblock = false): readonly [number, number] | number {
  const flags = type | SOCK_CLOEXEC | (nonblock ? SOCK_NONBLOCK : 0)
  const r = result(c.socketpair(AF_UNIX, flags, 0, pair.address))
  return r < 0 ? r : [pair.i32(0), pair.i32(4)]
}

/**
 * Send bytes with descriptors attached to the first of them. Bytes taken (on a stream possibly fewer than given: the
 * descriptors have gone with what was taken, the rest is sent without), or −errno. `bytes` must not be empty.
 */
export function sendWithFds(sock: number, bytes: Uint8Array, fds: readonly number[]): number {
  if (fds.length > FDS_MAX) throw new RangeError(`${fds.length} descriptors in one message`)
  message.payload(addressOf(bytes), bytes.length)
  message.name(0)
  message.control(0)
  if (fds.length > 0) {
    const end = message.header(CONTROL, SOL_SOCKET, SCM_RIGHTS, 4 * fds.length)
    fds.forEach((fd, i) => {
      message.scratch.setI32(CONTROL + CMSG + 4 * i, fd)
    })
    message.control(end - CONTROL)
  }
  return message.send(sock, MSG_NOSIGNAL)
}

export interface Received {
  /** Empty: the peer has closed. */
  readonly bytes: Uint8Array
  readonly fds: readonly number[]
}

/** Up to `max` bytes and the descriptors that came with them, or −errno. */
export function recvWithFds(sock: number, max: number): Received | number {
  const bytes = new Uint8Array(new ArrayBuffer(max))
  message.payload(addressOf(bytes), max)
  const r = message.recv(sock, MSG_CMSG_CLOEXEC)
  if (r < 0) return r
  const fds: number[] = []
  const data = message.find(SOL_SOCKET, SCM_RIGHTS)
  if (data !== 0) for (let i = 0; i < message.dataLength(data); i += 4) fds.push(message.scratch.i32(data + i))
  return { bytes: bytes.subarray(0, r), fds }
}

/** Is this descriptor open? (fcntl F_GETFD) */
export function isOpen(fd: number): boolean {
  return fcntl(fd, 1, 0) >= 0
}
