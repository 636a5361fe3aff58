/**
 * Memory that another process shares by a descriptor (mmap(2), memfd_create(2)), and eventfd(2).
 *
 * A view of a mapping must not be touched once it is unmapped (SIGSEGV), nor beyond what the file has (SIGBUS): the caller drops its views
 * first, and maps no more than `sizeOf` says. Results are ≥ 0 or −errno.
 */
import { fstatSync } from 'node:fs'
import koffi from 'koffi'
import { read, write } from './fd.ts'
import { declare, result, Scratch } from './libc.ts'

const PROT_READ_WRITE = 3
const MAP_SHARED = 1
const MAP_NORESERVE = 0x4000
const EFD_NONBLOCK = 0o4000
const EFD_CLOEXEC = 0o2000000
const MFD_CLOEXEC = 1

const c = {
  mmap: declare<(at: number, length: number, prot: number, flags: number, fd: number, offset: number) => number>(
    'intptr_t mmap(uintptr_t at, size_t length, int prot, int flags, int fd, int64_t offset)',
  ),
  munmap: declare<(at: number, length: number) => number>('int munmap(uintptr_t at, size_t length)'),
  memcpy: declare<(to: number, from: number, len: number) => number>('uintptr_t memcpy(uintptr_t, uintptr_t, size_t)'),
  eventfd: declare<(value: number, flags: number) => number>('int eventfd(unsigned int, int)'),
  memfd: declare<(name: string, flags: number) => number>('int memfd_create(const char *, unsigned int)'),
}

export interface Mapping {
  readonly address: number
  readonly length: number
  readonly buffer: ArrayBuffer
}

/** Map part of a file, to read and write what others see; or −errno. */
export function mapShared(fd: number, offset: number, length: number): Mapping | number {
  const address = result(c.mmap(0, length, PROT_READ_WRITE, MAP_SHARED | MAP_NORESERVE, fd, offset))
  if (address < 0) return address
  return { address, length, buffer: koffi.view(address as never, length) as ArrayBuffer }
}

export function unmap({ address, length }: Mapping): number {
  return result(c.munmap(address, length))
}

/** Bytes of the file behind a descriptor. */
export const sizeOf = (fd: number): number => fstatSync(fd).size

/** Memory without a file's name, close-on-exec. */
export const memfd = (name: string): number => result(c.memfd(name, MFD_CLOEXEC))

/** memcpy(3) between addresses: below some KiB a loop over a view is faster. */
export function copy(to: number, from: number, len: number): void {
  c.memcpy(to, from, len)
}

const counter = new Scratch(8)
const one = new Scratch(8)
one.setWord(0, 1)

/** A non-blocking eventfd, close-on-exec. */
export const eventfd = (): number => result(c.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))

export function signalEvent(fd: number): number {
  return write(fd, one.address, 8)
}

/** Reset it: 8, or −EAGAIN when it was not signalled. */
export function clearEvent(fd: number): number {
  return read(fd, counter.address, 8)
}
