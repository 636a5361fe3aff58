import { Flags } from '@oclif/core'
import { vmNamed } from '../cli/active.ts'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { tame } from '../cli/text.ts'

export default class Logs extends NoidCommand {
  static override summary = 'Show what a VM printed: its init, or its serial line.'
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
    // Into a file or a pipe go the bytes as they are.
    this.endWithReader()
    const terminal = process.stdout.isTTY
    const utf8 = new TextDecoder()
    for await (const chunk of stream)
      process.stdout.write(terminal ? tame(utf8.decode(chunk as Buffer, { stream: true })) : (chunk as Buffer))
    return undefined
  }
}
