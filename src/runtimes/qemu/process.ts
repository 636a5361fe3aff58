/**
 * A QEMU process: started in its VM's run directory, detached, so that it outlives the daemon; found again by its name.
 *
 * Every QEMU of noid carries `-name guest=noid-ID` as an argument of its own: one that a daemon started and did not live to write down is
 * found by that, and ended. Its standard output and error go to a file; its last lines are what a person is told when it dies.
 * Never does: speaking to QEMU, knowing what is in the VM.
 */
import { spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync, readSync, statSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { NoidError } from '../../errors.ts'
import { isRunning, type ProcessStat, processStat, signalExactly, signalNumber } from '../../sys/process.ts'
import { processesWith } from '../sandbox/mark.ts'

const KILL = signalNumber('SIGKILL') as number
const END_MS = 10_000
const TAIL = 2_000

export interface Running {
  readonly pid: number
  readonly startTime: string
  /** Resolves with words when it has ended; only for the process that started it. */
  readonly ended: Promise<string>
}

export const markOf = (id: string): string => `guest=noid-${id}`

export interface Launch {
  readonly program: string
  readonly argv: readonly string[]
  /** The VM's run directory: relative paths are meant from here. */
  readonly cwd: string
  readonly log: string
  /** Inherited as 3, 4, ... */
  readonly fds: readonly number[]
}

/** Throws when it cannot be started at all; that it ends at once is told by `ended`. */
export function launch(o: Launch): Running {
  const log = openSync(o.log, 'a', 0o600)
  // What QEMU makes (sockets, files) is nobody else's; the child inherits the mask at the moment of its birth.
  const mask = process.umask(0o177)
  let child: ReturnType<typeof spawn>
  try {
    child = spawn(o.program, o.argv, {
      detached: true,
      cwd: o.cwd,
      stdio: ['ignore', log, log, ...o.fds],
      env: { PATH: '/usr/local/bin:/usr/bin:/bin', LANG: 'C.UTF-8' },
    })
  } finally {
    process.umask(mask)
    closeSync(log)
  }
  const ended = new Promise<string>((resolve) => {
    child.once('error', (e) => resolve(e.message))
    child.once('exit', (code, by) => resolve(by === null ? `it ended with code ${code}` : `it was ended by ${by}`))
  })
  child.unref()
  const s = child.pid === undefined ? undefined : processStat(child.pid)
  if (s === undefined) throw new Error(`${o.program} could not be started`)
  return { pid: s.pid, startTime: s.startTime, ended }
}

/** Every QEMU of that name, and what serves it; not what somebody else calls so (mark.ts). */
export const named = (id: string): ProcessStat[] => processesWith(markOf(id), id)

/** Kill whatever carries the name and wait until it is gone. */
export async function endAll(
  id: string,
  known: readonly { readonly pid: number; readonly startTime: string }[] = [],
): Promise<void> {
  const until = Date.now() + END_MS
  const seen = new Map(known.map((p) => [p.pid, p.startTime]))
  for (;;) {
    for (const p of named(id)) seen.set(p.pid, p.startTime)
    const left = [...seen].filter(([pid, startTime]) => isRunning(pid, startTime))
    if (left.length === 0) return
    for (const [pid, startTime] of left) signalExactly(pid, startTime, KILL)
    if (Date.now() > until) throw new NoidError('INTERNAL', { why: `process ${left[0]?.[0]} of a VM cannot be ended` })
    await sleep(5)
  }
}

/** True when it ended within the time. */
export async function waitForEnd(
  p: { readonly pid: number; readonly startTime: string },
  ms: number,
): Promise<boolean> {
  const until = Date.now() + ms
  while (isRunning(p.pid, p.startTime)) {
    if (Date.now() > until) return false
    await sleep(20)
  }
  return true
}

/** The last lines of a file, without what a terminal would take as a command. */
export function tail(file: string, lines: number): string {
  const size = statSync(file, { throwIfNoEntry: false })?.size ?? 0
  if (size === 0) return ''
  const fd = openSync(file, 'r')
  try {
    const b = Buffer.alloc(Math.min(size, TAIL))
    readSync(fd, b, 0, b.length, size - b.length)
    return printable(b.toString('utf8')).split('\n').filter(Boolean).slice(-lines).join('\n')
  } finally {
    closeSync(fd)
  }
}

/** A guest writes its console as it likes: escape sequences and control characters are left out. */
const printable = (text: string): string =>
  text.replace(/\p{Cc}\[[0-9;?]*[ -/]*[@-~]/gu, '').replace(/[^\P{Cc}\n]/gu, '')

/** Does a descriptor of that process still hold the TAP? (fdinfo of a tun file says `iff: NAME`; drivers/net/tun.c.) */
export function holdsTap(pid: number, fd: number, ifname: string): boolean {
  try {
    return new RegExp(`^iff:\\s*${ifname}$`, 'm').test(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8'))
  } catch {
    return false
  }
}
