import { NoidCommand } from '../../cli/base.ts'
import { Client } from '../../client/client.ts'
import { probe, stopDaemon } from '../../client/daemon.ts'

export default class DaemonStop extends NoidCommand {
  static override summary = 'Stop the daemon; VMs and their networks go on.'
  static override examples = ['<%= config.bin %> daemon stop && <%= config.bin %> daemon start']

  async run(): Promise<{ stopped: boolean }> {
    const { flags } = await this.parse(DaemonStop)
    const client = new Client(this.target(flags).socket)
    const version = await probe(client)
    if (version === undefined) {
      this.say('no daemon runs')
      return { stopped: false }
    }
    await stopDaemon(client, version.pid)
    this.say(version.vms > 0 ? `the daemon is stopped; its VMs go on` : 'the daemon is stopped')
    return { stopped: true }
  }
}
