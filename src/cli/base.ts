/**
 * What every command of noid shares: `--json`, `--host`, the connection, the way errors are told.
 *
 * A command is thin: parse, one or a few calls, render. It returns what `--json` prints; what it prints for people goes
 * through `say` and is silent under `--json`.
 */
import { constants } from 'node:os'
import { Command, Flags } from '@oclif/core'
import type { Client } from '../client/client.ts'
import { chooseTarget, connect, type Target } from '../client/daemon.ts'
import { report } from './failure.ts'

export abstract class NoidCommand extends Command {
  static override enableJsonFlag = true

  static override baseFlags = {
    host: Flags.string({
      summary: "Socket of the daemon to use; else root's if this user may, else this user's own.",
      helpValue: 'PATH',
      helpGroup: 'GLOBAL',
      env: 'NOID_HOST',
    }),
  }

  /** A line for people. */
  protected say(text = ''): void {
    if (!this.jsonEnabled()) process.stdout.write(`${text}\n`)
  }

  /** A remark that is not the answer: stderr, so that pipes stay clean. */
  protected note(text: string): void {
    if (!this.jsonEnabled()) process.stderr.write(`${text}\n`)
  }

  /** Whoever read stdout has left (`noid logs -f | head -1`): what would go on for ever ends, as by SIGPIPE. */
  protected endWithReader(): void {
    process.stdout.once('error', () => process.exit(128 + constants.signals.SIGPIPE))
  }

  protected target(flags: { host?: string | undefined }): Target {
    return chooseTarget(flags.host)
  }

  /** A daemon that answers; started when it is this user's own and absent. */
  protected async daemon(flags: { host?: string | undefined }): Promise<Client> {
    const { client, version } = await connect(this.target(flags), this.config.version)
    if (version.version !== this.config.version) {
      this.note(
        `note: the daemon is noid ${version.version} and this command is ${this.config.version}; ` +
          'noid daemon stop && noid daemon start renews it (VMs keep running)',
      )
    }
    return client
  }

  override logJson(json: unknown): void {
    process.stdout.write(`${JSON.stringify(json, null, 2)}\n`)
  }

  protected override async catch(e: Error): Promise<void> {
    const code = report(e, this.jsonEnabled())
    process.exitCode = process.exitCode || code
  }
}
