/**
 * What every image boots with, from Debian's packages: a kernel, its virtio modules, busybox and the agent's interpreter.
 *
 * The first image makes it; later ones take what is there, so that they boot with the same kernel and share its files. Only
 * `noid image build` looks for newer packages. The parts are blobs of the store like any other, named by the manifests
 * that use them; here is only written down which ones are the newest.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { readState, writeState } from '../state-file.ts'
import { fetchDebs, kernelPackage, unpackDeb } from './debs.ts'
import { GUEST_PACKAGES, modulesPart, runtimePart } from './initrd.ts'
import { modulesDir } from './modules.ts'
import { need } from './run.ts'
import type { Blob, ImageStore } from './store.ts'
import { hashText } from './store.ts'
import { BASE_TOOLS } from './tools.ts'
import { vmlinuxOf } from './vmlinux.ts'

export interface Base {
  readonly schema: 1
  readonly kernel: Blob
  readonly kernelVersion: string
  /** The file in debs/ that the kernel is from, for images that want the rest of its modules. */
  readonly kernelDeb: string
  readonly runtime: Blob
  readonly modules: Blob
  readonly packages: readonly string[]
  /** Hash of the packages: the same again is not unpacked again. */
  readonly inputs: string
}

/** Raised when the parts are put together differently of the same packages. */
const RECIPE = '1'

export interface BuildContext {
  readonly say: (text: string) => void
  readonly signal: AbortSignal | undefined
  /** Look for newer packages. */
  readonly renew: boolean
}

/** The files are in `blobs/` afterwards, named by nobody yet. */
export async function ensureBase(store: ImageStore, c: BuildContext): Promise<Base> {
  const file = join(store.dir, 'base.json')
  const known = read(file, store)
  if (known !== undefined && !c.renew) return known
  need('building an image', BASE_TOOLS)
  return store.building(
    'base',
    c.signal,
    () => c.say('waiting for another build'),
    async (own) => {
      const again = read(file, store)
      if (again !== undefined && !c.renew) return again
      c.say('looking up the packages')
      const kernel = await kernelPackage(c.signal)
      const { files, versions } = await fetchDebs([kernel, ...GUEST_PACKAGES], store.debs, own, c.say, c.signal)
      const packages = [...versions].map(([n, v]) => `${n}=${v}`).sort()
      const inputs = hashText(RECIPE, ...packages)
      if (again?.inputs === inputs) return again
      c.say(`unpacking the kernel ${versions.get(kernel)}`)
      const at = (name: string): string => join(own, 'unpacked', name)
      await Promise.all(
        [...files].map(async ([name, deb]) => {
          mkdirSync(at(name), { recursive: true })
          await unpackDeb(deb, at(name), c.signal)
        }),
      )
      const boot = join(at(kernel), 'boot')
      const image = (await readdir(boot)).find((f) => f.startsWith('vmlinuz-'))
      if (image === undefined) throw new Error(`the package ${kernel} has no kernel`)
      const [vmlinux, runtime, modules] = ['vmlinux', 'runtime', 'modules'].map((n) => join(own, n))
      writeFileSync(vmlinux, vmlinuxOf(readFileSync(join(boot, image))))
      writeFileSync(runtime, await runtimePart(at, c.signal))
      writeFileSync(modules, modulesPart(modulesDir(at(kernel))))
      let base: Base | undefined
      await store.commit(
        [
          { path: vmlinux, kind: 'vmlinux' },
          { path: runtime, kind: 'cpio' },
          { path: modules, kind: 'cpio' },
        ],
        ([k, r, m]) => {
          base = {
            schema: 1,
            kernel: k,
            kernelVersion: image.slice('vmlinuz-'.length),
            kernelDeb: basename(files.get(kernel) as string),
            runtime: r,
            modules: m,
            packages,
            inputs,
          }
          writeState(file, base)
          return undefined
        },
      )
      // What was fetched for an older one is of no more use.
      const current = new Set([...files.values()].map((f) => basename(f)))
      for (const f of await readdir(store.debs)) if (!current.has(f)) rmSync(join(store.debs, f), { force: true })
      return base as Base
    },
  )
}

function read(file: string, store: ImageStore): Base | undefined {
  const b = readState<Base>(file)
  return b?.schema === 1 && [b.kernel, b.runtime, b.modules].every((x) => existsSync(store.path(x))) ? b : undefined
}
