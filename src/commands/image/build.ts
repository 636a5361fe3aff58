import { Args, Flags } from '@oclif/core'
import type { Image } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { progressView } from '../../cli/progress.ts'
import { size } from '../../cli/text.ts'

export default class ImageBuild extends NoidCommand {
  static override summary = 'Build a built-in image, or renew it with the newest packages.'
  static override description =
    'The first VM of an image builds it by itself; this is for doing it before, and again later. Packages come from the ' +
    "package sources of the daemon's machine. VMs keep the image they were made of."
  static override examples = ['<%= config.bin %> image build', '<%= config.bin %> image build tiny']
  static override args = {
    image: Args.string({ ignoreStdin: true, description: 'Name of the image.', default: 'debian' }),
  }
  static override flags = { force: Flags.boolean({ summary: 'Also when nothing it is made of has changed.' }) }

  async run(): Promise<Image> {
    const { args, flags } = await this.parse(ImageBuild)
    const api = await this.daemon(flags)
    const before = await api.image(args.image)
    const view = progressView(this.jsonEnabled())
    let image: Image
    try {
      image = await api.buildImage(args.image, flags.force, view.line)
    } finally {
      view.end()
    }
    const same = before.id !== null && before.id === image.id
    this.say(
      `${image.name} is ${same ? 'as it was' : 'built'}: ${size(image.bytes)}, Linux ${image.kernel}, ${image.id?.slice(0, 12)}`,
    )
    return image
  }
}
