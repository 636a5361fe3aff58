/**
 * The product page, command by command, as steps that every runtime takes: test/e2e/cli.test.ts with sandboxes, page-qemu.test.ts with a kernel for each VM.
 *
 * Which runtime it is comes by NOID_RUNTIME in the command line's environment, so that each command is as the page prints it. The laboratory's
 * internet stands for google.com, example.com and 8.8.8.8. Afterwards vm-1, vm-2 and my-vm run, my-vm serves port 80.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Vm } from '../../src/api/contract.ts'
import type { Cli } from './command-line.ts'
import { EXAMPLE, eventually, type Lab } from './lab.ts'

export interface World {
  readonly lab: Lab
  readonly cli: Cli
  /** The daemon is root's: the host reaches VMs by address. */
  readonly root: boolean
}

export function thePage(world: () => World): void {
  const exec = (vm: string, ...argv: string[]) => world().cli.run('exec', vm, '--', ...argv)
  const out = async (vm: string, ...argv: string[]) => (await exec(vm, ...argv)).stdout.trim()
  const info = (name: string) => world().cli.json<Vm>('info', name)
  const curl = async (url: string) =>
    (await world().lab.host.run(['curl', '-sS', '-o', '/dev/null', '--max-time', '30', url])).code === 0

  test('the page: an address by DHCP; list shows it', async () => {
    const { cli } = world()
    const vm = await cli.json<Vm>('create', 'vm-1')
    assert.match(vm.address ?? '', /^192\.168\.100\.\d+$/)
    assert.deepEqual([vm.backend, vm.network], ['userspace', 'default'])
    await cli.noid('create', 'vm-2')
    assert.match(await cli.noid('list'), new RegExp(`vm-1 .*${vm.address}`))
  })

  test('the page: ip addr, ping 8.8.8.8, resolv.conf, nslookup, dig, curl', async () => {
    const vm = await info('vm-1')
    const address = new RegExp(EXAMPLE.replaceAll('.', '\\.'))
    assert.match(await out('vm-1', 'ip', 'addr', 'show'), new RegExp(`inet ${vm.address}/24`))
    assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', '8.8.8.8')).code, 0)
    assert.match(await out('vm-1', 'cat', '/etc/resolv.conf'), /nameserver 192\.168\.100\.2/)
    assert.match(await out('vm-1', 'nslookup', 'google.com'), address)
    assert.match(await out('vm-1', 'dig', 'example.com'), address)
    assert.equal(await out('vm-1', 'dig', '+short', 'example.com'), EXAMPLE)
    assert.match(await out('vm-1', 'curl', '-sS', 'http://example.com/'), /hello/)
  })

  test('the page: the four files say what they should', async () => {
    const vm = await info('vm-1')
    const files = ['/etc/network/interfaces', '/etc/resolv.conf', '/etc/hosts', '/etc/hostname']
    const [interfaces, resolv, hosts, hostname] = await Promise.all(files.map((f) => out('vm-1', 'cat', f)))
    assert.match(interfaces as string, /^auto eth0\niface eth0 inet dhcp$/m)
    assert.match(
      resolv as string,
      /^nameserver 192\.168\.100\.2\n(nameserver fd[0-9a-f:]+::2\n)?search noid\.internal$/m,
    )
    assert.match(hosts as string, /^127\.0\.0\.1\s+localhost$/m)
    assert.match(hosts as string, new RegExp(`^${vm.address}\\s.*\\bvm-1\\b`, 'm'))
    assert.equal(hostname, 'vm-1')
    assert.equal(await out('vm-1', 'hostname'), 'vm-1')
  })

  test('the page: VM to VM by address and by name; the host by the address', async () => {
    const two = await info('vm-2')
    assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', two.address as string)).code, 0)
    assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', 'vm-2')).code, 0)
    const servers = ['3000', '8080'].map((port) =>
      world().cli.start('exec', 'vm-2', '--', 'python3', '-m', 'http.server', port),
    )
    const from = async (url: string) => (await exec('vm-1', 'curl', '-sS', '-o', '/dev/null', url)).code === 0
    await eventually('it serves', () => from(`http://${two.address}:3000`))
    assert.ok(await from('http://vm-2:3000/'))
    if (world().root) await eventually('the host reaches it', () => curl(`http://${two.address}:8080`))
    assert.match(await out('vm-2', 'netstat', '-tln'), /:3000\s/)
    for (const s of servers) s.kill('SIGTERM')
  })

  test('the page: --port forwards from localhost; three of them; a busy one is refused and leaves nothing', async () => {
    const { cli, lab } = world()
    await cli.noid('create', 'my-vm', '--port', '8080:80', '--port', '5432:5432', '--port', '6379:6379')
    // On its own: a command that runs through the daemon ends with it.
    const serve = (port: number) => `setsid python3 -m http.server ${port} >/dev/null 2>&1 &`
    await cli.noid('exec', 'my-vm', '--', 'sh', '-c', [80, 5432, 6379].map(serve).join(' '))
    for (const port of [8080, 5432, 6379]) await eventually(`${port} serves`, () => curl(`http://localhost:${port}/`))
    assert.equal((await lab.inet.run(['curl', '-sS', '-o', '/dev/null', 'http://10.77.0.2:8080/'])).code, 0)
    const before = await cli.json<Vm[]>('list')
    const busy = await cli.fails('create', 'late', '--port', '8080:80')
    assert.match(busy.text, /8080 .* in use by the VM "my-vm"/)
    assert.equal((await cli.json<Vm[]>('list')).length, before.length)
  })

  test('the page: --ip', async () => {
    const { cli } = world()
    const vm = await cli.json<Vm>('create', 'fixed', '--ip', '192.168.100.10')
    assert.equal(vm.address, '192.168.100.10')
    assert.match(await out('fixed', 'ip', '-4', 'addr', 'show', 'eth0'), /inet 192\.168\.100\.10\/24/)
    assert.match((await cli.fails('create', 'again', '--ip', '192.168.100.10')).text, /"fixed"/)
    await cli.noid('restart', 'fixed')
    assert.equal((await info('fixed')).address, '192.168.100.10')
    await cli.noid('destroy', 'fixed')
  })

  test('the page: --network isolated reaches the outside and nobody else', async () => {
    const { cli } = world()
    await cli.noid('create', 'iso-1', '--network', 'isolated')
    const two = await cli.json<Vm>('create', 'iso-2', '--network', 'isolated')
    assert.notEqual((await exec('iso-1', 'ping', '-c1', '-W1', two.address as string)).code, 0)
    assert.match(await out('iso-1', 'curl', '-sS', '--max-time', '30', 'http://example.com/'), /hello/)
    const one = await info('vm-1')
    assert.notEqual((await exec('iso-1', 'ping', '-c1', '-W1', one.address as string)).code, 0)
    await cli.noid('destroy', 'iso-1', 'iso-2')
  })

  test('the page: a firewall inside the VM', async () => {
    assert.equal((await exec('vm-1', 'ping', '-4', '-c1', '-w20', 'vm-2')).code, 0)
    for (const rule of [
      '-p tcp --dport 80 -j ACCEPT',
      '-p tcp --dport 443 -j ACCEPT',
      // Answers to what the VM itself asks; the page leaves this one out.
      '-m conntrack --ctstate ESTABLISHED -j ACCEPT',
      '-j DROP',
    ])
      assert.equal((await exec('vm-2', 'iptables', '-A', 'INPUT', ...rule.split(' '))).code, 0, rule)
    assert.match(await out('vm-2', 'iptables', '-L', '-n'), /dpt:443/)
    assert.match(await out('vm-2', 'iptables', '-L'), /https/)
    assert.notEqual((await exec('vm-1', 'ping', '-4', '-c1', '-W1', 'vm-2')).code, 0)
    assert.match(await out('vm-2', 'curl', '-sS', '--max-time', '30', `http://${EXAMPLE}/`), /hello/)
    await exec('vm-2', 'iptables', '-F', 'INPUT')
    assert.equal((await exec('vm-1', 'ping', '-4', '-c1', '-w20', 'vm-2')).code, 0)
  })

  test('the page: iperf3 between VMs', async () => {
    const one = await info('vm-1')
    const server = world().cli.start('exec', 'vm-1', '--', 'iperf3', '-s')
    await eventually('it listens', async () => /5201/.test(await out('vm-1', 'ss', '-Hlnt')))
    assert.match(await out('vm-2', 'iperf3', '-t1', '-c', one.address as string), /receiver/)
    server.kill('SIGTERM')
  })
}
