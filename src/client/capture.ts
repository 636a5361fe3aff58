/**
 * A command in a VM whose output is kept instead of shown: for noid's own steps, never for people's commands.
 */
import type { Socket } from 'node:net'
import { encodeFrame, FrameReader, frameType } from '../api/exec.ts'
import { NoidError } from '../errors.ts'
import type { Client } from './client.ts'

export interface Captured {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

export interface Running {
  /** Resolves when the command ended; rejects when the connection or the command could not be kept up. */
  readonly done: Promise<Captured>
  /** Resolves with stdout so far when it first has a whole line; rejects when the command ends without one. */
  readonly firstLine: Promise<string>
  kill(): void
}

/** Start a command; its stdin is `input`, or empty. Output beyond 1 MiB is dropped. */
export async function background(api: Client, vm: string, argv: string[], input = ''): Promise<Running> {
  const { socket, head } = await api.exec(vm, { argv })
  socket.write(encodeFrame(frameType.stdin, Buffer.from(input)))
  socket.write(encodeFrame(frameType.stdinEnd))
  const first = Promise.withResolvers<string>()
  const done = collect(socket, head, first.resolve)
  done.then(
    (c) => first.reject(new NoidError('EXEC_FAILED', { vm, why: lastLine(c) })),
    (e) => first.reject(e),
  )
  first.promise.catch(() => {})
  done.catch(() => {})
  return { done, firstLine: first.promise, kill: () => socket.destroy() }
}

/** Run a command to its end, at most `timeoutMs`. */
export async function capture(
  api: Client,
  vm: string,
  argv: string[],
  timeoutMs: number,
  input?: string,
): Promise<Captured> {
  const run = await background(api, vm, argv, input)
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(
    () => late.reject(new NoidError('EXEC_FAILED', { vm, why: `${argv[0]} took longer than ${timeoutMs / 1000} s` })),
    timeoutMs,
  )
  try {
    return await Promise.race([run.done, late.promise])
  } finally {
    clearTimeout(timer)
    run.kill()
  }
}

/** The most telling line of an ended command: the end of stderr, else of stdout, else its code. */
export function lastLine(c: Captured): string {
  const line = (s: string): string | undefined => s.trim().split('\n').at(-1) || undefined
  return line(c.stderr) ?? line(c.stdout) ?? `it ended with code ${c.code}`
}

const KEPT = 1 << 20

function collect(socket: Socket, head: Buffer, onLine: (text: string) => void): Promise<Captured> {
  const reader = new FrameReader()
  let stdout = ''
  let stderr = ''
  return new Promise((resolve, reject) => {
    const take = (chunk: Buffer): void => {
      for (const f of reader.push(chunk)) {
        if (f.type === frameType.stdout) {
          if (stdout.length < KEPT) stdout += f.payload.toString('utf8')
          if (stdout.includes('\n')) onLine(stdout)
        } else if (f.type === frameType.stderr) {
          if (stderr.length < KEPT) stderr += f.payload.toString('utf8')
        } else if (f.type === frameType.exit) {
          resolve({ code: f.payload.readInt32BE(0), stdout, stderr })
          socket.destroy()
        } else if (f.type === frameType.error) {
          reject(NoidError.from(JSON.parse(f.payload.toString('utf8'))))
          socket.destroy()
        }
      }
    }
    socket.on('data', take)
    socket.on('error', () => reject(new NoidError('EXEC_INTERRUPTED')))
    socket.on('close', () => reject(new NoidError('EXEC_INTERRUPTED')))
    if (head.length > 0) take(head)
  })
}
