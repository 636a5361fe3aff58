/** A daemon with fakes in a process of its own, below a directory of its own; gone with the test that made it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { CreateVm, Vm } from '../../src/api/contract.ts'
import { Client } from '../../src/client/client.ts'
import { ownPaths, type Paths } from '../../src/paths.ts'
import { World } from './fakes.ts'

const FAKE = 'fake-main.ts'
const UP_MS = 60_000

export class Lab {
  readonly home = mkdtempSync(join(tmpdir(), 'noid-daemon-'))
  readonly paths: Paths = ownPaths({ NOID_HOME: this.home })
  readonly world = new World(join(this.home, 'world'))
  readonly client = new Client(this.paths.socket)
  readonly #processes: ChildProcess[] = []
  readonly #main: string

  constructor(t: TestContext, main = FAKE) {
    this.#main = fileURLToPath(new URL(main, import.meta.url))
    t.after(async () => {
      // A test that failed may have left real VMs: nobody else knows how to remove them.
      if (main !== FAKE) await this.#destroyAll().catch(() => {})
      for (const p of this.#processes) if (p.exitCode === null && p.signalCode === null) p.kill('SIGKILL')
      for (const f of this.world.list().filter((x) => x.startsWith('vm-'))) {
        try {
          process.kill(Number(this.world.get(f)), 'SIGKILL')
        } catch {
          // It ended on its own.
        }
      }
      rmSync(this.home, { recursive: true, force: true })
    })
  }

  async #destroyAll(): Promise<void> {
    for (const p of this.#processes) if (p.exitCode === null && p.signalCode === null) await kill9(p)
    await this.up()
    for (const v of await this.client.vms()) await this.client.destroy(v.name)
  }

  /** Starts a daemon and waits until it answers. */
  async up(env: Record<string, string> = {}): Promise<ChildProcess> {
    const p = this.spawn(env)
    for (const end = Date.now() + UP_MS; Date.now() < end; await sleep(20)) {
      if (p.exitCode !== null) break
      const pid = await this.client.version().then(
        (v) => v.pid,
        () => undefined,
      )
      if (pid === p.pid) return p
    }
    throw new Error(`the daemon does not answer:\n${this.log()}`)
  }

  spawn(env: Record<string, string> = {}): ChildProcess {
    const p = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', this.#main], {
      env: { ...process.env, NOID_HOME: this.home, ...env },
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    this.#processes.push(p)
    return p
  }

  create(name: string, body: Partial<CreateVm> = {}): Promise<Vm> {
    return this.client.create({ name, ...body }, () => {})
  }

  log(): string {
    try {
      return readFileSync(this.paths.daemonLog, 'utf8')
    } catch {
      return '(no log)'
    }
  }
}

export async function exited(p: ChildProcess): Promise<void> {
  if (p.exitCode === null && p.signalCode === null) await once(p, 'exit')
}

export async function kill9(p: ChildProcess): Promise<void> {
  p.kill('SIGKILL')
  await exited(p)
}
