import type { Vm } from '../api/contract.ts'
import { vmNamed } from '../cli/active.ts'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { addresses, both, facts, ports, upFor } from '../cli/text.ts'

export default class Info extends NoidCommand {
  static override summary = 'Show everything about one VM.'
  static override examples = ['<%= config.bin %> info web', '<%= config.bin %> info web --json']
  static override args = { name: vmArg }

  async run(): Promise<Vm> {
    const { args, flags } = await this.parse(Info)
    const name = vmNamed(args.name)
    const vm = await (await this.daemon(flags)).vm(name)
    this.say(
      facts([
        ['Name', vm.name],
        ['State', vm.problem ? `${vm.state}: ${vm.problem}` : vm.state],
        ['Address', both(addresses(vm))],
        ['MAC', vm.mac],
        ['Network', `${vm.network} (${vm.backend})`],
        ['Ports', ports(vm.ports)],
        ['Runtime', vm.runtime],
        ['Image', vm.image ?? 'the one built in'],
        [
          'Mounts',
          vm.mounts.map((m) => `${m.source} → ${m.target}${m.readonly ? ' (read-only)' : ''}`).join(', ') || '-',
        ],
        ['Size', `${vm.cpus} CPU, ${vm.memMib} MiB`],
        ['Restart', restart(vm)],
        ['Process', vm.pid === null ? '-' : String(vm.pid)],
        ['Created', vm.createdAt],
        ['Up', upFor(vm)],
      ]),
    )
    return vm
  }
}

/** The policy, how often it was needed, and when it will be next. */
function restart(vm: Vm): string {
  const times = vm.restarts === 0 ? '' : `, ${vm.restarts} ${vm.restarts === 1 ? 'time' : 'times'} in a row`
  const waits = vm.restartAt !== null && (vm.state === 'failed' || vm.state === 'stopped')
  return `${vm.restart}${times}${waits ? `, next at ${vm.restartAt}` : ''}`
}
