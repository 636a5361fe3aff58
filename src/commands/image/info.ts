import { Args, Flags } from '@oclif/core'
import type { Image } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { facts, size } from '../../cli/text.ts'

export default class ImageInfo extends NoidCommand {
  static override summary = 'Show what an image is made of and which VMs are made of it.'
  static override examples = ['<%= config.bin %> image info debian', '<%= config.bin %> image info debian --packages']
  static override args = {
    image: Args.string({ ignoreStdin: true, description: 'Name of the image.', required: true }),
  }
  static override flags = { packages: Flags.boolean({ summary: 'Also the packages in it, one on each line.' }) }

  async run(): Promise<Image> {
    const { args, flags } = await this.parse(ImageInfo)
    const i = await (await this.daemon(flags)).image(args.image)
    this.say(
      facts([
        ['name', i.isDefault ? `${i.name} (the default)` : i.name],
        ['what', i.summary],
        ['id', i.id ?? '- (built when the first VM wants it)'],
        ['source', i.source],
        ['kernel', i.kernel ?? '-'],
        ['arguments', i.append ?? '-'],
        ['on this disk', size(i.bytes)],
        ['disk of a VM', i.diskBytes === null ? (i.id === null ? '-' : 'none: it runs in RAM') : size(i.diskBytes)],
        ['built', i.createdAt ?? '-'],
        ['packages', String(i.packages.length)],
        ['VMs', i.vms.join(' ') || '-'],
      ]),
    )
    if (flags.packages) for (const p of i.packages) this.say(p)
    return i
  }
}
