import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Flags } from '@oclif/core'
import { NoidCommand } from '../../cli/base.ts'
import { NoidError } from '../../errors.ts'
import { tail } from '../../logs.ts'
import { ownPaths, rootPaths } from '../../paths.ts'

export default class DaemonLogs extends NoidCommand {
  static override summary = "Show the daemon's log; works when the daemon does not."
  static override examples = ['<%= config.bin %> daemon logs -n 50', '<%= config.bin %> daemon logs --follow']
  static override flags = {
    follow: Flags.boolean({ char: 'f', summary: 'Go on with what is written from now.' }),
    lines: Flags.integer({ char: 'n', summary: 'How many of the last lines.', default: 50, min: 1 }),
  }

  async run(): Promise<{ file: string; lines: string[] } | undefined> {
    const { flags } = await this.parse(DaemonLogs)
    const { socket } = this.target(flags)
    const paths = [ownPaths(), rootPaths()].find((p) => p.socket === socket)
    const file = paths?.daemonLog ?? join(dirname(socket), 'daemon.log')
    if (!existsSync(file)) {
      throw new NoidError('INVALID_INPUT', { what: `there is no log at ${file}`, hint: 'no daemon ran here yet' })
    }
    const interrupted = new AbortController()
    const follow = flags.follow && !this.jsonEnabled()
    if (follow) for (const s of ['SIGINT', 'SIGTERM'] as const) process.once(s, () => interrupted.abort())
    let text = ''
    for await (const chunk of tail(file, flags.lines, follow, interrupted.signal)) {
      if (this.jsonEnabled()) text += chunk
      else process.stdout.write(chunk)
    }
    return this.jsonEnabled() ? { file, lines: text === '' ? [] : text.trimEnd().split('\n') } : undefined
  }
}
