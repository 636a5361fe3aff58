/**
 * The whole product by its command line, as the product page types it: as root, and as an ordinary user, in the laboratory's host.
 * What a command prints is read with --json; what a person reads is held by test/commands.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Network, Vm } from '../../src/api/contract.ts'
import { runsAs } from '../users.ts'
import { Cli } from './command-line.ts'
import { block } from './inet/blocks.ts'
import { EXAMPLE, eventually, Lab, missing } from './lab.ts'

const NOBODY = 65_534

for (const who of ['root', 'an ordinary user'])
  describe(`the command line as ${who}`, {
    skip:
      missing('curl', 'dig', 'ss', 'python3', 'iperf3', 'setpriv', 'useradd', 'newuidmap') ||
      (who === 'root' ? false : runsAs(NOBODY)),
  }, () => {
    const root = who === 'root'
    let lab: Lab
    let cli: Cli
    let clean: Record<string, string[]>

    before(async () => {
      lab = await Lab.create()
      if (root) {
        const home = join(lab.dir, 'root')
        mkdirSync(home)
        cli = new Cli(lab.host, home, [])
      } else {
        const { name, home } = lab.user()
        cli = new Cli(lab.host, home, ['setpriv', '--reuid', name, '--regid', name, '--init-groups'])
      }
      // What distributions set; empty in a new namespace.
      await lab.host.sh('echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range')
      clean = await lab.snapshot()
    })
    after(async () => {
      await cli?.run('daemon', 'stop').catch(() => {})
      await lab?.remove()
    })
    const exec = (vm: string, ...argv: string[]) => cli.run('exec', vm, '--', ...argv)
    const out = async (vm: string, ...argv: string[]) => (await exec(vm, ...argv)).stdout.trim()

    test('create gives an address by DHCP, and list shows it', async () => {
      const vm = await cli.json<Vm>('create', 'vm-1')
      assert.match(vm.address ?? '', /^192\.168\.100\.\d+$/)
      assert.equal(vm.backend, 'userspace')
      assert.equal(vm.network, 'default')
      await cli.noid('create', 'vm-2')
      assert.match(await cli.noid('list'), /vm-1 .*192\.168\.100\./)
    })

    test('the page: ip addr, ping 8.8.8.8, resolv.conf, nslookup, dig, curl', async () => {
      const vm = await cli.json<Vm>('info', 'vm-1')
      assert.match(await out('vm-1', 'ip', 'addr', 'show'), new RegExp(`inet ${vm.address}/24`))
      assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', '8.8.8.8')).code, 0)
      assert.match(await out('vm-1', 'cat', '/etc/resolv.conf'), /nameserver 192\.168\.100\.2/)
      assert.match(await out('vm-1', 'nslookup', 'example.com'), new RegExp(EXAMPLE.replaceAll('.', '\\.')))
      assert.equal(await out('vm-1', 'dig', '+short', 'example.com'), EXAMPLE)
      assert.match(await out('vm-1', 'curl', '-sS', 'http://example.com/'), /hello/)
    })

    test('the page: VM to VM by address and by name', async () => {
      const two = await cli.json<Vm>('info', 'vm-2')
      assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', two.address as string)).code, 0)
      assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', 'vm-2')).code, 0)
      const server = cli.start('exec', 'vm-2', '--', 'python3', '-m', 'http.server', '3000')
      await eventually(
        'it serves',
        async () => (await exec('vm-1', 'curl', '-sS', '-o', '/dev/null', 'http://vm-2:3000/')).code === 0,
      )
      if (root)
        assert.equal((await lab.host.run(['curl', '-sS', '-o', '/dev/null', `http://${two.address}:3000/`])).code, 0)
      server.kill('SIGTERM')
    })

    test('the page: --port forwards from localhost; several; a busy one is refused and leaves nothing', async () => {
      await cli.noid('create', 'my-vm', '--port', '8080:80', '--port', '5432:5432', '--port', '6379:6379')
      // On its own: a command that runs through the daemon ends with it.
      await cli.noid('exec', 'my-vm', '--', 'sh', '-c', 'setsid python3 -m http.server 80 >/dev/null 2>&1 &')
      await eventually(
        'it serves',
        async () => (await lab.host.run(['curl', '-sS', '-o', '/dev/null', 'http://localhost:8080/'])).code === 0,
      )
      assert.equal((await lab.inet.run(['curl', '-sS', '-o', '/dev/null', 'http://10.77.0.2:8080/'])).code, 0)
      const before = await cli.json<Vm[]>('list')
      const busy = await cli.fails('create', 'late', '--port', '8080:80')
      assert.match(busy.text, /8080 .* in use by the VM "my-vm"/)
      assert.equal((await cli.json<Vm[]>('list')).length, before.length)
    })

    test('the page: --ip', async () => {
      const vm = await cli.json<Vm>('create', 'fixed', '--ip', '192.168.100.10')
      assert.equal(vm.address, '192.168.100.10')
      assert.match((await cli.fails('create', 'again', '--ip', '192.168.100.10')).text, /"fixed"/)
      await cli.noid('restart', 'fixed')
      assert.equal((await cli.json<Vm>('info', 'fixed')).address, '192.168.100.10')
    })

    test('the page: --network isolated reaches the outside and nobody else', async () => {
      await cli.noid('create', 'iso-1', '--network', 'isolated')
      const two = await cli.json<Vm>('create', 'iso-2', '--network', 'isolated')
      assert.notEqual((await exec('iso-1', 'ping', '-c1', '-W1', two.address as string)).code, 0)
      assert.match(await out('iso-1', 'curl', '-sS', '--max-time', '30', 'http://example.com/'), /hello/)
      const one = await cli.json<Vm>('info', 'vm-1')
      assert.notEqual((await exec('iso-1', 'ping', '-c1', '-W1', one.address as string)).code, 0)
    })

    test('the page: a firewall inside the VM', { skip: missing('iptables') }, async () => {
      for (const rule of [
        '-p tcp --dport 80 -j ACCEPT',
        '-p tcp --dport 443 -j ACCEPT',
        '-m conntrack --ctstate ESTABLISHED -j ACCEPT',
        '-j DROP',
      ])
        assert.equal((await exec('vm-2', 'iptables', '-A', 'INPUT', ...rule.split(' '))).code, 0, rule)
      assert.match(await out('vm-2', 'iptables', '-L', '-n'), /dpt:443/)
      // IPv6 has a table of its own, as everywhere.
      assert.notEqual((await exec('vm-1', 'ping', '-4', '-c1', '-W1', 'vm-2')).code, 0)
      assert.match(await out('vm-2', 'curl', '-sS', '--max-time', '30', `http://${EXAMPLE}/`), /hello/)
      await exec('vm-2', 'iptables', '-F', 'INPUT')
      assert.equal((await exec('vm-1', 'ping', '-4', '-c1', '-w20', 'vm-2')).code, 0)
    })

    test('the page: iperf3 between VMs', async () => {
      const one = await cli.json<Vm>('info', 'vm-1')
      const server = cli.start('exec', 'vm-1', '--', 'iperf3', '-s', '-1')
      await eventually('it listens', async () => /5201/.test(await out('vm-1', 'ss', '-Hlnt')))
      assert.match(await out('vm-2', 'iperf3', '-t1', '-c', one.address as string), /receiver/)
      server.kill('SIGTERM')
    })

    test('flows, leases, drops and ports are shown', async () => {
      const leases = await cli.noid('network', 'leases', 'default')
      assert.match(leases, /vm-1/)
      await cli.noid('network', 'flows', 'default')
      await cli.noid('network', 'drops', 'default')
      const n = await cli.json<Network>('network', 'info', 'default')
      assert.equal(n.hostReach, root)
    })

    test('the daemon is killed: VMs go on, and the next command finds them', async () => {
      const status = JSON.parse(await cli.noid('daemon', 'status', '--json')) as { version: { pid: number } }
      process.kill(status.version.pid, 'SIGKILL')
      assert.equal(
        (await lab.host.run(['curl', '-sS', '-o', '/dev/null', '--max-time', '30', 'http://localhost:8080/'])).code,
        0,
      )
      assert.match(await out('vm-1', 'curl', '-sS', '--max-time', '30', 'http://example.com/'), /hello/)
      assert.equal(
        (await lab.host.run(['curl', '-sS', '-o', '/dev/null', '--max-time', '30', 'http://localhost:8080/'])).code,
        0,
      )
    })

    test('256 MiB arrive with the same hash, both ways', async () => {
      const bytes = 256 << 20
      const url = `http://${EXAMPLE}/bytes/${bytes}`
      const h = createHash('sha256')
      for (let n = 0; n < bytes; n += block.length) h.update(block)
      const expected = h.digest('hex')
      assert.match(await out('vm-1', 'sh', '-c', `curl -sS ${url} | sha256sum`), new RegExp(expected))
      assert.equal(
        await out('vm-1', 'sh', '-c', `curl -sS ${url} | curl -sS -T - -X POST http://${EXAMPLE}/hash`),
        expected,
      )
    })

    test('the data plane is killed: VMs are on the network again', async () => {
      const n = await cli.json<Network>('network', 'info', 'default')
      const plane = lab.processes().find((p) => p.argv.startsWith('noid data plane') && p.argv.includes(n.id))
      process.kill(plane?.pid as number, 'SIGKILL')
      await eventually('names and the outside', async () =>
        /hello/.test(await out('vm-1', 'curl', '-sS', '--max-time', '10', 'http://example.com/')),
      )
      await eventually(
        'the port',
        async () =>
          (await lab.host.run(['curl', '-sS', '-o', '/dev/null', '--max-time', '30', 'http://localhost:8080/']))
            .code === 0,
      )
      assert.equal((await exec('vm-1', 'ping', '-c1', '-w20', 'vm-2')).code, 0)
    })

    test('the daemon is killed in the middle of create, again and again', async () => {
      for (const [i, delayMs] of [300, 700, 1100, 1500].entries()) {
        const name = `half-${i}`
        const { version } = await cli.json<{ version: { pid: number } }>('daemon', 'status')
        const creating = cli.run('create', name, '--port', `${8500 + i}:80`)
        await sleep(delayMs)
        process.kill(version.pid, 'SIGKILL')
        await creating
        const there = (await cli.json<Vm[]>('list')).find((v) => v.name === name)
        if (there) await cli.noid('destroy', name)
        // Nothing of it is in the way of the next one.
        if (i === 3) await cli.noid('create', name, '--port', `${8500 + i}:80`)
      }
      assert.equal(await lab.host.sh("ss -Hlnt 'sport >= 8500 and sport < 8503'"), '')
    })

    test('ports: a range, UDP, host port 0; added and removed while it runs', async () => {
      const vm = await cli.json<Vm>(
        'create',
        'ports',
        '--port',
        '8600-8604:8600-8604',
        '--port',
        '0:80',
        '--port',
        '5353:53/udp',
      )
      assert.equal(vm.ports.length, 7)
      const free = vm.ports.find((p) => p.guestPort === 80)?.hostPort ?? 0
      assert.ok(free > 1023)
      await cli.noid('exec', 'ports', '--', 'sh', '-c', 'setsid python3 -m http.server 80 >/dev/null 2>&1 &')
      const serves = async (port: number) =>
        (await lab.host.run(['curl', '-sS', '-o', '/dev/null', '--max-time', '30', `http://127.0.0.1:${port}/`]))
          .code === 0
      await eventually('it serves', () => serves(free))
      await cli.noid('port', 'add', 'ports', '8700:80')
      assert.ok(await serves(8700))
      await cli.noid('restart', 'ports')
      assert.equal((await cli.json<Vm>('info', 'ports')).ports.length, 8, 'they survive a restart')
      await cli.noid('port', 'remove', 'ports', '8700:80')
      assert.equal(await lab.host.sh('ss -Hlnt sport = 8700'), '')
      await cli.noid('destroy', 'ports')
      assert.equal(await lab.host.sh("ss -Hlntu '( sport >= 8600 and sport <= 8604 ) or sport = 5353'"), '')
    })

    test("--allow-host opens a port of the host's loopback, and no other", async () => {
      const greet = (port: number) =>
        lab.host.start(['socat', `TCP-LISTEN:${port},bind=127.0.0.1,fork,reuseaddr`, 'SYSTEM:echo here'])
      const services = [greet(9100), greet(9200)]
      const n = await cli.json<Network>('network', 'create', 'allowed', '--allow-host', '9100')
      await cli.noid('create', 'asks', '--network', 'allowed')
      const ask = (port: number) => out('asks', 'socat', '-T2', '-', `TCP:${n.hostAddress}:${port},connect-timeout=2`)
      assert.equal(await ask(9100), 'here')
      assert.notEqual(await ask(9200), 'here')
      assert.equal(await out('asks', 'socat', '-T2', '-', 'TCP:host.noid.internal:9100,connect-timeout=2'), 'here')
      await cli.noid('destroy', 'asks')
      await cli.noid('network', 'remove', 'allowed')
      for (const s of services) s.kill('SIGKILL')
    })

    test('a low port: for root only', async () => {
      if (root) await cli.noid('create', 'low', '--port', '80:80')
      else assert.match((await cli.fails('create', 'low', '--port', '80:80')).text, /may not be opened by this user/)
    })

    test('bad input: one sentence, a hint, nothing left', async () => {
      const there = async () => [(await cli.json<Vm[]>('list')).map((v) => v.name), await lab.snapshot()]
      const before = await there()
      assert.match((await cli.fails('create', 'vm-1')).text, /exists already/)
      assert.match((await cli.fails('create', 'z', '--ip', '10.9.9.9')).text, /outside/)
      assert.match((await cli.fails('create', 'z', '--ip', '192.168.100.1')).text, /reserved/)
      assert.equal((await cli.fails('create', 'z', '--port', 'eighty:80')).code, 2)
      assert.match((await cli.fails('create', 'z', '--network-backend', 'nothing')).text, /no network backend/)
      assert.match((await cli.fails('exec', 'nobody', '--', 'true')).text, /no VM named/)
      await eventually('as before', async () => {
        assert.deepEqual(await there(), before)
        return true
      })
    })

    test('destroy leaves nothing', async () => {
      for (const vm of await cli.json<Vm[]>('list')) await cli.noid('destroy', vm.name)
      for (const n of await cli.json<Network[]>('network', 'list')) await cli.noid('network', 'remove', n.name)
      await cli.noid('daemon', 'stop')
      assert.ok(existsSync(lab.dir))
      await eventually('as before', async () => {
        assert.deepEqual(await lab.snapshot(), clean)
        return true
      })
    })
  })
