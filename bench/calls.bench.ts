/** What a system call costs from here. The first is the floor: a call that does nothing. */
import { close, pipe, read, write } from '../src/sys/fd.ts'
import { declare, Scratch } from '../src/sys/libc.ts'
import { RouteSocket } from '../src/sys/netlink.ts'
import { socketpair } from '../src/sys/scm.ts'
import { addressBytes, readMemory, SOCK_STREAM } from '../src/sys/socket.ts'
import { suite } from './lib/suite.ts'

const getppid = declare<() => number>('int getppid()')
const ends = pipe(0o4000)
const sockets = socketpair(SOCK_STREAM, true)
if (typeof ends === 'number' || typeof sockets === 'number') throw new Error('no descriptors')
const s = new Scratch(65536)
const routes = new RouteSocket()
const loopback = addressBytes('127.0.0.1')

await suite('calls', {
  getppid: { kernel: true, run: () => void getppid() },
  'read that finds nothing': { kernel: true, run: () => void read(ends[0], s.address, 64) },
  'write and read 64 bytes of a pipe': {
    kernel: true,
    run: () => {
      write(ends[1], s.address, 64)
      read(ends[0], s.address, 64)
    },
  },
  'write and read 32 KiB of a pipe': {
    kernel: true,
    run: () => {
      write(ends[1], s.address, 32768)
      read(ends[0], s.address, 32768)
    },
  },
  'free send space (SO_MEMINFO)': { kernel: true, run: () => void readMemory(sockets[0]) },
  'route of an address (rtnetlink)': { kernel: true, run: () => void routes.route(loopback, 0) },
})
for (const fd of [...ends, ...sockets]) close(fd)
