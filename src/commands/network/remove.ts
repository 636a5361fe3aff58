import { networkArg } from '../../cli/args.ts'
import { NoidCommand } from '../../cli/base.ts'

export default class NetworkRemove extends NoidCommand {
  static override summary = 'Remove a network that has no VM.'
  static override hiddenAliases = ['network:rm']
  static override examples = ['<%= config.bin %> network remove lab']
  static override args = { network: networkArg }

  async run(): Promise<{ removed: string }> {
    const { args, flags } = await this.parse(NetworkRemove)
    await (await this.daemon(flags)).removeNetwork(args.network)
    this.say(`${args.network} is removed`)
    return { removed: args.network }
  }
}
