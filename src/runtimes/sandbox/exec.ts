/**
 * Commands inside a running VM.
 *
 * A command is the child of nsenter, in a session of its own, so that signals reach it and what it started and nothing
 * of the host. Without a terminal its three streams are real pipes; with one they are the VM's own pseudo-terminal.
 * What a shell would say is said: 127 and a sentence for an unknown command, 126 for a directory that cannot be entered.
 * Invariant: after `exit`, the streams end by themselves, also when something in the background keeps them open.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, fchownSync } from 'node:fs'
import { Socket } from 'node:net'
import { PassThrough, type Readable, Writable } from 'node:stream'
import { ReadStream } from 'node:tty'
import { NoidError } from '../../errors.ts'
import { errnoText } from '../../sys/errno.ts'
import { childrenOf, signalNumber } from '../../sys/process.ts'
import { openTerminal, pipe, setWindowSize } from '../../sys/pty.ts'
import type { ExecRequest, ExecSession, VmHandle } from '../contract.ts'
import { enterCommand, type SandboxState } from './enter.ts'
import { VM_PATH } from './script.ts'
import { lookUpUser, type VmUser } from './users.ts'

/** $1 PATH of the command, $2 directory or nothing, $3 setsid's option, $4 supplementary groups or nothing, then argv. */
const wrapper = `
path=$1 dir=$2 option=$3; shift 3
if [ -z "$dir" ]; then cd "$HOME" 2>/dev/null || cd /
elif ! cd -- "$dir" 2>/dev/null; then
  if [ -e "$dir" ]; then why='cannot be entered'; else why='does not exist'; fi
  printf '%s\\n' "noid: the directory $dir $why in this VM" >&2
  exit 126
fi
setsid=$(command -v setsid)
PATH=$path
if ! command -v -- "$1" >/dev/null 2>&1; then
  if [ -e "$1" ]; then printf '%s\\n' "noid: $1 cannot be executed in this VM" >&2; exit 126; fi
  printf '%s\\n' "noid: $1: command not found in this VM" >&2
  exit 127
fi
[ -n "$setsid" ] || exec "$@"
exec "$setsid" $option "$@"
`

/** Start a command. Throws EXEC_FAILED for an unknown user or when no terminal can be had. */
export async function execute(vmName: string, h: VmHandle, s: SandboxState, r: ExecRequest): Promise<ExecSession> {
  const user = r.user === undefined ? undefined : await lookUpUser(vmName, h, s, r.user)
  const path = r.env.PATH ?? VM_PATH
  const env: Record<string, string> = {
    HOME: user?.home ?? '/root',
    USER: user?.name ?? 'root',
    LOGNAME: user?.name ?? 'root',
    HOSTNAME: s.name,
    LANG: 'C.UTF-8',
    ...(r.tty ? { TERM: 'xterm-256color' } : {}),
    ...r.env,
    PATH: VM_PATH,
  }
  const argv = [
    ...enterCommand(h.pid, s, user),
    ...['/bin/sh', '-c', wrapper, 'noid', path, r.cwd ?? '', r.tty ? '-c' : ''],
    ...r.argv,
  ]
  return r.tty ? withTerminal(vmName, h, r, argv, env) : withPipes(s, user, argv, env)
}

const launch = (argv: readonly string[], env: Record<string, string>, stdio: readonly [number, number, number]) =>
  // A session of its own on the host too: what ends the daemon by its terminal does not end commands.
  spawn(argv[0] as string, argv.slice(1), { env, stdio: [...stdio], detached: true, cwd: '/' })

function withPipes(
  s: SandboxState,
  user: VmUser | undefined,
  argv: string[],
  env: Record<string, string>,
): ExecSession {
  const pairs = [makePipe(), makePipe(), makePipe()] as const
  const [input, output, error] = pairs
  // /dev/stdin and its like open the pipe again: it must belong to who runs inside.
  if (s.privileged)
    for (const fd of [input[0], output[1], error[1]])
      fchownSync(fd, s.owner + (user?.uid ?? 0), s.owner + (user?.gid ?? 0))
  let child: ChildProcess
  try {
    child = launch(argv, env, [input[0], output[1], error[1]])
  } finally {
    for (const fd of [input[0], output[1], error[1]]) closeSync(fd)
  }
  const stdin = new Socket({ fd: input[1], readable: false, writable: true })
  // The command need not read what it is sent.
  stdin.on('error', () => stdin.destroy())
  const stdout = new Socket({ fd: output[0], readable: true, writable: false })
  const stderr = new Socket({ fd: error[0], readable: true, writable: false })
  return session(child, stdin, stdout, stderr, () => {})
}

function withTerminal(
  vmName: string,
  h: VmHandle,
  r: ExecRequest,
  argv: string[],
  env: Record<string, string>,
): ExecSession {
  const t = openTerminal(`/proc/${h.pid}/root/dev/pts/ptmx`)
  if ('error' in t) throw new NoidError('EXEC_FAILED', { vm: vmName, why: t.error })
  if (r.rows && r.cols) setWindowSize(t.master, r.rows, r.cols)
  let child: ChildProcess
  try {
    child = launch(argv, env, [t.slave, t.slave, t.slave])
  } finally {
    closeSync(t.slave)
  }
  const terminal = new ReadStream(t.master)
  const stdout = new PassThrough()
  let open = true
  // EIO says that nobody has the other end any more.
  terminal.on('error', () => terminal.destroy())
  terminal.on('close', () => {
    open = false
    stdout.end()
  })
  terminal.pipe(stdout, { end: false })
  stdout.on('close', () => terminal.destroy())
  const stdin = new Writable({
    write: (chunk, _encoding, done) => {
      if (!open) done()
      else terminal.write(chunk, () => done())
    },
    // A terminal has no half-close: the line discipline's end-of-file character says it.
    final: (done) => {
      if (open) terminal.write('\x04')
      done()
    },
  })
  return session(child, stdin, stdout, undefined, (rows, cols) => {
    if (open) setWindowSize(t.master, rows, cols)
  })
}

function makePipe(): readonly [number, number] {
  const p = pipe()
  if (typeof p === 'number') throw new NoidError('EXEC_FAILED', { vm: '', why: `no pipe: ${errnoText(p)}` })
  return p
}

function session(
  child: ChildProcess,
  stdin: Writable,
  stdout: Readable,
  stderr: Readable | undefined,
  resize: (rows: number, cols: number) => void,
): ExecSession {
  let ended = false
  const outputs = stderr === undefined ? [stdout] : [stdout, stderr]
  const signal = (name: string): void => {
    const n = signalNumber(name)
    if (n !== undefined && !ended) void deliver(child, n, () => ended)
  }
  const exit = new Promise<number>((resolve) => {
    child.once('error', () => {
      ended = true
      resolve(126)
    })
    child.once('exit', (code, by) => {
      ended = true
      resolve(by === null ? (code ?? 255) : 128 + (signalNumber(by) ?? 0))
      stdin.destroy()
      for (const o of outputs) endWhenIdle(o)
    })
  })
  // Nobody listens any more: the command is told as a terminal that is closed tells it.
  for (const o of outputs)
    o.once('close', () => {
      if (!o.readableEnded && !ended) signal('SIGHUP')
    })
  return { stdin, stdout, stderr, signal, resize, exit }
}

/** How long a stream may stay silent, and empty, after its command has ended. */
const LINGER_MS = 250

function endWhenIdle(o: Readable): void {
  let seen = -1
  const timer = setInterval(() => {
    const s = o as Readable & { bytesRead?: number }
    if (o.destroyed || o.readableEnded) return clearInterval(timer)
    // The reader is slow, not the writer: what was read stays to be taken.
    if (o.readableLength > 0 || o.isPaused()) return
    const now = s.bytesRead ?? 0
    if (now === seen) {
      clearInterval(timer)
      o.push(null)
    }
    seen = now
  }, LINGER_MS)
  timer.unref()
}

/** Signal the command's process group, once there is a command; nsenter itself lives on to tell how it ended. */
async function deliver(child: ChildProcess, signal: number, ended: () => boolean): Promise<void> {
  while (!ended()) {
    const pid = childrenOf(child.pid as number)[0]
    if (pid !== undefined) {
      try {
        process.kill(-pid, signal)
      } catch {
        try {
          // It has no session yet.
          process.kill(pid, signal)
        } catch {
          // It ended meanwhile.
        }
      }
      return
    }
    await new Promise((r) => setTimeout(r, 5))
  }
}
