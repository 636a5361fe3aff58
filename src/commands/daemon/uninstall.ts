import { Flags } from '@oclif/core'
import { NoidCommand } from '../../cli/base.ts'
import { uninstall, unitFile } from '../../cli/service.ts'
import { mustManage, systemctlFor } from '../../cli/systemctl.ts'

export default class DaemonUninstall extends NoidCommand {
  static override summary = 'Take the systemd service of the daemon away; VMs and their networks go on.'
  static override examples = ['sudo <%= config.bin %> daemon uninstall', '<%= config.bin %> daemon uninstall --user']
  static override flags = { user: Flags.boolean({ summary: "The service of this user's own manager." }) }

  async run(): Promise<{ file: string; removed: boolean }> {
    const { flags } = await this.parse(DaemonUninstall)
    mustManage(flags.user)
    const file = unitFile(flags.user)
    const removed = uninstall(file, systemctlFor(flags.user))
    if (removed) this.say(`${file} is removed; VMs go on, and the next command starts a daemon`)
    else this.say(`there is no ${file}`)
    return { file, removed }
  }
}
