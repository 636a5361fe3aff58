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
import { becomes, EXAMPLE, eventually, Lab, missing } from './lab.ts'
import { thePage } from './page.ts'

const NOBODY = 65_534

for (const who of ['root', 'an ordinary user'])
  describe(`the command line as ${who}`, {
    skip:
      missing('curl', 'dig', 'ss', 'netstat', 'iptables', 'python3', 'iperf3', 'setpriv', 'useradd', 'newuidmap') ||
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

    thePage(() => ({ lab, cli, root }))

    test('flows, leases, drops and ports are shown', async () => {
      const leases = await cli.noid('network', 'leases', 'default')
      assert.match(leases, /vm-1/)
      await cli.noid('network', 'flows', 'default')
      await cli.noid('network', 'drops', 'default')
      const n = await cli.json<Network>('network', 'info', 'default')
      assert.equal(n.hostReach, root)
    })

    test('a VM that starts is refused nothing but what came before its interface was up', async () => {
      await cli.noid('create', 'quiet')
      assert.equal((await exec('quiet', 'ping', '-c', '1', '-W', '10', 'host.noid.internal')).code, 0)
      const drops = await cli.json<{ vm: string; reason: string }[]>('network', 'drops', 'default')
      const reasons = drops.filter((d) => d.vm === 'quiet' && d.reason !== 'port-absent').map((d) => d.reason)
      assert.deepEqual(reasons, [])
      await cli.noid('destroy', 'quiet')
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
      await becomes('nobody listens', () => lab.host.sh("ss -Hlnt 'sport >= 8500 and sport < 8503'"), '')
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
      for (const port of [9100, 9200])
        await eventually('it listens', async () => (await lab.host.sh(`ss -Hlnt sport = ${port}`)) !== '')
      const n = await cli.json<Network>('network', 'create', 'allowed', '--allow-host', '9100')
      await cli.noid('create', 'asks', '--network', 'allowed')
      const ask = (host: string, port: number) =>
        out('asks', 'socat', '-T2', '-', `TCP:${host}:${port},connect-timeout=2`)
      const address = n.hostAddress as string
      assert.equal(await eventually('it answers', () => ask(address, 9100)), 'here')
      assert.notEqual(await ask(address, 9200), 'here')
      assert.equal(await eventually('it answers by name', () => ask('host.noid.internal', 9100)), 'here')
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
      await becomes('as before', there, before)
    })

    test('destroy leaves nothing', async () => {
      for (const vm of await cli.json<Vm[]>('list')) await cli.noid('destroy', vm.name)
      for (const n of await cli.json<Network[]>('network', 'list')) await cli.noid('network', 'remove', n.name)
      await cli.noid('daemon', 'stop')
      assert.ok(existsSync(lab.dir))
      await becomes('as before', () => lab.snapshot(), clean)
    })
  })
