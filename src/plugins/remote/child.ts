/**
 * The process that a plug-in's backends run in: `child.ts ROOT`, where ROOT is the plug-in's package. It runs the hook
 * `noid:backends` of that package and carries out what the daemon asks (messages.ts). A loop, a crash or a leak in it is its own.
 *
 * It ends when the daemon's channel closes: networks of a backend go on without it, as they do without the daemon.
 */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { catalogue, type NoidError } from '../../errors.ts'
import type { BackendContext, BackendDescriptor, NetworkBackend } from '../contract.ts'
import type { FromChild, PlainError, ToChild } from './messages.ts'

const HOOK = 'noid:backends'
const root = resolve(process.argv[2] as string)
const descriptors = new Map<string, BackendDescriptor>()
const loaded = new Map<string, NetworkBackend>()
const running = new Map<number, AbortController>()

const say = (m: FromChild): void => {
  process.send?.(m)
}

/** A stranger has no NoidError at hand: any error with the code of one, and its details, is one. */
const plain = (e: unknown): PlainError => {
  if (!(e instanceof Error)) return { message: String(e) }
  const { message, code, details } = e as Partial<NoidError> & Error
  return code === undefined || !(code in catalogue)
    ? { message }
    : { message, body: { code, message, details: details ?? {} } }
}

/** The hook's files, as oclif reads them from package.json: a path, or several, or { target }. */
async function runHook(): Promise<unknown[]> {
  const pkg = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    oclif?: { hooks?: Record<string, unknown> }
  }
  const hooks = [pkg.oclif?.hooks?.[HOOK] ?? []].flat() as (string | { target: string })[]
  const found: unknown[] = []
  for (const h of hooks) {
    const target = typeof h === 'string' ? h : h.target
    const file = /\.[cm]?[jt]s$/.test(target) ? target : `${target}.js`
    const module = (await import(pathToFileURL(join(root, file)).href)) as Record<string, unknown>
    const run = (module.default ?? module.hook) as (o: unknown) => Promise<unknown>
    found.push(...[await run({})].flat())
  }
  return found
}

async function load(m: Extract<ToChild, { type: 'load' }>): Promise<void> {
  const d = descriptors.get(m.backend)
  if (d === undefined) throw new Error(`${root} has no backend named ${m.backend}`)
  const context: BackendContext = {
    ...m.context,
    log: (level, message) => say({ type: 'log', level, message }),
    notify: (event) => say({ type: 'event', backend: m.backend, event }),
  }
  loaded.set(m.backend, (await d.load())(context))
}

async function call(m: Extract<ToChild, { type: 'call' }>): Promise<unknown> {
  const backend = loaded.get(m.backend)
  if (backend === undefined) throw new Error(`${m.backend} was not loaded`)
  const [, member] = m.method.split('.')
  const target = (member === undefined ? backend : backend.ports) as unknown as
    | Record<string, ((...a: unknown[]) => unknown) | undefined>
    | undefined
  // JSON knows no undefined: what was left out comes as null.
  const args = m.args.map((a) => a ?? undefined)
  if (m.signal) {
    const controller = new AbortController()
    running.set(m.call, controller)
    args.push(controller.signal)
  }
  try {
    // Optional parts that it does not have answer nothing.
    return await target?.[member ?? m.method]?.apply(target, args)
  } finally {
    running.delete(m.call)
  }
}

process.on('message', (m: ToChild) => {
  if (m.type === 'abort') {
    running.get(m.call)?.abort(new Error('aborted'))
    return
  }
  ;(m.type === 'load' ? load(m) : call(m)).then(
    (value) => say({ type: 'result', call: m.call, value: value ?? null }),
    (e: unknown) => say({ type: 'error', call: m.call, error: plain(e) }),
  )
})
process.on('disconnect', () => process.exit(0))
// The daemon's terminal is not this one's: only the channel's end ends it.
process.on('SIGINT', () => {})

try {
  const list = await runHook()
  for (const d of list) descriptors.set((d as BackendDescriptor)?.name, d as BackendDescriptor)
  say({
    type: 'descriptors',
    list: list.map((d) => (d !== null && typeof d === 'object' ? { ...d, load: undefined, loads: 'load' in d } : d)),
  })
} catch (e) {
  say({ type: 'failed', error: plain(e) })
}
