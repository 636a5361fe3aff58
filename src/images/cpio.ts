/**
 * Writes a cpio archive of the kind the kernel unpacks as its initial RAM file system ("newc"; Linux
 * Documentation/driver-api/early-userspace/buffer-format.rst).
 *
 * Everything belongs to root and has no time: the same files give the same bytes, on every machine and for every user, and
 * nobody needs rights for it. Directories above a path are made as they are needed.
 */
export interface CpioFile {
  /** Below the root, without a leading slash. */
  readonly path: string
  readonly mode: number
  readonly data: Uint8Array
}

const S_IFDIR = 0o040000
const S_IFCHR = 0o020000
const S_IFREG = 0o100000
const S_IFLNK = 0o120000

export class Cpio {
  readonly #parts: Buffer[] = []
  readonly #paths = new Set<string>()
  #inode = 1

  dir(path: string, mode = 0o755): this {
    return this.#entry(path, S_IFDIR | mode, new Uint8Array(0))
  }

  file(path: string, mode: number, data: Uint8Array | string): this {
    return this.#entry(path, S_IFREG | mode, typeof data === 'string' ? Buffer.from(data) : data)
  }

  link(path: string, target: string): this {
    return this.#entry(path, S_IFLNK | 0o777, Buffer.from(target))
  }

  /** A character device; the kernel opens /dev/console before anything can make it. */
  device(path: string, mode: number, major: number, minor: number): this {
    return this.#entry(path, S_IFCHR | mode, new Uint8Array(0), major, minor)
  }

  has(path: string): boolean {
    return this.#paths.has(path)
  }

  end(): Buffer {
    this.#write('TRAILER!!!', 0, 0, new Uint8Array(0), 0, 0)
    return Buffer.concat(this.#parts)
  }

  #entry(path: string, mode: number, data: Uint8Array, major = 0, minor = 0): this {
    const slash = path.lastIndexOf('/')
    if (slash > 0 && !this.#paths.has(path.slice(0, slash))) this.dir(path.slice(0, slash))
    if (this.#paths.has(path)) throw new Error(`${path} is in the archive already`)
    this.#paths.add(path)
    this.#write(path, this.#inode++, mode, data, major, minor)
    return this
  }

  #write(path: string, inode: number, mode: number, data: Uint8Array, major: number, minor: number): void {
    const name = Buffer.from(`${path}\0`)
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    const fields = [inode, mode, 0, 0, 1, 0, data.length, 0, 0, major, minor, name.length, 0]
    const head = Buffer.from(`070701${fields.map((n) => n.toString(16).padStart(8, '0')).join('')}`, 'latin1')
    this.#parts.push(head, name, pad(head.length + name.length), Buffer.from(data), pad(data.length))
  }
}

const pad = (length: number): Buffer => Buffer.alloc(-length & 3)
