/**
 * Terminals and pipes for commands that run inside a VM.
 *
 * A terminal is opened from the VM's own devpts, so that `tty` and everything built on it works inside. The VM's root
 * may have put anything at that path: what was opened is compared with the kernel's number of ptmx (5:2) before it is
 * used, and the other end comes from the master itself (TIOCGPTPEER), never from a path.
 * Pipes are real ones: Node's are sockets, which /dev/stdin and /dev/stderr cannot open again.
 *
 * Everything returns a descriptor, 0, or -errno.
 */
import { closeSync, constants, fstatSync, openSync } from 'node:fs'
import { errnoText } from './errno.ts'
import { ioctl } from './fd.ts'
import { declare, result, Scratch } from './libc.ts'

const c = { pipe2: declare<(fds: number, flags: number) => number>('int pipe2(uintptr_t, int)') }
/** Words of the calls: a lock, a struct winsize, two descriptors. */
const s = new Scratch(8)

/** asm-generic/ioctls.h */
const TIOCSWINSZ = 0x5414
const TIOCSPTLCK = 0x40045431
const TIOCGPTPEER = 0x5441
const O_CLOEXEC = 0o2000000
const PTMX = (5 << 8) | 2

export interface Terminal {
  readonly master: number
  readonly slave: number
}

/** Open a terminal of the devpts that `ptmx` belongs to, or the reason why not. */
export function openTerminal(ptmx: string): Terminal | { readonly error: string } {
  let master: number
  try {
    master = openSync(ptmx, constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
  } catch (e) {
    return { error: (e as Error).message }
  }
  const opened = fstatSync(master)
  if (!opened.isCharacterDevice() || opened.rdev !== PTMX) {
    closeSync(master)
    return { error: `${ptmx} is not a terminal multiplexer` }
  }
  s.setI32(0, 0)
  const unlocked = ioctl(master, TIOCSPTLCK, s.address)
  const slave = unlocked < 0 ? unlocked : ioctl(master, TIOCGPTPEER, constants.O_RDWR | constants.O_NOCTTY | O_CLOEXEC)
  if (slave < 0) {
    closeSync(master)
    return { error: `no terminal: ${errnoText(slave)}` }
  }
  return { master, slave }
}

/** Tell a terminal its size; its foreground processes get SIGWINCH. */
export function setWindowSize(fd: number, rows: number, cols: number): number {
  s.setU16(0, rows)
  s.setU16(2, cols)
  s.setI32(4, 0)
  return ioctl(fd, TIOCSWINSZ, s.address)
}

/** pipe2(2), closed on exec: [read end, write end], or -errno. */
export function pipe(): readonly [number, number] | number {
  const r = result(c.pipe2(s.address, O_CLOEXEC))
  return r < 0 ? r : [s.i32(0), s.i32(4)]
}
