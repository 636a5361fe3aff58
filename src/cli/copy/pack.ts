/**
 * Files of this machine as a tar stream: directories with what is in them, modes and times, symbolic links as they are.
 *
 * A file that changes while it is read has, in the archive, the length it had at first: cut, or filled with zeros, and said.
 * Owners are left behind (root's in the guest, or the user's who unpacks); devices, pipes and sockets are left out, and said.
 */
import { constants } from 'node:fs'
import { type FileHandle, lstat, open, readdir, readlink, stat } from 'node:fs/promises'
import { type Copied, printable, remark } from './extract.ts'
import { type Entry, encodeEntry, endOfArchive, padding } from './tar.ts'

const CHUNK = 256 * 1024

export const toBytes = (text: string): string => Buffer.from(text).toString('latin1')

const path = (bytes: string): Buffer => Buffer.from(bytes, 'latin1')

export interface PackOptions {
  /** Follow symbolic links. */
  readonly follow: boolean
  /** The source directory itself is there already: only what is in it. */
  readonly contentsOnly: boolean
}

/** `source` is a path of this machine, `name` what it is called in the archive; both as bytes. */
export async function* pack(source: string, name: string, o: PackOptions, done: Copied): AsyncGenerator<Buffer> {
  const pending: { from: string; name: string }[] = [{ from: source, name }]
  for (let first = true; ; first = false) {
    const next = pending.pop()
    if (next === undefined) break
    const s = await (o.follow ? stat(path(next.from)) : lstat(path(next.from))).catch((e: NodeJS.ErrnoException) => {
      // A link to nowhere, or a file that went meanwhile.
      if (first || e.code !== 'ENOENT') throw e
      return undefined
    })
    if (s === undefined) {
      remark(done, `${printable(next.from)} was left out: it is not there any more`)
      continue
    }
    const entry: Omit<Entry, 'kind' | 'link' | 'size'> = {
      name: next.name,
      mode: s.mode & (s.isDirectory() ? 0o1777 : 0o777),
      mtime: s.mtimeMs / 1000,
    }
    if (s.isDirectory()) {
      if (!(first && o.contentsOnly)) {
        yield encodeEntry({ ...entry, kind: 'directory', link: '', size: 0 })
        done.directories += 1
      }
      const names = await readdir(path(next.from), { encoding: 'buffer' })
      for (const n of names.reverse()) {
        const child = n.toString('latin1')
        pending.push({ from: `${next.from}/${child}`, name: `${next.name}/${child}` })
      }
    } else if (s.isSymbolicLink()) {
      const link = (await readlink(path(next.from), { encoding: 'buffer' })).toString('latin1')
      yield encodeEntry({ ...entry, kind: 'symlink', link, size: 0 })
      done.files += 1
    } else if (s.isFile()) {
      yield* file(next.from, entry, o.follow, done)
    } else remark(done, `${printable(next.from)} was left out: it is a device, a pipe or a socket`)
  }
  yield endOfArchive()
}

async function* file(
  from: string,
  entry: Omit<Entry, 'kind' | 'link' | 'size'>,
  follow: boolean,
  done: Copied,
): AsyncGenerator<Buffer> {
  const handle: FileHandle = await open(
    path(from) as unknown as string,
    constants.O_RDONLY | constants.O_NONBLOCK | (follow ? 0 : constants.O_NOFOLLOW),
  )
  try {
    const { size } = await handle.stat()
    yield encodeEntry({ ...entry, kind: 'file', link: '', size })
    let left = size
    while (left > 0) {
      const b = Buffer.allocUnsafe(Math.min(CHUNK, left))
      const { bytesRead } = await handle.read(b, 0, b.length)
      if (bytesRead === 0) {
        remark(done, `${printable(from)} became shorter while it was read`)
        for (; left > 0; left -= Math.min(CHUNK, left)) yield Buffer.alloc(Math.min(CHUNK, left))
        break
      }
      left -= bytesRead
      yield b.subarray(0, bytesRead)
    }
    yield padding(size)
    done.files += 1
    done.bytes += size
  } finally {
    await handle.close()
  }
}
