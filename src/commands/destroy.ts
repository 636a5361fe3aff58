import { Flags } from '@oclif/core'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { forEachVm } from '../cli/many.ts'

export default class Destroy extends NoidCommand {
  static override summary = 'Stop VMs and remove everything they had.'
  static override hiddenAliases = ['rm']
  static override usage = 'destroy [NAME]... [--all]'
  static override examples = [
    '<%= config.bin %> destroy web',
    '<%= config.bin %> destroy web db',
    '<%= config.bin %> destroy --all',
  ]
  static override args = { name: vmArg }
  static override strict = false
  static override flags = { all: Flags.boolean({ summary: 'Every VM there is.' }) }

  async run(): Promise<{ destroyed: string[] }> {
    const { argv, flags } = await this.parse(Destroy)
    const api = await this.daemon(flags)
    const names = flags.all ? (await api.vms()).map((v) => v.name) : (argv as string[])
    if (flags.all && names.length === 0) {
      this.say('There is no VM.')
      return { destroyed: [] }
    }
    const destroyed = await forEachVm(names, async (name) => {
      const { note } = await api.destroy(name)
      this.say(`${name} is destroyed`)
      if (note !== undefined) this.note(`note: ${note}`)
      return name
    })
    return { destroyed }
  }
}
