/**
 * Tar, as GNU tar and busybox write and read it (POSIX.1-1988 ustar; GNU's long names and base-256 numbers; POSIX.1-2001 pax).
 *
 * Owns: the codec. Names are byte strings (one character for each byte, `latin1`), because a file's name is bytes.
 * What is read came from a guest: every number, name and length is checked, extended headers are bounded by MAX_EXTENDED, a
 * checksum that is wrong is the end. Never does: files (pack.ts, extract.ts).
 */
export const BLOCK = 512
/** A long name or a pax header. */
const MAX_EXTENDED = 64 * 1024

export type EntryKind = 'file' | 'directory' | 'symlink' | 'hardlink' | 'other'

export interface Entry {
  readonly kind: EntryKind
  readonly name: string
  /** Where a link points to; empty for the rest. */
  readonly link: string
  /** Permission bits, set-id and sticky among them. */
  readonly mode: number
  /** Seconds. */
  readonly mtime: number
  readonly size: number
}

export class BadArchive extends Error {}

// -- write ---------------------------------------------------------------------------------------------------------------
const TYPES: Readonly<Record<Exclude<EntryKind, 'other'>, string>> = {
  file: '0',
  hardlink: '1',
  symlink: '2',
  directory: '5',
}

/** The headers of an entry: owner root, long names as GNU tar has them. */
export function encodeEntry(e: Entry & { readonly kind: Exclude<EntryKind, 'other'> }): Buffer {
  const name = e.kind === 'directory' && !e.name.endsWith('/') ? `${e.name}/` : e.name
  return Buffer.concat([
    ...(e.link.length > 100 ? longName('K', e.link) : []),
    ...(name.length > 100 ? longName('L', name) : []),
    header(name.slice(0, 100), TYPES[e.kind], e.link.slice(0, 100), e.mode, e.mtime, e.size),
  ])
}

export const padding = (size: number): Buffer => Buffer.alloc((BLOCK - (size % BLOCK)) % BLOCK)
export const endOfArchive = (): Buffer => Buffer.alloc(2 * BLOCK)

function longName(type: 'K' | 'L', name: string): Buffer[] {
  const bytes = Buffer.from(`${name}\0`, 'latin1')
  return [header('././@LongLink', type, '', 0, 0, bytes.length), bytes, padding(bytes.length)]
}

function header(name: string, type: string, link: string, mode: number, mtime: number, size: number): Buffer {
  const b = Buffer.alloc(BLOCK)
  b.write(name, 0, 'latin1')
  octal(b, 100, 8, mode)
  octal(b, 108, 8, 0)
  octal(b, 116, 8, 0)
  number(b, 124, 12, size)
  number(b, 136, 12, Math.max(0, Math.floor(mtime)))
  b.write(type, 156, 'latin1')
  b.write(link, 157, 'latin1')
  b.write('ustar  \0', 257, 'latin1')
  b.write('root', 265, 'latin1')
  b.write('root', 297, 'latin1')
  b.write(`${checksum(b).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return b
}

function octal(b: Buffer, at: number, length: number, value: number): void {
  b.write(`${value.toString(8).padStart(length - 1, '0')}\0`, at, 'latin1')
}

/** Octal where it fits, else base 256 with the high bit set. */
function number(b: Buffer, at: number, length: number, value: number): void {
  if (value < 8 ** (length - 1)) return octal(b, at, length, value)
  b[at] = 0x80
  b.writeBigUInt64BE(BigInt(value), at + length - 8)
}

/** With the checksum's own field as spaces. */
function checksum(b: Buffer): number {
  let sum = 8 * 0x20
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += b[i] as number
  return sum
}

// -- read ----------------------------------------------------------------------------------------------------------------
/** Bytes as they come → blocks and bodies as they are asked for. */
class Source {
  readonly #chunks: AsyncIterator<Buffer>
  #held: Buffer = Buffer.alloc(0)

  constructor(chunks: AsyncIterable<Buffer>) {
    this.#chunks = chunks[Symbol.asyncIterator]()
  }

  /** At least one byte and at most `most`; undefined at the end. */
  async some(most: number): Promise<Buffer | undefined> {
    while (this.#held.length === 0) {
      const next = await this.#chunks.next()
      if (next.done) return undefined
      this.#held = next.value
    }
    const b = this.#held.subarray(0, most)
    this.#held = this.#held.subarray(b.length)
    return b
  }

  async exactly(size: number): Promise<Buffer> {
    const parts: Buffer[] = []
    for (let left = size; left > 0; ) {
      const b = await this.some(left)
      if (b === undefined) throw new BadArchive('it was cut off')
      parts.push(b)
      left -= b.length
    }
    return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts)
  }

  async skip(size: number): Promise<void> {
    for (let left = size; left > 0; ) {
      const b = await this.some(left)
      if (b === undefined) throw new BadArchive('it was cut off')
      left -= b.length
    }
  }

  /** To the end, so that the writer is not left with a broken pipe. */
  async rest(): Promise<void> {
    while ((await this.some(1 << 20)) !== undefined);
  }
}

export interface ReadEntry extends Entry {
  /** The contents; what is not read is passed over. */
  readonly body: AsyncGenerator<Buffer>
}

/** The entries of an archive. Throws BadArchive, also when its end is missing. */
export async function* readTar(chunks: AsyncIterable<Buffer>): AsyncGenerator<ReadEntry> {
  const source = new Source(chunks)
  let longName: string | undefined
  let longLink: string | undefined
  let pax: ReadonlyMap<string, string> = new Map()
  for (;;) {
    const b = await source.exactly(BLOCK)
    if (b.every((x) => x === 0)) {
      await source.rest()
      return
    }
    if (field(b, 148, 8) !== checksum(b)) throw new BadArchive('what came is no tar archive')
    const type = String.fromCharCode(b[156] as number)
    const size = field(b, 124, 12)
    if (type === 'L' || type === 'K' || type === 'x' || type === 'g') {
      if (size > MAX_EXTENDED) throw new BadArchive(`an extended header of ${size} bytes`)
      const body = await source.exactly(size)
      await source.skip(padding(size).length)
      if (type === 'L') longName = cString(body)
      else if (type === 'K') longLink = cString(body)
      else if (type === 'x') pax = paxRecords(body)
      continue
    }
    const kind = kindOf(type)
    const prefix = b.toString('latin1', 257, 263) === 'ustar\0' ? cString(b.subarray(345, 500)) : ''
    const short = cString(b.subarray(0, 100))
    const own = pax.get('size')
    const bytes = kind === 'file' || kind === 'other' ? (own === undefined ? size : decimal(own)) : 0
    let left = bytes
    const body = (async function* () {
      while (left > 0) {
        const part = await source.some(left)
        if (part === undefined) throw new BadArchive('it was cut off')
        left -= part.length
        yield part
      }
    })()
    yield {
      kind,
      name: pax.get('path') ?? longName ?? (prefix === '' ? short : `${prefix}/${short}`),
      link:
        kind === 'symlink' || kind === 'hardlink'
          ? (pax.get('linkpath') ?? longLink ?? cString(b.subarray(157, 257)))
          : '',
      mode: field(b, 100, 8) & 0o7777,
      mtime: pax.has('mtime') ? Math.max(0, Number.parseFloat(pax.get('mtime') as string) || 0) : field(b, 136, 12),
      size: bytes,
      body,
    }
    await source.skip(left + padding(bytes).length)
    longName = undefined
    longLink = undefined
    pax = new Map()
  }
}

const kindOf = (type: string): EntryKind =>
  type === '0' || type === '\0' || type === '7'
    ? 'file'
    : type === '1'
      ? 'hardlink'
      : type === '2'
        ? 'symlink'
        : type === '5'
          ? 'directory'
          : 'other'

function cString(b: Buffer): string {
  const end = b.indexOf(0)
  return b.toString('latin1', 0, end < 0 ? b.length : end)
}

/** Octal text, or base 256. Negative numbers (times before 1970) are 0. */
function field(b: Buffer, at: number, length: number): number {
  const first = b[at] as number
  if (first === 0xff) return 0
  if (first === 0x80) {
    let value = 0
    for (let i = at + 1; i < at + length; i++) value = value * 256 + (b[i] as number)
    if (!Number.isSafeInteger(value)) throw new BadArchive('a number beyond all sizes')
    return value
  }
  const text = b
    .toString('latin1', at, at + length)
    .replace(/\0.*$/s, '')
    .trim()
  if (!/^[0-7]*$/.test(text)) throw new BadArchive('what came is no tar archive')
  return text === '' ? 0 : Number.parseInt(text, 8)
}

function decimal(text: string): number {
  const value = Number(text)
  if (!/^\d{1,16}$/.test(text) || !Number.isSafeInteger(value)) throw new BadArchive('a number that is none')
  return value
}

/** "LENGTH KEY=VALUE\n", LENGTH counting itself. */
function paxRecords(b: Buffer): Map<string, string> {
  const out = new Map<string, string>()
  for (let at = 0; at < b.length; ) {
    const space = b.indexOf(0x20, at)
    const length = space < 0 ? 0 : decimal(b.toString('latin1', at, space))
    if (length < space - at + 2 || at + length > b.length) throw new BadArchive('a pax header that is none')
    const record = b.toString('latin1', space + 1, at + length - 1)
    const eq = record.indexOf('=')
    if (eq > 0) out.set(record.slice(0, eq), record.slice(eq + 1))
    at += length
  }
  return out
}
