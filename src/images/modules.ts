/**
 * A kernel's modules: which ones others need, in the words of the modules themselves (the `depends=` of their .modinfo),
 * and the modules.dep that busybox's modprobe reads.
 *
 * Debian's package has no modules.dep: depmod writes it on installation, and nothing is installed here.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { gunzipSync, zstdDecompressSync } from 'node:zlib'
import { unxz } from './run.ts'

/** Kernels may have them packed; in a guest's RAM they lie unpacked, as busybox loads them. */
const FILE = /\.ko(\.(gz|xz|zst))?$/

/** virtio-rng.ko.xz is the module virtio_rng. */
const nameOf = (path: string): string => basename(path).replace(FILE, '').replaceAll('-', '_')

export class Modules {
  readonly #root: string
  /** Module → path below lib/modules/VERSION. */
  readonly #paths = new Map<string, string>()

  /** `root` is lib/modules/VERSION. */
  constructor(root: string) {
    this.#root = root
    for (const path of readdirSync(root, { recursive: true, encoding: 'utf8' }))
      if (FILE.test(path)) this.#paths.set(nameOf(path), path)
  }

  /** The modules and all they need, each after what it needs; those that this kernel has not (or has built in) are left out. */
  closure(names: readonly string[]): string[] {
    const done = new Set<string>()
    const visit = (name: string): void => {
      if (done.has(name) || !this.#paths.has(name)) return
      for (const needed of this.#needs(name)) visit(needed)
      done.add(name)
    }
    for (const n of names) visit(n)
    return [...done]
  }

  /** Where it lies in a guest, below lib/modules/VERSION. */
  path(name: string): string {
    return this.#file(name).replace(FILE, '.ko')
  }

  /** Unpacked. */
  read(name: string): Buffer {
    const file = this.#file(name)
    const bytes = readFileSync(join(this.#root, file))
    switch (FILE.exec(file)?.[2]) {
      case 'gz':
        return gunzipSync(bytes)
      case 'zst':
        return zstdDecompressSync(bytes)
      case 'xz':
        return unxz(bytes)
      default:
        return bytes
    }
  }

  #file(name: string): string {
    const path = this.#paths.get(name)
    if (path === undefined) throw new Error(`this kernel has no module ${name}`)
    return path
  }

  /** modules.dep(5) for these modules. */
  dep(names: readonly string[]): string {
    const line = (n: string): string => {
      const all = this.closure([n]).filter((x) => x !== n)
      return `${this.path(n)}:${all
        .toReversed()
        .map((x) => ` ${this.path(x)}`)
        .join('')}\n`
    }
    return names.map(line).join('')
  }

  #needs(name: string): string[] {
    const text = /(?:^|\0)depends=([^\0]*)\0/.exec(this.read(name).toString('latin1'))?.[1] ?? ''
    return text
      .split(',')
      .filter((x) => x !== '')
      .map((x) => x.replaceAll('-', '_'))
  }
}

/** The one directory below lib/modules of an unpacked kernel package. */
export function modulesDir(unpacked: string): { dir: string; version: string } {
  // Debian 13 has them below /usr.
  const base = join(unpacked, existsSync(join(unpacked, 'lib/modules')) ? 'lib/modules' : 'usr/lib/modules')
  const [version] = readdirSync(base)
  if (version === undefined) throw new Error("the kernel's package has no modules")
  return { dir: join(base, version), version }
}
