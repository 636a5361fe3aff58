import { once } from 'node:events'
import { type FileHandle, open } from 'node:fs/promises'
import { Args, Flags } from '@oclif/core'
import { CAPTURE_SNAP_MAX, CAPTURE_SNAP_MIN } from '../api/routes.ts'
import { vmNamed } from '../cli/active.ts'
import { NoidCommand } from '../cli/base.ts'
import { describe } from '../cli/capture/packet.ts'
import { type CapturedFrame, CaptureReader } from '../cli/capture/pcapng.ts'
import { size } from '../cli/text.ts'
import type { Client } from '../client/client.ts'
import { NoidError } from '../errors.ts'

/** Enough of a frame for its line: DHCP's options begin at 282. */
const LINE_SNAP = 512
const COUNTER_MS = 250
/** After a stop: what is on its way still comes, and how much was missed. Until nothing came for so long, and no longer than that. */
const LAST_MS = 150
const LAST_MAX_MS = 2000

interface Captured {
  readonly name: string
  readonly kind: 'vm' | 'network'
  readonly captured: number
  /** Frames that this reader was too slow for. */
  readonly missed: number
  readonly file: string
}

export default class Capture extends NoidCommand {
  static override summary = 'Show the frames of a VM or a network as they pass; or write them for tshark and Wireshark.'
  static override description = [
    'Each frame is a line: when, whose, whether the VM sent (→) or received (←) it, what it is, its bytes, and why it was refused when it was. With -w it is pcapng instead, refused frames with their reason as a comment.',
    "Frames are shown as the guests' kernels hand them over: up to 64 KiB at once and with checksums unfinished, which are no errors.",
    'A capture never slows the network: frames it could not take are missed and counted.',
  ].join('\n\n')
  static override examples = [
    '<%= config.bin %> capture web',
    '<%= config.bin %> capture default --seconds 10 -w lab.pcapng',
    '<%= config.bin %> capture web -w - | tshark -r -',
    '<%= config.bin %> capture web -w - | wireshark -k -i -',
  ]
  static override args = {
    name: Args.string({
      ignoreStdin: true,
      name: 'VM|NETWORK',
      description: "The VM or the network; this directory's active VM when left out.",
    }),
  }
  static override flags = {
    write: Flags.string({ char: 'w', summary: 'Write pcapng to a file, or with - to stdout.', helpValue: 'FILE|-' }),
    snap: Flags.integer({
      summary: 'Keep so many bytes of each frame.',
      helpValue: 'BYTES',
      min: CAPTURE_SNAP_MIN,
      max: CAPTURE_SNAP_MAX,
    }),
    count: Flags.integer({ char: 'c', summary: 'End after so many frames.', helpValue: 'N', min: 1 }),
    seconds: Flags.integer({ summary: 'End after so many seconds.', helpValue: 'N', min: 1, max: 2_000_000 }),
  }

  readonly #stop = new AbortController()
  /** Frames that came after a stop and that stdout did not take. */
  #unwritten = 0
  /** Whoever read stdout is gone. */
  #left = false

  async run(): Promise<Captured | undefined> {
    const { args, flags } = await this.parse(Capture)
    const name = vmNamed(args.name)
    const toStdout = flags.write === '-'
    if (toStdout && (process.stdout.isTTY || this.jsonEnabled()))
      throw new NoidError('INVALID_INPUT', {
        what: 'pcapng is not for a terminal, nor for --json',
        hint: `pipe it: noid capture ${name} -w - | tshark -r -`,
      })
    const api = await this.daemon(flags)
    const kind = await kindOf(api, name)
    const lines = flags.write === undefined
    const file = lines || toStdout ? undefined : await create(flags.write as string)
    try {
      const frames = await api.capture(kind, name, flags.snap ?? (lines ? LINE_SNAP : undefined))
      this.note(`capturing ${name}; Ctrl-C ends it`)
      const read = new CaptureReader()
      const took = await this.#follow(frames, read, flags.count ?? Infinity, flags.seconds, file, lines)
      const captured = read.captured - this.#unwritten
      const missed = read.missed + (this.#left ? 0 : this.#unwritten)
      const summary = `${captured} ${captured === 1 ? 'frame' : 'frames'} captured, ${missed} missed`
      this.note(file === undefined ? summary : `${summary}, ${size(took)} in ${flags.write}`)
      if (missed > 0 && flags.snap === undefined)
        this.note('  missed: the reader was slower than the traffic; --snap 128 keeps the headers alone')
      return lines || toStdout ? undefined : { name, kind, captured, missed, file: flags.write as string }
    } finally {
      await file?.close()
      // A pipe that nobody reads would keep the command for ever.
      setTimeout(() => process.exit(), LAST_MAX_MS).unref()
    }
  }

  /** Until enough was captured, somebody stops it, or nothing is there to capture any more. The bytes that were written. */
  async #follow(
    frames: NodeJS.ReadableStream,
    read: CaptureReader,
    limit: number,
    seconds: number | undefined,
    file: FileHandle | undefined,
    lines: boolean,
  ): Promise<number> {
    const end = (): void => (frames as NodeJS.ReadableStream & { destroy(): void }).destroy()
    let stoppedAt = Infinity
    let last: NodeJS.Timeout | undefined
    let latest: NodeJS.Timeout | undefined
    const stop = (): void => {
      if (this.#stop.signal.aborted) return
      stoppedAt = Date.now() * 1000
      last = setTimeout(end, LAST_MS)
      latest = setTimeout(end, LAST_MAX_MS)
      this.#stop.abort()
    }
    const timer = seconds === undefined ? undefined : setTimeout(stop, seconds * 1000)
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, stop)
    // Whoever read our pipe has what it wanted, and missed nothing.
    process.stdout.on('error', () => {
      this.#left = true
      stop()
    })
    let written = 0
    const count = (): string => `\r\u001b[2K${read.captured} frames, ${size(written)}, ${read.missed} missed`
    const counter =
      file !== undefined && process.stderr.isTTY && !this.jsonEnabled()
        ? setInterval(() => process.stderr.write(count()), COUNTER_MS)
        : undefined
    try {
      for await (const chunk of frames) {
        last?.refresh()
        const before = read.captured
        const text: string[] = []
        const blocks = read.push(chunk as Buffer, limit, lines ? (f) => text.push(this.#line(f)) : undefined)
        if (file !== undefined) await file.write(blocks)
        else if (!(await this.#print(lines ? text.join('') : blocks))) this.#unwritten += read.captured - before
        written += blocks.length
        if (read.captured >= limit || read.lastAt > stoppedAt) return written
      }
      this.note('the capture has ended: the VM was stopped, or the network removed or started again')
    } catch (e) {
      if (!this.#stop.signal.aborted) throw lost(e)
    } finally {
      for (const t of [timer, last, latest]) clearTimeout(t)
      clearInterval(counter)
      if (counter !== undefined) process.stderr.write('\r\u001b[2K')
    }
    return written
  }

  /** To stdout, and not faster than it is taken. False: it was stopped, and stdout takes no more. */
  async #print(bytes: string | Buffer): Promise<boolean> {
    const { stdout } = process
    if (this.#stop.signal.aborted && (stdout.writableNeedDrain || !stdout.writable)) return false
    // What ends the wait otherwise is a stop, or the pipe's end, which is one.
    if (bytes.length > 0 && !stdout.write(bytes))
      await once(stdout, 'drain', { signal: this.#stop.signal }).catch(() => {})
    return true
  }

  #line(f: CapturedFrame): string {
    const what = describe(f.bytes)
    if (this.jsonEnabled()) {
      const { at, port, direction, length, refused } = f
      const time = `${new Date(at / 1000).toISOString().slice(0, -1)}${String(at % 1000).padStart(3, '0')}Z`
      return `${JSON.stringify({ at: time, vm: port, direction, what, length, refused })}\n`
    }
    const refused = f.refused === undefined ? '' : `  ✗ ${f.refused}`
    return `${timeOf(f.at)}  ${f.port} ${f.direction === 'sent' ? '→' : '←'}  ${what}  (${f.length})${refused}\n`
  }
}

/** The connection broke; anything else is as it is. */
function lost(e: unknown): unknown {
  const { code } = e as NodeJS.ErrnoException
  if (code !== 'ECONNRESET' && code !== 'ERR_STREAM_PREMATURE_CLOSE') return e
  return new NoidError('CAPTURE_INTERRUPTED', {}, { cause: e })
}

/** The local time of day, to the microsecond. */
function timeOf(at: number): string {
  const d = new Date(at / 1000)
  const two = (n: number): string => String(n).padStart(2, '0')
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${String(at % 1_000_000).padStart(6, '0')}`
}

/** A VM of this name; else a network. */
async function kindOf(api: Client, name: string): Promise<'vm' | 'network'> {
  const [vms, networks] = await Promise.all([api.vms(), api.networks()])
  if (vms.some((v) => v.name === name)) return 'vm'
  if (networks.some((n) => n.name === name)) return 'network'
  throw new NoidError('INVALID_INPUT', {
    what: `there is no VM and no network named "${name}"`,
    hint: 'noid list and noid network list show what there is',
  })
}

/** What was captured is the guests' own: for this user alone. */
async function create(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'w', 0o600)
  } catch (e) {
    throw new NoidError('INVALID_INPUT', {
      what: `the file ${path} cannot be written (${(e as NodeJS.ErrnoException).code})`,
      hint: 'choose another with -w',
    })
  }
}
