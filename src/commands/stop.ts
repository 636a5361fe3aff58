import { Flags } from '@oclif/core'
import type { Vm } from '../api/contract.ts'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { forEachVm } from '../cli/many.ts'

export default class Stop extends NoidCommand {
  static override summary = 'Stop VMs; their files, addresses and ports are kept.'
  static override usage = 'stop [NAME]... [--grace SECONDS]'
  static override examples = ['<%= config.bin %> stop web', '<%= config.bin %> stop web --grace 0']
  static override args = { name: vmArg }
  static override strict = false
  static override flags = {
    grace: Flags.integer({ summary: 'Seconds to wait before it is ended by force.', min: 0, helpValue: 'SECONDS' }),
  }

  async run(): Promise<Vm[]> {
    const { argv, flags } = await this.parse(Stop)
    const api = await this.daemon(flags)
    return forEachVm(argv as string[], async (name) => {
      const vm = await api.stop(name, flags.grace === undefined ? undefined : flags.grace * 1000)
      this.say(`${vm.name} is stopped`)
      return vm
    })
  }
}
