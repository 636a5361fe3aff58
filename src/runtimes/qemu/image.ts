/**
 * Which image a VM boots: the one it was made of, or else the one it names, which it is made of from then on.
 *
 * Owns: the order of taking and holding. Never does: building, keeping (src/images).
 */
import { type BootImage as Image, Images, imagesDir } from '../../images/index.ts'
import type { RuntimeContext, VmSpec } from '../contract.ts'

export interface BootImage {
  /** Hash of everything that boots. */
  readonly id: string
  readonly kernel: string
  readonly initrd?: string
  readonly disk?: { readonly file: string; readonly format: 'qcow2' | 'raw' }
  readonly append: string
}

export interface ImageSource {
  resolve(vm: VmSpec, signal: AbortSignal, say?: (text: string) => void): Promise<BootImage>
  release(vm: VmSpec): void
  /** The store behind it. */
  readonly images: Images
}

export function imageSource(ctx: RuntimeContext): ImageSource {
  const images = new Images(imagesDir(ctx.stateDir), ctx.log)
  return {
    images,
    async resolve(vm, signal, say) {
      const held = await images.held(vm.id)
      if (held !== undefined) return plain(held)
      const image = await images.resolve(vm.image, say, signal)
      images.hold(vm, image)
      return plain(image)
    },
    release: (vm) => images.release(vm.id),
  }
}

/** A squashfs is a plain file under QEMU's layer. */
const plain = ({ id, kernel, initrd, disk, append }: Image): BootImage => ({
  id,
  kernel,
  initrd,
  append,
  ...(disk === undefined ? {} : { disk: { file: disk.path, format: disk.format === 'qcow2' ? 'qcow2' : 'raw' } }),
})
