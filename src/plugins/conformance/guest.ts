/**
 * A guest of the kit: a network namespace held by a process that sleeps, and commands run in it.
 *
 * As root the namespace is a plain one; otherwise it has a user namespace of its own, and a second network namespace beside it for
 * the far end of a veth (AttachRequest.wireNetns).
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { promisify } from 'node:util'

const run = promisify(execFile)
const root = process.getuid?.() === 0
const COMMAND_MS = 90_000

/** Start `argv` and wait for its first line: the namespaces exist then. */
async function hold(argv: readonly string[]): Promise<ChildProcess> {
  const child = spawn(argv[0] as string, [...argv.slice(1), 'sh', '-c', 'echo ready; exec sleep 600'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  child.stderr?.on('data', (d: Buffer) => {
    said = (said + d).slice(-500)
  })
  await new Promise<void>((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', () => reject(new Error(`no namespace could be made: ${said.trim()}`)))
    child.stdout?.once('data', () => resolve())
  })
  child.removeAllListeners('exit')
  return child
}

const gone = (child: ChildProcess): Promise<void> =>
  child.exitCode !== null || child.signalCode !== null
    ? Promise.resolve()
    : new Promise((resolve) => {
        child.once('exit', () => resolve())
        child.kill('SIGKILL')
      })

export class Guest {
  readonly #holder: ChildProcess
  readonly #wire: ChildProcess | undefined
  readonly #children = new Set<ChildProcess>()
  readonly netns: string
  readonly wireNetns: string | undefined

  private constructor(holder: ChildProcess, wire: ChildProcess | undefined) {
    this.#holder = holder
    this.#wire = wire
    this.netns = `/proc/${holder.pid}/ns/net`
    this.wireNetns = wire === undefined ? undefined : `/proc/${wire.pid}/ns/net`
  }

  static async open(): Promise<Guest> {
    if (root) return new Guest(await hold(['unshare', '--net']), undefined)
    const holder = await hold(['unshare', '--user', '--map-root-user', '--net'])
    const wire = await hold([
      'nsenter',
      '--preserve-credentials',
      `--user=/proc/${holder.pid}/ns/user`,
      'unshare',
      '--net',
    ])
    return new Guest(holder, wire)
  }

  #enter(): string[] {
    const pid = this.#holder.pid
    return root
      ? ['nsenter', `--net=/proc/${pid}/ns/net`]
      : ['nsenter', '--preserve-credentials', `--user=/proc/${pid}/ns/user`, `--net=/proc/${pid}/ns/net`]
  }

  /** Run a command in the guest and return what it printed; throws with its words when it fails. */
  async run(...argv: string[]): Promise<string> {
    const [tool, ...rest] = [...this.#enter(), ...argv]
    try {
      return (await run(tool as string, rest, { timeout: COMMAND_MS, maxBuffer: 16 << 20 })).stdout
    } catch (error) {
      const e = error as Error & { stderr?: string; stdout?: string }
      throw new Error(`in the guest, ${argv.join(' ')}: ${(e.stderr || e.stdout || e.message).trim().slice(-400)}`)
    }
  }

  /** Start a command that goes on until the guest is closed. */
  start(...argv: string[]): ChildProcess {
    const [tool, ...rest] = [...this.#enter(), ...argv]
    const child = spawn(tool as string, rest, { stdio: ['ignore', 'pipe', 'inherit'] })
    this.#children.add(child)
    child.once('exit', () => this.#children.delete(child))
    return child
  }

  async hasLink(ifname: string): Promise<boolean> {
    const links = JSON.parse(await this.run('ip', '-j', 'link', 'show')) as { ifname: string }[]
    return links.some((l) => l.ifname === ifname)
  }

  async close(): Promise<void> {
    for (const child of this.#children) await gone(child)
    await gone(this.#holder)
    if (this.#wire !== undefined) await gone(this.#wire)
  }
}
