import { Flags } from '@oclif/core'
import { vmNamed } from '../cli/active.ts'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'

export default class Logs extends NoidCommand {
  static override summary = "Show what a VM's init printed."
  static override examples = ['<%= config.bin %> logs web', '<%= config.bin %> logs web --follow']
  static override args = { name: vmArg }
  static override flags = {
    follow: Flags.boolean({ char: 'f', summary: 'Go on with what is printed from now.' }),
    lines: Flags.integer({ char: 'n', summary: 'How many of the last lines.', default: 200, min: 0 }),
  }

  async run(): Promise<{ name: string; lines: string[] } | undefined> {
    const { args, flags } = await this.parse(Logs)
    const name = vmNamed(args.name)
    const stream = await (await this.daemon(flags)).logs(name, flags.follow && !this.jsonEnabled(), flags.lines)
    if (this.jsonEnabled()) {
      let text = ''
      for await (const chunk of stream) text += chunk
      return { name, lines: text === '' ? [] : text.trimEnd().split('\n') }
    }
    for await (const chunk of stream) process.stdout.write(chunk as Buffer)
    return undefined
  }
}
