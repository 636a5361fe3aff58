import type { Network } from '../../api/contract.ts'
import { networkArg } from '../../cli/args.ts'
import { NoidCommand } from '../../cli/base.ts'
import { both, facts, gateways, ofFamilies, subnets } from '../../cli/text.ts'

export default class NetworkInfo extends NoidCommand {
  static override summary = 'Show everything about one network.'
  static override examples = ['<%= config.bin %> network info default']
  static override args = { network: networkArg }

  async run(): Promise<Network> {
    const { args, flags } = await this.parse(NetworkInfo)
    const n = await (await this.daemon(flags)).network(args.network)
    this.say(
      facts([
        ['Name', n.name],
        ['Backend', n.backend],
        ...(n.addressing === 'external'
          ? ([['Addresses', 'given by what the backend connects to']] as const)
          : ([
              ['Subnet', both(subnets(n))],
              ['Gateway', both(gateways(n))],
              ['DHCP and DNS', both(ofFamilies(n, n.services, n.services6))],
            ] as const)),
        [
          'Host',
          n.addressing === 'external'
            ? 'as the backend has it'
            : n.hostReach
              ? both(ofFamilies(n, n.hostAddress, n.hostAddress6))
              : 'no interface here; reach VMs by published ports',
        ],
        ['Domain', n.domain],
        ['MTU', String(n.mtu)],
        ['VM to VM', n.isolated ? 'no, each VM is alone' : 'yes'],
        ['Loopback ports allowed', n.allowHostPorts.join(' ') || '-'],
        ['VMs', n.vms.join(' ') || '-'],
        ['Created', n.createdAt],
      ]),
    )
    for (const w of n.warnings) this.say(`note: ${w}`)
    return n
  }
}
