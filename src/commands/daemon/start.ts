import type { VersionInfo } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { connect } from '../../client/daemon.ts'

export default class DaemonStart extends NoidCommand {
  static override summary = 'Start the daemon; every other command does it by itself when needed.'
  static override examples = ['<%= config.bin %> daemon start']

  async run(): Promise<VersionInfo & { started: boolean; socket: string }> {
    const { flags } = await this.parse(DaemonStart)
    const { client, version, started } = await connect(this.target(flags), this.config.version)
    this.say(`the daemon ${started ? 'is started' : 'runs already'}: process ${version.pid}, socket ${client.socket}`)
    return { ...version, started, socket: client.socket }
  }
}
