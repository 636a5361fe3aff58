/**
 * What the qemu runtime keeps for VMs to come and nothing needs any more, for `noid prune`: templates of images that are another image by now or none,
 * and, when asked for, images that no VM is made of. An image that another daemon's VM holds (a shared store) is refused by the store itself.
 */
import type { Images } from '../../images/index.ts'
import type { Leftover, Use } from '../contract.ts'
import type { Templates } from './templates.ts'

export function leftovers(
  images: Images,
  templates: Templates,
  vms: readonly Use[],
  withImages: boolean,
  defaultImage: string,
): Leftover[] {
  const built = images.list().filter((i) => i.id !== null)
  const wanted = new Set(vms.flatMap((v) => (v.going ? [] : [v.image ?? defaultImage])))
  const going = new Set(vms.flatMap((v) => (v.going ? [v.id] : [])))
  const unused = withImages ? built.filter((i) => i.vms.every((id) => going.has(id)) && !wanted.has(i.name)) : []
  const staying = new Set(built.filter((i) => !unused.includes(i)).map((i) => i.id))
  return [
    ...unused.map(
      (i): Leftover => ({
        kind: 'image',
        name: i.name,
        bytes: i.bytes,
        remove: async () => {
          await images.remove(i.name)
          return true
        },
      }),
    ),
    ...templates.list().flatMap((t): Leftover[] =>
      staying.has(t.kept.image)
        ? []
        : [
            {
              kind: 'template',
              name: t.key.slice(0, 12),
              bytes: t.bytes,
              remove: async () => {
                t.remove()
                return true
              },
            },
          ],
    ),
  ]
}
