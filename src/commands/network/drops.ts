import { StatsCommand } from '../../cli/live.ts'
import { table } from '../../cli/text.ts'
import type { DropRow, NetworkStats } from '../../plugins/contract.ts'

/** What every guest of an IPv4-only network causes by starting and nobody needs to mend: --json has it, the table does not. */
const HARMLESS = 'ipv6'

export default class NetworkDrops extends StatsCommand<DropRow> {
  static override summary = 'Show what a network refused, by VM and reason.'
  static override examples = ['<%= config.bin %> network drops', '<%= config.bin %> network drops lab --watch']

  protected rows(s: NetworkStats): readonly DropRow[] {
    return s.drops.filter((d) => d.count > 0)
  }

  protected render(rows: readonly DropRow[], network: string): string {
    const shown = rows.filter((d) => d.reason !== HARMLESS)
    if (shown.length === 0) return `${network} has refused nothing.`
    return table(shown, [
      { head: 'VM', cell: (d) => d.vm },
      { head: 'REASON', cell: (d) => d.reason },
      { head: 'COUNT', cell: (d) => String(d.count), right: true },
      { head: 'MEANING', cell: (d) => d.meaning },
    ])
  }
}
