import type { Vm } from '../api/contract.ts'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { forEachVm } from '../cli/many.ts'
import { progressView } from '../cli/progress.ts'
import { addresses, both, ports } from '../cli/text.ts'

export default class Restart extends NoidCommand {
  static override summary = 'Stop VMs and start them again; address and ports stay.'
  static override usage = 'restart [NAME]...'
  static override examples = ['<%= config.bin %> restart web', '<%= config.bin %> restart web db']
  static override args = { name: vmArg }
  static override strict = false

  async run(): Promise<Vm[]> {
    const { argv, flags } = await this.parse(Restart)
    const api = await this.daemon(flags)
    const view = progressView(this.jsonEnabled())
    try {
      return await forEachVm(argv as string[], async (name) => {
        const vm = await api.restart(name, view.line)
        view.end()
        this.say(
          `${vm.name} is running at ${both(addresses(vm))}${vm.ports.length > 0 ? `, ports ${ports(vm.ports)}` : ''}`,
        )
        return vm
      })
    } finally {
      view.end()
    }
  }
}
