import { Args } from '@oclif/core'
import type { Publish } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { nameAndSpecs } from '../../cli/port-args.ts'
import { port, reach } from '../../cli/text.ts'

export default class PortAdd extends NoidCommand {
  static override summary = 'Forward ports of this machine to a VM, also while it runs.'
  static override usage = 'port add [NAME] SPEC...'
  static override examples = [
    '<%= config.bin %> port add web 8080:80',
    '<%= config.bin %> port add web 0:22 127.0.0.1:8000-8010:8000-8010/udp',
  ]
  static override args = {
    name: Args.string({ ignoreStdin: true, description: "The VM; this directory's active one when left out." }),
    spec: Args.string({
      ignoreStdin: true,
      description: '[HOSTIP:]HOST:GUEST[/udp], ranges too; HOST 0 picks a free port.',
    }),
  }
  static override strict = false

  async run(): Promise<Publish[]> {
    const { argv, flags } = await this.parse(PortAdd)
    const { name, specs } = nameAndSpecs(argv as string[], 'add')
    const added = await (await this.daemon(flags)).addPorts(name, specs)
    for (const p of added) this.say(`${port(p)}   ${reach(p)}`)
    return added
  }
}
