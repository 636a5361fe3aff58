/**
 * One execution of one CNI plugin (CNI specification, section 2): environment and JSON in, JSON or an error out.
 *
 * A plugin is a stranger's program. It gets a process group of its own, a time limit, and a limit on what it may print;
 * when it is stopped, whatever it has started (its IPAM plugin) is stopped with it. A caller that gives up leaves it GRACE_MS to finish:
 * a plugin that is killed between two steps leaves more behind than one that ends.
 * Never does: chains, results' meaning, deciding what to undo.
 */
import { spawn } from 'node:child_process'
import { accessSync, constants, statSync } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../../errors.ts'

export type Command = 'ADD' | 'DEL' | 'CHECK' | 'GC' | 'STATUS' | 'VERSION'

/** One plugin's time for one command; a DHCP server may take a while. */
export const PLUGIN_MS = 20_000
const GRACE_MS = 1_000
const OUTPUT_MAX = 1 << 20
const WORDS_MAX = 4_000

/** CNI specification, section 2, "Parameters". */
export interface Parameters {
  readonly containerId?: string
  readonly netns?: string
  readonly ifname?: string
  readonly args?: string
}

/** An error result: what the plugin said, or what became of it. */
export class PluginError extends NoidError {
  /** The specification's code; undefined when the plugin gave no error result. */
  readonly cniCode: number | undefined

  constructor(plugin: string, command: Command, why: string, cniCode?: number, details?: string) {
    super('CNI_FAILED', { plugin, command, why, ...(cniCode === undefined ? {} : { code: cniCode }), details })
    this.cniCode = cniCode
  }
}

/** The plugin's executable. @throws NoidError CNI_PLUGIN_MISSING */
export function findPlugin(type: string, binDirs: readonly string[]): string {
  for (const dir of binDirs) {
    const path = join(dir, type)
    try {
      accessSync(path, constants.X_OK)
      if (statSync(path).isFile()) return path
    } catch {
      // Not in this one.
    }
  }
  throw new NoidError('CNI_PLUGIN_MISSING', { plugin: type, dirs: binDirs.join(', ') })
}

interface Ended {
  readonly code: number | null
  readonly out: string
  readonly words: string
}

/**
 * Run one command. Resolves with what was on stdout as JSON, or undefined when that was empty.
 * @throws PluginError; NoidError CNI_PLUGIN_MISSING; the signal's reason when the caller gave up
 */
export async function runPlugin(
  type: string,
  binDirs: readonly string[],
  command: Command,
  conf: unknown,
  p: Parameters,
  signal: AbortSignal,
  limitMs: number = PLUGIN_MS,
): Promise<unknown> {
  signal.throwIfAborted()
  const path = findPlugin(type, binDirs)
  const ended = await execute(
    path,
    type,
    command,
    environment(command, binDirs, p),
    JSON.stringify(conf),
    signal,
    limitMs,
  )
  const value = parse(ended.out)
  if (ended.code !== 0) throw errorResult(type, command, ended, value)
  signal.throwIfAborted()
  if (value === BAD) throw new PluginError(type, command, `it printed no JSON: ${ended.out.trim().slice(0, 200)}`)
  return value
}

function environment(command: Command, binDirs: readonly string[], p: Parameters): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    HOME: process.env.HOME,
    CNI_COMMAND: command,
    CNI_PATH: binDirs.join(':'),
  }
  if (p.containerId !== undefined) env.CNI_CONTAINERID = p.containerId
  if (p.netns !== undefined) env.CNI_NETNS = p.netns
  if (p.ifname !== undefined) env.CNI_IFNAME = p.ifname
  if (p.args !== undefined) env.CNI_ARGS = p.args
  return env
}

function execute(
  path: string,
  type: string,
  command: Command,
  env: NodeJS.ProcessEnv,
  input: string,
  signal: AbortSignal,
  limitMs: number,
): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(path, [], { env, stdio: ['pipe', 'pipe', 'pipe'], detached: true, cwd: '/' })
    let out = ''
    let words = ''
    let failed: Error | undefined
    let grace: NodeJS.Timeout | undefined
    const kill = (why: Error): void => {
      failed ??= why
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
      } catch {
        // It has ended.
      }
      // Somebody who left the group may hold the pipes open.
      child.stdout.destroy()
      child.stderr.destroy()
    }
    const late = setTimeout(
      () => kill(new PluginError(type, command, `it took longer than ${limitMs / 1000} s and was killed`)),
      limitMs,
    )
    const onAbort = (): void => {
      grace = setTimeout(() => kill(signal.reason as Error), GRACE_MS)
    }
    signal.addEventListener('abort', onAbort, { once: true })
    const finish = (): void => {
      clearTimeout(late)
      clearTimeout(grace)
      signal.removeEventListener('abort', onAbort)
    }
    child.stdout.setEncoding('utf8').on('data', (t: string) => {
      out += t
      if (out.length > OUTPUT_MAX) kill(new PluginError(type, command, `it printed more than ${OUTPUT_MAX} bytes`))
    })
    child.stderr.setEncoding('utf8').on('data', (t: string) => {
      words = (words + t).slice(-WORDS_MAX)
    })
    // A plugin need not read what it is given.
    child.stdin.on('error', () => {})
    child.stdin.end(input)
    child.once('error', (e: NodeJS.ErrnoException) => {
      finish()
      reject(new PluginError(type, command, `it could not be started (${e.code ?? e.message})`))
    })
    child.once('close', (code, sig) => {
      finish()
      if (failed !== undefined) reject(failed)
      else resolve({ code, out, words: words || (sig === null ? '' : `it was ended by ${sig}`) })
    })
  })
}

const BAD = Symbol('not JSON')

function parse(text: string): unknown {
  if (text.trim() === '') return undefined
  try {
    return JSON.parse(text) as unknown
  } catch {
    return BAD
  }
}

/** CNI specification, section 5, "Error". */
function errorResult(type: string, command: Command, ended: Ended, value: unknown): PluginError {
  const r = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  const words = ended.words.trim().split('\n').at(-1)
  const why = typeof r.msg === 'string' && r.msg !== '' ? r.msg : words || `it ended with exit code ${ended.code}`
  return new PluginError(
    type,
    command,
    why,
    typeof r.code === 'number' ? r.code : undefined,
    typeof r.details === 'string' && r.details !== '' ? r.details : undefined,
  )
}

/** Versions of the specification that a plugin speaks, from its answer to VERSION. */
export async function versionsOf(
  type: string,
  binDirs: readonly string[],
  cniVersion: string,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const answer = (await runPlugin(type, binDirs, 'VERSION', { cniVersion }, {}, signal, 5_000)) as
    | { supportedVersions?: unknown }
    | undefined
  const list = answer?.supportedVersions
  if (!Array.isArray(list)) throw new PluginError(type, 'VERSION', 'it does not say which versions it speaks')
  return list.filter((v) => typeof v === 'string')
}
