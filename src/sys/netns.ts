/**
 * Network namespaces: setns(2).
 *
 * setns moves the calling thread only; Node's own thread pool and other workers stay where they were. So `inNetns` is
 * synchronous, and what is opened inside it (a TAP, a socket) belongs to that namespace for ever.
 */
import { must } from './errno.ts'
import { close, O_RDONLY, open } from './fd.ts'
import { declare, result } from './libc.ts'

const c = {
  setns: declare<(fd: number, type: number) => number>('int setns(int, int)'),
  unshare: declare<(flags: number) => number>('int unshare(int)'),
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
