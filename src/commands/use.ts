import { Args } from '@oclif/core'
import { type Active, setActiveVm } from '../cli/active.ts'
import { NoidCommand } from '../cli/base.ts'

export default class Use extends NoidCommand {
  static override summary = "Make a VM this directory's active one: commands that take a NAME then need none."
  static override description =
    'Writes the name to .noid-vm in this directory; it counts for the directories below too.'
  static override examples = ['<%= config.bin %> use web && <%= config.bin %> exec -- uname -a']
  static override args = { name: Args.string({ ignoreStdin: true, description: 'The VM.', required: true }) }

  async run(): Promise<Active> {
    const { args, flags } = await this.parse(Use)
    const vm = await (await this.daemon(flags)).vm(args.name)
    const active = setActiveVm(vm.name)
    this.say(`${vm.name} is the active VM of this directory`)
    return active
  }
}
