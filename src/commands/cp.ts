import { Args, Flags } from '@oclif/core'
import { NoidCommand } from '../cli/base.ts'
import { copy, parsePlace } from '../cli/copy/copy.ts'
import type { Copied } from '../cli/copy/extract.ts'
import { size } from '../cli/text.ts'

export default class Cp extends NoidCommand {
  static override summary = 'Copy files between this machine and a VM.'
  static override description =
    'Directories are copied with everything in them; modes and times are kept, symbolic links stay what they are. ' +
    'Into a directory that exists, or under the new name; SRC/. copies what is in SRC. One end is NAME:PATH (:PATH in the active VM), ' +
    'the other a path of this machine, or - for the contents of one file by stdin or stdout.'
  static override examples = [
    '<%= config.bin %> cp site/ web:/srv/',
    '<%= config.bin %> cp web:/var/log/. logs/',
    '<%= config.bin %> cp web:/etc/hosts -',
  ]
  static override args = {
    source: Args.string({ ignoreStdin: true, name: 'SRC', description: 'What to copy.', required: true }),
    target: Args.string({ ignoreStdin: true, name: 'DST', description: 'Where to.', required: true }),
  }
  static override flags = {
    follow: Flags.boolean({ char: 'L', summary: 'Copy what symbolic links point to.' }),
    user: Flags.string({ char: 'u', summary: 'User of the VM to read and write as.', helpValue: 'USER' }),
  }

  async run(): Promise<Copied> {
    const { args, flags } = await this.parse(Cp)
    const [from, to] = [parsePlace(args.source), parsePlace(args.target)]
    const done = await copy(await this.daemon(flags), from, to, { follow: flags.follow, user: flags.user })
    for (const r of done.remarks) this.note(`note: ${r}`)
    if (to.kind !== 'stream') this.say(`copied ${counted(done.files, 'file')}${dirs(done)}, ${size(done.bytes)}`)
    return done
  }
}

const counted = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`
const dirs = (c: Copied): string =>
  c.directories === 0 ? '' : ` and ${c.directories} ${c.directories === 1 ? 'directory' : 'directories'}`
