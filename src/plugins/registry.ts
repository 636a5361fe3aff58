/**
 * Which network backends there are, and one loaded instance of each that is used.
 *
 * Every backend comes through one door: the hook `noid:backends`, whose result is a list of descriptors. The built-in
 * ones are such a hook too (builtin.ts), called directly; oclif is asked only when plug-ins are installed, because
 * loading it costs every daemon 90 ms.
 * A hook that throws, hangs or returns nonsense is a problem with a name, and takes nobody else down. The first of two
 * backends with one name wins; the built-in ones come first.
 * Nothing of a backend is loaded before it is chosen.
 */
import { NoidError } from '../errors.ts'
import type { BackendContext, BackendDescriptor, NetworkBackend } from './contract.ts'

const HOOK_MS = 5_000
const API_VERSION = 1
const NIC_KINDS = new Set(['tap', 'netdev', 'tap-device', 'dgram', 'stream', 'vhost-user'])

export interface Source {
  /** The plug-in's name, for people. */
  readonly from: string
  /** The result of its hook: BackendDescriptor[], unchecked. */
  readonly backends: () => Promise<unknown>
}

export interface Problem {
  readonly from: string
  readonly what: string
}

export class Registry {
  readonly #found = new Map<string, BackendDescriptor>()
  readonly #loaded = new Map<string, Promise<NetworkBackend>>()
  readonly problems: Problem[] = []
  readonly #context: (backend: string) => BackendContext

  private constructor(context: (backend: string) => BackendContext) {
    this.#context = context
  }

  static async collect(
    sources: readonly Source[],
    context: (backend: string) => BackendContext,
    hookMs = HOOK_MS,
  ): Promise<Registry> {
    const r = new Registry(context)
    const results = await Promise.allSettled(sources.map((s) => within(hookMs, s.backends)))
    for (const [i, result] of results.entries()) {
      const from = (sources[i] as Source).from
      if (result.status === 'rejected') r.problems.push({ from, what: `its hook failed: ${sentence(result.reason)}` })
      else r.#accept(from, result.value)
    }
    return r
  }

  #accept(from: string, value: unknown): void {
    for (const d of Array.isArray(value) ? value : [value]) {
      const wrong = flaw(d)
      if (wrong !== undefined) this.problems.push({ from, what: wrong })
      else if (this.#found.has(d.name)) this.problems.push({ from, what: `a backend named ${d.name} exists already` })
      else this.#found.set(d.name, d)
    }
  }

  descriptors(): BackendDescriptor[] {
    return [...this.#found.values()]
  }

  /** False for a backend whose plug-in was removed, or gave none this time. */
  has(name: string): boolean {
    return this.#found.has(name)
  }

  descriptor(name: string): BackendDescriptor {
    const d = this.#found.get(name)
    if (d === undefined) throw new NoidError('BACKEND_UNKNOWN', { name, known: [...this.#found.keys()].join(', ') })
    return d
  }

  /** The backend itself, loaded on first use. A load that failed is tried again by the next caller. */
  backend(name: string): Promise<NetworkBackend> {
    const known = this.#loaded.get(name)
    if (known !== undefined) return known
    const d = this.descriptor(name)
    const loading = within(HOOK_MS * 2, () => d.load())
      .then((make) => make(this.#context(name)))
      .catch((e: unknown) => {
        this.#loaded.delete(name)
        throw new NoidError(
          'BACKEND_UNAVAILABLE',
          { name, why: `it could not be loaded: ${sentence(e)}` },
          { cause: e },
        )
      })
    this.#loaded.set(name, loading)
    return loading
  }

  /** Close every backend that was loaded. */
  async close(): Promise<void> {
    await Promise.allSettled(
      [...this.#loaded.values()].map(async (b) => {
        const backend = await b
        await within(HOOK_MS, () => backend.close())
      }),
    )
  }
}

const sentence = (e: unknown): string => (e instanceof Error ? e.message : String(e)).split('\n', 1)[0] as string

async function within<T>(ms: number, fn: () => Promise<T>): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new Error(`no answer within ${ms / 1000} s`)), ms)
  try {
    return await Promise.race([Promise.resolve().then(fn), late])
  } finally {
    clearTimeout(timer)
  }
}

/** What is wrong with something that should be a descriptor; undefined when nothing is. */
function flaw(x: unknown): string | undefined {
  if (typeof x !== 'object' || x === null) return 'its hook returned something that is not a list of descriptors'
  const d = x as Partial<BackendDescriptor>
  if (typeof d.name !== 'string' || !/^[a-z][a-z0-9-]{0,30}$/.test(d.name)) return `"${d.name}" is not a backend's name`
  if (d.apiVersion !== API_VERSION)
    return `${d.name} speaks version ${d.apiVersion} of the contract, noid ${API_VERSION}`
  if (typeof d.load !== 'function') return `${d.name} has no load()`
  if (typeof d.summary !== 'string') return `${d.name} has no summary`
  if (!Array.isArray(d.provides) || !d.provides.every((k) => NIC_KINDS.has(k)))
    return `${d.name} provides nics of an unknown kind`
  const c = d.capabilities
  if (typeof c !== 'object' || c === null) return `${d.name} does not tell its capabilities`
  const told =
    (c.addressing === 'noid' || c.addressing === 'external') &&
    Array.isArray(c.privileges) &&
    [c.publish, c.dns, c.isolation, c.ipv6].every((b) => typeof b === 'boolean')
  return told ? undefined : `${d.name} does not tell all its capabilities`
}
