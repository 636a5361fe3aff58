/**
 * `noid cp`: which end is where, what the result is called, and the guest's tar at the other end of an exec.
 *
 * Names follow cp -r: into a directory that exists, else under the new name; SRC/. means what is in SRC. The guest needs a shell and a tar
 * (noid's own busybox serves in a qemu VM without). Everything streams: no file is held in memory or on a disk in between.
 */
import { statSync } from 'node:fs'
import { basename, dirname } from 'node:path'
import { pipeline } from 'node:stream/promises'
import type { Client } from '../../client/client.ts'
import { type RemoteProcess, remote } from '../../client/process.ts'
import { NoidError } from '../../errors.ts'
import { vmNamed } from '../active.ts'
import { type Copied, extract, nothing } from './extract.ts'
import { pack, toBytes } from './pack.ts'
import { BadArchive, readTar } from './tar.ts'

export type Place =
  | { readonly kind: 'vm'; readonly vm: string; readonly path: string }
  | { readonly kind: 'host'; readonly path: string }
  | { readonly kind: 'stream' }

/** NAME:PATH, :PATH of the active VM, PATH, or -. A colon behind a slash belongs to a path. */
export function parsePlace(text: string): Place {
  if (text === '-') return { kind: 'stream' }
  const m = /^([^/:]*):(.*)$/s.exec(text)
  if (m === null) return { kind: 'host', path: text }
  const path = m[2] as string
  return { kind: 'vm', vm: vmNamed(m[1] === '' ? undefined : m[1]), path: path === '' ? '.' : path }
}

export interface CopyOptions {
  readonly follow: boolean
  readonly user: string | undefined
}

export async function copy(api: Client, from: Place, to: Place, o: CopyOptions): Promise<Copied> {
  if (from.kind === 'vm' && to.kind === 'vm')
    throw new NoidError('INVALID_INPUT', {
      what: 'both ends are VMs',
      hint: `copy it here first, or: noid exec ${from.vm} -- tar c PATH | noid exec ${to.vm} -- tar x`,
    })
  if (from.kind === 'vm') return to.kind === 'stream' ? show(api, from, o) : download(api, from, to as HostPlace, o)
  if (to.kind === 'vm') return from.kind === 'stream' ? fill(api, to, o) : upload(api, from, to, o)
  throw new NoidError('INVALID_INPUT', {
    what: 'neither end is a VM',
    hint: 'write NAME:PATH for a file in a VM, for example: noid cp notes.txt web:/root/',
  })
}

type VmPlace = Extract<Place, { kind: 'vm' }>
type HostPlace = Extract<Place, { kind: 'host' }>

/** A directory to stand in and a name in it; `.` for what is in the directory. */
export function split(path: string): { directory: string; name: string } {
  const trimmed = path.replace(/\/+$/, '')
  if (trimmed === '') return { directory: '/', name: '.' }
  const name = basename(trimmed)
  return name === '.' || name === '..' ? { directory: trimmed, name: '.' } : { directory: dirname(trimmed), name }
}

/** noid's own busybox is in every qemu VM, whatever its image lacks. */
const TAR = 't=tar; command -v tar >/dev/null 2>&1 || t="/run/noid/busybox tar"'
const ENTER = '{ cd -- "$1" 2>/dev/null || { echo "there is no directory $1" >&2; exit 1; }; }'
const LOOK = `
if [ -d "$1" ]; then echo directory
elif [ -e "$1" ] || [ -L "$1" ]; then echo file
elif [ -d "$2" ]; then echo absent
else echo orphan; fi`

const shell = (script: string, ...words: string[]): string[] => ['sh', '-c', script, 'noid-cp', ...words]

async function download(api: Client, from: VmPlace, to: HostPlace, o: CopyOptions): Promise<Copied> {
  const { directory, name } = split(from.path)
  const here = statSync(to.path, { throwIfNoEntry: false })
  const contents = name === '.'
  const script = `${TAR}; ${ENTER} && exec $t c${o.follow ? 'h' : ''}f - "./$2"`
  const done = nothing()
  let p: RemoteProcess | undefined
  try {
    p = await remote(api, from.vm, { argv: shell(script, directory, name), ...userOf(o) })
    p.stdin.end()
    let entries: AsyncIterable<import('./tar.ts').ReadEntry> = readTar(p.stdout)
    if (here?.isDirectory() === true) {
      await extract(
        entries,
        { directory: to.path, expected: contents ? undefined : name8(name), name: name8(name) },
        done,
      )
    } else {
      if (!contents) entries = await fits(entries, to, here !== undefined)
      const target = split(to.path)
      if (target.name === '.') throw new Error(`there is no directory ${to.path}`)
      const parent = statSync(target.directory, { throwIfNoEntry: false })
      if (parent?.isDirectory() !== true) throw new Error(`there is no directory ${target.directory}`)
      if (contents && here !== undefined) throw new Error(`${to.path} is no directory`)
      const renamed = contents ? inside(entries) : entries
      await extract(
        renamed,
        { directory: target.directory, expected: contents ? CONTENTS : name8(name), name: name8(target.name) },
        done,
      )
    }
    await succeeded(p)
    return done
  } catch (e) {
    throw await failure(e, p, `${from.vm}:${from.path}`, to.path)
  } finally {
    p?.end()
  }
}

const name8 = toBytes
/** What `.` is called while it is renamed to a directory that does not exist yet. */
const CONTENTS = 'contents'

/** "." and "./a" become "contents" and "contents/a", links too. */
async function* inside(entries: AsyncIterable<import('./tar.ts').ReadEntry>) {
  for await (const e of entries)
    yield { ...e, name: `${CONTENTS}/${e.name}`, link: e.kind === 'hardlink' ? `${CONTENTS}/${e.link}` : e.link }
}

/** A directory does not take the place of a file; and a name that ends in a slash is a directory's. */
async function fits(
  entries: AsyncIterable<import('./tar.ts').ReadEntry>,
  to: HostPlace,
  exists: boolean,
): Promise<AsyncIterable<import('./tar.ts').ReadEntry>> {
  const it = entries[Symbol.asyncIterator]()
  const first = await it.next()
  if (!first.done) {
    if (first.value.kind === 'directory' && exists) throw new Error(`${to.path} is no directory`)
    if (first.value.kind !== 'directory' && to.path.endsWith('/')) throw new Error(`there is no directory ${to.path}`)
  }
  return (async function* () {
    if (!first.done) yield first.value
    for (;;) {
      const next = await it.next()
      if (next.done) return
      yield next.value
    }
  })()
}

async function upload(api: Client, from: HostPlace, to: VmPlace, o: CopyOptions): Promise<Copied> {
  const source = split(from.path)
  const s = statSync(from.path, { throwIfNoEntry: false })
  const done = nothing()
  let p: RemoteProcess | undefined
  try {
    const contents = source.name === '.'
    const target = split(to.path)
    const there = await look(api, to, target.directory, o)
    if (there === 'orphan') throw new Error(`there is no directory ${target.directory} in "${to.vm}"`)
    if (s?.isDirectory() === true && there === 'file') throw new Error(`${to.path} is no directory`)
    if (s?.isDirectory() !== true && there === 'absent' && to.path.endsWith('/'))
      throw new Error(`there is no directory ${to.path} in "${to.vm}"`)
    const into = there === 'directory'
    const name = contents ? (into ? '.' : target.name) : into ? source.name : target.name
    const words = [into ? to.path : target.directory]
    p = await remote(api, to.vm, { argv: shell(`${TAR}; ${ENTER} && exec $t xpf -`, ...words), ...userOf(o) })
    p.stdout.resume()
    const bytes = pack(
      toBytes(from.path),
      toBytes(name === '.' ? '.' : `./${name}`),
      { follow: o.follow, contentsOnly: contents && into },
      done,
    )
    // A tar that has seen the archive's end may be gone before this end says so: its code decides.
    await pipeline(bytes, p.stdin).catch(unlessEnded)
    await succeeded(p)
    return done
  } catch (e) {
    throw await failure(e, p, from.path, `${to.vm}:${to.path}`)
  } finally {
    p?.end()
  }
}

async function look(api: Client, to: VmPlace, parent: string, o: CopyOptions): Promise<string> {
  const p = await remote(api, to.vm, { argv: shell(LOOK, to.path, parent), ...userOf(o) })
  p.stdin.end()
  let text = ''
  for await (const b of p.stdout) if (text.length < 100) text += (b as Buffer).toString('latin1')
  await succeeded(p)
  return text.trim()
}

/** A file's contents on stdout. */
async function show(api: Client, from: VmPlace, o: CopyOptions): Promise<Copied> {
  const done = nothing()
  let p: RemoteProcess | undefined
  try {
    p = await remote(api, from.vm, { argv: shell('exec cat -- "$1"', from.path), ...userOf(o) })
    p.stdin.end()
    p.stdout.on('data', (b: Buffer) => {
      done.bytes += b.length
    })
    await pipeline(p.stdout, process.stdout, { end: false })
    await succeeded(p)
    done.files = 1
    return done
  } catch (e) {
    throw await failure(e, p, `${from.vm}:${from.path}`, '-')
  } finally {
    p?.end()
  }
}

/** stdin as a file's contents. */
async function fill(api: Client, to: VmPlace, o: CopyOptions): Promise<Copied> {
  const done = nothing()
  let p: RemoteProcess | undefined
  try {
    p = await remote(api, to.vm, { argv: shell('exec cat > "$1"', to.path), ...userOf(o) })
    p.stdout.resume()
    process.stdin.on('data', (b: Buffer) => {
      done.bytes += b.length
    })
    await pipeline(process.stdin, p.stdin)
    await succeeded(p)
    done.files = 1
    return done
  } catch (e) {
    throw await failure(e, p, '-', `${to.vm}:${to.path}`)
  } finally {
    p?.end()
  }
}

const userOf = (o: CopyOptions): { user?: string } => (o.user === undefined ? {} : { user: o.user })

class GuestFailure extends Error {}

function unlessEnded(e: NodeJS.ErrnoException): void {
  if (e.code !== 'ERR_STREAM_PREMATURE_CLOSE' && e.code !== 'ERR_STREAM_DESTROYED') throw e
}

async function succeeded(p: RemoteProcess): Promise<void> {
  const { code, stderr } = await p.exit
  if (code !== 0) throw new GuestFailure(lastLine(stderr) || `tar ended with code ${code}`)
}

/** The guest's own last words, made harmless. */
const lastLine = (stderr: string): string =>
  (
    stderr
      .trim()
      .split('\n')
      .filter((l) => !/Exiting with failure|Error is not recoverable|error exit delayed/.test(l))
      .at(-1) ?? ''
  )
    .replace(/^(noid-cp|tar|sh|cat): /, '')
    .replace(/^\.\//, '')
    .replace(/\p{Cc}/gu, '?')
    .slice(0, 300)

/** A pipe that broke says less than the command that broke it; an archive that was cut off less than who cut it. */
async function failure(e: unknown, p: RemoteProcess | undefined, from: string, to: string): Promise<Error> {
  if (e instanceof NoidError) return e
  let why = (e as Error).message
  const code = (e as NodeJS.ErrnoException).code
  if (e instanceof BadArchive || code === 'ERR_STREAM_PREMATURE_CLOSE' || code === 'ERR_STREAM_DESTROYED') {
    const told = await Promise.race([
      p?.exit.then(
        (x) => (x.code === 0 ? undefined : lastLine(x.stderr) || `tar ended with code ${x.code}`),
        (x: Error) => x,
      ),
      new Promise<undefined>((r) => setTimeout(() => r(undefined), 1_000).unref()),
    ])
    if (told instanceof NoidError) return told
    if (typeof told === 'string') why = told
    else if (e instanceof BadArchive) why = `what the VM sent is refused: ${why}`
  } else if (code === 'ENOENT') why = `there is no ${(e as NodeJS.ErrnoException).path ?? 'such file'}`
  else if (code === 'EACCES') why = `you may not read ${(e as NodeJS.ErrnoException).path ?? 'it'}`
  return new NoidError('COPY_FAILED', { from, to, why }, { cause: e })
}
