/** DHCPv6 with the clients that people have: an address, one that comes back, two messages instead of four, parameters alone. */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { type Agent, dual } from './agent-client.ts'
import { EXAMPLE6, eventually, Lab, missing, type Place } from './lab.ts'

const net = dual(116, { config: { leaseSeconds: 600 } })
const P = 'fd00:77:0:74'
let lab: Lab
let agent: Agent

describe('DHCPv6 clients', { skip: missing('dhclient', 'dhcpcd') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
  })
  after(async () => {
    await lab?.remove()
  })
  const lease = async (last: number) => (await agent.stats(net.id)).leases.find((l) => l.address === `${P}::${last}`)

  /** A guest whose nic is up and has its link-local address. */
  const guest = async (last: number): Promise<Place> => {
    const vm = lab.guest()
    await agent.attach(net, vm, last)
    await vm.sh('ip link set eth0 up')
    await eventually('a link-local address', async () => {
      const out = await vm.sh('ip -6 -o addr show dev eth0 scope link')
      return out !== '' && !out.includes('tentative')
    })
    return vm
  }

  /** What dhclient calls: it takes the address as the kernel would, on a prefix of its own. */
  const hook = (): string => {
    const path = join(lab.dir, 'hook6.sh')
    const text = `#!/bin/sh
case "$reason" in
  BOUND6|REBIND6) ip -6 addr replace "$new_ip6_address/128" dev "$interface" nodad ;;
esac
env | grep -E '^(reason|new_)' >>"${join(lab.dir, 'hook6.log')}"
exit 0
`
    writeFileSync(path, text, { mode: 0o755 })
    return path
  }
  const dhclient = async (vm: Place, ...argv: string[]): Promise<{ said: string; file: string; told: string }> => {
    const file = join(lab.dir, `${vm.name}.leases6`)
    const pid = join(lab.dir, `${vm.name}.pid6`)
    writeFileSync(join(lab.dir, 'hook6.log'), '')
    const run = ['dhclient', '-6', '-v', '-1', '-lf', file, '-pf', pid, '-sf', hook(), ...argv, 'eth0']
    const r = await vm.run(run)
    assert.equal(r.code, 0, r.all)
    await vm.run(['sh', '-c', `kill $(cat ${pid})`])
    const text = readFileSync(file, { encoding: 'utf8', flag: 'a+' })
    return { said: r.all, file: text, told: readFileSync(join(lab.dir, 'hook6.log'), 'utf8') }
  }

  test('dhclient gets the reserved address, the name server and the search list, and can use them', async () => {
    const vm = await guest(20)
    const { said, told } = await dhclient(vm)
    assert.match(said, /RCV: Advertise message/)
    assert.match(told, new RegExp(`new_ip6_address=${P}::20`))
    assert.match(told, new RegExp(`new_dhcp6_name_servers=${P}::2`))
    assert.match(told, /new_dhcp6_domain_search=noid\.internal/)
    assert.match(told, /new_max_life=600/)
    assert.equal((await lease(20))?.state, 'bound')
    await eventually(
      'it is heard',
      async () => (await vm.run(['ping', '-6', '-c1', '-W1', '-I', `${P}::20`, EXAMPLE6])).code === 0,
    )
    // It comes back, as after a restart, and is told where it is.
    const again = await dhclient(vm)
    assert.match(again.said, /XMT: Confirm on eth0.*RCV: Reply message.*status code Success/is)
  })

  test('dhclient releases it', async () => {
    const vm = await guest(21)
    await dhclient(vm)
    assert.equal((await lease(21))?.state, 'bound')
    await vm.run([
      'dhclient',
      '-6',
      '-v',
      '-r',
      '-lf',
      join(lab.dir, `${vm.name}.leases6`),
      '-pf',
      join(lab.dir, 'none.pid'),
      '-sf',
      hook(),
      'eth0',
    ])
    await eventually('released', async () => (await lease(21))?.state === 'reserved')
  })

  test('dhclient asks for parameters only', async () => {
    const vm = await guest(22)
    const { told } = await dhclient(vm, '-S')
    assert.match(told, new RegExp(`new_dhcp6_name_servers=${P}::2`))
    assert.equal((await lease(22))?.state, 'reserved')
  })

  test('dhclient wants a prefix as well: the address it gets, the prefix is refused', async () => {
    const vm = await guest(23)
    const { said, told } = await dhclient(vm, '-N', '-P')
    assert.match(told, new RegExp(`new_ip6_address=${P}::23`))
    assert.match(said, /Status code of no prefix, IA_PD discarded/)
  })

  /** dhcpcd until the address is there: asked to end by itself (-1), it would do so after the router alone. */
  const dhcpcd = (vm: Place, conf: string, address: string) => {
    const path = join(lab.dir, `${vm.name}.conf`)
    writeFileSync(path, `ipv6only\nduid ll\nnohook resolv.conf, hostname\n${conf}\n`)
    const run = ['dhcpcd', '-d', '-B', '-t', '30', '-f', path, '-c', '/bin/true', 'eth0'].join(' ')
    const script = `mkdir -p /run/dhcpcd; mount -t tmpfs none /run/dhcpcd; mount -t tmpfs none /var/lib/dhcpcd
      ${run} & n=0
      until ip -6 addr show dev eth0 | grep -q '${address}/128' || [ $n -ge 300 ]; do n=$((n+1)); sleep 0.1; done
      ip -6 addr; ip -6 route; kill $!; wait`
    return vm.run(['unshare', '-m', 'sh', '-c', script], { timeoutMs: 60_000 })
  }

  test('dhcpcd hears the router, commits rapidly, and has a way out', async () => {
    const vm = await guest(24)
    const r = await dhcpcd(vm, 'option rapid_commit, dhcp6_name_servers, dhcp6_domain_search\nia_na', `${P}::24`)
    assert.match(r.all, /Router Advertisement from fe80::1/, r.all)
    assert.match(r.all, /REPLY6 received from fe80::1/, r.all)
    assert.match(r.all, new RegExp(`adding address ${P}::24/128`), r.all)
    assert.match(r.all, /default via fe80::1 dev eth0/)
    assert.equal((await lease(24))?.state, 'bound')
  })

  test('what each client was told is what the daemon hears', async () => {
    await eventually('leases', () => {
      const bound = new Set(agent.events.flatMap((e) => (e.type === 'lease' && e.state === 'bound' ? [e.address] : [])))
      return [20, 21, 23, 24].every((n) => bound.has(`${P}::${n}`)) && !bound.has(`${P}::22`)
    })
  })
})
