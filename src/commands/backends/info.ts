import { Args } from '@oclif/core'
import type { Backend } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { facts } from '../../cli/text.ts'
import { NoidError } from '../../errors.ts'

export default class BackendsInfo extends NoidCommand {
  static override summary = 'Show what a network backend can do.'
  static override examples = ['<%= config.bin %> backends info userspace']
  static override args = { backend: Args.string({ ignoreStdin: true, description: 'The backend.', required: true }) }

  async run(): Promise<Backend> {
    const { args, flags } = await this.parse(BackendsInfo)
    const all = await (await this.daemon(flags)).backends()
    const b = all.find((x) => x.name === args.backend)
    if (b === undefined) {
      throw new NoidError('BACKEND_UNKNOWN', { name: args.backend, known: all.map((x) => x.name).join(', ') })
    }
    const yes = (v: boolean): string => (v ? 'yes' : 'no')
    const c = b.capabilities
    this.say(
      facts([
        ['Name', b.name],
        ['Summary', b.summary],
        ['Usable here', yes(b.ok)],
        ['Gives nics of kind', b.provides.join(' ')],
        ['Addresses from', c.addressing],
        ['Needs', c.privileges.join(' ') || 'no privilege'],
        ['Published ports', yes(c.publish)],
        ['DNS', yes(c.dns)],
        ['Isolation', yes(c.isolation)],
        ['IPv6', yes(c.ipv6)],
      ]),
    )
    for (const p of b.problems) this.say(`problem: ${p.what}${p.hint ? `\n  ${p.hint}` : ''}`)
    return b
  }
}
