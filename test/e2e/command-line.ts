/** The noid command line as one user of the laboratory's host types it. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { type Place, repository, type Said } from './lab.ts'

const NOID = join(repository, 'bin/noid.mjs')
/** A VM with a kernel of its own boots cold in it, on a busy machine that emulates it. */
const SLOW = 300_000

export class Cli {
  readonly #host: Place
  readonly #as: readonly string[]
  readonly #env: Record<string, string>

  constructor(host: Place, home: string, as: readonly string[], env: Record<string, string> = {}) {
    this.#host = host
    this.#as = as
    this.#env = { NOID_HOME: home, HOME: home, ...env }
  }

  get env(): NodeJS.ProcessEnv {
    return { ...process.env, ...this.#env, NODE_TEST_CONTEXT: undefined, NODE_OPTIONS: undefined }
  }
  argv(args: readonly string[]): string[] {
    return [...this.#as, process.execPath, NOID, ...args]
  }
  run(...args: string[]): Promise<Said> {
    return this.#host.run(this.argv(args), { timeoutMs: SLOW, env: this.env })
  }
  /** Must succeed; returns what it printed. */
  async noid(...args: string[]): Promise<string> {
    const r = await this.run(...args)
    assert.equal(r.code, 0, `noid ${args.join(' ')}: ${r.all}`)
    return r.stdout.trim()
  }
  async json<T>(...args: string[]): Promise<T> {
    const [command, ...rest] = args
    return JSON.parse(await this.noid(command as string, ...rest, '--json')) as T
  }
  /** Must fail; returns the error's code and the whole text. */
  async fails(...args: string[]): Promise<{ code: number; text: string }> {
    const r = await this.run(...args)
    assert.notEqual(r.code, 0, `noid ${args.join(' ')} should fail: ${r.all}`)
    assert.doesNotMatch(r.all, /\n\s+at /, 'no stack trace')
    return { code: r.code, text: r.all }
  }
  start(...args: string[]) {
    return this.#host.start(this.argv(args), { env: this.env })
  }
}
