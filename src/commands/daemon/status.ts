import type { VersionInfo } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { age, facts } from '../../cli/text.ts'
import { Client } from '../../client/client.ts'
import { probe } from '../../client/daemon.ts'

export default class DaemonStatus extends NoidCommand {
  static override summary = 'Show whether the daemon runs. Starts nothing; exit code 1 when it does not run.'
  static override examples = ['<%= config.bin %> daemon status']

  async run(): Promise<{ running: boolean; socket: string; version?: VersionInfo }> {
    const { flags } = await this.parse(DaemonStatus)
    const { socket } = this.target(flags)
    const version = await probe(new Client(socket))
    if (version === undefined) {
      this.say(`no daemon answers at ${socket}; the next command starts it`)
      process.exitCode = 1
      return { running: false, socket }
    }
    this.say(
      facts([
        ['Running', `process ${version.pid}, up ${age(version.uptimeMs)}`],
        ['Version', `${version.version} (this command is ${this.config.version})`],
        ['Socket', socket],
        ['State', version.stateDir],
        ['VMs', String(version.vms)],
      ]),
    )
    return { running: true, socket, version }
  }
}
