/**
 * Both families by the command line, with the programs that people have: as root and as an ordinary user, on a host with both families
 * and on one with IPv4 alone. What cli.test.ts does by name or by IPv4 is not done again here.
 */
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { Network, Vm } from '../../src/api/contract.ts'
import { runsAs } from '../users.ts'
import { Cli } from './command-line.ts'
import { becomes, EXAMPLE6, eventually, HOST6, Lab, missing } from './lab.ts'

const NOBODY = 65_534
const TOOLS = ['curl', 'dig', 'ss', 'python3', 'socat', 'ping', 'setpriv', 'useradd', 'newuidmap'] as const

async function commandLine(lab: Lab, root: boolean): Promise<Cli> {
  await lab.host.sh('echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range')
  if (!root) {
    const { name, home } = lab.user()
    return new Cli(lab.host, home, ['setpriv', '--reuid', name, '--regid', name, '--init-groups'])
  }
  const home = join(lab.dir, 'root')
  mkdirSync(home)
  return new Cli(lab.host, home, [])
}

for (const who of ['root', 'an ordinary user'])
  describe(`IPv6 by the command line as ${who}`, {
    skip: missing(...TOOLS) || (who === 'root' ? false : runsAs(NOBODY)),
  }, () => {
    const root = who === 'root'
    let lab: Lab
    let cli: Cli
    let clean: Record<string, string[]>
    before(async () => {
      lab = await Lab.create()
      cli = await commandLine(lab, root)
      clean = await lab.snapshot()
    })
    after(async () => {
      await cli?.run('daemon', 'stop').catch(() => {})
      await lab?.remove()
    })
    const exec = (vm: string, ...argv: string[]) => cli.run('exec', vm, '--', ...argv)
    const out = async (vm: string, ...argv: string[]) => (await exec(vm, ...argv)).stdout.trim()
    const pings = async (vm: string, wait: string, address: string) =>
      (await exec(vm, 'ping', '-6', '-n', '-c1', wait, address)).code === 0
    // What must answer may take its time on a busy machine; what must not is asked once.
    const answers = (vm: string, address: string) => pings(vm, '-w20', address)
    const reaches = (vm: string, address: string) => pings(vm, '-W2', address)
    const fetches = async (url: string) =>
      (await lab.host.run(['curl', '-gsS', '-o', '/dev/null', '--max-time', '20', url])).code === 0
    const serve = (vm: string, port: number) =>
      exec(vm, 'sh', '-c', `setsid python3 -m http.server --bind :: ${port} >/dev/null 2>&1 &`)
    let web: Vm
    let db: Vm

    test('a VM has an address of each family, usable when create says so', async () => {
      web = await cli.json<Vm>('create', 'web', '--port', '8080:80')
      db = await cli.json<Vm>('create', 'db', '--ip', '192.168.100.10')
      assert.match(web.address6 ?? '', /^fd[0-9a-f]{2}:[0-9a-f:]+::100$/)
      assert.match(db.address6 ?? '', /::10$/)
      const n = await cli.json<Network>('network', 'info', 'default')
      assert.equal(n.subnet6, web.address6?.replace('::100', '::/64'))
      const addresses = () => out('web', 'ip', '-6', 'addr', 'show', 'dev', 'eth0')
      assert.ok((await addresses()).includes(`inet6 ${web.address6}/64`))
      // The kernel hears the router by itself; create waits for that a short while only.
      await eventually('one by SLAAC', async () => /inet6 fd\S+\/64 scope global .*dynamic/.test(await addresses()))
      await eventually('a default route', async () =>
        /via fe80::/.test(await out('web', 'ip', '-6', 'route', 'show', 'default')),
      )
      assert.match(await out('web', 'cat', '/etc/resolv.conf'), new RegExp(`nameserver ${n.services6}`))
      const list = await cli.noid('list')
      assert.ok(list.includes('IPV6') && list.includes(web.address6 as string))
    })

    test('--ip twice, one of each family; kept through a restart', async () => {
      const six = web.address6?.replace('::100', '::77') as string
      const fixed = await cli.json<Vm>('create', 'fixed', '--ip', six, '--ip', '192.168.100.20')
      assert.deepEqual([fixed.address, fixed.address6], ['192.168.100.20', six])
      await cli.noid('restart', 'fixed')
      const inside = await out('fixed', 'ip', '-o', 'addr', 'show', 'dev', 'eth0')
      assert.ok(inside.includes(`inet 192.168.100.20/24`) && inside.includes(`inet6 ${six}/64`), inside)
      assert.equal((await cli.fails('create', 'x', '--ip', six, '--ip', `${six}8`)).code, 2)
      await cli.noid('destroy', 'fixed')
    })

    test('VM to VM, out, and back by name', async () => {
      assert.ok(await answers('web', db.address6 as string))
      assert.ok(await answers('web', 'db'))
      assert.equal(await out('web', 'dig', '+short', 'AAAA', 'db.noid.internal'), db.address6)
      assert.equal(await out('web', 'dig', '+short', '-x', db.address6 as string), 'db.noid.internal.')
      assert.ok(await answers('web', '2001:db8:113::2'), 'the outside')
      assert.match(await out('web', 'curl', '-6gsS', '--max-time', '30', `http://[${EXAMPLE6}]/`), /hello/)
      assert.match(await out('web', 'curl', '-6sS', '--max-time', '30', 'http://dual.example.com/'), /hello/)
    })

    test('a published port is open in both families, or in the one that was named', async () => {
      await serve('web', 80)
      await eventually('it serves', () => fetches('http://127.0.0.1:8080/'))
      assert.ok(await fetches('http://[::1]:8080/'))
      assert.equal((await lab.inet.run(['curl', '-gsS', '-o', '/dev/null', `http://[${HOST6}]:8080/`])).code, 0)
      await cli.noid('port', 'add', 'web', '[::1]:8081:80', '0.0.0.0:8082:80', '[::]:8082:80')
      assert.ok(await fetches('http://[::1]:8081/'))
      assert.ok(!(await fetches('http://127.0.0.1:8081/')))
      assert.ok(!(await fetches(`http://[${HOST6}]:8081/`)))
      assert.match(
        (await cli.fails('create', 'late', '--port', '[::1]:8080:80')).text,
        /8080 .* in use by the VM "web"/,
      )
      await cli.noid('port', 'remove', 'web', '[::1]:8081:80')
      assert.equal(await lab.host.sh('ss -Hlnt sport = 8081'), '')
      if (root) assert.ok(await fetches(`http://[${web.address6}]/`), 'by its address')
    })

    test('networks are apart over IPv6, isolated VMs from each other', async () => {
      await cli.noid('network', 'create', 'six', '--ipv6-only')
      const far = await cli.json<Vm>('create', 'far', '--network', 'six')
      assert.equal(far.address, null)
      assert.equal(await out('far', 'ip', '-4', '-o', 'addr', 'show', 'dev', 'eth0'), '')
      assert.match(await out('far', 'curl', '-6sS', '--max-time', '30', 'http://dual.example.com/'), /hello/)
      assert.ok(!(await reaches('far', web.address6 as string)))
      assert.ok(!(await reaches('web', far.address6 as string)))
      const one = await cli.json<Vm>('create', 'iso-1', '--network', 'isolated')
      await cli.noid('create', 'iso-2', '--network', 'isolated')
      assert.match(await out('iso-2', 'curl', '-6gsS', '--max-time', '30', `http://[${EXAMPLE6}]/`), /hello/)
      assert.ok(!(await reaches('iso-2', one.address6 as string)))
      const local = /inet6 (fe80\S+)\//.exec(await out('iso-1', 'ip', '-6', 'addr', 'show', 'dev', 'eth0'))?.[1]
      assert.ok(!(await reaches('iso-2', `${local}%eth0`)))
    })

    test('addresses outlive the VM, the daemon and the data plane', async () => {
      await cli.noid('restart', 'db')
      assert.equal((await cli.json<Vm>('info', 'db')).address6, db.address6)
      const { version } = await cli.json<{ version: { pid: number } }>('daemon', 'status')
      process.kill(version.pid, 'SIGKILL')
      assert.ok(await fetches('http://[::1]:8080/'))
      const n = await cli.json<Network>('network', 'info', 'default')
      const plane = lab.processes().find((p) => p.argv.startsWith('noid data plane') && p.argv.includes(n.id))
      process.kill(plane?.pid as number, 'SIGKILL')
      await eventually('the network is there again', () => reaches('web', db.address6 as string))
      await eventually('the port', () => fetches('http://[::1]:8080/'))
      assert.ok((await out('web', 'ip', '-6', 'addr', 'show', 'dev', 'eth0')).includes(`inet6 ${web.address6}/64`))
    })

    test('what cannot be is refused in one sentence', async () => {
      assert.match((await cli.fails('network', 'create', 'x', '--subnet6', 'fe80::/64')).text, /not a usable subnet/)
      assert.match((await cli.fails('create', 'x', '--ip', web.address6 as string)).text, /belongs to the VM "web"/)
      assert.match((await cli.fails('create', 'x', '--ip', 'fd00:9::9')).text, /outside the network default/)
      assert.match((await cli.fails('create', 'x', '--network', 'six', '--ip', '10.0.0.1')).text, /no IPv4/)
      assert.match((await cli.fails('create', 'x', '--port', '::1:80:80')).text, /in brackets/)
    })

    test('destroy leaves nothing', async () => {
      await cli.noid('destroy', '--all')
      for (const n of await cli.json<Network[]>('network', 'list')) await cli.noid('network', 'remove', n.name)
      await cli.noid('daemon', 'stop')
      await becomes('as before', () => lab.snapshot(), clean)
    })
  })

describe('IPv6 by the command line on a host with IPv4 alone', { skip: missing(...TOOLS) }, () => {
  let lab: Lab
  let cli: Cli
  before(async () => {
    lab = await Lab.create([4])
    cli = await commandLine(lab, true)
  })
  after(async () => {
    await cli?.run('destroy', '--all').catch(() => {})
    await cli?.run('daemon', 'stop').catch(() => {})
    await lab?.remove()
  })

  test('VMs have IPv6 among themselves, a quick answer for the outside, and IPv4 in its place', async () => {
    const web = await cli.json<Vm>('create', 'web', '--port', '8080:80')
    const db = await cli.json<Vm>('create', 'db')
    assert.match(web.address6 ?? '', /^fd/)
    assert.equal((await cli.run('exec', 'web', '--', 'ping', '-6', '-c1', '-w20', db.address6 as string)).code, 0)
    const six = await cli.run('exec', 'web', '--', 'curl', '-6gsS', '--max-time', '30', `http://[${EXAMPLE6}]/`)
    assert.equal(six.code, 7, `refused, not left without an answer: ${six.all}`)
    // Both families have this name: the other one is taken at once.
    const both = await cli.run('exec', 'web', '--', 'curl', '-sS', '--max-time', '30', 'http://dual.example.com/')
    assert.match(both.stdout, /hello/, both.all)
    await cli.noid('exec', 'web', '--', 'sh', '-c', 'setsid python3 -m http.server 80 >/dev/null 2>&1 &')
    await eventually(
      'the port',
      async () => (await lab.host.run(['curl', '-sS', '-o', '/dev/null', 'http://127.0.0.1:8080/'])).code === 0,
    )
  })
})
