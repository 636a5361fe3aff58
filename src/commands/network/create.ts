import { Args, Flags } from '@oclif/core'
import type { Network } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { parseSettings } from '../../cli/settings.ts'

export default class NetworkCreate extends NoidCommand {
  static override summary = 'Make a network.'
  static override description =
    'VMs on one network reach each other, VMs on different networks never do. A network belongs to one backend.'
  static override examples = [
    '<%= config.bin %> network create lab',
    '<%= config.bin %> network create lab --subnet 192.168.120.0/24 --allow-host 5432',
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
      mtu: flags.mtu,
      allowHost: flags['allow-host'],
      config: flags.config === undefined ? undefined : parseSettings(flags.config),
    })
    this.say(
      network.addressing === 'external'
        ? `${network.name} is made (${network.backend}); its addresses come with each VM`
        : `${network.name} is ${network.subnet} (${network.backend}), gateway ${network.gateway}`,
    )
    for (const w of network.warnings) this.say(`  note: ${w}`)
    this.say(`\nNext:\n  noid create NAME --network ${network.name}`)
    return network
  }
}
