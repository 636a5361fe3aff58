/**
 * Network namespaces: setns(2).
 *
 * setns moves the calling thread only; Node's own thread pool and other workers stay where they were. So `inNetns` is
 * synchronous, and what is opened inside it (a TAP, a socket) belongs to that namespace for ever.
 */
import { statSync } from 'node:fs'
import { must } from './errno.ts'
import { close, O_RDONLY, open } from './fd.ts'
import { declare, result, Scratch } from './libc.ts'
import { AF_INET, SOCK_DGRAM, SOL_SOCKET, socket } from './socket.ts'

const c = {
  setns: declare<(fd: number, type: number) => number>('int setns(int, int)'),
  unshare: declare<(flags: number) => number>('int unshare(int)'),
  getsockopt: declare<(fd: number, level: number, name: number, value: number, length: number) => number>(
    'int getsockopt(int, int, int, uintptr_t, uintptr_t)',
  ),
}
export const CLONE_NEWNET = 0x40000000
export const CLONE_NEWNS = 0x00020000

/** Move the calling thread into new namespaces (unshare(2)); what it starts afterwards is in them too. 0, or −errno. */
export function unshare(flags: number): number {
  return result(c.unshare(flags))
}

export function setns(fd: number, type: number): number {
  return result(c.setns(fd, type))
}

/**
 * Run `fn` with this thread in the network namespace at `path` (/proc/PID/ns/net) and come back. Throws SysError when the
 * namespace cannot be entered; ends the process when the way back fails, as everything after would be in the wrong place.
 */
export function inNetns<T>(path: string, fn: () => T): T {
  const own = must('open /proc/thread-self/ns/net', open('/proc/thread-self/ns/net', O_RDONLY))
  try {
    const there = must(`open ${path}`, open(path, O_RDONLY))
    try {
      must(`setns ${path}`, setns(there, CLONE_NEWNET))
    } finally {
      close(there)
    }
    try {
      return fn()
    } finally {
      if (setns(own, CLONE_NEWNET) < 0) {
        console.error('noid: cannot return to its own network namespace')
        process.abort()
      }
    }
  } finally {
    close(own)
  }
}

const SO_NETNS_COOKIE = 71
const EXACTLY = 8

/**
 * A name for the current network namespace that no other has had or will have until the machine is started again (SO_NETNS_COOKIE, Linux 5.14);
 * before that its inode, which is given again after its end.
 */
export function netnsName(): string {
  const fd = must('socket', socket(AF_INET, SOCK_DGRAM))
  try {
    const s = new Scratch(16)
    s.view.setUint32(8, EXACTLY, true)
    const r = c.getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, s.address, s.address + 8)
    if (r >= 0) return `cookie-${s.view.getBigUint64(0, true)}`
  } finally {
    close(fd)
  }
  return `inode-${statSync('/proc/thread-self/ns/net').ino}`
}
