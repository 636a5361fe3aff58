import { networkArg } from '../../cli/args.ts'
import { NoidCommand } from '../../cli/base.ts'
import { forEachNamed } from '../../cli/many.ts'

export default class NetworkRemove extends NoidCommand {
  static override summary = 'Remove networks that have no VM.'
  static override hiddenAliases = ['network:rm']
  static override usage = 'network remove NETWORK...'
  static override examples = ['<%= config.bin %> network remove lab', '<%= config.bin %> network remove lab other']
  static override args = { network: networkArg }
  static override strict = false

  async run(): Promise<{ removed: string[] }> {
    const { argv, flags } = await this.parse(NetworkRemove)
    const api = await this.daemon(flags)
    const removed = await forEachNamed(argv as string[], async (name) => {
      const { note } = await api.removeNetwork(name)
      this.say(`${name} is removed`)
      if (note !== undefined) this.note(`note: ${note}`)
      return name
    })
    return { removed }
  }
}
