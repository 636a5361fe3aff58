import type { Vm } from '../api/contract.ts'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { forEachVm } from '../cli/many.ts'
import { progressView } from '../cli/progress.ts'
import { addresses, both, ports } from '../cli/text.ts'

export default class Start extends NoidCommand {
  static override summary = 'Start VMs that are stopped.'
  static override usage = 'start [NAME]...'
  static override examples = ['<%= config.bin %> start web', '<%= config.bin %> start web db']
  static override args = { name: vmArg }
  static override strict = false

  async run(): Promise<Vm[]> {
    const { argv, flags } = await this.parse(Start)
    const api = await this.daemon(flags)
    const view = progressView(this.jsonEnabled())
    try {
      return await forEachVm(argv as string[], async (name) => {
        const vm = await api.start(name, view.line)
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
