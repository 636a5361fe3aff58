/**
 * Disks and kernels of people's own: what is taken, what is refused, and that what was taken boots. The guest here is run by QEMU alone, as little as it takes to
 * see the initrd's part of a boot: finding the root, a layer over what cannot be written, a clean end.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { NoidError } from '../../src/errors.ts'
import { type BootImage, type ImageInfo, Images } from '../../src/images/index.ts'
import { find } from '../../src/images/run.ts'
import { debianSkip, ownStore, sharedImages } from './shared.ts'

const quiet = (): void => {}
const lacking = ['qemu-img', 'mke2fs', 'busybox'].filter((t) => find(t) === undefined)
const skip = debianSkip() || (lacking.length > 0 && `needs ${lacking.join(', ')}`)
const noBoot = find('qemu-system-x86_64') === undefined && 'needs qemu-system-x86_64'
const BOOT_MS = 180_000

const top = mkdtempSync(join(tmpdir(), 'noid-import-'))
const at = (name: string): string => join(top, name)
let images: Images
const children = new Set<ChildProcess>()
after(() => {
  for (const c of children) c.kill('SIGKILL')
  rmSync(top, { recursive: true, force: true })
})

const take = (r: Partial<Parameters<Images['import']>[0]>): Promise<ImageInfo> =>
  images.import({ name: 'own', replace: true, ...r })
const refused = (file: Promise<unknown>, why: RegExp): Promise<void> =>
  assert.rejects(file, (e: Error) => e instanceof NoidError && why.test(e.message))

/** One primary partition of Linux from sector 2048 on; the rest is the file system. */
function partitioned(fs: string, disk: string): void {
  const bytes = readFileSync(fs)
  const mbr = Buffer.alloc(2048 * 512)
  mbr[446] = 0x80
  mbr[446 + 4] = 0x83
  mbr.writeUInt32LE(2048, 446 + 8)
  mbr.writeUInt32LE(bytes.length / 512, 446 + 12)
  mbr.writeUInt16BE(0x55aa, 510)
  writeFileSync(disk, Buffer.concat([mbr, bytes]))
}

/** Boot it, type a line on its console and end it with `poweroff`; what it printed. */
async function boot(image: BootImage, typed: string, ...also: string[]): Promise<string> {
  const layer = at('layer.qcow2')
  const disk: string[] = []
  if (image.disk !== undefined) {
    const format = image.disk.format === 'squashfs' ? 'raw' : image.disk.format
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', image.disk.path, '-F', format, layer])
    disk.push('-drive', `file=${layer},if=none,id=d,format=qcow2`, '-device', 'virtio-blk-pci,drive=d')
  }
  // q35 finds its clock also on a busy machine, and its devices are on PCI: the other way in than the runtime's usual one.
  const child = spawn(
    'qemu-system-x86_64',
    [
      ...[
        '-nodefaults',
        '-no-user-config',
        '-display',
        'none',
        '-accel',
        'tcg',
        '-cpu',
        'max',
        '-M',
        'q35',
        '-m',
        '256',
      ],
      ...['-kernel', image.kernel, '-initrd', image.initrd, '-append', `${image.append} noid.hostname=guest`],
      ...['-serial', 'stdio', '-no-reboot', ...disk, ...also],
      ...[
        '-device',
        'virtio-serial-pci',
        '-chardev',
        'null,id=a',
        '-device',
        'virtserialport,chardev=a,name=noid.agent.0',
      ],
    ],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  )
  children.add(child)
  const timer = setTimeout(() => child.kill('SIGKILL'), BOOT_MS)
  let said = ''
  let asked = false
  const stdin = child.stdin as NodeJS.WritableStream
  const stdout = child.stdout as NodeJS.ReadableStream
  stdout.setEncoding('latin1').on('data', (text: string) => {
    said += text
    // The prompt, then the end of what was asked for; the echo of the line has no digits in that place.
    if (!asked && /[#$] /.test(said)) {
      asked = true
      stdin.write(`${typed}; echo "done $((6*7))"\n`)
    } else if (asked && said.includes('done 42')) {
      asked = false
      said += '\n'
      stdin.write('poweroff\n')
      stdout.removeAllListeners('data').on('data', (more: string) => {
        said += more
      })
    }
  })
  await new Promise((done) => child.on('close', done))
  clearTimeout(timer)
  children.delete(child)
  return said
}

describe("images of one's own", { skip, timeout: 1_200_000 }, () => {
  before(async () => {
    await new Images(sharedImages(), quiet).resolve('tiny')
    images = new Images(ownStore(at('store')), quiet)

    const root = at('root')
    for (const d of ['etc', 'bin', 'root']) mkdirSync(join(root, d), { recursive: true })
    cpSync(find('busybox') as string, join(root, 'bin/busybox'), { dereference: true })
    for (const applet of ['sh', 'cat', 'poweroff', 'ls', 'mount', 'grep'])
      symlinkSync('busybox', join(root, 'bin', applet))
    writeFileSync(join(root, 'etc/motd'), 'a disk of my own\n')
    const own =
      'exec >/dev/ttyS0\necho own init is process $$\ncat /proc/[0-9]*/cmdline | grep -ao agent.pl\npoweroff -f\n'
    writeFileSync(join(root, 'etc/own-init'), `#!/bin/sh\n${own}`, { mode: 0o755 })
    execFileSync('/usr/sbin/mke2fs', ['-q', '-t', 'ext4', '-d', root, at('fs.raw'), '32m'])
    partitioned(at('fs.raw'), at('disk.raw'))
    execFileSync('qemu-img', ['convert', '-O', 'qcow2', at('fs.raw'), at('fs.qcow2')])
  })

  test('raw and qcow2 are copied; the disk that was given stays as it is', async () => {
    const before = readFileSync(at('disk.raw'))
    for (const file of ['disk.raw', 'fs.raw', 'fs.qcow2']) {
      const info = await take({ disk: at(file) })
      assert.ok((info.diskBytes ?? 0) >= 32 << 20)
      const one = await images.resolve('own')
      assert.equal(one.disk?.format, 'qcow2')
      execFileSync('qemu-img', ['compare', at(file), one.disk?.path as string])
    }
    assert.deepEqual(readFileSync(at('disk.raw')), before)
    const again = await take({ disk: at('fs.qcow2') })
    assert.equal((await take({ disk: at('fs.qcow2') })).id, again.id)
    assert.notEqual((await take({ disk: at('fs.qcow2'), append: 'single' })).id, again.id)
  })

  test("a layer over a file of this host's is refused: a guest would read that file", async () => {
    execFileSync('qemu-img', [
      'create',
      '-q',
      '-f',
      'qcow2',
      '-b',
      '/etc/passwd',
      '-F',
      'raw',
      at('layered.qcow2'),
      '1M',
    ])
    await refused(take({ disk: at('layered.qcow2') }), /layer over \/etc\/passwd/)
    execFileSync('qemu-img', [
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      `data_file=${at('data')},data_file_raw=on`,
      at('split.qcow2'),
      '1M',
    ])
    await refused(take({ disk: at('split.qcow2') }), /in another file/)
  })

  test('what is no disk is refused with what it is', async () => {
    writeFileSync(at('text'), 'hello\n'.repeat(1000))
    writeFileSync(at('packed'), execFileSync('gzip', ['-c', at('text')]))
    writeFileSync(at('empty'), '')
    writeFileSync(at('zeros'), Buffer.alloc(1 << 20))
    cpSync(at('fs.qcow2'), at('cut.qcow2'))
    truncateSync(at('cut.qcow2'), 150_000)
    await refused(take({ disk: at('text') }), /neither a partition table nor a file system/)
    await refused(take({ disk: at('zeros') }), /neither a partition table nor a file system/)
    await refused(take({ disk: at('packed') }), /packed/)
    await refused(take({ disk: at('empty') }), /empty/)
    await refused(take({ disk: top }), /not a file/)
    await refused(take({ disk: at('none') }), /no such file/)
    await refused(take({ disk: '/dev/null' }), /not a file/)
    await refused(take({ disk: at('cut.qcow2') }), /cut off/)
    await refused(take({ kernel: at('text') }), /neither a bzImage nor a vmlinux/)
    await refused(take({}), /nothing to import/)
    await refused(take({ name: 'tiny', disk: at('fs.raw') }), /built-in/)
    await refused(take({ name: '../x', disk: at('fs.raw') }), /not a usable name/)
    assert.deepEqual(
      readdirSync(join(at('store'), 'tmp')).filter((f) => f === 'own'),
      [],
    )
  })

  test('a name is not taken twice by mistake', async () => {
    await take({ disk: at('fs.raw') })
    await refused(take({ disk: at('fs.raw'), replace: false }), /exists already/)
    await images.remove('own')
    await refused(images.resolve('own'), /no image named/)
  })

  test('a disk with partitions boots; what is written to it is in the layer', { skip: noBoot }, async () => {
    await take({ disk: at('disk.raw') })
    const image = await images.resolve('own')
    const before = readFileSync(image.disk?.path as string)
    const said = await boot(image, 'cat /etc/motd /etc/hostname; echo new >/etc/new; mount | grep " / "')
    assert.match(said, /a disk of my own/)
    assert.match(said, /^guest\s*$/m)
    assert.match(said, /\/dev\/vda1 on \/ type ext4 \(rw/)
    assert.match(said, /Power down/)
    assert.deepEqual(readFileSync(image.disk?.path as string), before)
    execFileSync('qemu-img', ['convert', '-O', 'raw', at('layer.qcow2'), at('after.raw')])
    const fs = readFileSync(at('after.raw')).subarray(2048 * 512)
    writeFileSync(at('after.raw'), fs)
    // An end without a replay of the journal: the file is there and nothing is to be mended.
    execFileSync('/usr/sbin/e2fsck', ['-fn', at('after.raw')], { stdio: 'ignore' })
    assert.match(
      execFileSync('/usr/sbin/debugfs', ['-R', 'cat /etc/new', at('after.raw')], { encoding: 'utf8' }),
      /new/,
    )
  })

  test("a squashfs boots under a layer in RAM, with a kernel of one's own", {
    skip: noBoot || (find('mksquashfs') === undefined && 'needs mksquashfs'),
  }, async () => {
    execFileSync('mksquashfs', [at('root'), at('root.sqfs'), '-quiet', '-no-progress'], { stdio: 'ignore' })
    const { kernel, kernelVersion } = await images.resolve('tiny')
    // Debian's, given as a file: noid knows its modules.
    const info = await take({ disk: at('root.sqfs'), kernel })
    assert.equal(info.kernel, kernelVersion)
    const said = await boot(
      await images.resolve('own'),
      'cat /etc/motd; echo new >/etc/new && cat /etc/new; mount | grep " / "',
    )
    assert.match(said, /a disk of my own/)
    assert.match(said, /^new\s*$/m)
    assert.match(said, /overlay on \/ type overlay/)
    assert.match(said, /Power down/)
  })

  test('a disk without a root ends the VM with a sentence on its console', { skip: noBoot }, async () => {
    mkdirSync(at('nothing'))
    execFileSync('/usr/sbin/mke2fs', ['-q', '-t', 'ext4', '-d', at('nothing'), at('nothing.raw'), '8m'])
    await take({ disk: at('nothing.raw') })
    assert.match(await boot(await images.resolve('own'), 'true'), /noid: no root file system was found on \/dev\/vda/)
  })

  test("the image's own init takes over, with the agent beside it", { skip: noBoot }, async () => {
    await take({ disk: at('disk.raw'), append: 'noid.init=/etc/own-init' })
    const said = await boot(await images.resolve('own'), 'true')
    assert.match(said, /own init is process 1/)
    assert.match(said, /agent\.pl/)
  })

  test('on a network without IPv4 the routers tell the name server', { skip: noBoot }, async () => {
    const router = await ipv6Router()
    try {
      const wait = 'for i in $(seq 60); do [ -s /etc/resolv.conf ] && break; sleep 1; done'
      const said = await boot(
        await images.resolve('tiny'),
        `${wait}; cat /etc/resolv.conf; ip -6 addr show dev eth0 scope global`,
        ...['-netdev', `socket,id=n,udp=127.0.0.1:${router.port},localaddr=127.0.0.1:${router.guestPort}`],
        ...['-device', 'virtio-net-pci,netdev=n'],
      )
      assert.match(said, /^nameserver fd12:0:0:0:0:0:0:2\s*$/m)
      assert.match(said, /inet6 fd12::/)
    } finally {
      router.close()
    }
  })
})

interface Router {
  readonly port: number
  readonly guestPort: number
  close(): void
}

/** A network that has nothing but a router, of frames in UDP: it answers each solicitation with a prefix and a name server. RFC 4861 §4.2, RFC 8106 §5.1. */
async function ipv6Router(): Promise<Router> {
  const socket = createSocket('udp4')
  const guest = createSocket('udp4')
  for (const s of [socket, guest]) await new Promise<void>((done) => s.bind(0, '127.0.0.1', done))
  const guestPort = guest.address().port
  await new Promise<void>((done) => guest.close(done))
  const from = 'fe800000000000000000000000000001'
  const allNodes = 'ff020000000000000000000000000001'
  const prefix = `030440c00000ffff0000ffff00000000fd12${'0'.repeat(28)}`
  const body = Buffer.from(`86000000400007080000000000000000${prefix}190300000000ffff${'fd12'.padEnd(31, '0')}2`, 'hex')
  const pseudo = Buffer.from(`${from}${allNodes}${body.length.toString(16).padStart(8, '0')}0000003a`, 'hex')
  let sum = 0
  for (const part of [pseudo, body]) for (let i = 0; i < part.length; i += 2) sum += part.readUInt16BE(i)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  body.writeUInt16BE(~sum & 0xffff, 2)
  const head = `33330000000102000000000186dd60000000${body.length.toString(16).padStart(4, '0')}3aff${from}${allNodes}`
  const advertisement = Buffer.concat([Buffer.from(head, 'hex'), body])
  socket.on('message', (frame) => {
    if (frame.length > 54 && frame.readUInt16BE(12) === 0x86dd && frame[20] === 58 && frame[54] === 133)
      socket.send(advertisement, guestPort, '127.0.0.1')
  })
  return { port: socket.address().port, guestPort, close: () => socket.close() }
}
