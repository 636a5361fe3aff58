/**
 * The agent without a guest: agent.pl runs on this machine over a socket pair, behind a unix socket that behaves as QEMU's chardev does:
 * one client at a time, and neither a client's coming nor its going is seen at the other end.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { AgentClient } from '../../../src/runtimes/qemu/agent/client.ts'

export const agentFile = fileURLToPath(new URL('../../../src/runtimes/qemu/guest/agent.pl', import.meta.url))

export const hasPerl = existsSync('/usr/bin/perl')

export class Port implements AsyncDisposable {
  readonly path: string
  readonly agent: ChildProcess
  readonly #dir: string
  readonly #server: Server
  /** The agent's end of the wire, for tests that speak it themselves. */
  readonly wire: Socket
  /** Of the agent: it must have nothing to say. */
  complaints = ''
  #client: Socket | undefined

  private constructor(dir: string, agent: ChildProcess, server: Server) {
    this.#dir = dir
    this.path = join(dir, 'agent')
    this.agent = agent
    this.#server = server
    this.wire = agent.stdio[3] as Socket
    agent.stderr?.setEncoding('utf8').on('data', (t: string) => {
      this.complaints += t
    })
    this.wire.on('error', () => {})
    server.on('connection', (c) => {
      // The second one waits, as in QEMU's backlog.
      this.#client?.destroy()
      this.#client = c
      c.on('error', () => {})
      c.on('data', (b) => {
        if (!this.wire.write(b)) {
          c.pause()
          this.wire.once('drain', () => c.resume())
        }
      })
      const fromAgent = (b: Buffer): void => {
        if (!c.write(b)) {
          this.wire.pause()
          const go = (): void => {
            this.wire.resume()
          }
          c.once('drain', go).once('close', go)
        }
      }
      this.wire.on('data', fromAgent)
      c.on('close', () => this.wire.off('data', fromAgent))
    })
  }

  static async open(): Promise<Port> {
    const dir = mkdtempSync(join(tmpdir(), 'noid-agent-'))
    const agent = spawn('perl', [agentFile, '--fd', '3'], { stdio: ['ignore', 'ignore', 'pipe', 'pipe'] })
    const server = createServer()
    const port = new Port(dir, agent, server)
    server.listen(port.path)
    await once(server, 'listening')
    return port
  }

  connect(ms = 60_000): Promise<AgentClient> {
    return AgentClient.connect(this.path, AbortSignal.timeout(ms), 'test')
  }

  /** The connection ends in the middle of whatever it carries. */
  cut(): void {
    this.#client?.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client?.destroy()
    this.#server.close()
    this.wire.destroy()
    const over = this.agent.exitCode !== null || this.agent.signalCode !== null || once(this.agent, 'exit')
    this.agent.kill('SIGKILL')
    await over
    rmSync(this.#dir, { recursive: true, force: true })
  }
}
