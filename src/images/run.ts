/**
 * Programs of the system that builds use: found or told by the package that has them, bounded, ended with the build, their
 * last words in the error.
 */
import { spawn, spawnSync } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../errors.ts'

/** The Debian package of each program that images need. */
export const PACKAGES: Readonly<Record<string, string>> = {
  'apt-get': 'apt',
  'apt-cache': 'apt',
  'dpkg-deb': 'dpkg',
  tar: 'tar',
  mmdebstrap: 'mmdebstrap',
  fakeroot: 'fakeroot',
  mke2fs: 'e2fsprogs',
  'qemu-img': 'qemu-utils',
  newuidmap: 'uidmap',
  xz: 'xz-utils',
  cp: 'coreutils',
  setpriv: 'util-linux',
}

const UNPACKED_MAX = 512 << 20
/** Lines of a program's last words that an error carries. */
const TAIL_LINES = 6
const TAIL_BYTES = 8192

/**
 * Whoever runs a program may be killed: the program ends too then, in its own way, and takes its leavings with it. The kernel tells the
 * shell (prctl(2), PR_SET_PDEATHSIG), the shell tells everybody in its process group.
 */
const LEASH = [
  'setpriv',
  '--pdeathsig',
  'TERM',
  '--',
  'sh',
  '-c',
  `trap 'trap "" TERM; kill -TERM 0' TERM; "$@" & child=$!; wait $child; code=$?; wait $child; exit $code`,
  'sh',
] as const

const DIRS = (): string[] => [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/usr/bin', '/sbin', '/bin']

export function find(tool: string): string | undefined {
  if (tool.startsWith('/')) return tool
  for (const dir of DIRS()) {
    if (dir === '') continue
    const path = join(dir, tool)
    try {
      accessSync(path, constants.X_OK)
      return path
    } catch {
      // The next one.
    }
  }
  return undefined
}

/** Throws IMAGE_TOOLS_MISSING, naming all that are missing and what installs them. */
export function need(what: string, tools: readonly string[]): void {
  const missing = tools.filter((t) => find(t) === undefined)
  if (missing.length === 0) return
  const packages = [...new Set(missing.map((t) => PACKAGES[t] ?? t))].join(' ')
  throw new NoidError('IMAGE_TOOLS_MISSING', { what, tools: missing.join(', '), packages })
}

export interface RunOptions {
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
  readonly signal?: AbortSignal
  readonly timeoutMs: number
  /** Exit codes that are no failure, besides 0. */
  readonly accepts?: readonly number[]
  /** Called with each line of stderr. */
  readonly onLine?: (line: string) => void
}

/** Run a program to its end; what it printed on stdout. Its whole process group ends with the signal. */
export function run(tool: string, args: readonly string[], o: RunOptions): Promise<string> {
  o.signal?.throwIfAborted()
  const path = find(tool)
  if (path === undefined) need(`running ${tool}`, [tool])
  return new Promise((resolve, reject) => {
    const child = spawn(LEASH[0], [...LEASH.slice(1), path as string, ...args], {
      cwd: o.cwd ?? '/',
      env: { ...process.env, LC_ALL: 'C.UTF-8', PATH: DIRS().join(':'), ...o.env },
      stdio: ['ignore', 'pipe', 'pipe'],
      // A group of its own: mmdebstrap's children end with it.
      detached: true,
    })
    const out: Buffer[] = []
    let said = ''
    let line = ''
    let late: string | undefined
    const end = (why: string): void => {
      late ??= why
      try {
        process.kill(-(child.pid as number), 'SIGTERM')
        setTimeout(() => kill(child.pid as number), 3_000).unref()
      } catch {
        // It has ended.
      }
    }
    const timer = setTimeout(() => end(`it took longer than ${o.timeoutMs / 1000} s`), o.timeoutMs)
    const onAbort = (): void => end('it was cancelled')
    o.signal?.addEventListener('abort', onAbort, { once: true })
    child.stdout.on('data', (c: Buffer) => out.push(c))
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-TAIL_BYTES)
      const lines = (line + text).split(/[\r\n]/)
      line = lines.pop() ?? ''
      for (const l of lines) if (l !== '') o.onLine?.(l)
    })
    const done = (): void => {
      clearTimeout(timer)
      o.signal?.removeEventListener('abort', onAbort)
    }
    child.on('error', (e) => {
      done()
      reject(e)
    })
    child.on('close', (code, signal) => {
      done()
      if (o.signal?.aborted) return reject(o.signal.reason)
      if ((code === 0 || o.accepts?.includes(code as number)) && late === undefined)
        return resolve(Buffer.concat(out).toString('utf8'))
      const words = said
        .trim()
        .split(/[\r\n]+/)
        .slice(-TAIL_LINES)
        .join('; ')
      reject(new Error(`${tool}: ${late ?? (words === '' ? `it ended with ${code ?? signal}` : words)}`))
    })
  })
}

/** xz and its older format, which Node cannot unpack. */
export function unxz(packed: Buffer, options: readonly string[] = []): Buffer {
  need('unpacking a kernel', ['xz'])
  const r = spawnSync(find('xz') as string, ['--decompress', '--stdout', ...options], {
    input: packed,
    maxBuffer: UNPACKED_MAX,
  })
  if (r.status !== 0) throw new Error('xz cannot unpack it')
  return r.stdout
}

function kill(group: number): void {
  try {
    process.kill(-group, 'SIGKILL')
  } catch {
    // Nobody is left.
  }
}
