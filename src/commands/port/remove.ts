import { Args } from '@oclif/core'
import type { Publish } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { nameAndSpecs } from '../../cli/port-args.ts'
import { port } from '../../cli/text.ts'

export default class PortRemove extends NoidCommand {
  static override summary = 'Stop forwarding ports to a VM.'
  static override hiddenAliases = ['port:rm']
  static override usage = 'port remove [NAME] SPEC...'
  static override examples = ['<%= config.bin %> port remove web 8080:80']
  static override args = {
    name: Args.string({ ignoreStdin: true, description: "The VM; this directory's active one when left out." }),
    spec: Args.string({ ignoreStdin: true, description: 'As it was published: [HOSTIP:]HOST:GUEST[/udp].' }),
  }
  static override strict = false

  async run(): Promise<Publish[]> {
    const { argv, flags } = await this.parse(PortRemove)
    const { name, specs } = nameAndSpecs(argv as string[], 'remove')
    const removed = await (await this.daemon(flags)).removePorts(name, specs)
    for (const p of removed) this.say(`${port(p)} is closed`)
    return removed
  }
}
