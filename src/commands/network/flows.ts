import { StatsCommand } from '../../cli/live.ts'
import { age, size, table } from '../../cli/text.ts'
import type { FlowRow, NetworkStats } from '../../plugins/contract.ts'

export default class NetworkFlows extends StatsCommand<FlowRow> {
  static override summary = "Show a network's flows: who speaks with whom through the gateway."
  static override examples = ['<%= config.bin %> network flows', '<%= config.bin %> network flows lab --watch']

  protected rows(s: NetworkStats): readonly FlowRow[] {
    return s.flows
  }

  protected render(rows: readonly FlowRow[], network: string): string {
    if (rows.length === 0)
      return `No flow on ${network} now. What VMs have with the outside, and clients with published ports, is shown while it lasts; VMs among each other need none.`
    return table(rows, [
      { head: 'VM', cell: (f) => f.vm },
      { head: 'PROTO', cell: (f) => f.proto },
      { head: 'GUEST', cell: (f) => f.guest },
      { head: '', cell: (f) => (f.direction === 'out' ? '→' : '←') },
      { head: 'PEER', cell: (f) => f.peer },
      { head: 'STATE', cell: (f) => f.state },
      { head: 'AGE', cell: (f) => age(f.ageMs), right: true },
      { head: 'IDLE', cell: (f) => age(f.idleMs), right: true },
      { head: 'OUT', cell: (f) => size(f.bytesOut), right: true },
      { head: 'IN', cell: (f) => size(f.bytesIn), right: true },
    ])
  }
}
