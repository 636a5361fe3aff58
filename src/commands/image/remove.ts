import { Args } from '@oclif/core'
import { NoidCommand } from '../../cli/base.ts'

export default class ImageRemove extends NoidCommand {
  static override summary = 'Remove an image of which there is no VM.'
  static override description = 'A built-in image is built again when a VM wants it.'
  static override hiddenAliases = ['image:rm']
  static override examples = ['<%= config.bin %> image remove alpine']
  static override args = {
    image: Args.string({ ignoreStdin: true, description: 'Name of the image.', required: true }),
  }

  async run(): Promise<{ removed: string }> {
    const { args, flags } = await this.parse(ImageRemove)
    await (await this.daemon(flags)).removeImage(args.image)
    this.say(`${args.image} is removed`)
    return { removed: args.image }
  }
}
