/**
 * A command in a VM with its streams as Node's own: for what noid itself pipes through one.
 *
 * Backpressure is kept both ways; of stderr the last KEPT bytes are kept. A connection that is lost is an error of stdout and of `exit`.
 */
import { Readable, Writable } from 'node:stream'
import type { ExecStart } from '../api/contract.ts'
import { encodeFrame, FrameReader, frameType } from '../api/exec.ts'
import { NoidError } from '../errors.ts'
import type { Client } from './client.ts'

const CHUNK = 64 * 1024
const KEPT = 16 * 1024

export interface RemoteProcess {
  readonly stdin: Writable
  readonly stdout: Readable
  readonly exit: Promise<{ readonly code: number; readonly stderr: string }>
  /** The command is hung up. */
  end(): void
}

export async function remote(api: Client, vm: string, start: ExecStart): Promise<RemoteProcess> {
  const { socket, head } = await api.exec(vm, start)
  const exit = Promise.withResolvers<{ code: number; stderr: string }>()
  exit.promise.catch(() => {})
  let stderr = ''
  let over = false
  const stdout = new Readable({
    read: () => {
      socket.resume()
    },
    destroy: (e, done) => {
      socket.resume()
      done(e)
    },
  })
  // Who reads hears it; when nobody reads any more it concerns nobody.
  stdout.on('error', () => {})
  const stdin = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      let roomy = true
      for (let at = 0; at < chunk.length; at += CHUNK)
        roomy = socket.write(encodeFrame(frameType.stdin, chunk.subarray(at, at + CHUNK)))
      if (roomy || over) return done()
      const go = (): void => {
        socket.off('drain', go).off('close', go)
        done()
      }
      socket.on('drain', go).on('close', go)
    },
    final: (done) => {
      if (!over) socket.write(encodeFrame(frameType.stdinEnd))
      done()
    },
  })
  stdin.on('error', () => {})
  const fail = (e: Error): void => {
    if (over) return
    over = true
    exit.reject(e)
    stdout.destroy(e)
    stdin.destroy()
    socket.destroy()
  }
  const reader = new FrameReader()
  const take = (chunk: Buffer): void => {
    try {
      for (const f of reader.push(chunk)) {
        if (f.type === frameType.stdout) {
          if (!stdout.destroyed && !stdout.push(f.payload)) socket.pause()
        } else if (f.type === frameType.stderr) stderr = (stderr + f.payload.toString('utf8')).slice(-KEPT)
        else if (f.type === frameType.exit) {
          over = true
          exit.resolve({ code: f.payload.readInt32BE(0), stderr })
          stdout.push(null)
          stdin.destroy()
          socket.destroy()
        } else if (f.type === frameType.error) fail(NoidError.from(JSON.parse(f.payload.toString('utf8'))))
      }
    } catch (e) {
      fail(new NoidError('INTERNAL', { why: 'the daemon sent a broken exec frame' }, { cause: e }))
    }
  }
  const lost = (): void => fail(new NoidError('EXEC_INTERRUPTED'))
  socket.on('data', take).on('error', lost).on('close', lost)
  if (head.length > 0) take(head)
  return { stdin, stdout, exit: exit.promise, end: () => fail(new NoidError('EXEC_INTERRUPTED')) }
}
