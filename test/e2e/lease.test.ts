/** Leases as the three DHCP clients that people have take them: udhcpc (busybox), dhclient (ISC), dhcpcd. */
import assert from 'node:assert/strict'
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Agent, network } from './agent-client.ts'
import { eventually, Lab, missing, type Place } from './lab.ts'

const net = network(100, { config: { leaseSeconds: 60 } })
let lab: Lab
let agent: Agent
let script = ''

/** A hook for udhcpc and dhclient alike: applies what it was told, and writes the environment down. */
const HOOK = `#!/bin/sh
env | sort > "$NT_OUT.$reason\${1:-}"
env | sort > "$NT_OUT"
case "\${1:-$reason}" in
  bound|renew|BOUND|RENEW|REBIND|REBOOT)
    ip addr replace \${ip:-$new_ip_address}/24 dev \${interface}
    ip route replace default via \${router:-$new_routers} dev \${interface} ;;
  preinit|deconfig|PREINIT) ip link set \${interface} up ;;
  RELEASE|EXPIRE|STOP) ip addr flush dev \${interface} ;;
esac
exit 0
`

describe('leases', { skip: missing('udhcpc', 'dhclient', 'dhcpcd') }, () => {
  before(async () => {
    lab = await Lab.create()
    script = join(lab.dir, 'hook')
    writeFileSync(script, HOOK)
    chmodSync(script, 0o755)
    agent = lab.agent()
    await agent.createNetwork(net)
  })
  after(async () => {
    await lab?.remove()
  })

  const env = (vm: Place) => ({ NT_OUT: join(lab.dir, `${vm.name}.env`) })
  const told = (vm: Place): Record<string, string> =>
    Object.fromEntries(
      readFileSync(join(lab.dir, `${vm.name}.env`), 'utf8')
        .split('\n')
        .map((l) => [l.slice(0, l.indexOf('=')), l.slice(l.indexOf('=') + 1)]),
    )
  const udhcpc = async (vm: Place, ...more: string[]) => {
    const r = await vm.run(
      ['busybox', 'udhcpc', '-f', '-q', '-n', '-t', '20', '-T', '1', '-i', 'eth0', '-s', script, ...more],
      {
        env: env(vm),
      },
    )
    assert.equal(r.code, 0, r.all)
    return told(vm)
  }
  const leaseOf = async (vm: Place) => (await agent.stats(net.id)).leases.find((l) => l.vm === vm.name.split('-')[1])

  test('udhcpc: address, router, name server, domain, MTU', async () => {
    const vm = lab.guest()
    const a = await agent.attach(net, vm, 10)
    assert.equal(a.configuredBy, 'dhcp')
    const t = await udhcpc(vm, '-O', 'mtu', '-O', 'search', '-x', `hostname:${vm.name}`)
    assert.equal(t.ip, '192.168.100.10')
    assert.equal(t.router, '192.168.100.1')
    assert.equal(t.dns, '192.168.100.2')
    assert.equal(t.serverid, '192.168.100.2')
    assert.equal(t.domain, 'noid.internal')
    assert.equal(t.mtu, '1500')
    assert.equal(t.lease, '60')
    await vm.sh('ping -c1 -w20 192.168.100.1')
    assert.equal((await leaseOf(vm))?.state, 'bound')
    await eventually('the daemon is told of the lease', () =>
      agent.events.some((e) => e.type === 'lease' && e.address === '192.168.100.10' && e.state === 'bound'),
    )
  })

  test('udhcpc asks again for another address: it still gets its own', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 11)
    await udhcpc(vm)
    const t = await udhcpc(vm, '-r', '192.168.100.200')
    assert.equal(t.ip, '192.168.100.11')
  })

  test('a new MAC behind the same attachment gets the same address', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 12)
    assert.equal((await udhcpc(vm)).ip, '192.168.100.12')
    await agent.attach(net, vm, 12, { mac: '52:54:00:ff:ff:12' })
    assert.match(await vm.sh('cat /sys/class/net/eth0/address'), /52:54:00:ff:ff:12/)
    assert.equal((await udhcpc(vm)).ip, '192.168.100.12')
  })

  test('dhclient: bound, released, bound again', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 13)
    const files = ['-lf', join(lab.dir, 'dhclient.leases'), '-pf', join(lab.dir, 'dhclient.pid')]
    const conf = join(lab.dir, 'dhclient.conf')
    writeFileSync(
      conf,
      'request subnet-mask, routers, domain-name-servers, domain-name, domain-search, interface-mtu;\ntimeout 60;\n',
    )
    const run = (...argv: string[]) =>
      vm.run(
        ['dhclient', '-v', '-cf', conf, ...files, '-sf', script, '-e', `NT_OUT=${env(vm).NT_OUT}`, ...argv, 'eth0'],
        {
          env: env(vm),
        },
      )
    for (const round of [1, 2]) {
      const r = await run('-1')
      assert.equal(r.code, 0, `round ${round}: ${r.all}`)
      const t = told(vm)
      assert.equal(t.new_ip_address, '192.168.100.13')
      assert.equal(t.new_domain_name_servers, '192.168.100.2')
      assert.equal(t.new_domain_search, 'noid.internal.')
      assert.equal((await leaseOf(vm))?.state, 'bound')
      // A release is one datagram that nobody acknowledges (RFC 2131 §4.4.6): one that is lost is said again with the next lease.
      let free = false
      for (let attempt = 0; attempt < 3 && !free; attempt++) {
        if (attempt > 0) await run('-1')
        const released = await run('-r')
        assert.match(released.all, /DHCPRELEASE of 192\.168\.100\.13/)
        for (let t = 0; t < 50 && !free; t++) {
          free = (await leaseOf(vm))?.state === 'reserved'
          if (!free) await sleep(100)
        }
      }
      assert.ok(free, 'released')
    }
  })

  test('dhcpcd: probes for conflicts, binds', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 14)
    const conf = join(lab.dir, 'dhcpcd.conf')
    writeFileSync(conf, 'ipv4only\nnohook resolv.conf, hostname\noption domain_name_servers\n')
    const r = await vm.run(
      [
        'unshare',
        '-m',
        'sh',
        '-c',
        `mkdir -p /run/dhcpcd; mount -t tmpfs none /run/dhcpcd; mount -t tmpfs none /var/lib/dhcpcd; dhcpcd -1 -B -t 60 -f ${conf} -c ${script} eth0; echo code $?; ip -4 -o addr show eth0`,
      ],
      {
        env: { ...env(vm) },
        timeoutMs: 100_000,
      },
    )
    assert.match(r.all, /leased 192\.168\.100\.14 for 60 seconds/)
    assert.match(r.all, /inet 192\.168\.100\.14\/24/)
  })

  test('a lease is renewed by unicast at half its time', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 15)
    const client = vm.start(['busybox', 'udhcpc', '-f', '-i', 'eth0', '-s', script], {
      env: { ...process.env, ...env(vm) },
    })
    try {
      await eventually('bound', async () => (await leaseOf(vm))?.state === 'bound')
      // SIGUSR1 makes udhcpc renew now. When the lease ends, as seen from here: asking takes time, which never adds to it.
      const end = async () => Date.now() + ((await leaseOf(vm))?.expiresInMs ?? 0)
      const first = await end()
      await sleep(2000)
      client.kill('SIGUSR1')
      await eventually('renewed', async () => (await end()) > first + 1000)
      // SIGUSR2 makes it release.
      client.kill('SIGUSR2')
      await eventually('released', async () => (await leaseOf(vm))?.state === 'reserved')
    } finally {
      client.kill('SIGKILL')
    }
  })
})
