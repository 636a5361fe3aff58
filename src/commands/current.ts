import { type Active, activeVm } from '../cli/active.ts'
import { NoidCommand } from '../cli/base.ts'
import { NoidError } from '../errors.ts'

export default class Current extends NoidCommand {
  static override summary = "Show this directory's active VM."
  static override examples = ['<%= config.bin %> current']

  async run(): Promise<Active> {
    await this.parse(Current)
    const active = activeVm()
    if (active === undefined) throw new NoidError('NO_ACTIVE_VM')
    this.say(active.name)
    return active
  }
}
