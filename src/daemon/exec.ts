/**
 * The daemon's end of an exec connection: frames of src/api/exec.ts on one side, an ExecSession on the other.
 *
 * Backpressure is kept both ways and costs no memory: the connection is read only while the command takes its stdin, the
 * command's output only while the connection takes it. The exit frame follows the last byte of output.
 * A client that goes away, or sends what is no frame, hangs up the command (SIGHUP, as a terminal does).
 */
import type { Duplex, Readable } from 'node:stream'
import { encodeFrame, FrameReader, frameType } from '../api/exec.ts'
import { NoidError } from '../errors.ts'
import type { ExecSession } from '../runtimes/contract.ts'
import { asNoidError } from './bounded.ts'

const CHUNK = 256 * 1024
const SIGNAL = /^SIG[A-Z0-9]{2,10}$/
const LINGER_MS = 2_000
/** A connection that is not read does not tell its end; an empty frame of output finds it. */
const PROBE_MS = 1_000

/** Joins both until the command ends or the client goes. Never throws. */
export async function joinExec(socket: Duplex, head: Buffer, session: ExecSession): Promise<void> {
  const { promise: gone, resolve: lost } = Promise.withResolvers<'gone'>()
  socket.on('error', () => lost('gone'))
  socket.on('close', () => lost('gone'))
  socket.on('end', () => lost('gone'))
  session.stdin.on('error', () => {}) // The command closed its stdin: what is sent goes nowhere, as in a pipe.

  const reader = new FrameReader()
  const take = (chunk: Buffer): void => {
    try {
      for (const f of reader.push(chunk)) obey(f.type, f.payload)
    } catch (e) {
      const error = new NoidError('INVALID_INPUT', { what: `what was sent is not an exec frame: ${sentence(e)}` })
      socket.end(encodeFrame(frameType.error, Buffer.from(JSON.stringify(error))))
      lost('gone')
    }
  }
  const obey = (type: number, payload: Buffer): void => {
    if (type === frameType.stdin) {
      if (session.stdin.writable && !session.stdin.write(payload)) {
        socket.pause()
        const probe = setInterval(() => socket.write(encodeFrame(frameType.stdout)), PROBE_MS)
        const go = (): void => {
          clearInterval(probe)
          session.stdin.off('drain', go).off('close', go)
          socket.resume()
        }
        session.stdin.on('drain', go).on('close', go)
      }
    } else if (type === frameType.stdinEnd) session.stdin.end()
    else if (type === frameType.signal) {
      const name = payload.toString('latin1')
      if (SIGNAL.test(name)) session.signal(name)
    } else if (type === frameType.resize && payload.length === 4) {
      session.resize(payload.readUInt16BE(0), payload.readUInt16BE(2))
    } else throw new RangeError(`type ${type} with ${payload.length} bytes`)
  }
  socket.on('data', take)
  if (head.length > 0) take(head)

  const output = Promise.all([
    pump(session.stdout, socket, frameType.stdout),
    session.stderr === undefined ? undefined : pump(session.stderr, socket, frameType.stderr),
  ])
  const ended = session.exit.then(
    async (code) => {
      // A process that the command left behind may hold its output open: the exit does not wait for it for ever.
      await Promise.race([output, new Promise((r) => setTimeout(r, LINGER_MS).unref())])
      const payload = Buffer.alloc(4)
      payload.writeInt32BE(code, 0)
      return encodeFrame(frameType.exit, payload)
    },
    (e: unknown) => encodeFrame(frameType.error, Buffer.from(JSON.stringify(asNoidError(e)))),
  )
  const last = await Promise.race([ended, gone])
  if (last === 'gone') {
    session.stdin.destroy()
    session.signal('SIGHUP')
    socket.destroy()
    // It may still say a word while it ends; a closed pipe would kill it in the middle of its own orderly end.
    for (const out of [session.stdout, session.stderr]) {
      out?.removeAllListeners('data').resume()
      setTimeout(() => out?.destroy(), LINGER_MS).unref()
    }
  } else if (socket.writable) {
    socket.end(last)
    setTimeout(() => socket.destroy(), LINGER_MS).unref()
  }
}

/** Output → frames, until it ends. */
function pump(from: Readable, socket: Duplex, type: typeof frameType.stdout | typeof frameType.stderr): Promise<void> {
  return new Promise((resolve) => {
    from.on('data', (chunk: Buffer) => {
      for (let at = 0; at < chunk.length; at += CHUNK) {
        if (!socket.writable) return
        if (!socket.write(encodeFrame(type, chunk.subarray(at, at + CHUNK)))) from.pause()
      }
    })
    socket.on('drain', () => from.resume())
    from.once('end', resolve)
    from.once('close', resolve)
    from.once('error', () => resolve())
  })
}

const sentence = (e: unknown): string => (e instanceof Error ? e.message : String(e))
