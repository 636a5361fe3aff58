/** noid cp: its names, its streams, and what a hostile guest cannot do with them. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, beforeEach, describe, it } from 'node:test'
import { parsePlace, split } from '../../src/cli/copy/copy.ts'
import { componentsOf, extract, nothing } from '../../src/cli/copy/extract.ts'
import { BadArchive, type Entry, encodeEntry, endOfArchive, padding, readTar } from '../../src/cli/copy/tar.ts'
import { Random } from '../sim/random.ts'
import { BIN, type Fake, fakeDaemon, fakeVm, noid } from './fake.ts'

const top = mkdtempSync(join(tmpdir(), 'nt-copy-'))
after(() => rmSync(top, { recursive: true, force: true }))
let dir = ''
beforeEach(() => {
  dir = mkdtempSync(join(top, 'c-'))
})

describe('noid cp', { timeout: 400_000 }, () => {
  let fake: Fake
  before(async () => {
    fake = await fakeDaemon()
    fake.vms.set('web', fakeVm('web'))
  })
  after(() => fake.close())

  const tree = (): string => {
    const from = join(dir, 'from')
    mkdirSync(join(from, 'sub', 'deep'), { recursive: true })
    writeFileSync(join(from, 'file'), 'text\n', { mode: 0o741 })
    writeFileSync(join(from, 'sub', 'x'.repeat(200)), 'long name\n')
    writeFileSync(join(from, 'sub', 'ünï\ncödé'), '')
    writeFileSync(Buffer.concat([Buffer.from(`${from}/sub/`), Buffer.from([0xff, 0xfe])]), 'not UTF-8')
    writeFileSync(join(from, 'big'), Buffer.alloc(3_000_001, 'big'))
    symlinkSync('../somewhere/else', join(from, 'dangling'))
    symlinkSync('file', join(from, 'link'))
    symlinkSync('y'.repeat(150), join(from, 'longlink'))
    linkSync(join(from, 'file'), join(from, 'hard'))
    mkdirSync(join(from, 'closed'), { mode: 0o555 })
    utimesSync(join(from, 'file'), 1e9, 1e9)
    utimesSync(join(from, 'sub'), 1.1e9, 1.1e9)
    return from
  }
  const described = (root: string): string =>
    execFileSync('find', ['.', '-printf', '%y %m %l %s %p\\n'], { cwd: root, encoding: 'latin1' })
      // A directory's size is its file system's own affair.
      .replace(/^(d \d+ ) \d+/gm, '$1')
      .split('\n')
      .sort()
      .join('\n')

  it('copies directories both ways with modes, times, links and names of any kind', async () => {
    const from = tree()
    mkdirSync(join(dir, 'vm'))
    const there = await noid(fake, ['cp', from, `web:${dir}/vm/`])
    assert.deepEqual([there.code, there.stderr], [0, ''])
    assert.match(there.stdout, /^copied 9 files and 4 directories, 2\.86 MiB\n$/)
    assert.equal(described(join(dir, 'vm', 'from')), described(from))
    const back = await noid(fake, ['cp', `web:${dir}/vm/from`, join(dir, 'back')])
    assert.equal(back.code, 0, back.stderr)
    assert.equal(described(join(dir, 'back')), described(from))
    for (const name of ['file', 'sub'])
      assert.equal(statSync(join(dir, 'back', name)).mtimeMs, statSync(join(from, name)).mtimeMs)
    assert.ok(readFileSync(join(dir, 'back', 'big')).equals(readFileSync(join(from, 'big'))))
    assert.equal(statSync(join(dir, 'back', 'sub')).uid, process.getuid?.())
  })

  it('names the result as cp -r does', async () => {
    const from = join(dir, 'a')
    mkdirSync(join(from, 'd'), { recursive: true })
    writeFileSync(join(from, 'f'), 'f')
    writeFileSync(join(dir, 'file'), 'old')
    mkdirSync(join(dir, 'into'))
    const ok = async (...words: string[]) => {
      const r = await noid(fake, ['cp', ...words])
      assert.equal(r.code, 0, `${words.join(' ')}: ${r.stderr}`)
    }
    for (const [s, d] of [
      ['web:', ''],
      ['', 'web:'],
    ] as const) {
      const to = (name: string) => `${d}${join(dir, name)}`
      await ok(`${s}${from}`, to('into'))
      assert.ok(existsSync(join(dir, 'into/a/f')))
      await ok(`${s}${from}/`, to('new'))
      assert.ok(existsSync(join(dir, 'new/d')) && existsSync(join(dir, 'new/f')))
      await ok(`${s}${from}/.`, to('contents'))
      assert.ok(existsSync(join(dir, 'contents/f')))
      rmSync(join(dir, 'into'), { recursive: true })
      mkdirSync(join(dir, 'into'))
      await ok(`${s}${from}/.`, to('into'))
      assert.deepEqual(readdirSync(join(dir, 'into')).sort(), ['d', 'f'])
      await ok(`${s}${from}/f`, to('file'))
      assert.equal(readFileSync(join(dir, 'file'), 'utf8'), 'f')
      await ok(`${s}${from}/f`, to('g'))
      await ok(`${s}${from}/f`, `${to('into')}/`)
      for (const name of ['new', 'contents', 'g']) rmSync(join(dir, name), { recursive: true })
    }
  })

  it('says what is wrong in one sentence', async () => {
    writeFileSync(join(dir, 'file'), 'x')
    mkdirSync(join(dir, 'd'))
    const fails = async (words: string[], sentence: RegExp, code = 1) => {
      const r = await noid(fake, ['cp', ...words])
      assert.equal(r.code, code, r.stderr)
      assert.match(r.stderr, sentence)
    }
    await fails([`web:${dir}/none`, dir], /none: .*[Nn]o such file or directory \(COPY_FAILED\)/)
    await fails([`web:${dir}/no/thing`, dir], /there is no directory \S+\/no \(COPY/)
    await fails([join(dir, 'none'), `web:${dir}`], /there is no \S+none/)
    await fails([join(dir, 'file'), `web:${dir}/no/x`], /there is no directory \S+\/no in "web"/)
    await fails([join(dir, 'd'), `web:${dir}/file`], /is no directory/)
    await fails([`web:${dir}/d`, join(dir, 'file')], /is no directory/)
    await fails([`web:${dir}/file`, join(dir, 'no/x')], /there is no directory/)
    await fails(['a', 'b'], /neither end is a VM/, 2)
    await fails(['web:a', 'web:b'], /both ends are VMs/, 2)
    assert.deepEqual(readdirSync(dir).sort(), ['d', 'file'])
  })

  it('reads stdin and writes stdout for -', async () => {
    writeFileSync(join(dir, 'file'), Buffer.alloc(500_000, 'abc'))
    const r = await noid(fake, ['cp', `web:${dir}/file`, '-'])
    assert.equal(r.stdout, readFileSync(join(dir, 'file'), 'utf8'))
    const child = spawn(process.execPath, [BIN, 'cp', '-', `web:${dir}/got`], {
      env: { ...process.env, NOID_HOST: fake.socket },
      stdio: ['pipe', 'ignore', 'inherit'],
    })
    child.stdin.end('from stdin')
    assert.equal(await new Promise((d) => child.on('close', d)), 0)
    assert.equal(readFileSync(join(dir, 'got'), 'utf8'), 'from stdin')
  })

  it('is cut off cleanly when the daemon goes: no file is half there', async () => {
    writeFileSync(join(dir, 'old'), 'old')
    mkdirSync(join(dir, 'vm'))
    execFileSync('truncate', ['-s', '3G', join(dir, 'vm', 'old')])
    const child = spawn(process.execPath, [BIN, 'cp', `web:${dir}/vm/old`, dir], {
      env: { ...process.env, NOID_HOST: fake.socket },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (t) => (said += t))
    const code = new Promise((d) => child.on('close', d))
    while (readdirSync(dir).every((n) => !n.startsWith('.noid-cp-'))) await new Promise((d) => setTimeout(d, 10))
    fake.cut()
    assert.equal(await code, 1)
    assert.match(said, /EXEC_INTERRUPTED/)
    assert.deepEqual(readdirSync(dir).sort(), ['old', 'vm'])
    assert.equal(readFileSync(join(dir, 'old'), 'utf8'), 'old')
  })
})

describe('places', () => {
  it('are read as people write them', () => {
    assert.deepEqual(parsePlace('web:/x'), { kind: 'vm', vm: 'web', path: '/x' })
    assert.deepEqual(parsePlace('web:'), { kind: 'vm', vm: 'web', path: '.' })
    assert.deepEqual(parsePlace('./a:b'), { kind: 'host', path: './a:b' })
    assert.deepEqual(parsePlace('-'), { kind: 'stream' })
    assert.deepEqual(split('/a/b/'), { directory: '/a', name: 'b' })
    assert.deepEqual(split('/a/.'), { directory: '/a/.', name: '.' })
    assert.deepEqual(split('/'), { directory: '/', name: '.' })
    assert.deepEqual(split('x'), { directory: '.', name: 'x' })
  })
})

// -- a guest that means harm -----------------------------------------------------------------------------------------------
type Made = Partial<Entry> & { name: string; body?: string; raw?: Buffer }

async function* archive(entries: readonly Made[]): AsyncGenerator<Buffer> {
  for (const e of entries) {
    if (e.raw !== undefined) {
      yield e.raw
      continue
    }
    const body = Buffer.from(e.body ?? '')
    const kind = e.kind === undefined || e.kind === 'other' ? 'file' : e.kind
    const b = encodeEntry({ kind, link: '', mode: 0o644, mtime: 1e9, size: body.length, ...e } as never)
    if (e.kind === 'directory' && e.name.endsWith('!')) yield b
    else yield Buffer.concat([b, body, padding(body.length)])
  }
  yield endOfArchive()
}

const device = (name: string, type: string): Made => {
  const b = encodeEntry({ kind: 'file', name, link: '', mode: 0o666, mtime: 0, size: 0 })
  b.write(type, 156, 'latin1')
  b.write(' '.repeat(8), 148, 'latin1')
  const sum = b.reduce((s, x) => s + x, 0)
  b.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return { name, raw: b }
}

describe('an archive of a hostile guest', () => {
  let into = ''
  let outside = ''
  beforeEach(() => {
    into = join(dir, 'into')
    outside = join(dir, 'outside')
    mkdirSync(into)
    mkdirSync(outside)
    writeFileSync(join(outside, 'secret'), 'secret')
  })
  const take = (entries: readonly Made[], d = { directory: into, expected: 'x', name: 'x' }) => {
    const done = nothing()
    return extract(readTar(archive(entries)), d, done).then(() => done)
  }
  const untouched = () => {
    assert.deepEqual(readdirSync(dir).sort(), ['into', 'outside'])
    assert.deepEqual(readdirSync(outside), ['secret'])
    assert.equal(readFileSync(join(outside, 'secret'), 'utf8'), 'secret')
  }

  for (const name of [
    '../escaped',
    'x/../../escaped',
    '/tmp/nt-escaped',
    '..',
    'x/..',
    'y',
    './y',
    '',
    'x\0/../..',
    '.noid-vm',
  ])
    it(`is refused for a file named ${JSON.stringify(name)}`, async () => {
      if (name.includes('\0')) {
        assert.throws(() => componentsOf('x/a\0b', { expected: 'x', name: 'x' }), BadArchive)
        return
      }
      await assert.rejects(take([{ name, body: 'evil' }]), BadArchive)
      untouched()
      assert.deepEqual(readdirSync(into), [])
    })

  it('does not lead out through links it made, absolute or relative', async () => {
    for (const link of [outside, '../../outside', '/']) {
      await assert.rejects(
        take([
          { name: 'x', kind: 'directory', mode: 0o755 },
          { name: 'x/way', kind: 'symlink', link },
          { name: 'x/way/secret', body: 'evil' },
        ]),
        BadArchive,
      )
      await assert.rejects(
        take([
          { name: 'x', kind: 'directory', mode: 0o755 },
          { name: 'x/way', kind: 'symlink', link },
          { name: 'x/way', kind: 'directory', mode: 0o777 },
        ]),
        BadArchive,
      )
      untouched()
    }
  })

  it('does not write through links that are there already', async () => {
    mkdirSync(join(into, 'x'))
    symlinkSync(join(outside, 'secret'), join(into, 'x', 'f'))
    symlinkSync(outside, join(into, 'x', 'd'))
    await take([{ name: 'x/f', body: 'new' }])
    assert.ok(lstatSync(join(into, 'x', 'f')).isFile())
    await assert.rejects(take([{ name: 'x/d/secret', body: 'evil' }]), BadArchive)
    // The destination's own name is followed nowhere either.
    rmSync(join(into, 'x'), { recursive: true })
    symlinkSync(outside, join(into, 'x'))
    await assert.rejects(take([{ name: 'x/secret', body: 'evil' }]), BadArchive)
    untouched()
  })

  it('makes hard links to its own files alone', async () => {
    writeFileSync(join(into, 'mine'), 'mine')
    mkdirSync(join(into, 'x'))
    writeFileSync(join(into, 'x', 'older'), 'older')
    symlinkSync(join(outside, 'secret'), join(into, 'x', 'way'))
    for (const link of ['../outside/secret', join(outside, 'secret'), 'mine', 'x/older', 'x/way', 'x/none', 'x'])
      await assert.rejects(take([{ name: 'x/h', kind: 'hardlink', link }]), BadArchive, link)
    await take([
      { name: 'x/a', body: 'one' },
      { name: 'x/b/c', kind: 'hardlink', link: 'x/a' },
      { name: 'x/a', kind: 'hardlink', link: 'x/a' },
    ])
    assert.equal(statSync(join(into, 'x', 'a')).ino, statSync(join(into, 'x', 'b', 'c')).ino)
    assert.deepEqual(readdirSync(join(into, 'x')).sort(), ['a', 'b', 'older', 'way'])
    untouched()
  })

  it('makes no device, no pipe and no set-id program', async () => {
    const done = await take([
      device('x/null', '3'),
      device('x/disk', '4'),
      device('x/pipe', '6'),
      { name: 'x/run', body: 'x', mode: 0o6755 },
      { name: 'x/dir', kind: 'directory', mode: 0o6777 },
    ])
    assert.deepEqual(readdirSync(join(into, 'x')).sort(), ['dir', 'run'])
    assert.equal(statSync(join(into, 'x', 'run')).mode & 0o7777, 0o755)
    assert.equal(statSync(join(into, 'x', 'dir')).mode & 0o7777, 0o777)
    assert.equal(done.remarks.length, 3)
  })

  it('keeps what was there when its file is no file', async () => {
    mkdirSync(join(into, 'x'))
    await assert.rejects(take([{ name: 'x', body: 'file' }]), /it is a directory here/)
    await assert.rejects(take([{ name: 'x', kind: 'symlink', link: '/' }]), /it is a directory here/)
    writeFileSync(join(into, 'x', 'f'), 'f')
    await assert.rejects(take([{ name: 'x/f', kind: 'directory' }]), BadArchive)
    assert.deepEqual(readdirSync(join(into, 'x')), ['f'])
  })

  it('is refused for depth, and for headers without measure', async () => {
    await assert.rejects(take([{ name: `x${'/d'.repeat(600)}`, body: '' }]), BadArchive)
    const long = encodeEntry({ kind: 'file', name: 'x', link: '', mode: 0, mtime: 0, size: 2 ** 40 })
    long.write('L', 156, 'latin1')
    long.write(' '.repeat(8), 148, 'latin1')
    long.write(
      `${long
        .reduce((s, b) => s + b, 0)
        .toString(8)
        .padStart(6, '0')}\0 `,
      148,
      'latin1',
    )
    await assert.rejects(take([{ name: 'x', raw: long }]), /extended header/)
  })

  it('names are made harmless before a person reads them', async () => {
    await assert.rejects(take([{ name: '\u001b]0;owned\u0007' }]), (e: Error) => !/\p{Cc}/u.test(e.message))
  })

  it('seeded garbage ends in an error and nowhere else', async () => {
    const whole: Buffer[] = []
    for await (const b of archive([
      { name: 'x', kind: 'directory', mode: 0o755 },
      { name: `x/${'n'.repeat(150)}`, body: 'body' },
      { name: 'x/l', kind: 'symlink', link: '/etc' },
      { name: 'x/h', kind: 'hardlink', link: `x/${'n'.repeat(150)}` },
    ]))
      whole.push(b)
    const good = Buffer.concat(whole)
    for (let seed = 1; seed <= 300; seed++) {
      const r = new Random(seed)
      const b = Buffer.from(good)
      for (let i = r.between(1, 8); i > 0; i--) b[r.between(0, b.length - 1)] = r.between(0, 255)
      // Half of them with right checksums, so that the harm lies deeper.
      if (seed % 2 === 0)
        for (let at = 0; at + 512 <= b.length; at += 512) {
          if (b.toString('latin1', at + 257, at + 262) !== 'ustar') continue
          b.write(' '.repeat(8), at + 148, 'latin1')
          const sum = b.subarray(at, at + 512).reduce((s, x) => s + x, 0)
          b.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148, 'latin1')
        }
      const cut = b.subarray(0, r.chance(0.3) ? r.between(0, b.length) : b.length)
      async function* pieces() {
        for (let at = 0; at < cut.length; at += 700) yield cut.subarray(at, at + 700)
      }
      rmSync(into, { recursive: true, force: true })
      mkdirSync(into)
      await extract(readTar(pieces()), { directory: into, expected: 'x', name: 'x' }, nothing()).catch((e: Error) => {
        assert.ok(e instanceof Error && e.message !== '', `seed ${seed}`)
      })
      untouched()
      for (const n of readdirSync(into)) assert.equal(n, 'x', `seed ${seed}`)
      chmodSync(into, 0o755)
    }
  })

  it('as GNU tar, busybox and pax write it, is read', async (t) => {
    const from = join(outside, 'deep')
    mkdirSync(from)
    writeFileSync(join(from, 'z'.repeat(180)), 'z')
    symlinkSync('t'.repeat(170), join(from, 'l'))
    utimesSync(join(from, 'z'.repeat(180)), 123456789, 123456789)
    const ways: string[][] = [
      ['tar', 'cf', '-', './deep'],
      ['tar', '--format=posix', '-cf', '-', './deep'],
      ['tar', '--format=ustar', '-cf', '-', './deep/l'],
    ]
    if (existsSync('/usr/bin/busybox')) ways.push(['busybox', 'tar', 'cf', '-', './deep'])
    for (const [program, ...words] of ways as [string, ...string[]][]) {
      let bytes: Buffer
      try {
        bytes = execFileSync(program, words, { cwd: outside, stdio: ['ignore', 'pipe', 'ignore'] })
      } catch {
        t.diagnostic(`${program} ${words.join(' ')} does not work here`)
        continue
      }
      async function* all() {
        yield bytes
      }
      await extract(readTar(all()), { directory: into, expected: 'deep', name: 'got' }, nothing())
      if (words.at(-1) === './deep') {
        assert.equal(readFileSync(join(into, 'got', 'z'.repeat(180)), 'utf8'), 'z')
        assert.equal(statSync(join(into, 'got', 'z'.repeat(180))).mtimeMs, 123456789_000)
        assert.equal(readlinkSync(join(into, 'got', 'l')), 't'.repeat(170))
      }
      rmSync(join(into, 'got'), { recursive: true, force: true })
    }
    rmSync(from, { recursive: true })
  })
})
