/**
 * Images: what a VM with a kernel of its own boots. Built in are `tiny` (busybox alone, in RAM) and `debian` (the
 * default); others are imported. Made on first use, kept by content, never written to: VMs run on a layer of their own.
 *
 * Owns: what an image is made of and when it must be made again. Who may remove what. Not here: how things are kept
 * (store.ts), built (base.ts, initrd.ts, debian.ts) or checked on their way in (import.ts).
 * Invariants: an image's id is the hash of what boots and of its arguments; a VM that was made of an image keeps exactly that one
 * (hold/held), whatever happens to the name. noid's own programs in an initrd are those of the running noid: when they
 * changed, resolve() puts the initrd together again from its parts, in some milliseconds and without any package source.
 */
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../errors.ts'
import { ensureBase } from './base.ts'
import { buildDebian } from './debian.ts'
import { importParts } from './import.ts'
import { guestFiles, guestPart, joinParts } from './initrd.ts'
import { type Blob, blobsOf, hashText, ImageStore, isImageName, type Manifest } from './store.ts'

export type Log = (level: 'debug' | 'info' | 'warn' | 'error', message: string) => void
export type Say = (text: string) => void

/** What a VM needs to boot; the paths are the store's, only to be read. */
export interface BootImage {
  /** Hash of all parts and of the arguments: part of a template's key. */
  readonly id: string
  readonly name: string
  /** An uncompressed vmlinux with a PVH entry. */
  readonly kernel: string
  readonly kernelVersion: string
  readonly initrd: string
  /** `squashfs` is a plain (raw) file for whoever attaches it. */
  readonly disk?: { readonly path: string; readonly format: 'raw' | 'qcow2' | 'squashfs' }
  /** The image's kernel arguments; the runtime adds its own. */
  readonly append: string
}

export interface ImageInfo {
  readonly name: string
  /** Absent: it was not built yet; the first VM, or `noid image build`, builds it. */
  readonly id: string | null
  readonly source: 'built-in' | 'imported'
  readonly summary: string
  readonly isDefault: boolean
  readonly kernel: string | null
  readonly append: string | null
  /** On this disk; parts that images share count for each. */
  readonly bytes: number
  /** What the VM sees as its disk; null: it runs in RAM. */
  readonly diskBytes: number | null
  readonly createdAt: string | null
  readonly packages: readonly string[]
  readonly vms: readonly string[]
}

export interface ImportRequest {
  readonly name: string
  /** A bzImage or vmlinux; absent: Debian's. */
  readonly kernel?: string
  /** Its lib/modules/VERSION, when its virtio drivers are not built in. */
  readonly modules?: string
  readonly disk?: string
  readonly append?: string
}

const BUILT_IN = {
  debian: 'Debian with ip, netstat, iptables, ping, curl, dig, iperf3, python3 and apt',
  tiny: 'busybox in RAM: boots first, has no disk',
} as const
type BuiltIn = keyof typeof BUILT_IN

export const DEFAULT_IMAGE = 'debian'
const isBuiltIn = (name: string): name is BuiltIn => name in BUILT_IN

/** Everything that must be on the console when a boot goes wrong; `panic=-1` ends the VM at once instead of hanging. */
const APPEND = 'console=ttyS0 quiet panic=-1'

/** NOID_IMAGES_DIR lets several daemons (those of tests, above all) share one store. */
export const imagesDir = (stateDir: string, env: NodeJS.ProcessEnv = process.env): string =>
  env.NOID_IMAGES_DIR || join(stateDir, 'images')

export class Images {
  readonly #store: ImageStore
  readonly #log: Log

  constructor(dir: string, log: Log) {
    this.#store = new ImageStore(dir)
    this.#log = log
  }

  /** The image to boot, built when it is a built-in one that does not exist yet. */
  async resolve(name: string | undefined, progress: Say = () => {}, signal?: AbortSignal): Promise<BootImage> {
    return this.#boot(await this.#current(name ?? DEFAULT_IMAGE, progress, signal))
  }

  /** Make a built-in image, with the newest packages there are; one that would be the same is left as it is. */
  async build(name: string, progress: Say = () => {}, signal?: AbortSignal, force = false): Promise<ImageInfo> {
    if (!isBuiltIn(name)) {
      if (this.#store.manifest(name) === undefined) throw this.#unknown(name)
      throw new NoidError('INVALID_INPUT', {
        what: `"${name}" was imported: there is nothing to build it from`,
        hint: 'import it again: noid image import --replace',
      })
    }
    await this.#build(name, progress, signal, true, force)
    await this.clean()
    return this.info(name)
  }

  async import(
    r: ImportRequest & { readonly replace?: boolean },
    progress: Say = () => {},
    signal?: AbortSignal,
  ): Promise<ImageInfo> {
    if (!isImageName(r.name))
      throw new NoidError('INVALID_INPUT', {
        what: `"${r.name}" is not a usable name for an image`,
        hint: 'a name has lower-case letters, digits, dots, hyphens or underscores and begins with a letter or digit',
      })
    if (isBuiltIn(r.name))
      throw new NoidError('INVALID_INPUT', {
        what: `"${r.name}" is the name of a built-in image`,
        hint: 'choose another name',
      })
    if (r.kernel === undefined && r.disk === undefined)
      throw new NoidError('INVALID_INPUT', {
        what: 'there is nothing to import',
        hint: 'give --kernel FILE, --disk FILE, or both',
      })
    if (r.modules !== undefined && r.kernel === undefined)
      throw new NoidError('INVALID_INPUT', {
        what: '--modules are those of a kernel of your own',
        hint: 'give --kernel too',
      })
    await this.#building(r.name, progress, signal, async (work) => {
      if (this.#store.manifest(r.name) !== undefined && !r.replace)
        throw new NoidError('INVALID_INPUT', {
          what: `an image named "${r.name}" exists already`,
          hint: `choose another name, or let it take its place with --replace`,
        })
      const base = await ensureBase(this.#store, { say: progress, signal, renew: false })
      const parts = await importParts(r, work, progress, signal)
      const own = parts.kernel !== undefined
      // Debian's own kernel, brought along by its file, has its drivers in modules like ours.
      const same = parts.kernel === base.kernelVersion
      await this.#store.commit(parts.files, (blobs) => {
        const left = [...blobs]
        const kernel = own ? (left.shift() as Blob) : base.kernel
        const modules = parts.modules ? left.shift() : !own || same ? base.modules : undefined
        const disk = parts.disk === undefined ? undefined : { file: left.shift() as Blob, ...parts.disk }
        return {
          schema: 1,
          name: r.name,
          source: 'imported',
          kernel,
          kernelVersion: parts.kernel ?? base.kernelVersion,
          parts: modules === undefined ? [base.runtime] : [base.runtime, modules],
          disk,
          append: [APPEND, ...(disk === undefined ? [] : [rootArguments(disk.format)]), r.append ?? '']
            .join(' ')
            .trim(),
          inputs: '',
          createdAt: now(),
          packages: own ? [] : base.packages,
        }
      })
    })
    await this.clean()
    return this.info(r.name)
  }

  list(): ImageInfo[] {
    const names = new Set<string>([...Object.keys(BUILT_IN), ...this.#store.names()])
    return [...names].flatMap((n) => (isBuiltIn(n) || this.#store.manifest(n) !== undefined ? [this.info(n)] : []))
  }

  info(name: string): ImageInfo {
    const m = this.#store.manifest(name)
    if (m === undefined && !isBuiltIn(name)) throw this.#unknown(name)
    return {
      name,
      id: m === undefined ? null : idOf(m),
      source: isBuiltIn(name) ? 'built-in' : 'imported',
      summary: isBuiltIn(name) ? BUILT_IN[name] : m?.disk === undefined ? 'a kernel of your own' : 'a disk of your own',
      isDefault: name === DEFAULT_IMAGE,
      kernel: m?.kernelVersion ?? null,
      append: m?.append ?? null,
      bytes: m === undefined ? 0 : blobsOf(m).reduce((n, b) => n + statSync(this.#store.path(b)).blocks * 512, 0),
      diskBytes: m?.disk?.virtualBytes ?? null,
      createdAt: m?.createdAt ?? null,
      packages: m?.packages ?? [],
      vms: this.#store.holders(name),
    }
  }

  /** Refused while a VM was made of it. A built-in one is built again when it is wanted. */
  async remove(name: string, vmName: (id: string) => string = (id) => id): Promise<void> {
    const vms = this.#store.holders(name).map(vmName)
    if (vms.length > 0) throw new NoidError('IMAGE_IN_USE', { name, vms: vms.join(', ') })
    if (this.#store.manifest(name) === undefined) throw this.#unknown(name)
    await this.#store.remove(name)
    await this.clean()
  }

  /** Give back what no image and no VM needs; bytes. */
  clean(): Promise<number> {
    return this.#store.clean(initrdKey)
  }

  // -- what a VM was made of -------------------------------------------------------------------------------------------
  /** From now on this VM is of this image: the parts stay as long as vmDir does. Say it before the first layer is made on the disk. */
  hold(vm: { readonly id: string; readonly dir: string }, image: BootImage): void {
    const m = this.#store.manifest(image.name)
    if (m === undefined || idOf(m) !== image.id) throw new Error(`the image ${image.name} changed while it was taken`)
    this.#store.hold(vm.id, vm.dir, m)
  }

  /** The image a VM was made of; undefined when it is of none yet. Its initrd is the running noid's. */
  async held(vmId: string): Promise<BootImage | undefined> {
    const m = this.#store.held(vmId)
    return m === undefined ? undefined : this.#boot(m)
  }

  release(vmId: string): void {
    this.#store.release(vmId)
  }

  // -- inside ----------------------------------------------------------------------------------------------------------
  async #current(name: string, say: Say, signal: AbortSignal | undefined): Promise<Manifest> {
    const m = this.#store.manifest(name)
    if (m !== undefined) return m
    if (!isBuiltIn(name)) throw this.#unknown(name)
    return this.#build(name, say, signal, false, false)
  }

  #build(name: BuiltIn, say: Say, signal: AbortSignal | undefined, renew: boolean, force: boolean): Promise<Manifest> {
    const told: Say = (text) => {
      this.#log('info', `image ${name}: ${text}`)
      say(text)
    }
    return this.#building(name, told, signal, async (work) => {
      const there = this.#store.manifest(name)
      if (there !== undefined && !renew) return there
      let base = await ensureBase(this.#store, { say: told, signal, renew })
      if (name !== 'tiny' && !existsSync(join(this.#store.debs, base.kernelDeb)))
        base = await ensureBase(this.#store, { say: told, signal, renew: true })
      const common = {
        schema: 1,
        name,
        source: 'built-in',
        kernel: base.kernel,
        kernelVersion: base.kernelVersion,
        parts: [base.runtime, base.modules],
      } as const
      if (name === 'tiny') {
        const m: Manifest = {
          ...common,
          createdAt: now(),
          append: APPEND,
          inputs: base.inputs,
          packages: base.packages,
        }
        return there?.inputs === m.inputs ? there : ((await this.#store.commit([], () => m)) as Manifest)
      }
      const disk = await buildDebian(
        base,
        this.#store.debs,
        work,
        { say: told, signal },
        force ? undefined : there?.inputs,
      )
      if (disk === undefined) return there as Manifest
      told('keeping it')
      const m = await this.#store.commit([{ path: disk.path, kind: 'qcow2' }], ([file]) => ({
        ...common,
        createdAt: now(),
        disk: { file, format: 'qcow2', virtualBytes: disk.virtualBytes },
        append: `${APPEND} ${rootArguments('qcow2', 'ext4')}`,
        inputs: disk.inputs,
        packages: [...base.packages, ...disk.packages],
      }))
      return m as Manifest
    }).catch((e: unknown) => {
      if (e instanceof NoidError || signal?.aborted) throw e
      throw new NoidError('IMAGE_BUILD_FAILED', { image: name, why: (e as Error).message }, { cause: e })
    })
  }

  #building<T>(name: string, say: Say, signal: AbortSignal | undefined, fn: (work: string) => Promise<T>): Promise<T> {
    return this.#store.building(`image-${name}`, signal, () => say('waiting for another build of it'), fn)
  }

  #boot(m: Manifest): BootImage {
    const initrd = this.#store.derived(initrdKey(m), () =>
      joinParts([...m.parts.map((p) => readFileSync(this.#store.path(p))), guestPart()]),
    )
    return {
      id: idOf(m),
      name: m.name,
      kernel: this.#store.path(m.kernel),
      kernelVersion: m.kernelVersion,
      initrd,
      ...(m.disk === undefined ? {} : { disk: { path: this.#store.path(m.disk.file), format: m.disk.format } }),
      append: m.append,
    }
  }

  #unknown(name: string): NoidError {
    const known = [...new Set([...Object.keys(BUILT_IN), ...this.#store.names()])].join(', ')
    return new NoidError('IMAGE_UNKNOWN', { name, known })
  }
}

const now = (): string => new Date().toISOString()

/** Which initrd a manifest means: its parts and the programs of the noid that runs now. */
const initrdKey = (m: Manifest): string => hashText(...m.parts, ...[...guestFiles()].flat())

const idOf = (m: Manifest): string => hashText(m.kernel, initrdKey(m), m.disk?.file ?? '', m.append)

/** See src/runtimes/qemu/guest/init. */
const rootArguments = (format: 'qcow2' | 'squashfs', fs?: string): string =>
  `noid.root=${fs === undefined && format !== 'squashfs' ? 'auto' : '/dev/vda'}` +
  (format === 'squashfs' ? ' noid.rootfstype=squashfs' : fs === undefined ? '' : ` noid.rootfstype=${fs}`)
