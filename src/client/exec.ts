/**
 * The near end of a command in a VM: this process's stdin, stdout, stderr, terminal and signals, joined to one
 * connection of src/api/exec.ts.
 *
 * Backpressure is kept both ways: stdin is read only while the connection takes it, the connection only while stdout
 * and stderr take it. Nothing is lost at the end: the exit frame is the last, and what came before it is written out
 * before the code is returned. A terminal is put back as it was, whatever happens.
 */
import { readFileSync } from 'node:fs'
import type { Socket } from 'node:net'
import type { ReadStream, WriteStream } from 'node:tty'
import { encodeFrame, FrameReader, frameType } from '../api/exec.ts'
import { NoidError } from '../errors.ts'

const CHUNK = 64 * 1024

/** Signals a command is sent when this process gets them. SIGWINCH becomes a resize, SIGTSTP stays here. */
const FORWARDED: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2']

/** What a shell says of a process that ended by SIGPIPE. */
const SIGPIPE_EXIT = 141

export interface ExecIo {
  readonly stdin: NodeJS.ReadStream
  readonly stdout: NodeJS.WriteStream
  readonly stderr: NodeJS.WriteStream
}

/**
 * A background job must not touch the terminal: reading it would stop the job (SIGTTIN), and
 * `noid exec web -- server &` is a thing people type. /proc/self/stat: field 5 is the process group, 8 the terminal's
 * foreground group.
 */
export function inBackground(stat = readFileSync('/proc/self/stat', 'latin1')): boolean {
  const f = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const group = Number(f[2])
  const foreground = Number(f[5])
  return foreground > 0 && group !== foreground
}

export interface ExecManner {
  /** This process's terminal becomes the command's. */
  readonly tty: boolean
  /** A byte of stdin that leaves, with code 0; then signals are this process's own. */
  readonly escape?: number
}

/** Join the connection to this process until the command ends; returns its exit code. */
export async function pipeExec(
  socket: Socket,
  head: Buffer,
  { tty, escape: leaving }: ExecManner,
  io: ExecIo = process,
): Promise<number> {
  const undo: (() => void)[] = []
  try {
    return await new Promise<number>((resolve, reject) => {
      pumpOut(socket, head, io, resolve, reject)
      if (tty) undo.push(...rawTerminal(socket, io))
      if (leaving === undefined) undo.push(...forwardSignals(socket))
      const readStdin = tty || !(io.stdin.isTTY && inBackground())
      if (readStdin) undo.push(pumpIn(socket, io.stdin, leaving, () => resolve(0)))
      else socket.write(encodeFrame(frameType.stdinEnd))
    })
  } finally {
    for (const f of undo.reverse()) f()
    socket.destroy()
  }
}

/** Connection → stdout and stderr, in order. */
function pumpOut(
  socket: Socket,
  head: Buffer,
  io: ExecIo,
  resolve: (code: number) => void,
  reject: (e: unknown) => void,
): void {
  const reader = new FrameReader()
  let waiting = 0
  let ended = false

  const finish = (settle: () => void): void => {
    if (ended) return
    ended = true
    // An empty write calls back when everything before it has left this process.
    io.stdout.write('', () => io.stderr.write('', settle))
  }
  const write = (to: NodeJS.WriteStream, bytes: Buffer): void => {
    if (to.write(bytes)) return
    waiting += 1
    socket.pause()
    to.once('drain', () => {
      waiting -= 1
      if (waiting === 0) socket.resume()
    })
  }
  const take = (chunk: Buffer): void => {
    try {
      for (const frame of reader.push(chunk)) {
        if (frame.type === frameType.stdout) write(io.stdout, frame.payload)
        else if (frame.type === frameType.stderr) write(io.stderr, frame.payload)
        else if (frame.type === frameType.exit) {
          const code = frame.payload.readInt32BE(0)
          finish(() => resolve(code))
        } else if (frame.type === frameType.error) {
          const error = NoidError.from(JSON.parse(frame.payload.toString('utf8')))
          finish(() => reject(error))
        }
      }
    } catch (e) {
      reject(new NoidError('INTERNAL', { why: 'the daemon sent a broken exec frame' }, { cause: e }))
    }
  }

  const lost = (): void => finish(() => reject(new NoidError('EXEC_INTERRUPTED')))
  socket.on('data', take)
  socket.on('error', lost)
  socket.on('close', lost)
  for (const out of [io.stdout, io.stderr]) {
    out.on('error', (e: NodeJS.ErrnoException) => {
      if (e.code === 'EPIPE') resolve(SIGPIPE_EXIT)
    })
  }
  if (head.length > 0) take(head)
}

/** stdin → connection, cut to frames, waiting whenever the connection is full, until the byte that leaves. */
function pumpIn(socket: Socket, stdin: NodeJS.ReadStream, leaving: number | undefined, leave: () => void): () => void {
  const onData = (chunk: Buffer | string): void => {
    let bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk
    const last = leaving === undefined ? -1 : bytes.indexOf(leaving)
    if (last >= 0) {
      bytes = bytes.subarray(0, last)
      leave()
    }
    let room = true
    for (let at = 0; at < bytes.length; at += CHUNK) {
      room = socket.write(encodeFrame(frameType.stdin, bytes.subarray(at, at + CHUNK)))
    }
    if (!room) stdin.pause()
  }
  const onDrain = (): void => {
    stdin.resume()
  }
  const onEnd = (): void => {
    if (socket.writable) socket.write(encodeFrame(frameType.stdinEnd))
  }
  socket.on('drain', onDrain)
  stdin.on('data', onData)
  stdin.once('end', onEnd)
  stdin.once('error', onEnd)
  return () => {
    socket.off('drain', onDrain)
    stdin.off('data', onData)
    stdin.off('end', onEnd)
    stdin.off('error', onEnd)
    stdin.pause()
    stdin.unref?.()
  }
}

function rawTerminal(socket: Socket, io: ExecIo): (() => void)[] {
  const undo: (() => void)[] = []
  const stdin = io.stdin as ReadStream
  if (stdin.isTTY) {
    stdin.setRawMode(true)
    undo.push(() => stdin.setRawMode(false))
  }
  const stdout = io.stdout as WriteStream
  if (stdout.isTTY) {
    const resize = (): void => {
      socket.write(encodeFrame(frameType.resize, sizePayload(stdout.rows, stdout.columns)))
    }
    stdout.on('resize', resize)
    undo.push(() => stdout.off('resize', resize))
  }
  return undo
}

export function sizePayload(rows: number, cols: number): Buffer {
  const b = Buffer.alloc(4)
  b.writeUInt16BE(rows, 0)
  b.writeUInt16BE(cols, 2)
  return b
}

function forwardSignals(socket: Socket): (() => void)[] {
  let interrupts = 0
  return FORWARDED.map((name) => {
    const on = (): void => {
      // Somebody who presses Ctrl-C three times wants out, also when the far end does not react.
      if (name === 'SIGINT' && ++interrupts >= 3) process.exit(130)
      socket.write(encodeFrame(frameType.signal, Buffer.from(name)))
    }
    process.on(name, on)
    return () => process.off(name, on)
  })
}
