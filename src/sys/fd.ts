/**
 * File descriptors: read, write, close, fcntl, ioctl, pipe, dup, open.
 *
 * Results are ≥ 0 or −errno. `addr` is an address from addressOf; the caller keeps its memory alive.
 */
import { declare, result, Scratch } from './libc.ts'

const c = {
  read: declare<(fd: number, addr: number, len: number) => number>('long read(int, uintptr_t, size_t)'),
  write: declare<(fd: number, addr: number, len: number) => number>('long write(int, uintptr_t, size_t)'),
  close: declare<(fd: number) => number>('int close(int)'),
  fcntl: declare<(fd: number, op: number, arg: number) => number>('int fcntl(int, int, long)'),
  ioctl: declare<(fd: number, request: number, addr: number) => number>('int ioctl(int, unsigned long, uintptr_t)'),
  pipe2: declare<(addr: number, flags: number) => number>('int pipe2(uintptr_t, int)'),
  open: declare<(path: string, flags: number, mode: number) => number>('int open(const char *, int, unsigned int)'),
}

// asm-generic/fcntl.h
export const O_RDONLY = 0
export const O_WRONLY = 1
export const O_RDWR = 2
export const O_NONBLOCK = 0o4000
export const O_CLOEXEC = 0o2000000
const F_GETFL = 3
const F_SETFL = 4
const F_DUPFD_CLOEXEC = 1030

const scratch = new Scratch(64)

export function read(fd: number, addr: number, len: number): number {
  const r = c.read(fd, addr, len)
  return r < 0 ? result(r) : r
}

export function write(fd: number, addr: number, len: number): number {
  const r = c.write(fd, addr, len)
  return r < 0 ? result(r) : r
}

export function close(fd: number): number {
  return result(c.close(fd))
}

export function fcntl(fd: number, op: number, arg: number): number {
  return result(c.fcntl(fd, op, arg))
}

/** ioctl with a pointer, or with an integer in its place. */
export function ioctl(fd: number, request: number, addr: number): number {
  return result(c.ioctl(fd, request, addr))
}

const FIONREAD = 0x541b

/** Bytes that are there to be read (tcp(7): SIOCINQ), or −errno. */
export function unread(fd: number): number {
  const r = ioctl(fd, FIONREAD, scratch.address)
  return r < 0 ? r : scratch.i32(0)
}

/** Always close-on-exec. `flags`: O_*. */
export function open(path: string, flags: number, mode = 0): number {
  return result(c.open(path, flags | O_CLOEXEC, mode))
}

/** [read end, write end], close-on-exec; or −errno. `flags`: O_NONBLOCK or 0. */
export function pipe(flags = 0): readonly [number, number] | number {
  const r = result(c.pipe2(scratch.address, flags | O_CLOEXEC))
  return r < 0 ? r : [scratch.i32(0), scratch.i32(4)]
}

/** A second descriptor of the same open file, close-on-exec, numbered `least` or above. */
export function dup(fd: number, least = 0): number {
  return result(c.fcntl(fd, F_DUPFD_CLOEXEC, least))
}

export function setNonblock(fd: number, on: boolean): number {
  const flags = result(c.fcntl(fd, F_GETFL, 0))
  return flags < 0 ? flags : result(c.fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK))
}
