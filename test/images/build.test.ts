/**
 * Images built for real: what is in them, that it is done once, that a killed build leaves nothing, and who may remove what. Every store here is a fresh one
 * with the packages of the shared one in it, so that only the first run ever fetches them.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { NoidError } from '../../src/errors.ts'
import { Images } from '../../src/images/index.ts'
import { runsAs } from '../users.ts'
import { debianSkip, sharedImages } from './shared.ts'

const BUILDER = fileURLToPath(new URL('./builder.ts', import.meta.url))
const NOBODY = 65534
const root = process.getuid?.() === 0
const quiet = (): void => {}
const code =
  (wanted: string) =>
  (e: unknown): boolean =>
    e instanceof NoidError && e.code === wanted

const top = mkdtempSync(join(tmpdir(), 'noid-images-'))
chmodSync(top, 0o711)
let count = 0
const skip = debianSkip()

/** A store with the fetched packages alone. */
function fresh(owner?: number): string {
  const dir = join(top, String(count++))
  mkdirSync(dir, { mode: 0o700 })
  cpSync(join(sharedImages(), 'debs'), join(dir, 'debs'), { recursive: true })
  if (owner !== undefined)
    for (const path of [dir, join(dir, 'debs'), ...readdirSync(join(dir, 'debs')).map((f) => join(dir, 'debs', f))])
      chownSync(path, owner, owner)
  return dir
}

const started = new Set<ChildProcess>()
function builder(
  dir: string,
  verb: string,
  name: string,
  as?: number,
): { child: ChildProcess; lines: AsyncIterable<string> } {
  const node = [process.execPath, '--disable-warning=ExperimentalWarning', BUILDER, dir, verb, name]
  const [program, ...args] =
    as === undefined
      ? node
      : [
          'setpriv',
          '--reuid',
          String(as),
          '--regid',
          String(as),
          '--clear-groups',
          '--',
          'env',
          'HOME=/nonexistent',
          ...node,
        ]
  const child = spawn(program as string, args, { stdio: ['ignore', 'pipe', 'inherit'], cwd: '/' })
  started.add(child)
  return { child, lines: createInterface({ input: child.stdout as NodeJS.ReadableStream }) }
}

async function idOf(b: ReturnType<typeof builder>): Promise<{ id: string | undefined; steps: string[] }> {
  const steps: string[] = []
  let id: string | undefined
  for await (const line of b.lines) {
    if (line.startsWith('id ')) id = line.slice(3)
    else steps.push(line)
  }
  return { id, steps }
}

/** What a store has besides packages and locks. */
const contents = (dir: string): string[] =>
  readdirSync(dir, { recursive: true, encoding: 'utf8' })
    .filter((f) => !f.startsWith('debs') && !f.endsWith('.lock'))
    .sort()

/** Of the first test, for those after it. */
let ownStore: string

describe('images are built', { skip, timeout: 900_000 }, () => {
  before(() => new Images(sharedImages(), quiet).resolve('tiny'))
  after(() => {
    for (const c of started) c.kill('SIGKILL')
    rmSync(top, { recursive: true, force: true })
  })

  test('tiny: once; its parts are there, only to be read', async () => {
    ownStore = fresh()
    const images = new Images(ownStore, quiet)
    const steps: string[] = []
    const one = await images.resolve('tiny', (s) => steps.push(s))
    assert.ok(steps.length > 0)
    const again = await images.resolve('tiny', (s) => assert.fail(`it said: ${s}`))
    assert.deepEqual(again, one)
    assert.equal(readFileSync(one.kernel).readUInt32LE(0), 0x464c457f)
    assert.equal(one.disk, undefined)
    assert.match(one.append, /console=ttyS0/)
    for (const f of [one.kernel, one.initrd]) assert.equal(statSync(f).mode & 0o222, 0)
    assert.equal(images.info('tiny').id, one.id)
  })

  test('the initrd has busybox, the drivers, the agent and its interpreter', async () => {
    const { initrd, kernelVersion } = await new Images(sharedImages(), quiet).resolve('tiny')
    // Archives one after the other, as the kernel takes them; the tool reads one.
    const bytes = readFileSync(initrd)
    const names = new Set<string>()
    for (let at = 0; at + 110 <= bytes.length && bytes.toString('latin1', at, at + 6) === '070701'; ) {
      const field = (i: number): number =>
        Number.parseInt(bytes.toString('latin1', at + 6 + 8 * i, at + 14 + 8 * i), 16)
      const [size, nameSize] = [field(6), field(11)]
      names.add(bytes.toString('latin1', at + 110, at + 110 + nameSize - 1))
      at += (110 + nameSize + 3) & ~3
      at += (size + 3) & ~3
    }
    for (const f of [
      'init',
      'run/noid/pid1',
      'run/noid/dhcp',
      'run/noid/identity',
      'run/noid/agent.pl',
      'run/noid/busybox',
    ])
      assert.ok(names.has(f), f)
    for (const f of ['perl', 'lib/ld.so', 'lib/libc.so.6', 'lib/libm.so.6', 'lib/libcrypt.so.1'])
      assert.ok(names.has(`run/noid/${f}`), f)
    const modules = [...names].filter((n) => n.startsWith(`lib/modules/${kernelVersion}/`)).join('\n')
    for (const m of [
      'virtio_mmio',
      'virtio_pci',
      'virtio_console',
      'virtio_blk',
      'virtio_net',
      'virtio-rng',
      'squashfs',
      'overlay',
      'fuse',
    ])
      assert.match(modules, new RegExp(`/${m}\\.ko$`, 'm'))
    assert.match(modules, /modules\.dep$/m)
    assert.ok(names.has('bin/sh') && names.has('etc/passwd') && names.has('dev/console'))
  })

  test('the interpreter runs here with its own libraries alone, as it does in a guest whose libc is another', async () => {
    const { initrd } = await new Images(sharedImages(), quiet).resolve('tiny')
    const at = join(top, 'unpacked')
    mkdirSync(at)
    const wanted = ['run/noid/perl', 'run/noid/lib/*']
    spawnSync('busybox', ['cpio', '-id', ...wanted], { cwd: at, input: readFileSync(initrd) })
    const noid = join(at, 'run/noid')
    const r = spawnSync(
      join(noid, 'lib/ld.so'),
      ['--library-path', join(noid, 'lib'), join(noid, 'perl'), '-e', 'print $^V'],
      {
        encoding: 'utf8',
        env: {},
      },
    )
    assert.match(r.stdout, /^v5\./, r.stderr)
  })

  test('the same packages give the same image, for root and for an ordinary user', {
    skip: root ? runsAs(NOBODY) : 'needs root',
  }, async () => {
    const mine = await new Images(sharedImages(), quiet).resolve('tiny')
    const theirs = await idOf(builder(fresh(NOBODY), 'resolve', 'tiny', NOBODY))
    assert.equal(theirs.id, mine.id)
  })

  test('two at once make one', async () => {
    const dir = fresh()
    const both = await Promise.all([1, 2].map(() => idOf(builder(dir, 'resolve', 'tiny'))))
    assert.ok(both[0].id !== undefined && both[0].id === both[1].id)
    assert.equal(both.filter((b) => b.steps.some((s) => s.includes('unpacking'))).length, 1)
  })

  test('a build that is cancelled ends, one that is killed leaves no image, and the next one nothing of them', async () => {
    const dir = fresh()
    const images = new Images(dir, quiet)
    const stop = new AbortController()
    await assert.rejects(
      images.resolve('tiny', () => stop.abort(new Error('enough')), stop.signal),
      /enough/,
    )
    assert.equal(images.info('tiny').id, null)
    const b = builder(dir, 'resolve', 'tiny')
    for await (const line of b.lines)
      if (line.includes('unpacking')) {
        b.child.kill('SIGKILL')
        break
      }
    await once(b.child, 'exit')
    assert.equal(images.info('tiny').id, null)
    assert.equal(existsSync(join(dir, 'base.json')), false)
    const made = await images.resolve('tiny')
    assert.deepEqual(
      contents(dir).filter((f) => f.startsWith('tmp/')),
      [],
    )
    assert.equal(made.id, (await new Images(sharedImages(), quiet).resolve('tiny')).id)
  })

  test('what nobody names is given back; what a VM was made of stays until its directory goes', async () => {
    const dir = ownStore
    const images = new Images(dir, quiet)
    const one = await images.resolve('tiny')
    const vm = { id: 'v1', dir: join(dir, 'a-vm') }
    mkdirSync(vm.dir)
    images.hold(vm, one)
    assert.deepEqual(images.info('tiny').vms, ['v1'])
    await assert.rejects(
      images.remove('tiny', (id) => `VM ${id}`),
      (e: Error) => code('IMAGE_IN_USE')(e) && /VM v1/.test(e.message),
    )
    // Taken away behind its back: the VM still has its image.
    rmSync(join(dir, 'names'), { recursive: true })
    await images.clean()
    assert.deepEqual(await images.held('v1'), one)
    assert.ok(existsSync(one.kernel) && existsSync(one.initrd))
    await images.resolve('tiny')
    rmSync(vm.dir, { recursive: true })
    // Of an earlier noid, some time ago.
    const old = join(dir, 'initrds', 'old')
    writeFileSync(old, 'x')
    utimesSync(old, 0, 0)
    await images.remove('tiny')
    assert.equal(existsSync(old), false)
    assert.equal(images.info('tiny').id, null)
    await assert.rejects(images.remove('tiny'), code('IMAGE_UNKNOWN'))
  })

  test('a part that is gone is an image that is gone: it is made again', async () => {
    const images = new Images(ownStore, quiet)
    const one = await images.resolve('tiny')
    rmSync(one.kernel)
    assert.equal(images.info('tiny').id, null)
    assert.deepEqual(await images.resolve('tiny'), one)
    rmSync(one.initrd)
    assert.deepEqual(await images.resolve('tiny'), one)
    assert.ok(existsSync(one.initrd))
  })

  test('names: what is unknown is told with what is known', async () => {
    const images = new Images(fresh(), quiet)
    assert.deepEqual(
      images.list().map((i) => [i.name, i.id, i.isDefault]),
      [
        ['debian', null, true],
        ['tiny', null, false],
      ],
    )
    await assert.rejects(images.resolve('nope'), (e: Error) => code('IMAGE_UNKNOWN')(e) && /nope/.test(e.message))
    assert.throws(() => images.info('../../etc/passwd'), code('IMAGE_UNKNOWN'))
  })
})

describe('debian', { skip, timeout: 1_200_000 }, () => {
  test('its disk has what the page wants, and no secret; a second build is none', async () => {
    const images = new Images(sharedImages(), quiet)
    // What an earlier noid has left there may be of another recipe.
    await images.build('debian')
    const one = await images.resolve('debian')
    assert.equal(one.disk?.format, 'qcow2')
    const steps: string[] = []
    assert.equal((await images.build('debian', (s) => steps.push(s))).id, one.id)
    assert.ok(!steps.some((s) => /disk/.test(s)), steps.join('\n'))
    const packages = images.info('debian').packages.map((p) => p.slice(0, p.indexOf('=')))
    for (const p of [
      'iproute2',
      'net-tools',
      'iptables',
      'iputils-ping',
      'curl',
      'bind9-dnsutils',
      'iperf3',
      'python3',
      'apt',
      'perl-base',
    ])
      assert.ok(packages.includes(p), p)
    const raw = join(top, 'disk.raw')
    mkdirSync(top, { recursive: true })
    try {
      assert.equal(spawnSync('qemu-img', ['convert', '-O', 'raw', one.disk?.path as string, raw]).status, 0)
      const debugfs = (request: string): string =>
        spawnSync('/usr/sbin/debugfs', ['-R', request, raw], { encoding: 'utf8' }).stdout
      const has = (path: string): boolean => /Inode: \d+/.test(debugfs(`stat ${path}`))
      for (const path of [
        `/usr/lib/modules/${one.kernelVersion}/modules.dep.bin`,
        '/usr/sbin/poweroff',
        '/usr/bin/dig',
        '/usr/bin/netstat',
        '/usr/sbin/iptables',
      ])
        assert.ok(has(path), path)
      // Who the VM is comes with the VM.
      for (const path of ['/etc/hostname', '/etc/resolv.conf', '/etc/dpkg/dpkg.cfg.d/99mmdebstrap'])
        assert.ok(!has(path), path)
      assert.match(debugfs('stat /usr/bin/su'), /User:\s+0\s+Group:\s+0/)
      const sources = debugfs('cat /etc/apt/sources.list')
      assert.match(sources, /^deb .*http/m)
      assert.doesNotMatch(sources, /\/\/[^/\s]*@/)
    } finally {
      rmSync(top, { recursive: true, force: true })
    }
  })
})
