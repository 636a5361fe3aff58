/**
 * TCP streams on command, for tests of many and of fast ones: `node streams.ts serve ADDRESS` or `node streams.ts call ADDRESS`.
 *
 *   port  7 echo · 9 discards · 10 discards 100 kB/s · 19 sends for ever · 20 … 29 hold: silent until told to give
 *
 * Commands come as JSON lines on stdin, each is answered by one JSON line (Command below says what they mean). The test's end is StreamsTool.
 */
import type { ChildProcess } from 'node:child_process'
import { connect, createServer, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

export const PORT = { echo: 7, discard: 9, slowDiscard: 10, endless: 19, hold: 20, holds: 10 } as const
/** Bytes per second of whoever is slow: little, so that fifty of them leave also a busy machine to the fast. */
export const SLOW = 1e5
const ENTRY = fileURLToPath(import.meta.url)
const PIECE = Buffer.alloc(64 * 1024, 'n')

export type Command =
  /** Open `count` connections that do nothing, `parallel` at a time; answers how many stand. */
  | { readonly do: 'hold'; readonly count: number; readonly parallel: number }
  /** The server writes this many bytes to each connection that is held; answers to how many. */
  | { readonly do: 'give'; readonly bytes: number }
  /** Move bytes for `ms` over one connection; answers how many. */
  | { readonly do: 'move'; readonly way: 'in' | 'out'; readonly ms: number }
  /** Begin `count` streams whose reader takes 100 kB/s: this end (in) or the server (out). */
  | { readonly do: 'slow'; readonly way: 'in' | 'out'; readonly count: number }
  /** Send `bytes` over each of `count` connections at once and read them back; answers how many came back whole. */
  | { readonly do: 'echo'; readonly count: number; readonly bytes: number }
  /** Connect, exchange one byte, end: `count` times, `parallel` at a time; answers how many went well. */
  | { readonly do: 'storm'; readonly count: number; readonly parallel: number }
  /** End every connection that is open; answers how many there were. */
  | { readonly do: 'end' }

const open = new Set<Socket>()
const held = new Set<Socket>()
const slow = new Set<Socket>()

function kept(s: Socket): Socket {
  open.add(s)
  s.on('error', () => {})
  s.on('close', () => {
    open.delete(s)
    held.delete(s)
    slow.delete(s)
  })
  return s
}

/** Write for ever, as fast as it is taken. */
function pour(s: Socket): void {
  while (!s.destroyed && s.write(PIECE)) {}
  if (!s.destroyed) s.once('drain', () => pour(s))
}

function sipSlowly(s: Socket): void {
  s.on('data', (d: Buffer) => {
    s.pause()
    setTimeout(() => s.resume(), (d.length / SLOW) * 1000)
  })
}

async function serve(address: string): Promise<void> {
  const on = (port: number, f: (s: Socket) => void) =>
    new Promise<void>((resolve) => {
      createServer({ allowHalfOpen: port === PORT.echo }, (s) => f(kept(s))).listen(port, address, 4096, resolve)
    })
  await on(PORT.echo, (s) => s.pipe(s))
  await on(PORT.discard, (s) => s.resume())
  await on(PORT.slowDiscard, sipSlowly)
  await on(PORT.endless, (s) => pour(s.resume()))
  for (let n = 0; n < PORT.holds; n++) await on(PORT.hold + n, (s) => held.add(s.resume()))
}

async function inParallel(count: number, parallel: number, one: (n: number) => Promise<boolean>): Promise<number> {
  let next = 0
  let well = 0
  const worker = async () => {
    while (next < count) if (await one(next++)) well++
  }
  await Promise.all(Array.from({ length: Math.min(parallel, count) }, worker))
  return well
}

async function carryOut(c: Command, address: string): Promise<number> {
  const to = (port: number) => kept(connect({ host: address, port, allowHalfOpen: true }))
  const connected = (s: Socket) =>
    new Promise<boolean>((resolve) => {
      s.once('connect', () => resolve(true))
      s.once('close', () => resolve(false))
    })
  switch (c.do) {
    case 'hold':
      return inParallel(c.count, c.parallel, (n) => connected(to(PORT.hold + (n % PORT.holds)).resume()))
    case 'give': {
      const bytes = Buffer.alloc(c.bytes, 'g')
      for (const s of held) s.write(bytes)
      return held.size
    }
    case 'move': {
      const s = to(c.way === 'in' ? PORT.endless : PORT.discard)
      await connected(s)
      let came = 0
      if (c.way === 'in')
        s.on('data', (d: Buffer) => {
          came += d.length
        })
      else pour(s)
      await sleep(c.ms)
      const moved = c.way === 'in' ? came : s.bytesWritten - s.writableLength
      s.destroy()
      return moved
    }
    case 'slow':
      return inParallel(c.count, c.count, async () => {
        const s = to(c.way === 'in' ? PORT.endless : PORT.slowDiscard)
        if (!(await connected(s))) return false
        slow.add(s)
        if (c.way === 'in') sipSlowly(s)
        else pour(s)
        return true
      })
    case 'echo': {
      const bytes = Buffer.alloc(c.bytes)
      for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 31) ^ (i >> 8)
      return inParallel(c.count, c.count, async () => {
        const s = to(PORT.echo)
        const pieces: Buffer[] = []
        s.on('data', (d: Buffer) => pieces.push(d))
        s.end(bytes)
        await new Promise((resolve) => s.once('close', resolve))
        return Buffer.concat(pieces).equals(bytes)
      })
    }
    case 'storm':
      return inParallel(c.count, c.parallel, async () => {
        const s = to(PORT.echo)
        let came = 0
        s.on('data', (d: Buffer) => {
          came += d.length
        })
        s.end('x')
        await new Promise((resolve) => s.once('close', resolve))
        return came === 1
      })
    case 'end': {
      const n = open.size
      // What is on its way to a slow reader would be so for a minute.
      for (const s of open)
        if (slow.has(s)) s.resetAndDestroy()
        else s.destroy()
      return n
    }
  }
}

/** The test's end: a process of this file, and its commands. */
export class StreamsTool {
  readonly process: ChildProcess
  readonly #waiting: ((answer: string) => void)[] = []
  readonly #gone: Promise<never>

  /** @param start runs argv beside us, in the right namespace, with pipes */
  constructor(start: (argv: readonly string[]) => ChildProcess, role: 'serve' | 'call', address: string) {
    this.process = start([process.execPath, '--disable-warning=ExperimentalWarning', ENTRY, role, address])
    this.#gone = new Promise((_, reject) => {
      this.process.on('exit', (code) => reject(new Error(`streams.ts ${role} ended with ${code}`)))
    })
    this.#gone.catch(() => {})
    this.process.stderr?.resume()
    createInterface(this.process.stdout!).on('line', (line) => this.#waiting.shift()?.(line))
  }

  #line(): Promise<string> {
    return Promise.race([this.#gone, new Promise<string>((resolve) => this.#waiting.push(resolve))])
  }

  /** It listens, or is ready to call. */
  async ready(): Promise<this> {
    await this.#line()
    return this
  }

  async ask(c: Command, timeoutMs = 60_000): Promise<number> {
    const answer = this.#line()
    this.process.stdin!.write(`${JSON.stringify(c)}\n`)
    const timer = new AbortController()
    try {
      const late = sleep(timeoutMs, undefined, { signal: timer.signal }).then(() => {
        throw new Error(`no answer to ${JSON.stringify(c)} within ${timeoutMs} ms`)
      })
      late.catch(() => {})
      return Number(await Promise.race([answer, late]))
    } finally {
      timer.abort()
    }
  }
}

if (import.meta.main) {
  const [role, address = ''] = process.argv.slice(2)
  if (role === 'serve') await serve(address)
  createInterface(process.stdin)
    .on('line', async (line) => console.log(JSON.stringify(await carryOut(JSON.parse(line) as Command, address))))
    .on('close', () => process.exit(0))
  console.log('"ready"')
}
