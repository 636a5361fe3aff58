/** The product page on `--network-backend bridge`, by the command line, and the quickstart: the same table as on userspace, and a host as before. */
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { Network, Vm } from '../../src/api/contract.ts'
import type { Report } from '../../src/cli/quickstart/run.ts'
import { Cli } from './command-line.ts'
import { becomes, EXAMPLE, eventually, Lab, missing } from './lab.ts'

const bridge = ['--network-backend', 'bridge']

describe('the command line on bridges', {
  skip: missing('curl', 'dig', 'python3', 'iptables-restore', 'ebtables-restore', 'bridge', 'conntrack'),
}, () => {
  let lab: Lab
  let cli: Cli
  let clean: string
  const rules = async () =>
    (
      await lab.host.sh(
        'iptables-save; ip6tables-save; ebtables-save; ip -o addr; ip route; sysctl -a 2>/dev/null | grep -E "forwarding|route_localnet"',
      )
    )
      .split('\n')
      .filter((l) => /^-|noid|inet |route_localnet|forwarding/.test(l) && !l.startsWith('#'))
      .join('\n')

  before(async () => {
    lab = await Lab.create()
    const home = join(lab.dir, 'root')
    mkdirSync(home)
    cli = new Cli(lab.host, home, [])
    clean = await rules()
  })
  after(async () => {
    await cli?.run('destroy', '--all')
    await cli?.run('daemon', 'stop')
    await lab?.remove()
  })
  const exec = (vm: string, ...argv: string[]) => cli.run('exec', vm, '--', ...argv)
  const out = async (vm: string, ...argv: string[]) => (await exec(vm, ...argv)).stdout.trim()

  test('quickstart prints the same table as on userspace', async () => {
    const steps = (r: Report) => r.steps.map((s) => [s.step, s.result])
    const here = await cli.json<Report>('quickstart', ...bridge)
    assert.equal(here.ok, true, JSON.stringify(here.steps))
    const there = await cli.json<Report>('quickstart')
    assert.deepEqual(steps(here), steps(there))
    assert.deepEqual([...new Set(here.steps.map((s) => s.result))], ['works'])
    await becomes('the host is as it was', rules, clean)
  })

  test('the page: create, list, addresses, ping, DNS, the web', async () => {
    const vm = await cli.json<Vm>('create', 'vm-1', ...bridge)
    assert.equal(vm.backend, 'bridge')
    assert.equal(vm.network, 'default-bridge')
    await cli.noid('create', 'vm-2', ...bridge)
    assert.match(await cli.noid('list'), new RegExp(`vm-1 .*${vm.address}`))
    assert.match(await out('vm-1', 'ip', 'addr', 'show'), new RegExp(`inet ${vm.address}/24`))
    assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', '8.8.8.8')).code, 0)
    assert.match(await out('vm-1', 'cat', '/etc/resolv.conf'), /nameserver \S+\.2\b/)
    assert.match(await out('vm-1', 'nslookup', 'example.com'), new RegExp(EXAMPLE.replaceAll('.', '\\.')))
    assert.equal(await out('vm-1', 'dig', '+short', 'example.com'), EXAMPLE)
    assert.match(await out('vm-1', 'curl', '-sS', 'http://example.com/'), /hello/)
    assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', 'vm-2')).code, 0)
    assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', 'host.noid.internal')).code, 0)
  })

  test('the page: --port from localhost and from outside; a busy one is refused; --ip; the host reaches VMs', async () => {
    const two = await cli.json<Vm>('info', 'vm-2')
    const fixed = (two.address as string).replace(/\d+$/, '10')
    const vm = await cli.json<Vm>(
      'create',
      'my-vm',
      ...bridge,
      '--ip',
      fixed,
      '--port',
      '8080:80',
      '--port',
      '5432:5432',
    )
    assert.equal(vm.address, fixed)
    await cli.noid('exec', 'my-vm', '--', 'sh', '-c', 'setsid python3 -m http.server 80 >/dev/null 2>&1 &')
    const served = async (from: typeof lab.host, url: string) =>
      (await from.run(['curl', '-sS', '--max-time', '30', '-o', '/dev/null', url])).code === 0
    await eventually('it serves', () => served(lab.host, 'http://localhost:8080/'))
    assert.ok(await served(lab.inet, 'http://10.77.0.2:8080/'))
    assert.ok(await served(lab.host, `http://${fixed}/`))
    assert.match(
      (await cli.fails('create', 'late', ...bridge, '--port', '8080:80')).text,
      /8080 .* in use by the VM "my-vm"/,
    )
    assert.match((await cli.fails('create', 'late', '--port', '8080:80')).text, /8080 .* in use by the VM "my-vm"/)
    await cli.noid('restart', 'my-vm')
    assert.equal((await cli.json<Vm>('info', 'my-vm')).address, fixed)
  })

  test('isolated is per backend; the daemon is killed and nobody notices; flows, leases and drops are shown', async () => {
    const nets = await cli.json<Network[]>('network', 'list')
    assert.ok(nets.some((n) => n.name === 'default-bridge' && n.backend === 'bridge'))
    const { version } = await cli.json<{ version: { pid: number } }>('daemon', 'status')
    process.kill(version.pid, 'SIGKILL')
    assert.match(await out('vm-1', 'curl', '-sS', '--max-time', '30', 'http://example.com/'), /hello/)
    assert.match(await cli.noid('network', 'leases', 'default-bridge'), /vm-1/)
    await exec(
      'vm-1',
      'sh',
      '-c',
      'ip addr add 192.0.2.9/32 dev eth0; ping -c1 -W1 -I 192.0.2.9 8.8.8.8; ip addr del 192.0.2.9/32 dev eth0',
    )
    assert.match(await cli.noid('network', 'drops', 'default-bridge'), /vm-1 .*guard-address/)
    assert.equal((await cli.json<Vm>('create', 'iso', '--network', 'isolated', ...bridge)).network, 'isolated-bridge')
    assert.match(await out('iso', 'curl', '-sS', '--max-time', '30', 'http://example.com/'), /hello/)
    const one = await cli.json<Vm>('info', 'vm-1')
    assert.notEqual((await exec('iso', 'ping', '-c1', '-W1', one.address as string)).code, 0)
  })

  test('after destroy the host is as it was', async () => {
    await cli.noid('destroy', '--all')
    for (const n of await cli.json<Network[]>('network', 'list')) await cli.noid('network', 'remove', n.name)
    await cli.noid('daemon', 'stop')
    await becomes('the host is as it was', rules, clean)
  })
})
