import { Args } from '@oclif/core'
import { NoidCommand } from '../../cli/base.ts'
import { forEachNamed } from '../../cli/many.ts'

export default class ImageRemove extends NoidCommand {
  static override summary = 'Remove images of which there is no VM.'
  static override description = 'A built-in image is built again when a VM wants it.'
  static override hiddenAliases = ['image:rm']
  static override usage = 'image remove IMAGE...'
  static override examples = ['<%= config.bin %> image remove alpine']
  static override strict = false
  static override args = {
    image: Args.string({ ignoreStdin: true, description: 'Name of the image.', required: true }),
  }

  async run(): Promise<{ removed: string[] }> {
    const { argv, flags } = await this.parse(ImageRemove)
    const api = await this.daemon(flags)
    const removed = await forEachNamed(argv as string[], async (name) => {
      await api.removeImage(name)
      this.say(`${name} is removed`)
      return name
    })
    return { removed }
  }
}
