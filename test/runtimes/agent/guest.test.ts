/** The agent in a real guest: its port as QEMU and the guest's kernel make it, another daemon over the same VM, console, directories of the host. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Environment, type Vm } from '../../../src/runtimes/conformance/environment.ts'
import { AgentClient } from '../../../src/runtimes/qemu/agent/client.ts'
import { WINDOW } from '../../../src/runtimes/qemu/agent/protocol.ts'
import { AGENT_SOCKET } from '../../../src/runtimes/qemu/command.ts'
import { qemu } from '../../../src/runtimes/qemu/index.ts'
import { eventually } from '../../eventually.ts'
import { sharedImages } from '../../images/shared.ts'
import { missing } from '../../plugins/needs.ts'
import { ownHost } from '../../plugins/own-host.ts'
import { qemuSkip } from '../qemu-lab.ts'

const skip = missing() || qemuSkip() || ownHost()
const timeout = 600_000
process.env.NOID_IMAGES_DIR = sharedImages()
process.env.NOID_TEMPLATES = '0'

const dir = mkdtempSync(join(tmpdir(), 'nt-guest-'))
let opened: Promise<Environment> | undefined
let booted: Promise<Vm> | undefined
const environment = (): Promise<Environment> => {
  // The network is not what is tested here: the nic that needs nothing will do.
  opened ??= Environment.open({ ...qemu, accepts: ['dgram'] }, { image: 'tiny', subnet: 79 })
  return opened
}
/** One VM for all tests, with two directories of the host. */
const guest = async (): Promise<{ e: Environment; vm: Vm }> => {
  const e = await environment()
  booted ??= (async () => {
    for (const name of ['open', 'fixed']) {
      mkdirSync(join(dir, name))
      writeFileSync(join(dir, name, 'file'), `${name}\n`)
    }
    return e.up({
      ...e.spec(),
      mounts: [
        { source: join(dir, 'open'), target: '/srv/open', readonly: false },
        { source: join(dir, 'fixed'), target: '/srv/deep/fixed', readonly: true },
      ],
    })
  })()
  return { e, vm: await booted }
}
after(async () => {
  await (await opened)?.close()
  rmSync(dir, { recursive: true, force: true })
})

const hash = (b: Buffer): string => createHash('sha256').update(b).digest('hex')

test('100 MB go through a guest’s pipe and come back whole', { skip, timeout }, async () => {
  const { e, vm } = await guest()
  const data = randomBytes(100 << 20)
  const s = await e.exec(vm, ['cat'])
  s.stdin.end(data)
  assert.equal(hash(await buffer(s.stdout)), hash(data))
  assert.equal(await s.exit, 0)
})

test('many commands at once, beside some that stall', { skip, timeout }, async () => {
  const { e, vm } = await guest()
  const deaf = await e.exec(vm, ['sleep', '600'])
  deaf.stdin.write(Buffer.alloc(4 << 20))
  const unread = await e.exec(vm, ['cat', '/dev/zero'])
  const codes = await Promise.all(
    Array.from({ length: 20 }, (_, i) => e.run(vm, ['sh', '-c', `echo ${i}; echo e${i} >&2; exit ${i}`])),
  )
  assert.deepEqual(
    codes,
    codes.map((_, i) => ({ code: i, out: `${i}\n`, err: `e${i}\n` })),
  )
  assert.ok(unread.stdout.readableLength <= WINDOW)
  for (const s of [deaf, unread]) s.signal('SIGKILL')
  assert.deepEqual(await Promise.all([deaf.exit, unread.exit]), [137, 137])
})

test('a terminal has a size that can change, and its foreground hears Ctrl-C and signals', {
  skip,
  timeout,
}, async () => {
  const { e, vm } = await guest()
  const s = await e.exec(vm, ['sh'], { tty: true, rows: 33, cols: 101 })
  let seen = ''
  s.stdout.setEncoding('utf8').on('data', (t: string) => {
    seen += t
  })
  const type = async (line: string, answer: RegExp) => {
    s.stdin.write(line)
    await eventually(`${JSON.stringify(line)}: ${JSON.stringify(seen)}`, () => answer.test(seen))
  }
  await type('stty size; tty\n', /33 101\r\n\/dev\/pts\/\d+/)
  s.resize(50, 132)
  await type('stty size\n', /50 132/)
  await type('sh -c \'trap "echo caught; exit" INT; echo re""ady; while :; do sleep 1; done\'\n', /ready/)
  await type('\x03', /caught/)
  await type('exit 5\n', /exit 5/)
  assert.equal(await s.exit, 5)
})

test('a daemon that goes and another that comes: old commands are hung up, new ones run', {
  skip,
  timeout,
}, async () => {
  const { e, vm } = await guest()
  const old = await e.exec(vm, ['sh', '-c', 'echo $$ > /tmp/old; exec sleep 600'])
  const busy = await e.exec(vm, ['cat', '/dev/zero'])
  busy.stdout.resume()
  await eventually('it runs', async () => (await e.run(vm, ['test', '-s', '/tmp/old'])).code === 0)
  const lost = [old, busy].map((s) => assert.rejects(s.exit, { code: 'AGENT_LOST' }))
  await e.again()
  await Promise.all(lost)
  assert.equal((await e.run(vm, ['echo', 'again'])).out, 'again\n')
  await eventually('it is gone', async () => (await e.run(vm, ['sh', '-c', '! kill -0 $(cat /tmp/old)'])).code === 0)
})

test('an agent that is killed is started again; who had commands is told', { skip, timeout }, async () => {
  const { e, vm } = await guest()
  const busy = await e.exec(vm, ['cat', '/dev/zero'])
  busy.stdout.resume()
  const lost = assert.rejects(busy.exit, { code: 'AGENT_LOST' })
  const killer = await e.exec(vm, ['sh', '-c', 'kill -9 $PPID'])
  await assert.rejects(killer.exit, { code: 'AGENT_LOST' })
  await lost
  assert.equal((await e.run(vm, ['echo', 'again'])).out, 'again\n')
})

test('an agent without a host waits without work', { skip, timeout }, async () => {
  const { e, vm } = await guest()
  const ticks = "cut -d' ' -f14,15 /proc/$PPID/stat"
  const spent = async () =>
    (await e.run(vm, ['sh', '-c', ticks])).out
      .trim()
      .split(' ')
      .reduce((n, t) => n + Number(t), 0)
  assert.ok((await spent()) > 0, 'it is found')
  // Hundredths of a second: a busy loop would be hundreds each time, the two questions themselves are a few. Others' work may be told as its own.
  await eventually(
    'a time without work',
    async () => {
      const before = await spent()
      await e.again()
      await sleep(4_000)
      return (await spent()) - before < 100
    },
    120_000,
  )
})

test('the serial line is there for several viewers, and for another daemon', { skip, timeout }, async () => {
  const { e, vm } = await guest()
  const open = async () => {
    const line = await e.runtime.console?.(vm.spec, vm.handle)
    assert.ok(line !== undefined)
    let seen = ''
    line.setEncoding('utf8').on('data', (t: string) => {
      seen += t
    })
    return { line, seen: () => seen }
  }
  const [a, b] = [await open(), await open()]
  a.line.write('\r\necho mar""ked\r\n')
  await eventually('both see what the shell says', () => /^marked/m.test(a.seen()) && /^marked/m.test(b.seen()))
  a.line.destroy()
  b.line.destroy()
  await e.again()
  const later = await open()
  // The log is the beginning.
  await eventually('what was said before', () => /^marked/m.test(later.seen()))
  later.line.destroy()
})

test('directories of the host are the guest’s too, and read-only ones stay so', { skip, timeout }, async () => {
  const { e, vm } = await guest()
  assert.equal((await e.run(vm, ['cat', '/srv/open/file', '/srv/deep/fixed/file'])).out, 'open\nfixed\n')
  assert.equal((await e.run(vm, ['sh', '-c', 'echo new > /srv/open/new; mkdir /srv/open/d'])).code, 0)
  assert.equal(readFileSync(join(dir, 'open', 'new'), 'utf8'), 'new\n')
  writeFileSync(join(dir, 'open', 'later'), 'later\n')
  await eventually(
    'what the host writes is seen',
    async () => (await e.run(vm, ['cat', '/srv/open/later'])).out === 'later\n',
  )
  for (const words of [
    'echo x > /srv/deep/fixed/file',
    'mount -o remount,rw /srv/deep/fixed; echo x > /srv/deep/fixed/file',
  ])
    assert.notEqual((await e.run(vm, ['sh', '-c', words])).code, 0, words)
  assert.equal(readFileSync(join(dir, 'fixed', 'file'), 'utf8'), 'fixed\n')
  assert.notEqual((await e.run(vm, ['mknod', '/srv/open/device', 'c', '1', '3'])).code, 0)
  assert.ok(!existsSync(join(dir, 'open', 'device')) && statSync(join(dir, 'open', 'd')).isDirectory())
})

test('told another IPv6 address it has no former one; told that there is no IPv4 it asks no more', {
  skip,
  timeout,
}, async () => {
  const { e, vm } = await guest()
  const told = async (ipv4: boolean, host: string) => {
    // One client at a time: the runtime's lets go.
    await e.again()
    const { run } = vm.handle.state as { run: string }
    const agent = await AgentClient.connect(join(run, AGENT_SOCKET), e.signal())
    const network = { ipv4, address6: `fd00:10:214:4f::${host}/64`, servers6: ['fd00::53'], search: ['a.test'] }
    await agent.configure({ hostname: vm.spec.name, network })
    agent.close()
    const script = `ip -6 addr show eth0; cat /etc/hosts /etc/resolv.conf /etc/network/interfaces; ps | grep '[u]dhcpc'`
    return (await e.run(vm, ['sh', '-c', script])).out
  }
  const first = await told(true, '900')
  assert.match(first, /inet6 fd00:10:214:4f::900\/64 /)
  assert.ok(vm.address6 !== undefined && !first.includes(`${vm.address6}/64`), first)
  const names = (address: string | undefined) => `${address}\t${vm.spec.name}.a.test ${vm.spec.name}`
  assert.ok(first.includes(names('fd00:10:214:4f::900')) && !first.includes(`${vm.address6}\t`), first)
  assert.match(first, /nameserver 10\.214\..*\nnameserver fd00::53\n/)
  assert.match(first, /inet dhcp\niface eth0 inet6 dhcp/)
  assert.match(first, /udhcpc/)

  const second = await told(false, '901')
  assert.match(second, /inet6 fd00:10:214:4f::901\/64 /)
  assert.doesNotMatch(second, /::900|udhcpc|10\.214\.79|inet dhcp/)
  assert.match(second, /nameserver fd00::53\nsearch a\.test\n/)
})
