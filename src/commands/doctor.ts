import { NoidCommand } from '../cli/base.ts'
import { type Check, examine } from '../cli/machine.ts'

export default class Doctor extends NoidCommand {
  static override summary = 'Check this machine: what noid needs, what is missing, how to mend it.'
  static override description =
    'Works without a daemon. Exit code 1 when something is missing without which no VM runs.'
  static override examples = ['<%= config.bin %> doctor', '<%= config.bin %> doctor --json']

  async run(): Promise<{ ok: boolean; checks: Check[] }> {
    await this.parse(Doctor)
    const checks = await examine()
    const width = Math.max(...checks.map((c) => c.name.length))
    for (const c of checks) {
      const mark = c.ok ? 'ok     ' : c.required ? 'MISSING' : 'less   '
      this.say(`${mark}  ${c.name.padEnd(width)}  ${c.detail}`)
      if (!c.ok && c.hint) this.say(`${' '.repeat(width + 11)}→ ${c.hint}`)
    }
    const missing = checks.filter((c) => !c.ok && c.required)
    if (missing.length > 0) {
      process.exitCode = 1
      this.say(`\nVMs cannot run here yet: ${missing.map((c) => c.name).join(', ')}`)
    } else if (checks.every((c) => c.ok)) this.say('\nEverything noid uses is here.')
    else this.say('\nVMs can run here; the lines marked "less" tell what would make it better.')
    return { ok: missing.length === 0, checks }
  }
}
