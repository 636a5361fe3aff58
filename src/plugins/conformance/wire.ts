/**
 * A guest's nic between two worlds: a TAP in the guest's namespace, and the socket that a backend gave for a QEMU.
 *
 * `node wire.ts IFNAME MAC MTU PATH PEER`, run in the namespace: makes the TAP, binds PEER, passes frames between the TAP and PATH, one to a
 * datagram, without offloads, as QEMU's `-netdev dgram` does: it sends to the path each time, and does not care who is there. "ready" is printed when
 * the device is there. It ends when it is killed; the device goes with it.
 */
import { rmSync } from 'node:fs'
import { openTap } from '#tun-tap'
import { EPOLLIN, Epoll } from '../../sys/epoll.ts'
import { must } from '../../sys/errno.ts'
import { read, write } from '../../sys/fd.ts'
import { Scratch } from '../../sys/libc.ts'
import { Message, NAME } from '../../sys/message.ts'
import { AF_UNIX, bind, MSG_DONTWAIT, recv, SOCK_DGRAM, SOCK_NONBLOCK, socket } from '../../sys/socket.ts'

const FRAME_MAX = 65_536 + 14
/** Frames of one side before the other has its turn. */
const TURN = 64
const EAGAIN = 11
const WAIT_MS = 1

const [ifname = '', mac = '', mtu = '', path = '', peer = ''] = process.argv.slice(2)
const tap = openTap({ name: ifname, mac, mtu: Number(mtu), up: true })
rmSync(peer, { force: true })
const sock = must('socket', socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK))
must(`bind ${peer}`, bind(sock, { family: 'unix', path: peer }))
const frame = new Scratch(FRAME_MAX)
const message = new Message()
message.scratch.setU16(NAME, AF_UNIX)
message.name(2 + message.scratch.setText(NAME + 2, path))

const epoll = new Epoll(2)
must('watch the TAP', epoll.add(tap.fd, EPOLLIN))
must('watch the socket', epoll.add(sock, EPOLLIN))
console.log('ready')

function fromTap(): void {
  for (let n = 0; n < TURN; n++) {
    const len = read(tap.fd, frame.address, FRAME_MAX)
    if (len < 0) return
    message.payload(frame.address, len)
    while (message.send(sock, MSG_DONTWAIT) === -EAGAIN) epoll.wait(WAIT_MS)
  }
}

function fromSocket(): void {
  for (let n = 0; n < TURN; n++) {
    const len = recv(sock, frame.address, FRAME_MAX)
    if (len < 0) return
    write(tap.fd, frame.address, len)
  }
}

for (;;) {
  const n = epoll.wait(-1)
  for (let i = 0; i < n; i++) (epoll.fdOf(i) === tap.fd ? fromTap : fromSocket)()
}
