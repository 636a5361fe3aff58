/**
 * The states of RFC 2131 that a first lease does not pass through, with the clients that people have: a client that comes
 * back with an old address (INIT-REBOOT), one that only asks for parameters (INFORM), two messages instead of four.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { type Agent, network } from '../../e2e/agent-client.ts'
import { eventually, Lab, missing, type Place } from '../../e2e/lab.ts'

const net = network(104, { config: { leaseSeconds: 600 } })
let lab: Lab
let agent: Agent

describe('DHCP clients', { skip: missing('dhclient', 'dhcpcd') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
  })
  after(async () => {
    await lab?.remove()
  })

  const lease = async (last: number) =>
    (await agent.stats(net.id)).leases.find((l) => l.address === `192.168.104.${last}`)

  /** dhclient that remembers `address` from before. */
  const dhclient = async (vm: Place, address: string): Promise<{ said: string; file: string }> => {
    const file = join(lab.dir, `${vm.name}.leases`)
    const in2 = '2030/01/01 00:00:00'
    writeFileSync(
      file,
      `lease {\n  interface "eth0";\n  fixed-address ${address};\n  option subnet-mask 255.255.255.0;\n` +
        `  option dhcp-server-identifier 192.168.104.2;\n  renew 1 ${in2};\n  rebind 1 ${in2};\n  expire 1 ${in2};\n}\n`,
    )
    const pid = join(lab.dir, `${vm.name}.pid`)
    await vm.sh('ip link set eth0 up')
    const r = await vm.run(['dhclient', '-v', '-1', '-lf', file, '-pf', pid, '-sf', '/bin/true', 'eth0'])
    assert.equal(r.code, 0, r.all)
    await vm.sh(`kill $(cat ${pid})`)
    return { said: r.all, file: readFileSync(file, 'utf8') }
  }

  test('dhclient comes back with its address: confirmed without an offer', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 20)
    const { said } = await dhclient(vm, '192.168.104.20')
    assert.match(said, /DHCPACK of 192\.168\.104\.20/)
    assert.doesNotMatch(said, /DHCPOFFER/)
    assert.equal((await lease(20))?.state, 'bound')
  })

  test('dhclient comes back with an address of another time: refused, and given its own at once', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 21)
    const { said, file } = await dhclient(vm, '192.168.104.99')
    assert.match(said, /DHCPNAK/)
    assert.match(said, /bound to 192\.168\.104\.21/)
    assert.match(file, /option dhcp-server-identifier 192\.168\.104\.2;/)
    assert.equal((await lease(21))?.state, 'bound')
  })

  const dhcpcd = (vm: Place, conf: string, ...argv: string[]) => {
    const path = join(lab.dir, `${vm.name}.conf`)
    writeFileSync(path, `ipv4only\nnoipv4ll\nnohook resolv.conf, hostname\n${conf}\n`)
    const run = ['dhcpcd', '-d', '-1', '-B', '-t', '15', '-f', path, '-c', '/usr/bin/env', ...argv, 'eth0'].join(' ')
    const script = `mkdir -p /run/dhcpcd; mount -t tmpfs none /run/dhcpcd; mount -t tmpfs none /var/lib/dhcpcd; ${run}; ip -4 route`
    return vm.run(['unshare', '-m', 'sh', '-c', script], { timeoutMs: 40_000 })
  }

  test('dhcpcd commits rapidly and takes the default route from option 121', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 22)
    const r = await dhcpcd(vm, 'option rapid_commit, classless_static_routes, interface_mtu\nnoarp')
    assert.match(r.all, /leased 192\.168\.104\.22 for 600 seconds/)
    assert.doesNotMatch(r.all, /offered/)
    assert.match(r.all, /new_classless_static_routes=0\.0\.0\.0\/0 192\.168\.104\.1/)
    assert.match(r.all, /default via 192\.168\.104\.1/)
  })

  test('dhcpcd, with an address of its own, asks for parameters only', async () => {
    const vm = lab.guest()
    await agent.attach(net, vm, 23)
    await vm.sh('ip addr add 192.168.104.23/24 dev eth0; ip link set eth0 up')
    const r = await dhcpcd(vm, 'option domain_name_servers\nnoarp', '-s', '192.168.104.23/24')
    assert.match(r.all, /received approval for 192\.168\.104\.23|acknowledged 192\.168\.104\.23/, r.all)
    assert.match(r.all, /new_domain_name_servers=192\.168\.104\.2/)
    assert.equal((await lease(23))?.state, 'reserved')
  })

  test('what each client was told is what the daemon hears', async () => {
    await eventually('three leases', () => {
      const bound = new Set(agent.events.flatMap((e) => (e.type === 'lease' && e.state === 'bound' ? [e.address] : [])))
      return [20, 21, 22].every((n) => bound.has(`192.168.104.${n}`)) && !bound.has('192.168.104.23')
    })
  })
})
