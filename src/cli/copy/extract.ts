/**
 * A guest's archive, written below one directory of this machine and nowhere else.
 *
 * The guest is hostile, and through a mount it may even change the destination meanwhile. So no path of more than one component is ever
 * used: each directory is opened by its name in the one above (O_DIRECTORY | O_NOFOLLOW, through /proc/self/fd), and what is made is made
 * there under a name of our own and then renamed over what was there. A name that is absolute, has `..`, or does not belong to what was
 * asked for is an error. A hard link is made only to a file that this very copy has written. Devices, sockets and pipes are left out.
 * Owners are the caller; set-id bits are dropped: what a guest wrote shall not run as somebody else here.
 * Bounded: one descriptor for each level of depth (MAX_DEPTH), one number for each file (MAX_LINKABLE).
 */
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  futimesSync,
  linkSync,
  lutimesSync,
  mkdirSync,
  openSync,
  renameSync,
  symlinkSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { BadArchive, type ReadEntry } from './tar.ts'

const MAX_DEPTH = 500
const MAX_LINKABLE = 1_000_000
const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
const NEW_FILE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW

export interface Copied {
  files: number
  directories: number
  bytes: number
  /** What was left out, and why: one line each, MAX_REMARKS at most. */
  readonly remarks: string[]
}

export const MAX_REMARKS = 20

export const nothing = (): Copied => ({ files: 0, directories: 0, bytes: 0, remarks: [] })

export function remark(c: Copied, text: string): void {
  if (c.remarks.length < MAX_REMARKS) c.remarks.push(text)
}

export interface Destination {
  /** An existing directory of this machine; what leads to it is the caller's and is followed. */
  readonly directory: string
  /** The first component of every name in the archive; undefined: there is none, all goes into the directory itself. */
  readonly expected: string | undefined
  /** The name it gets here. */
  readonly name: string
}

/** A name of the archive → components here. Throws for one that leads elsewhere. */
export function componentsOf(name: string, d: Pick<Destination, 'expected' | 'name'>): string[] {
  if (name === '' || name.startsWith('/')) throw new BadArchive(`it has a file named ${printable(name)}`)
  const parts = name.split('/').filter((c) => c !== '' && c !== '.')
  if (parts.includes('..') || parts.some((c) => c.includes('\0')))
    throw new BadArchive(`it has a file named ${printable(name)}`)
  if (parts.length > MAX_DEPTH) throw new BadArchive(`it is more than ${MAX_DEPTH} directories deep`)
  if (d.expected === undefined) return parts
  if (parts[0] !== d.expected) throw new BadArchive(`it has a file named ${printable(name)}, which was not asked for`)
  return [d.name, ...parts.slice(1)]
}

/** Write the entries. What was written before an error stays; no file is ever half there. */
export async function extract(entries: AsyncIterable<ReadEntry>, d: Destination, done: Copied): Promise<void> {
  const tree = new Tree(d.directory)
  try {
    for await (const e of entries) {
      const path = componentsOf(e.name, d)
      const name = path.at(-1)
      // The destination itself.
      if (name === undefined) continue
      if (e.kind === 'directory') {
        tree.directory(path, e.mode & 0o1777, e.mtime)
        done.directories += 1
        continue
      }
      if (e.kind === 'other') {
        remark(done, `${printable(e.name)} was left out: it is a device, a pipe or a socket`)
        continue
      }
      tree.enter(path.slice(0, -1))
      if (e.kind === 'file') {
        done.bytes += await tree.file(name, e)
        done.files += 1
      } else if (e.kind === 'symlink') {
        tree.symlink(name, e.link, e.mtime)
        done.files += 1
      } else {
        tree.hardlink(name, componentsOf(e.link, d))
        done.files += 1
      }
    }
    tree.finish()
  } finally {
    tree.close()
  }
}

interface Level {
  readonly name: string
  readonly fd: number
  /** Of a directory that was made here: set when it is left, because what is written into it changes its time. */
  readonly mode?: number
  readonly mtime?: number
}

/** The directories from the destination down to where something is written, each held open. */
class Tree {
  readonly #levels: Level[]
  /** Inodes of the files written here. */
  readonly #own = new Set<string>()

  constructor(directory: string) {
    this.#levels = [{ name: '', fd: openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY) }]
  }

  get #here(): number {
    return (this.#levels.at(-1) as Level).fd
  }

  /** Go to a directory; what of it is missing is made. */
  enter(path: readonly string[]): void {
    let same = 0
    while (same < path.length && this.#levels[same + 1]?.name === path[same]) same += 1
    while (this.#levels.length > same + 1) this.#leave()
    for (const name of path.slice(same)) this.#descend(name, 0o755, undefined)
  }

  directory(path: readonly string[], mode: number, mtime: number): void {
    this.enter(path.slice(0, -1))
    this.#descend(path.at(-1) as string, mode, mtime)
  }

  #descend(name: string, mode: number, mtime: number | undefined): void {
    const path = at(this.#here, name)
    let made = true
    try {
      mkdirSync(path, 0o700)
    } catch (e) {
      if ((e as NodeJS.ErrnoException).code !== 'EEXIST') throw told(e, name)
      made = false
    }
    let fd: number
    try {
      fd = openSync(path, DIRECTORY)
    } catch (e) {
      if (['ENOTDIR', 'ELOOP'].includes((e as NodeJS.ErrnoException).code ?? ''))
        throw new BadArchive(`${printable(name)} is a directory there and is none here`)
      throw told(e, name)
    }
    // A directory that was there keeps its mode and gets its time by what is written.
    this.#levels.push({ name, fd, ...(made ? { mode, ...(mtime === undefined ? {} : { mtime }) } : {}) })
  }

  async file(name: string, e: ReadEntry): Promise<number> {
    const dir = this.#here
    const temporary = ownName()
    let fd: number
    try {
      fd = openSync(at(dir, temporary), NEW_FILE, 0o600)
    } catch (error) {
      throw told(error, name)
    }
    let bytes = 0
    try {
      for await (const part of e.body) {
        for (let done = 0; done < part.length; ) done += writeSync(fd, part, done)
        bytes += part.length
      }
      fchmodSync(fd, e.mode & 0o777)
      futimesSync(fd, e.mtime, e.mtime)
      const s = fstatSync(fd, { bigint: true })
      if (this.#own.size < MAX_LINKABLE) this.#own.add(`${s.dev}:${s.ino}`)
      renameSync(at(dir, temporary), at(dir, name))
    } catch (error) {
      removed(at(dir, temporary))
      throw told(error, name)
    } finally {
      closeSync(fd)
    }
    return bytes
  }

  symlink(name: string, to: string, mtime: number): void {
    const temporary = at(this.#here, ownName())
    try {
      symlinkSync(Buffer.from(to, 'latin1'), temporary)
      lutimesSync(temporary, mtime, mtime)
      renameSync(temporary, at(this.#here, name))
    } catch (e) {
      removed(temporary)
      throw told(e, name)
    }
  }

  hardlink(name: string, to: readonly string[]): void {
    const opened: number[] = []
    const temporary = at(this.#here, ownName())
    try {
      let dir = (this.#levels[0] as Level).fd
      for (const c of to.slice(0, -1)) {
        dir = openSync(at(dir, c), DIRECTORY)
        opened.push(dir)
      }
      const target = at(dir, to.at(-1) ?? '.')
      const fd = openSync(target, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
      opened.push(fd)
      const s = fstatSync(fd, { bigint: true })
      if (!s.isFile() || !this.#own.has(`${s.dev}:${s.ino}`))
        throw new BadArchive(`${printable(name)} is a link to what was not copied`)
      linkSync(target, temporary)
      renameSync(temporary, at(this.#here, name))
      // Two names of one file already: then rename does nothing.
      removed(temporary)
    } catch (e) {
      removed(temporary)
      if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes((e as NodeJS.ErrnoException).code ?? ''))
        throw new BadArchive(`${printable(name)} is a link to what was not copied`)
      throw told(e, name)
    } finally {
      for (const fd of opened) closeSync(fd)
    }
  }

  #leave(): void {
    const l = this.#levels.pop() as Level
    try {
      if (l.mode !== undefined) fchmodSync(l.fd, l.mode)
      if (l.mtime !== undefined) futimesSync(l.fd, l.mtime, l.mtime)
    } finally {
      closeSync(l.fd)
    }
  }

  finish(): void {
    while (this.#levels.length > 1) this.#leave()
  }

  close(): void {
    for (const l of this.#levels.splice(0)) closeSync(l.fd)
  }
}

const at = (fd: number, name: string): Buffer =>
  Buffer.concat([Buffer.from(`/proc/self/fd/${fd}/`), Buffer.from(name, 'latin1')])

const ownName = (): string => `.noid-cp-${randomBytes(6).toString('hex')}`

function removed(path: Buffer): void {
  try {
    unlinkSync(path)
  } catch {
    // It was renamed, or never made.
  }
}

const WORDS: Readonly<Record<string, string>> = {
  EACCES: 'you may not write it',
  EPERM: 'you may not write it',
  EISDIR: 'it is a directory here',
  ENOTEMPTY: 'it is a directory here',
  EEXIST: 'it is a directory here',
  ENOSPC: 'the disk is full',
  EDQUOT: 'your share of the disk is full',
  EROFS: 'the file system is read-only',
  ENAMETOOLONG: 'its name is too long here',
  EFBIG: 'it is too large here',
}

/** Why a file could not be written, in words; what was said already stays. */
function told(e: unknown, name: string): Error {
  const code = (e as NodeJS.ErrnoException).code
  if (e instanceof BadArchive || code === undefined) return e as Error
  return new Error(`${printable(name)}: ${WORDS[code] ?? code}`, { cause: e })
}

/** A byte string for people: no control characters, as UTF-8 where it is. */
export const printable = (name: string): string =>
  JSON.stringify(
    Buffer.from(name, 'latin1')
      .toString('utf8')
      .slice(0, 200)
      .replace(/\p{Cc}/gu, '?'),
  )
