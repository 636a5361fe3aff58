/** What a system call costs from here: `node bench/micro/calls.ts`. The first two are the floor: a call that does nothing, and errno. */
import benny from 'benny'
import { close, pipe, read, write } from '../../src/sys/fd.ts'
import { declare, Scratch } from '../../src/sys/libc.ts'
import { RouteSocket } from '../../src/sys/netlink.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { addressBytes, readMemory, SOCK_STREAM } from '../../src/sys/socket.ts'

const getppid = declare<() => number>('int getppid()')
const ends = pipe(0o4000)
const sockets = socketpair(SOCK_STREAM, true)
if (typeof ends === 'number' || typeof sockets === 'number') throw new Error('no descriptors')
const s = new Scratch(65536)
const routes = new RouteSocket()
const loopback = addressBytes('127.0.0.1')

await benny.suite(
  'system calls',
  benny.add('getppid', () => {
    getppid()
  }),
  benny.add('read that finds nothing', () => {
    read(ends[0], s.address, 64)
  }),
  benny.add('write and read 64 bytes of a pipe', () => {
    write(ends[1], s.address, 64)
    read(ends[0], s.address, 64)
  }),
  benny.add('write and read 32 KiB of a pipe', () => {
    write(ends[1], s.address, 32768)
    read(ends[0], s.address, 32768)
  }),
  benny.add('free send space (SO_MEMINFO)', () => {
    readMemory(sockets[0])
  }),
  benny.add('route of an address (rtnetlink)', () => {
    routes.route(loopback, 0)
  }),
  benny.cycle(),
)
for (const fd of [...ends, ...sockets]) close(fd)
