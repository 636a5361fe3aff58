/**
 * Processes: who one is beyond its number, and how to end exactly that one.
 *
 * A pid alone is a name that the kernel gives again; pid + start time (field 22 of /proc/PID/stat) names one process of
 * this boot. A signal goes through a pidfd that was opened before the start time was compared, so nothing can be
 * reused in between (pidfd_open(2), pidfd_send_signal(2)).
 *
 * Never does: waiting on timers of its own; deciding whom to end.
 */
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { close } from './fd.ts'
import { declare, result } from './libc.ts'

const c = {
  pidfdOpen: declare<(n: number, pid: number, flags: number) => number>('long syscall(long, int, unsigned int)'),
  pidfdSignal: declare<(n: number, fd: number, signal: number, info: number, flags: number) => number>(
    'long syscall(long, int, int, uintptr_t, unsigned int)',
  ),
  unshare: declare<(flags: number) => number>('int unshare(int)'),
  fcntl: declare<(fd: number, command: number, argument: number) => number>('int fcntl(int, int, long)'),
  closeRange: declare<(n: number, first: number, last: number, flags: number) => number>(
    'long syscall(long, unsigned int, unsigned int, unsigned int)',
  ),
  dup2: declare<(from: number, to: number) => number>('int dup2(int, int)'),
}
const SYS_pidfd_send_signal = 424
const SYS_pidfd_open = 434
const SYS_close_range = 436
const CLOSE_RANGE_CLOEXEC = 4
const F_SETFD = 2
/** include/uapi/linux/sched.h */
export const CLONE_NEWNS = 0x00020000

export interface ProcessStat {
  readonly pid: number
  /** R, S, D, Z, ... as proc(5) has it. */
  readonly state: string
  readonly parent: number
  /** In clock ticks since boot, as text: it is compared, never computed with. */
  readonly startTime: string
}

/** What /proc says of a process, or undefined when there is none. */
export function processStat(pid: number): ProcessStat | undefined {
  let text: string
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  const rest = text.slice(text.lastIndexOf(')') + 2).split(' ')
  return { pid, state: rest[0] as string, parent: Number(rest[1]), startTime: rest[19] as string }
}

/** Does the process with that number and start time still run? A zombie does not. */
export function isRunning(pid: number, startTime: string): boolean {
  const s = processStat(pid)
  return s !== undefined && s.startTime === startTime && s.state !== 'Z' && s.state !== 'X'
}

/** Who started it, whatever set-id programs it became since; undefined when it is gone. */
export function realUser(pid: number): number | undefined {
  try {
    const uid = /^Uid:\t(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1]
    return uid === undefined ? undefined : Number(uid)
  } catch {
    return undefined
  }
}

/** The children of every thread of a process, as the pid namespace of /proc numbers them. */
export function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').split(' ').filter(Boolean).map(Number)
  } catch {
    return []
  }
}

export const signalNumber = (name: string): number | undefined =>
  (constants.signals as Readonly<Record<string, number>>)[name]

/**
 * Send a signal to the process that pid and start time name, and to no other. 0, or -errno; -ESRCH when it is gone.
 */
export function signalExactly(pid: number, startTime: string, signal: number): number {
  const fd = result(c.pidfdOpen(SYS_pidfd_open, pid, 0))
  if (fd < 0) return fd
  try {
    if (!isRunning(pid, startTime)) return -constants.errno.ESRCH
    return result(c.pidfdSignal(SYS_pidfd_send_signal, fd, signal, 0, 0))
  } finally {
    close(fd)
  }
}

/** unshare(2) of the calling thread: 0 or -errno. */
export const unshare = (flags: number): number => result(c.unshare(flags))

/** Let a descriptor pass through execve, as the same number. 0 or -errno. */
export const keepOnExec = (fd: number): number => result(c.fcntl(fd, F_SETFD, 0))

/**
 * Let no descriptor from `first` on pass through an execve of this process: what it inherited itself would otherwise
 * reach a VM. 0 or -errno (-EINVAL before Linux 5.11).
 */
export const closeOnExec = (first: number): number =>
  result(c.closeRange(SYS_close_range, first, 0xffffffff, CLOSE_RANGE_CLOEXEC))

/** dup2(2): the new number or -errno. */
export const dup2 = (from: number, to: number): number => result(c.dup2(from, to))
