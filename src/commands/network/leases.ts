import { StatsCommand } from '../../cli/live.ts'
import { age, table } from '../../cli/text.ts'
import type { LeaseRow, NetworkStats } from '../../plugins/contract.ts'

export default class NetworkLeases extends StatsCommand<LeaseRow> {
  static override summary = "Show a network's DHCP leases."
  static override examples = ['<%= config.bin %> network leases', '<%= config.bin %> network leases lab --watch']

  protected rows(s: NetworkStats): readonly LeaseRow[] {
    return s.leases
  }

  protected render(rows: readonly LeaseRow[], network: string): string {
    if (rows.length === 0) return `No lease on ${network} yet. Make a VM with: noid create NAME --network ${network}`
    return table(rows, [
      { head: 'VM', cell: (l) => l.vm },
      { head: 'ADDRESS', cell: (l) => l.address },
      { head: 'MAC', cell: (l) => l.mac },
      { head: 'HOSTNAME', cell: (l) => l.hostname || '-' },
      { head: 'STATE', cell: (l) => l.state },
      { head: 'EXPIRES', cell: (l) => (l.expiresInMs === null ? '-' : `in ${age(l.expiresInMs)}`) },
    ])
  }
}
