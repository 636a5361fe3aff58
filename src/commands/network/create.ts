import { Args, Flags } from '@oclif/core'
import type { Network } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { parseSettings } from '../../cli/settings.ts'
import { both, gateways, subnets } from '../../cli/text.ts'

export default class NetworkCreate extends NoidCommand {
  static override summary = 'Make a network.'
  static override description =
    'VMs on one network reach each other, VMs on different networks never do. A network belongs to one backend. It has ' +
    'IPv4 and, where its backend can, IPv6: the next free /64 of a prefix that is random for this installation (RFC 4193).'
  static override examples = [
    '<%= config.bin %> network create lab',
    '<%= config.bin %> network create lab --subnet 192.168.120.0/24 --allow-host 5432',
    '<%= config.bin %> network create lab --subnet6 fd12:3456:789a:1::/64',
    '<%= config.bin %> network create six --ipv6-only',
    '<%= config.bin %> network create lab --network-backend cni --config /etc/cni/net.d/10-lab.conflist',
  ]
  static override args = {
    name: Args.string({ ignoreStdin: true, description: 'Name of the network.', required: true }),
  }
  static override flags = {
    'network-backend': Flags.string({
      aliases: ['backend'],
      summary: 'Who gives the network.',
      env: 'NOID_NETWORK_BACKEND',
      helpValue: 'BACKEND',
    }),
    subnet: Flags.string({ summary: 'IPv4 subnet; the next free /24 when left out.', helpValue: 'CIDR' }),
    subnet6: Flags.string({ summary: 'IPv6 subnet; the next free /64 when left out.', helpValue: 'PREFIX' }),
    'ipv4-only': Flags.boolean({ summary: 'Without IPv6.', exclusive: ['ipv6-only', 'subnet6'] }),
    'ipv6-only': Flags.boolean({ summary: 'Without IPv4.', exclusive: ['ipv4-only', 'subnet'] }),
    mtu: Flags.integer({ summary: 'MTU the VMs are given.', min: 576, max: 65_520 }),
    'allow-host': Flags.integer({
      summary: "Port of this machine's loopback that VMs may reach at host.noid.internal.",
      multiple: true,
      multipleNonGreedy: true,
      min: 1,
      max: 65_535,
      helpValue: 'PORT',
    }),
    config: Flags.string({
      summary: "The backend's own settings: a file with JSON, JSON itself, or KEY=VALUE.",
      multiple: true,
      multipleNonGreedy: true,
      helpValue: 'FILE|JSON|KEY=VALUE',
    }),
  }

  async run(): Promise<Network> {
    const { args, flags } = await this.parse(NetworkCreate)
    const network = await (await this.daemon(flags)).createNetwork({
      name: args.name,
      backend: flags['network-backend'],
      subnet: flags.subnet,
      subnet6: flags.subnet6,
      family: flags['ipv4-only'] ? 'ipv4' : flags['ipv6-only'] ? 'ipv6' : undefined,
      mtu: flags.mtu,
      allowHost: flags['allow-host'],
      config: flags.config === undefined ? undefined : parseSettings(flags.config),
    })
    this.say(
      network.addressing === 'external'
        ? `${network.name} is made (${network.backend}); its addresses come with each VM`
        : `${network.name} is ${both(subnets(network))} (${network.backend}), gateway ${both(gateways(network))}`,
    )
    for (const w of network.warnings) this.say(`  note: ${w}`)
    this.say(`\nNext:\n  noid create NAME --network ${network.name}`)
    return network
  }
}
