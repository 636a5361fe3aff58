/** What computes in images: archives, packed kernels, modules, sources. Strangers' bytes are refused with a sentence, never followed. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { NoidError } from '../../src/errors.ts'
import { Cpio } from '../../src/images/cpio.ts'
import { unlz4 } from '../../src/images/lz4.ts'
import { Modules, modulesDir } from '../../src/images/modules.ts'
import { find, need, run } from '../../src/images/run.ts'
import { plain } from '../../src/images/sources.ts'
import { vmlinuxOf } from '../../src/images/vmlinux.ts'
import { kernelElf } from './shared.ts'

const dir = mkdtempSync(join(tmpdir(), 'noid-parts-'))
after(() => rmSync(dir, { recursive: true, force: true }))

describe('cpio', () => {
  const archive = (): Buffer =>
    new Cpio().file('a/b/c', 0o755, 'hello').link('a/l', '/a/b/c').device('dev/console', 0o600, 5, 1).dir('e').end()

  test('the same files are the same bytes', () => assert.deepEqual(archive(), archive()))

  test("busybox's cpio, which reads what the kernel reads, finds everything", {
    skip: !find('busybox') && 'needs busybox',
  }, () => {
    const r = spawnSync('busybox', ['cpio', '-itv'], { input: archive(), encoding: 'utf8' })
    assert.equal(r.status, 0, r.stderr)
    assert.match(r.stdout, /^-rwxr-xr-x\s.*\s5\s.*\sa\/b\/c$/m)
    assert.match(r.stdout, /^lrwxrwxrwx\s.*a\/l -> \/a\/b\/c$/m)
    assert.match(r.stdout, /^crw-------\s.*dev\/console$/m)
    assert.match(r.stdout, /^drwxr-xr-x\s.*\sa\/b$/m)
  })

  test('nothing is in it twice', () => {
    assert.throws(() => new Cpio().file('a', 0o644, '').file('a', 0o644, ''), /already/)
  })
})

describe('lz4', () => {
  const magic = Buffer.from([0x02, 0x21, 0x4c, 0x18])
  const frame = (...blocks: number[][]): Buffer =>
    Buffer.concat([
      magic,
      ...blocks.flatMap((b) => {
        const length = Buffer.alloc(4)
        length.writeUInt32LE(b.length)
        return [length, Buffer.from(b)]
      }),
    ])
  // 1 literal "a", then a match of 8 at distance 1, then 1 literal "b".
  const good = [0x14, 0x61, 1, 0, 0x10, 0x62]

  test('literals, and a match that overlaps itself', () => {
    assert.equal(unlz4(frame(good), 64).toString(), 'aaaaaaaaab')
    assert.equal(unlz4(frame(good, good), 64).toString(), 'aaaaaaaaabaaaaaaaaab')
  })

  test('the tool agrees', { skip: !find('lz4') && 'needs lz4' }, () => {
    const text = Buffer.from('the quick brown fox '.repeat(5000) + Math.PI)
    const packed = spawnSync('lz4', ['-l', '-c'], { input: text }).stdout
    assert.deepEqual(unlz4(packed, text.length), text)
  })

  for (const [what, blocks] of [
    ['refers before its beginning', [[0x14, 0x61, 9, 0, 0x10, 0x62]]],
    ['refers to distance 0', [[0x14, 0x61, 0, 0, 0x10, 0x62]]],
    ['promises more literals than there are', [[0xf0, 0xff, 0xff]]],
    ['ends in an offset', [[0x14, 0x61, 1]]],
    ['gives more than was said', [good, good, good, good, good, good, good]],
  ] as const)
    test(`a block that ${what} is refused`, () =>
      assert.throws(() => unlz4(frame(...blocks.map((b) => [...b])), 64), /LZ4/))
})

describe('a kernel', () => {
  const bzImage = (packed: Buffer, size: number): Buffer => {
    const head = Buffer.alloc(1024)
    head[0x1f1] = 1
    head.write('HdrS', 0x202, 'latin1')
    head.writeUInt16LE(0x20f, 0x206)
    head.writeUInt32LE(packed.length + 4, 0x24c)
    const length = Buffer.alloc(4)
    length.writeUInt32LE(size)
    return Buffer.concat([head, packed, length])
  }

  test('a vmlinux is taken as it is', () => assert.deepEqual(vmlinuxOf(kernelElf()), kernelElf()))
  test('gzip and zstd are unpacked', () => {
    for (const pack of [gzipSync, zstdCompressSync])
      assert.deepEqual(Buffer.from(vmlinuxOf(bzImage(pack(kernelElf()), kernelElf().length))), kernelElf())
  })
  test('xz is unpacked', { skip: !find('xz') && 'needs xz' }, () => {
    const packed = spawnSync('xz', ['-c', '--check=crc32'], { input: kernelElf() }).stdout
    assert.deepEqual(Buffer.from(vmlinuxOf(bzImage(packed, kernelElf().length))), kernelElf())
  })
  for (const [what, file, said] of [
    ['a text', Buffer.from('hello'.repeat(1000)), /neither a bzImage nor a vmlinux/],
    ['nothing', Buffer.alloc(0), /neither/],
    ['no PVH entry', kernelElf(false), /no PVH entry/],
    ['a program that is packed like a kernel', bzImage(gzipSync(Buffer.from('#!/bin/sh')), 9), /no ELF file/],
    ['a payload that was cut off', bzImage(gzipSync(kernelElf()), 1).subarray(0, 1030), /cut off/],
    ['an unknown packer', bzImage(Buffer.alloc(64, 7), 64), /packed in a way/],
    ['a kernel that claims 4 GiB', bzImage(magicLz4(), 0xffffffff), /more than 512 MiB/],
  ] as const)
    test(`${what} is no kernel`, () => assert.throws(() => vmlinuxOf(file), said))

  function magicLz4(): Buffer {
    return Buffer.from([0x02, 0x21, 0x4c, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0])
  }
})

test('modules come after what they need; packed ones are unpacked; what a kernel has not is left out', () => {
  const base = join(dir, 'modules')
  mkdirSync(join(base, 'kernel'), { recursive: true })
  const module = (depends: string): Buffer => Buffer.from(`\x7fELF\0license=GPL\0depends=${depends}\0intree=Y\0`)
  writeFileSync(join(base, 'kernel/virtio.ko'), module(''))
  writeFileSync(join(base, 'kernel/virtio_ring.ko.gz'), gzipSync(module('virtio')))
  writeFileSync(join(base, 'kernel/virtio-rng.ko.zst'), zstdCompressSync(module('virtio_ring,virtio')))
  const m = new Modules(base)
  assert.deepEqual(m.closure(['virtio_rng', 'missing']), ['virtio', 'virtio_ring', 'virtio_rng'])
  assert.equal(
    m.dep(['virtio', 'virtio_ring', 'virtio_rng']),
    'kernel/virtio.ko:\nkernel/virtio_ring.ko: kernel/virtio.ko\n' +
      'kernel/virtio-rng.ko: kernel/virtio_ring.ko kernel/virtio.ko\n',
  )
  assert.deepEqual(m.read('virtio_rng'), module('virtio_ring,virtio'))
})

test('modules lie below /usr or not', () => {
  for (const at of ['lib', 'usr/lib']) {
    const unpacked = join(dir, `package-${at.length}`)
    mkdirSync(join(unpacked, at, 'modules/6.1.0'), { recursive: true })
    assert.equal(modulesDir(unpacked).version, '6.1.0')
  }
})

test('credentials of a package source stay here', () => {
  assert.equal(plain('https://me:secret@mirror.example/debian/'), 'https://mirror.example/debian/')
  assert.equal(plain('http://mirror.example/a@b/'), 'http://mirror.example/a@b/')
})

test('a program that is missing is told with the package that has it', async () => {
  const lacking = (e: unknown): boolean =>
    e instanceof NoidError && e.code === 'IMAGE_TOOLS_MISSING' && /no-such-program/.test(e.message)
  assert.throws(() => need('building', ['sh', 'no-such-program']), lacking)
  assert.match(
    new NoidError('IMAGE_TOOLS_MISSING', { what: 'x', tools: 'mke2fs', packages: 'e2fsprogs' }).hint ?? '',
    /apt-get install e2fsprogs/,
  )
})

test('a program that fails, hangs or is cancelled ends with its last words, and so does what it started', async () => {
  await assert.rejects(run('sh', ['-c', 'echo it broke >&2; exit 3'], { timeoutMs: 10_000 }), /sh: it broke/)
  assert.equal(await run('sh', ['-c', 'echo out; exit 3'], { timeoutMs: 10_000, accepts: [3] }), 'out\n')
  const pidFile = join(dir, 'pid')
  const hang = ['-c', `sleep 600 & echo $! >${pidFile}; echo started >&2; wait`]
  await assert.rejects(run('sh', hang, { timeoutMs: 5_000 }), /longer than 5 s/)
  await gone(pidFile)
  const stop = new AbortController()
  const cancelled = run('sh', hang, {
    timeoutMs: 60_000,
    signal: stop.signal,
    onLine: () => stop.abort(new Error('enough')),
  })
  await assert.rejects(cancelled, /enough/)
  await gone(pidFile)
})

/** Resolves when the process named in the file has ended. */
async function gone(file: string): Promise<void> {
  const pid = Number(readFileSync(file, 'utf8'))
  for (let i = 0; i < 200; i++) {
    try {
      process.kill(pid, 0)
      // A process that ended and that nobody has asked for yet.
      if (/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))) return
    } catch {
      return
    }
    await new Promise((r) => setTimeout(r, 50))
  }
  assert.fail(`${pid} goes on`)
}
