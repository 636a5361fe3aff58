import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Flags } from '@oclif/core'
import { NoidCommand } from '../../cli/base.ts'
import { logTail } from '../../client/daemon.ts'
import { NoidError } from '../../errors.ts'
import { ownPaths, rootPaths } from '../../paths.ts'

export default class DaemonLogs extends NoidCommand {
  static override summary = "Show the daemon's log; works when the daemon does not."
  static override examples = ['<%= config.bin %> daemon logs -n 50']
  static override flags = {
    lines: Flags.integer({ char: 'n', summary: 'How many of the last lines.', default: 50, min: 1 }),
  }

  async run(): Promise<{ file: string; lines: string[] }> {
    const { flags } = await this.parse(DaemonLogs)
    const { socket } = this.target(flags)
    const paths = [ownPaths(), rootPaths()].find((p) => p.socket === socket)
    const file = paths?.daemonLog ?? join(dirname(socket), 'daemon.log')
    if (!existsSync(file)) {
      throw new NoidError('INVALID_INPUT', { what: `there is no log at ${file}`, hint: 'no daemon ran here yet' })
    }
    const lines = logTail(file, flags.lines)
    this.say(lines.join('\n'))
    return { file, lines }
  }
}
