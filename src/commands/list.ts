import type { Vm } from '../api/contract.ts'
import { activeVm } from '../cli/active.ts'
import { NoidCommand } from '../cli/base.ts'
import { ports, table, upFor } from '../cli/text.ts'

export default class List extends NoidCommand {
  static override summary = 'List the VMs with their addresses.'
  static override hiddenAliases = ['ls', 'ps']
  static override examples = ['<%= config.bin %> list', '<%= config.bin %> list --json']

  async run(): Promise<Vm[]> {
    const { flags } = await this.parse(List)
    const vms = await (await this.daemon(flags)).vms()
    if (vms.length === 0) this.say('There is no VM yet. Make one with: noid create NAME')
    else {
      const active = activeVm()?.name
      this.say(
        table(vms, [
          { head: 'NAME', cell: (v) => (v.name === active ? `${v.name} *` : v.name) },
          { head: 'STATE', cell: (v) => v.state },
          { head: 'ADDRESS', cell: (v) => v.address ?? '-' },
          ...(vms.some((v) => v.address6 !== null) ? [{ head: 'IPV6', cell: (v: Vm) => v.address6 ?? '-' }] : []),
          { head: 'NETWORK', cell: (v) => v.network },
          { head: 'BACKEND', cell: (v) => v.backend },
          { head: 'PORTS', cell: (v) => ports(v.ports) },
          { head: 'UP', cell: (v) => upFor(v) },
        ]),
      )
      for (const v of vms) if (v.problem) this.say(`${v.name}: ${v.problem.split('\n', 1)[0]}`)
    }
    return vms
  }
}
