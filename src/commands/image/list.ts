import type { Image } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { age, size, table } from '../../cli/text.ts'

export default class ImageList extends NoidCommand {
  static override summary = 'List the images of VMs with a kernel of their own.'
  static override hiddenAliases = ['image:ls']
  static override examples = ['<%= config.bin %> image list']

  async run(): Promise<Image[]> {
    const { flags } = await this.parse(ImageList)
    const images = await (await this.daemon(flags)).images()
    this.say(
      table(images, [
        { head: 'NAME', cell: (i) => (i.isDefault ? `${i.name} (default)` : i.name) },
        { head: 'ID', cell: (i) => i.id?.slice(0, 12) ?? '-' },
        { head: 'SIZE', cell: (i) => (i.id === null ? 'not built yet' : size(i.bytes)), right: true },
        { head: 'KERNEL', cell: (i) => i.kernel ?? '-' },
        { head: 'AGE', cell: (i) => (i.createdAt === null ? '-' : age(Date.now() - Date.parse(i.createdAt))) },
        { head: 'VMS', cell: (i) => i.vms.join(' ') || '-' },
        { head: 'WHAT', cell: (i) => i.summary },
      ]),
    )
    return images
  }
}
