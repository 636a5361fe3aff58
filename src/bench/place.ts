/**
 * A network namespace of the bench: who is in it, how to run something there.
 *
 * Everything happens below the bench's own process namespace (run.ts), so a namespace is held by a sleeping process and is gone with it;
 * nothing has a name that could be left behind.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'

const COMMAND_MS = 60_000
const READY_MS = 60_000
const CHUNK = 64 << 20

/** What a finished program said. */
export interface Said {
  readonly stdout: string
  readonly stderr: string
}

export class Place {
  /** /proc/PID/ns/net */
  readonly netns: string

  constructor(netns: string) {
    this.netns = netns
  }

  /** A new namespace with its loopback up. @param as what enters the user namespace in which it is made */
  static async make(as: readonly string[] = []): Promise<Place> {
    const argv = [...as, 'unshare', '--net', 'sh', '-c', 'ip link set lo up; echo ready; exec sleep infinity']
    const holder = await started(spawn(argv[0] as string, argv.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] }))
    return new Place(`/proc/${holder.pid}/ns/net`)
  }

  enter(...argv: string[]): string[] {
    return ['nsenter', `--net=${this.netns}`, ...argv]
  }

  /** Run to the end. Throws with the program's last words when it fails. */
  run(...argv: string[]): Promise<Said> {
    return finished(this.enter(...argv))
  }

  /** A shell script, every step of which must work. */
  async sh(script: string): Promise<string> {
    return (await this.run('sh', '-ec', script)).stdout.trim()
  }

  /** Start a program that goes on. `ready`: wait until it prints a line; `told`: what it prints is read by the caller. */
  async start(argv: readonly string[], ready: boolean, told = ready): Promise<ChildProcess> {
    const [tool, ...rest] = this.enter(...argv)
    const child = spawn(tool as string, rest, { stdio: ['pipe', told ? 'pipe' : 'ignore', 'pipe'] })
    if (ready) return started(child)
    child.stderr?.resume()
    child.on('error', () => {})
    return child
  }
}

/** Run a program to its end. */
export function finished(argv: readonly string[], timeout = COMMAND_MS): Promise<Said> {
  return new Promise((resolve, reject) => {
    execFile(
      argv[0] as string,
      argv.slice(1),
      { timeout, maxBuffer: CHUNK, killSignal: 'SIGKILL' },
      (e, stdout, stderr) => {
        if (e === null) resolve({ stdout, stderr })
        else {
          const words = (stderr.trim() || stdout.trim() || e.message).split('\n').slice(-3).join(' ')
          reject(
            new Error(
              `${argv
                .filter((a) => !a.startsWith('--net='))
                .slice(0, 4)
                .join(' ')}: ${words.slice(-300)}`,
            ),
          )
        }
      },
    )
  })
}

/** A child whose first line has come. */
export async function started(child: ChildProcess): Promise<ChildProcess> {
  let words = ''
  child.stderr?.on('data', (d: Buffer) => {
    words = (words + d).slice(-500)
  })
  await new Promise<void>((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`not ready in ${READY_MS / 1000} s: ${words}`)), READY_MS)
    const end = (f: () => void) => () => {
      clearTimeout(late)
      f()
    }
    child.once('error', (e) => end(() => reject(e))())
    child.once(
      'exit',
      end(() => reject(new Error(words.trim() || `${child.spawnfile} ended`))),
    )
    child.stdout?.once('data', end(resolve))
  })
  return child
}

export function end(child: ChildProcess | undefined): void {
  if (child?.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
}
