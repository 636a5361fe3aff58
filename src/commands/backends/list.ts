import type { Backend } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { table } from '../../cli/text.ts'

export default class BackendsList extends NoidCommand {
  static override summary = 'List the network backends and whether they can be used here.'
  static override hiddenAliases = ['backends:ls']
  static override examples = ['<%= config.bin %> backends list']

  async run(): Promise<Backend[]> {
    const { flags } = await this.parse(BackendsList)
    const backends = await (await this.daemon(flags)).backends()
    this.say(
      table(backends, [
        { head: 'NAME', cell: (b) => b.name },
        { head: 'USABLE', cell: (b) => (b.ok ? 'yes' : 'no') },
        { head: 'GIVES', cell: (b) => b.provides.join(' ') },
        { head: 'SUMMARY', cell: (b) => b.summary },
      ]),
    )
    for (const b of backends) {
      for (const p of b.problems) this.say(`${b.name}: ${p.what}${p.hint ? `\n  ${p.hint}` : ''}`)
    }
    return backends
  }
}
