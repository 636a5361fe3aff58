/** Nics in real namespaces: a TAP as root, a veth with a packet socket where no TAP can be opened, through the opener without rights. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { openTap } from '../../../packages/tun-tap/index.ts'
import type { AttachRequest, NetworkSpec } from '../../../src/plugins/contract.ts'
import { hostMac, openHostNic } from '../../../src/plugins/userspace/hostnic.ts'
import { type DeviceRecord, nicGone, openNic, removeNic } from '../../../src/plugins/userspace/nic.ts'
import { NicSockets } from '../../../src/plugins/userspace/sockets.ts'
import { close } from '../../../src/sys/fd.ts'
import { inNetns } from '../../../src/sys/netns.ts'
import { network } from '../../e2e/agent-client.ts'
import { missing } from '../../e2e/lab.ts'

const skip = missing('unshare')
/** A TAP's: one more for streams, where there is a processor for them. */
const QUEUES = availableParallelism() > 1 ? 2 : 1
const noTun = existsSync('/dev/net/tun') ? false : 'needs /dev/net/tun'
const name = `nt${Math.random().toString(36).slice(2, 7)}`
const netns = `/run/netns/${name}`
const n: NetworkSpec = network(77)
const sockets = new NicSockets(`/tmp/${name}`)
const request = (more: Partial<AttachRequest> = {}): AttachRequest => ({
  id: 'a',
  network: n.id,
  name: 'web',
  mac: '52:54:00:00:00:07',
  addresses: ['192.168.77.10/24'],
  accepts: ['tap', 'netdev'],
  netns,
  ...more,
})
const links = () => execFileSync('ip', ['-n', name, '-o', 'link', 'show', 'eth0'], { encoding: 'utf8' })

before(() => {
  if (!skip) execFileSync('ip', ['netns', 'add', name])
})
after(() => {
  if (!skip) execFileSync('ip', ['netns', 'del', name])
})

test('root: a TAP with the MAC and MTU, which stays when its holder dies and is found again', { skip }, async () => {
  const first = await openNic(n, request(), true, sockets)
  assert.equal(first.record.kind, 'tap')
  assert.equal(first.existed, false)
  assert.equal(first.fds.length, QUEUES)
  const threaded = () =>
    execFileSync('ip', ['netns', 'exec', name, 'cat', '/sys/class/net/eth0/threaded'], { encoding: 'utf8' })
  assert.equal(threaded().trim(), String(QUEUES - 1))
  assert.match(links(), /eth0: .* mtu 1500 .* qlen \d+\b.*52:54:00:00:00:07/)
  first.fds.forEach(close)
  assert.match(links(), /eth0/)
  const again = await openNic(n, request(), true, sockets)
  assert.equal(again.existed, true)
  assert.equal(again.fds.length, QUEUES)
  again.fds.forEach(close)
  assert.equal(nicGone(again.record), false)
  await removeNic(again.record, sockets)
  assert.throws(links)
  await removeNic(again.record, sockets)
  assert.ok(nicGone({ ...(again.record as DeviceRecord), netns: '/run/netns/nt-none' }))
})

test('a TAP that a dying data plane still holds is waited for', { skip }, async () => {
  const held = await openNic(n, request(), true, sockets)
  setTimeout(() => held.fds.forEach(close), 100)
  const next = await openNic(n, request(), true, sockets)
  next.fds.forEach(close)
  await removeNic(next.record, sockets)
})

test('a TAP with a single queue, of an earlier version, stays as it is', { skip }, async () => {
  const was = inNetns(netns, () => openTap({ name: 'eth0', vnetHdr: true, persist: true }))
  close(was.fd)
  const now = await openNic(n, request(), true, sockets)
  assert.deepEqual([now.existed, now.record.kind, now.fds.length], [true, 'tap', 1])
  now.fds.forEach(close)
  await removeNic(now.record, sockets)
})

test("the host's nic: its address and no way through; gone with its holder", { skip }, () => {
  const nic = inNetns(netns, () => openHostNic(n))
  const in77 = (...argv: string[]) => execFileSync('ip', ['netns', 'exec', name, ...argv], { encoding: 'utf8' })
  assert.equal(nic.mac, hostMac(n.id))
  assert.match(in77('ip', 'addr', 'show', nic.ifname), /192\.168\.77\.254\/24 brd 192\.168\.77\.255/)
  assert.equal(in77('cat', `/proc/sys/net/ipv4/conf/${nic.ifname}/forwarding`).trim(), '0')
  const second = inNetns(netns, () => openHostNic(network(78)))
  assert.notEqual(second.ifname, nic.ifname)
  close(second.fd)
  close(nic.fd)
  assert.throws(() => in77('ip', 'link', 'show', nic.ifname))
})

test('a namespace that is gone is said', { skip }, async () => {
  await assert.rejects(openNic(n, request({ netns: '/run/netns/nt-none' }), true, sockets), { code: 'VM_NOT_RUNNING' })
})

test('a runtime that takes no such nic is told what to do', { skip }, async () => {
  await assert.rejects(openNic(n, request({ accepts: ['stream'] }), true, sockets), { code: 'CAPABILITY_MISSING' })
})

/** A user with no rights, its user namespace, a VM's network namespace and a second one beside it. */
async function unprivileged(): Promise<{ vm: number; wire: number; end: () => void }> {
  const inner = 'unshare -n sh -c "echo \\$\\$; exec sleep 60" & unshare -n sh -c "echo \\$\\$; exec sleep 60" & wait'
  const outer = spawn(
    'setpriv',
    ['--reuid', '65534', '--regid', '65534', '--clear-groups', 'unshare', '-Ur', 'sh', '-c', inner],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
      detached: true,
    },
  )
  let text = ''
  outer.stdout.on('data', (d: Buffer) => {
    text += d
  })
  for (let i = 0; i < 500 && text.trim().split('\n').length < 2; i++) await sleep(10)
  const [vm = 0, wire = 0] = text.trim().split('\n').map(Number)
  return { vm, wire, end: () => process.kill(-(outer.pid as number), 'SIGKILL') }
}

/** In a mount namespace of its own, /dev/net/tun with this mode, as an ordinary user: opens the nic, twice, and removes it. */
async function openWithoutRights(tunMode: string): Promise<string> {
  const { vm, wire, end } = await unprivileged()
  try {
    const program = `
      process.setgroups([]); process.setgid(65534); process.setuid(65534)
      const { openNic, removeNic } = await import(${JSON.stringify(new URL('../../../src/plugins/userspace/nic.ts', import.meta.url).href)})
      const [n, r] = JSON.parse(process.argv[1])
      const { NicSockets } = await import(${JSON.stringify(new URL('../../../src/plugins/userspace/sockets.ts', import.meta.url).href)})
      const sockets = new NicSockets('/nowhere')
      const one = await openNic(n, r, false, sockets)
      if (one.record.kind === 'tap') for (const fd of one.fds) (await import('node:fs')).closeSync(fd)
      const two = await openNic(n, r, false, sockets)
      console.log(JSON.stringify([one.record.kind, one.existed, two.existed, one.fds.length, two.fds.length]))
      await removeNic(one.record, sockets)`
    const spec = [n, request({ netns: `/proc/${vm}/ns/net`, wireNetns: `/proc/${wire}/ns/net` })]
    const node = [process.execPath, '--input-type=module', '-e', program, JSON.stringify(spec)]
    const ownTun = `mount -t tmpfs none /mnt; mknod -m ${tunMode} /mnt/tun c 10 200; mount --bind /mnt/tun /dev/net/tun; exec "$@"`
    const said = execFileSync('unshare', ['-m', 'sh', '-ec', ownTun, 'sh', ...node], {
      encoding: 'utf8',
      env: { ...process.env, NODE_TEST_CONTEXT: undefined },
    })
    const left = execFileSync('nsenter', ['-t', String(vm), '-n', 'ip', '-o', 'link'], { encoding: 'utf8' })
    assert.doesNotMatch(left, /eth0/)
    return said.trim()
  } finally {
    end()
  }
}

test('without rights: the opener makes a veth in the second namespace and sends its packet socket', {
  skip,
}, async () => {
  assert.match(await openWithoutRights('600'), /^\["packet",false,true,/)
})

test('without rights, but /dev/net/tun is open to everybody, as on most distributions: a TAP', {
  skip: skip || noTun,
}, async () => {
  assert.equal(await openWithoutRights('666'), `["tap",false,true,${QUEUES},${QUEUES}]`)
})
