import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { forEachVm } from '../cli/many.ts'

export default class Destroy extends NoidCommand {
  static override summary = 'Stop VMs and remove everything they had.'
  static override hiddenAliases = ['rm']
  static override usage = 'destroy [NAME]...'
  static override examples = ['<%= config.bin %> destroy web', '<%= config.bin %> destroy web db']
  static override args = { name: vmArg }
  static override strict = false

  async run(): Promise<{ destroyed: string[] }> {
    const { argv, flags } = await this.parse(Destroy)
    const api = await this.daemon(flags)
    const destroyed = await forEachVm(argv as string[], async (name) => {
      await api.destroy(name)
      this.say(`${name} is destroyed`)
      return name
    })
    return { destroyed }
  }
}
