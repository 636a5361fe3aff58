import type { Publish } from '../../api/contract.ts'
import { vmNamed } from '../../cli/active.ts'
import { vmArg } from '../../cli/args.ts'
import { NoidCommand } from '../../cli/base.ts'
import { hostText, reach, table } from '../../cli/text.ts'

export default class PortList extends NoidCommand {
  static override summary = "List a VM's published ports."
  static override hiddenAliases = ['port:ls']
  static override examples = ['<%= config.bin %> port list web']
  static override args = { name: vmArg }

  async run(): Promise<Publish[]> {
    const { args, flags } = await this.parse(PortList)
    const name = vmNamed(args.name)
    const list = await (await this.daemon(flags)).ports(name)
    if (list.length === 0) this.say(`${name} publishes no port. Publish one with: noid port add ${name} 8080:80`)
    else {
      this.say(
        table(list, [
          { head: 'PROTO', cell: (p) => p.proto },
          { head: 'HOST', cell: (p) => `${hostText(p.hostAddress)}:${p.hostPort}`, right: true },
          { head: 'GUEST', cell: (p) => String(p.guestPort), right: true },
          { head: 'TRY', cell: reach },
        ]),
      )
    }
    return list
  }
}
