import type { Network } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { ofFamilies, table } from '../../cli/text.ts'

export default class NetworkList extends NoidCommand {
  static override summary = 'List the networks.'
  static override hiddenAliases = ['network:ls']
  static override examples = ['<%= config.bin %> network list']

  async run(): Promise<Network[]> {
    const { flags } = await this.parse(NetworkList)
    const networks = await (await this.daemon(flags)).networks()
    if (networks.length === 0) {
      this.say('There is no network yet; the first VM makes one. Make your own with: noid network create NAME')
    } else {
      this.say(
        table(networks, [
          { head: 'NAME', cell: (n) => n.name },
          { head: 'BACKEND', cell: (n) => n.backend },
          { head: 'SUBNET', cell: (n) => (n.addressing === 'external' || !n.ipv4 ? '-' : n.subnet) },
          { head: 'GATEWAY', cell: (n) => (n.addressing === 'external' || !n.ipv4 ? '-' : n.gateway) },
          ...(networks.some((n) => n.subnet6 !== null)
            ? [{ head: 'IPV6', cell: (n: Network) => n.subnet6 ?? '-' }]
            : []),
          { head: 'HOST', cell: (n) => (n.hostReach ? (ofFamilies(n, n.hostAddress, n.hostAddress6)[0] ?? '-') : '-') },
          { head: 'VMS', cell: (n) => n.vms.join(' ') || '-' },
        ]),
      )
    }
    return networks
  }
}
