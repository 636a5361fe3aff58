// VMs of the qemu runtime, booted under whatever accelerator there is: what the runtimes' kit does not ask.
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { boots } from '../../bench/e2e/boots.ts'
import { Environment, type Vm } from '../../src/runtimes/conformance/environment.ts'
import { qemu } from '../../src/runtimes/qemu/index.ts'
import { sharedImages } from '../images/shared.ts'
import { missing } from '../plugins/needs.ts'
import { ownHost } from '../plugins/own-host.ts'
import { qemuSkip } from './qemu-lab.ts'

const skip = missing() || qemuSkip() || ownHost()
const timeout = 900_000
process.env.NOID_IMAGES_DIR = sharedImages()

const said: string[] = []
let opened: Promise<Environment> | undefined
const environment = (): Promise<Environment> => {
  process.env.NOID_TEMPLATES = '1'
  opened ??= Environment.open(qemu, { image: 'tiny', subnet: 77, log: (l) => said.push(l) })
  return opened
}
after(async () => {
  await (await opened)?.close()
})

const templates = (e: Environment): string[] => {
  const dir = join(e.directories.state, 'templates')
  return existsSync(dir) ? readdirSync(dir).filter((n) => !n.startsWith('.')) : []
}

async function template(e: Environment): Promise<string> {
  for (let t = 0; t < 4000; t++) {
    const [one] = templates(e)
    if (one !== undefined) return join(e.directories.state, 'templates', one)
    if (t % 400 === 0) await e.down(await e.up())
    await sleep(100)
  }
  throw new Error(`no template was made: ${said.join('; ')}`)
}

const tell = async (e: Environment, vm: Vm): Promise<Record<string, string>> => {
  const r = await e.run(vm, [
    'sh',
    '-c',
    `echo "name $(hostname)"; echo "mac $(cat /sys/class/net/eth0/address)"; echo "mtu $(cat /sys/class/net/eth0/mtu)"
     echo "six $(ip -6 addr show eth0 | grep -o 'inet6 fd[^ ]*' | tr '\\n' ' ')"
     echo "address $(ip -4 addr show eth0 | grep -o 'inet [0-9.]*')"; echo "file $(cat /etc/hostname)"; echo "hosts $(grep -c "$(hostname)" /etc/hosts)"
     echo "random $(head -c 16 /dev/urandom | od -An -tx1)"; echo "time $(date +%s)"`,
  ])
  return Object.fromEntries(
    r.out
      .trim()
      .split('\n')
      .map((l) => [l.split(' ')[0] as string, l.slice(l.indexOf(' ') + 1)]),
  )
}

test('copies of a template are themselves: name, MAC, address, files, random numbers, the clock', {
  skip,
  timeout,
}, async () => {
  const e = await environment()
  await template(e)
  said.length = 0
  const copies = await Promise.all([e.up(), e.up()])
  const all = await Promise.all(copies.map((vm) => tell(e, vm)))
  assert.deepEqual(
    said.filter((l) => /^(warn|error)/.test(l)),
    [],
    'they came from the template',
  )
  for (const [i, t] of all.entries()) {
    const vm = copies[i] as Vm
    assert.equal(t.name, vm.spec.name)
    assert.equal(t.file, vm.spec.name)
    assert.equal(t.hosts, '2', 'a line for each family')
    assert.ok(t.six?.includes(`inet6 ${vm.address6}/64`), t.six)
    assert.equal(t.mac, vm.attachment.mac)
    assert.equal(t.mtu, String(vm.attachment.mtu))
    assert.equal(t.address, `inet ${vm.address}`)
    // Only a clock that is wrong by far: the machine may be busy.
    assert.ok(Math.abs(Number(t.time) - Date.now() / 1000) < 120, `its clock says ${t.time}`)
  }
  assert.notEqual(all[0]?.random, all[1]?.random)
  // They reach each other; their memory is the template's, mapped or, for vhost-user, copied.
  const [a, b] = copies as [Vm, Vm]
  for (const address of [b.address, b.address6 as string])
    assert.equal((await e.run(a, ['ping', '-c', '1', '-W', '10', address])).code, 0, address)
  assert.match(
    readFileSync(`/proc/${a.handle.pid}/maps`, 'latin1'),
    a.attachment.nic.kind === 'vhost-user' ? /memfd:noid-vm/ : /templates\/[0-9a-f]+\/memory/,
  )
  await Promise.all(copies.map((vm) => e.down(vm)))
})

test('a template that is damaged costs a cold boot and is thrown away', { skip, timeout }, async () => {
  const e = await environment()
  const dir = await template(e)
  truncateSync(join(dir, 'state'), 1000)
  said.length = 0
  const vm = await e.up()
  assert.equal((await e.run(vm, ['hostname'])).out.trim(), vm.spec.name)
  assert.ok(
    said.some((l) => /^warn: .*template/.test(l)),
    said.join('; '),
  )
  await e.down(vm)
})

test('a QEMU that dies leaves its last words; a guest that powers itself off ends in order', {
  skip,
  timeout,
}, async () => {
  const e = await environment()
  const vm = await e.up()
  await e.run(vm, ['sh', '-c', 'echo "<1>something went wrong here" >/dev/kmsg; sleep 0.3'])
  process.kill(vm.handle.pid, 'SIGKILL')
  while (e.runtime.alive(vm.handle)) await sleep(20)
  const killed = await e.runtime.obituary?.(vm.spec, vm.handle)
  assert.equal(killed?.orderly, false)
  assert.match(killed?.words ?? '', /something went wrong here/)
  await e.down(vm)
  const other = await e.up()
  // Its agent goes with it, maybe before it has said how the command ended.
  await e.run(other, ['poweroff']).catch(() => {})
  for (let t = 0; t < 600 && e.runtime.alive(other.handle); t++) await sleep(100)
  assert.equal((await e.runtime.obituary?.(other.spec, other.handle))?.orderly, true)
  await e.down(other)
})

test('a guest that does not listen is ended harder', { skip, timeout }, async () => {
  const e = await environment()
  const vm = await e.up()
  const s = await e.exec(vm, ['sh', '-c', 'kill -STOP $(pidof ld.so)'])
  s.exit.catch(() => {})
  await sleep(500)
  await e.runtime.stop(vm.spec, vm.handle, 500)
  assert.equal(e.runtime.alive(vm.handle), false)
  await e.down(vm)
})

test('the channel to the guest is root’s alone, and QEMU is not root', { skip, timeout }, async () => {
  const e = await environment()
  const vm = await e.up()
  const uid = /^Uid:\s+(\d+)\s+(\d+)/m.exec(readFileSync(`/proc/${vm.handle.pid}/status`, 'latin1'))
  assert.notEqual(uid?.[2], '0')
  const run = join(e.directories.run, 'qemu', vm.spec.id)
  const r = ['agent', 'qmp', 'console'].map((n) => statSync(join(run, n))).map((s) => [s.uid, s.mode & 0o777])
  assert.deepEqual(r, [
    [0, 0o600],
    [0, 0o600],
    [0, 0o600],
  ])
  await e.down(vm)
  assert.equal(existsSync(run), false)
})

test('several processors', { skip, timeout }, async () => {
  const e = await environment()
  const vm = await e.up(e.spec({ cpus: 2 }))
  assert.equal((await e.run(vm, ['nproc'])).out.trim(), '2')
  await e.down(vm)
})

test('six boots, three at a time, all come up', { skip, timeout }, async () => {
  const r = await boots({ count: 6, parallel: 3, runtime: 'qemu', image: 'tiny', templates: false })
  assert.deepEqual(r.failed, [])
  assert.equal(r.took.length, 6)
})
