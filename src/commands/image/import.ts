import { resolve } from 'node:path'
import { Args, Flags } from '@oclif/core'
import type { Image } from '../../api/contract.ts'
import { NoidCommand } from '../../cli/base.ts'
import { progressView } from '../../cli/progress.ts'
import { size } from '../../cli/text.ts'

export default class ImageImport extends NoidCommand {
  static override summary = 'Take a disk or a kernel of your own as an image.'
  static override description =
    'The files are copied; what you give stays as it is. The disk is raw (whole, or one file system), qcow2 or squashfs; its root is ' +
    'found by itself unless --append has noid.root=DEVICE. A kernel is a bzImage or vmlinux for x86-64 with PVH; without one it is ' +
    "Debian's. noid's own process 1 and agent come along."
  static override examples = [
    '<%= config.bin %> image import alpine --disk alpine.qcow2',
    '<%= config.bin %> image import mine --kernel bzImage --disk root.raw --append "noid.root=/dev/vda2"',
  ]
  static override args = {
    image: Args.string({ ignoreStdin: true, description: 'Name for the image.', required: true }),
  }
  static override flags = {
    disk: Flags.string({ summary: 'Disk with a root file system.', helpValue: 'FILE' }),
    kernel: Flags.string({ summary: 'Kernel.', helpValue: 'FILE' }),
    modules: Flags.string({
      summary: "That kernel's lib/modules/VERSION, when its virtio drivers are not built in.",
      helpValue: 'DIR',
    }),
    append: Flags.string({ summary: 'Kernel arguments besides the usual.', helpValue: 'ARGUMENTS' }),
    replace: Flags.boolean({ summary: 'Take the place of an image of that name; VMs keep the one they were made of.' }),
  }

  async run(): Promise<Image> {
    const { args, flags } = await this.parse(ImageImport)
    const api = await this.daemon(flags)
    const at = (file: string | undefined): string | undefined => (file === undefined ? undefined : resolve(file))
    const view = progressView(this.jsonEnabled())
    let image: Image
    try {
      image = await api.importImage(
        {
          name: args.image,
          disk: at(flags.disk),
          kernel: at(flags.kernel),
          modules: at(flags.modules),
          append: flags.append,
          replace: flags.replace,
        },
        view.line,
      )
    } finally {
      view.end()
    }
    this.say(`${image.name} is imported: ${size(image.bytes)}, Linux ${image.kernel}`)
    this.say(`make a VM of it with: noid create NAME --runtime qemu --image ${image.name}`)
    return image
  }
}
