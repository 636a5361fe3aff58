/**
 * Where images are kept, below one directory that several daemons may share:
 *
 *   blobs/HASH.KIND   contents, named by their SHA-256, never changed once they are there
 *   names/NAME.json   what an image is made of (Manifest): the only thing that changes, by rename
 *   held/VM.json      an image as a VM was made of it: its parts stay while the VM's directory does
 *   base.json         the newest kernel and programs, see base.ts
 *   initrds/HASH      archives put together of blobs and the running noid's own programs; made again when they are gone
 *   debs/             packages that were fetched
 *   tmp/WORK/         what a build is making; whoever begins the next one clears it
 *   WORK.lock         one build of it at a time
 *   store.lock        for taking in and throwing away
 *
 * WORK is `base`, or `image-NAME`: no name that a person chooses is the name of a lock of the store's own.
 *
 * Invariants: a name appears when everything it names is there, whole and on the disk. A build that is killed leaves
 * something in tmp/ and blobs/ that nobody names; the next build or removal clears it.
 * Never does: knowing what is in an image.
 */
import { createHash } from 'node:crypto'
import {
  chmodSync,
  closeSync,
  createReadStream,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lock } from '../lock.ts'
import { readState } from '../state-file.ts'

export type BlobKind = 'vmlinux' | 'cpio' | 'qcow2' | 'squashfs'

/** What is built, one at a time: an image, or what all of them boot with. */
export type Work = 'base' | `image-${string}`

/** The name of a file in blobs/. */
export type Blob = `${string}.${BlobKind}`

/** What an image is made of. Plain JSON, as it stands in names/. */
export interface Manifest {
  readonly schema: 1
  readonly name: string
  readonly source: 'built-in' | 'imported'
  readonly kernel: Blob
  readonly kernelVersion: string
  /** What the initrd is put together of, beside noid's own programs. */
  readonly parts: readonly Blob[]
  readonly disk?: { readonly file: Blob; readonly format: 'qcow2' | 'squashfs'; readonly virtualBytes: number }
  readonly append: string
  /** Hash of what a built-in image was made from: the same again is not built again. */
  readonly inputs: string
  readonly createdAt: string
  /** "linux-image-…=6.1.192-2" */
  readonly packages: readonly string[]
}

interface Held {
  readonly vm: string
  readonly dir: string
  readonly image: Manifest
}

const LOCK_POLL_MS = 100
const INITRD_REST_MS = 3_600_000
const NAME = /^[a-z0-9][a-z0-9._-]{0,62}$/

export const isImageName = (name: string): boolean => NAME.test(name)

export class ImageStore {
  readonly dir: string

  constructor(dir: string) {
    this.dir = dir
  }

  #sub(name: string): string {
    const dir = join(this.dir, name)
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    return dir
  }

  get debs(): string {
    return this.#sub('debs')
  }

  path(blob: Blob): string {
    return join(this.dir, 'blobs', blob)
  }

  // -- names -----------------------------------------------------------------------------------------------------------
  /** undefined when there is none, or when it is of another schema or lacks a part. */
  manifest(name: string): Manifest | undefined {
    const m = readState<Manifest>(join(this.dir, 'names', `${name}.json`))
    return m?.schema === 1 && blobsOf(m).every((b) => existsSync(this.path(b))) ? m : undefined
  }

  names(): string[] {
    return list(join(this.dir, 'names'))
      .filter((f) => f.endsWith('.json'))
      .map((f) => f.slice(0, -5))
      .sort()
  }

  // -- building --------------------------------------------------------------------------------------------------------
  /** Run one build, in an empty directory of its own that is removed afterwards. `waits` is told when another one of it runs. */
  async building<T>(
    what: Work,
    signal: AbortSignal | undefined,
    waits: () => void,
    fn: (work: string) => Promise<T>,
  ): Promise<T> {
    const lock = await this.#lock(`${what}.lock`, signal, waits)
    const work = join(this.#sub('tmp'), what)
    try {
      rmSync(work, { recursive: true, force: true })
      mkdirSync(work, { recursive: true, mode: 0o700 })
      return await fn(work)
    } finally {
      rmSync(work, { recursive: true, force: true })
      lock.release()
    }
  }

  /** Take files in and write the manifest that names them: at once, for everybody else. */
  async commit(
    files: readonly { readonly path: string; readonly kind: BlobKind }[],
    manifest: (blobs: readonly Blob[]) => Manifest | undefined,
  ): Promise<Manifest | undefined> {
    const hashed = await Promise.all(
      files.map(async (f) => ({ ...f, blob: `${await hashOf(f.path)}.${f.kind}` as Blob })),
    )
    const lock = await this.#lock('store.lock', undefined, () => {})
    try {
      const blobs = this.#sub('blobs')
      for (const f of hashed) {
        if (existsSync(join(blobs, f.blob))) continue
        flush(f.path)
        chmodSync(f.path, 0o444)
        renameSync(f.path, join(blobs, f.blob))
      }
      const m = manifest(hashed.map((f) => f.blob))
      if (m === undefined) return undefined
      // Parts that others made may have been thrown away since they were looked up.
      const lost = blobsOf(m).find((b) => !existsSync(this.path(b)))
      if (lost !== undefined) throw new Error(`${lost} is no longer there: try again`)
      writeJson(join(this.#sub('names'), `${m.name}.json`), m)
      return m
    } finally {
      lock.release()
    }
  }

  /** A file that is made of blobs and `key`; `make` gives it when it is not there. */
  derived(key: string, make: () => Uint8Array): string {
    const path = join(this.#sub('initrds'), key)
    if (!existsSync(path)) {
      const fresh = `${path}.${process.pid}.new`
      writeFileSync(fresh, make(), { mode: 0o444 })
      renameSync(fresh, path)
    }
    return path
  }

  // -- what VMs were made of ---------------------------------------------------------------------------------------------
  hold(vm: string, vmDir: string, image: Manifest): void {
    writeJson(join(this.#sub('held'), `${vm}.json`), { vm, dir: vmDir, image } satisfies Held)
  }

  held(vm: string): Manifest | undefined {
    return readState<Held>(join(this.dir, 'held', `${vm}.json`))?.image
  }

  release(vm: string): void {
    rmSync(join(this.dir, 'held', `${vm}.json`), { force: true })
  }

  /** VMs that still exist and were made of an image of this name. */
  holders(name: string): string[] {
    return this.#allHeld()
      .filter((h) => h.image.name === name)
      .map((h) => h.vm)
  }

  /** A VM whose directory is gone was destroyed. */
  #allHeld(): Held[] {
    return list(join(this.dir, 'held')).flatMap((f) => {
      const file = join(this.dir, 'held', f)
      const h = readState<Held>(file)
      if (h !== undefined && existsSync(h.dir)) return [h]
      rmSync(file, { force: true })
      return []
    })
  }

  // -- removing --------------------------------------------------------------------------------------------------------
  async remove(name: string): Promise<void> {
    const lock = await this.#lock('store.lock', undefined, () => {})
    try {
      rmSync(join(this.dir, 'names', `${name}.json`), { force: true })
    } finally {
      lock.release()
    }
  }

  /** Remove contents that no name and no VM needs, and what killed builds left; the bytes that were given back. */
  async clean(derived: (m: Manifest) => string): Promise<number> {
    const lock = await this.#lock('store.lock', undefined, () => {})
    try {
      const named = this.names().flatMap((n) => readState<Manifest>(join(this.dir, 'names', `${n}.json`)) ?? [])
      const live = [...named, ...this.#allHeld().map((h) => h.image)].filter((m) => m.schema === 1)
      const base = readState<Record<string, unknown>>(join(this.dir, 'base.json')) ?? {}
      const needed = new Set<unknown>([...Object.values(base), ...live.flatMap(blobsOf), ...live.map(derived)])
      let bytes = 0
      for (const kind of ['blobs', 'initrds'])
        for (const b of list(join(this.dir, kind))) {
          if (needed.has(b)) continue
          const path = join(this.dir, kind, b)
          const s = statSync(path)
          // Another noid that shares the store puts them together differently, and may be about to boot one.
          if (kind === 'initrds' && Date.now() - s.mtimeMs < INITRD_REST_MS) continue
          bytes += s.blocks * 512
          rmSync(path, { force: true })
        }
      // A directory that is being worked in has its lock taken.
      for (const name of list(join(this.dir, 'tmp'))) {
        const idle = Lock.take(join(this.dir, `${name}.lock`))
        if (idle === undefined) continue
        rmSync(join(this.dir, 'tmp', name), { recursive: true, force: true })
        idle.release()
      }
      return bytes
    } finally {
      lock.release()
    }
  }

  async #lock(file: string, signal: AbortSignal | undefined, waits: () => void): Promise<Lock> {
    mkdirSync(this.dir, { recursive: true, mode: 0o700 })
    for (let told = false; ; told = true) {
      const lock = Lock.take(join(this.dir, file))
      if (lock !== undefined) return lock
      if (!told) waits()
      await sleep(LOCK_POLL_MS, undefined, { signal })
    }
  }
}

export const blobsOf = (m: Manifest): Blob[] => [m.kernel, ...m.parts, ...(m.disk === undefined ? [] : [m.disk.file])]

export const hashText = (...parts: readonly (string | Uint8Array)[]): string => {
  const h = createHash('sha256')
  for (const p of parts) h.update(`${p.length}:`).update(p)
  return h.digest('hex').slice(0, 40)
}

async function hashOf(path: string): Promise<string> {
  const h = createHash('sha256')
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) h.update(chunk as Buffer)
  return h.digest('hex').slice(0, 40)
}

function flush(path: string): void {
  const fd = openSync(path, 'r+')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

function writeJson(path: string, value: unknown): void {
  const fresh = `${path}.${process.pid}.new`
  writeFileSync(fresh, `${JSON.stringify(value, null, 2)}\n`, { mode: 0o600 })
  flush(fresh)
  renameSync(fresh, path)
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
