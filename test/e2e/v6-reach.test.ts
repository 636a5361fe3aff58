/** IPv6 as a guest's own programs see it: how it configures itself, whom it reaches, and whom it never does. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Agent, dual } from './agent-client.ts'
import { DNS6, EXAMPLE6, eventually, HOST6, Lab, missing, type Place } from './lab.ts'

const one = dual(113, { allowHostPorts: [9100] })
const two = dual(114)
const apart = dual(115, { name: 'isolated', isolated: true })
const P1 = 'fd00:77:0:71'
const P2 = 'fd00:77:0:72'
const P3 = 'fd00:77:0:73'
let lab: Lab
let agent: Agent
const vm: Record<string, Place> = {}
/** A guest that is given nothing by hand: its kernel listens to the router. */
let auto: Place
const EUI64 = `${P1}:5054:ff:fe00:1401`

describe('IPv6: reach', {
  skip: missing('ping', 'traceroute', 'tracepath', 'rdisc6', 'ndisc6', 'socat', 'curl', 'ss'),
}, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    for (const n of [one, two, apart]) await agent.createNetwork(n)
    for (const [name, n, last] of [
      ['a', one, 10],
      ['b', one, 11],
      ['c', two, 10],
      ['x', apart, 10],
      ['y', apart, 11],
    ] as const) {
      vm[name] = lab.guest(name)
      await agent.join(n, vm[name] as Place, last)
    }
    auto = lab.guest('auto')
    await agent.attach(one, auto, 20)
    await auto.sh('ip link set eth0 up')
    const greet = (where: Place, address: string, port: number) =>
      where.start(['socat', `TCP6-LISTEN:${port},bind=[${address}],fork,reuseaddr,ipv6only=1`, 'SYSTEM:echo here'])
    greet(lab.host, '::', 9000)
    greet(lab.host, '::1', 9200)
    // What --allow-host opens is the host's 127.0.0.1, whichever family asks.
    lab.host.start(['socat', 'TCP4-LISTEN:9100,bind=127.0.0.1,fork,reuseaddr', 'SYSTEM:echo here'])
    for (const p of Object.values(vm)) greet(p, '::', 80)
    await eventually('services are up', async () => Number(await lab.host.sh('ss -Hlnt | wc -l')) >= 3)
    await eventually('services are up', async () => (await (vm.y as Place).sh('ss -Hlnt | wc -l')) === '1')
  })
  after(async () => {
    await lab?.remove()
  })
  const at = (name: string) => vm[name] as Place
  const reaches = async (from: Place, address: string, port: number) =>
    (
      await from.run(['socat', '-T2', '-', `TCP6:[${address}]:${port},connect-timeout=2`], { timeoutMs: 15_000 })
    ).stdout.trim() === 'here'
  const pings = async (from: Place, address: string, ...more: string[]) =>
    (await from.run(['ping', '-6', '-c1', '-W1', ...more, address], { timeoutMs: 15_000 })).code === 0
  const answers = (from: Place, address: string, ...more: string[]) =>
    eventually(`${address} answers`, () => pings(from, address, ...more))
  const serves = (from: Place, address: string, port: number) =>
    eventually(`${address}:${port} serves`, () => reaches(from, address, port))

  test('the kernel configures itself: an address by SLAAC, a default route, the MTU', async () => {
    const addresses = await eventually('an address', async () => {
      const out = await auto.sh('ip -6 -o addr show dev eth0')
      return out.includes(EUI64) && !/tentative/.test(out) ? out : ''
    })
    assert.match(addresses, /inet6 fe80::/)
    assert.match(await auto.sh('ip -6 route show default'), /default via fe80::.* dev eth0 proto ra/)
    assert.equal(await auto.sh('cat /proc/sys/net/ipv6/conf/eth0/mtu'), '1500')
    assert.ok(await answers(auto, EXAMPLE6))
    assert.equal(await auto.sh(`curl -6 -sS --max-time 30 http://[${EXAMPLE6}]/`), `hello ${HOST6}`)
  })

  test('rdisc6 is told everything; ndisc6 finds the gateway, the services, a neighbour and the host', async () => {
    const ra = await auto.sh('rdisc6 -1 -r5 -w2000 eth0')
    assert.match(ra, new RegExp(`Prefix +: ${P1}::/64`))
    assert.match(ra, /On-link +: +Yes/)
    assert.match(ra, /Autonomous address conf\.: +Yes/)
    assert.match(ra, /Stateful address conf\. +: +Yes/)
    assert.match(ra, /MTU +: +1500 bytes/)
    assert.match(ra, new RegExp(`Recursive DNS server +: ${P1}::2`))
    assert.match(ra, /DNS search list +: noid\.internal/)
    assert.match(ra, /Source link-layer address: 02:6E:/)
    for (const a of [1, 2, 11, 254])
      assert.match(await at('a').sh(`ndisc6 -1 -q -r5 -w2000 ${P1}::${a} eth0`), /^([0-9A-F]{2}:){5}[0-9A-F]{2}$/)
  })

  test('ping: the gateway, the services, the host, the internet; in fragments too', async () => {
    for (const to of [`${P1}::1`, `${P1}::2`, `${P1}::254`, DNS6, EXAMPLE6]) assert.ok(await answers(at('a'), to), to)
    assert.match(await at('a').sh(`ping -6 -c20 -i0.02 -W10 -s1200 ${DNS6}`), /20 received, 0% packet loss/)
    for (const to of [`${P1}::1`, DNS6]) assert.ok(await answers(at('a'), to, '-s', '4000', '-M', 'dont'), to)
  })

  test('the path is shorter than the guest believes: packet too big, with its MTU', async () => {
    const r = await at('a').run(['ping', '-6', '-M', 'do', '-c2', '-W10', '-s', '1450', DNS6])
    assert.match(r.all, /Packet too big.*mtu[ =:]*1400|message too long, mtu[:=] ?1400/, r.all)
    assert.ok(await answers(at('a'), DNS6, '-M', 'do', '-s', '1352'))
    const found = await at('b').sh(`tracepath -6 -n -m 6 ${EXAMPLE6}`)
    assert.match(found, new RegExp(`1: +${P1}::1|1\\?: \\[LOCALHOST\\]`))
    assert.match(found, /pmtu 1400/)
    assert.match(found, new RegExp(`${EXAMPLE6}.*reached`))
  })

  test('traceroute shows the hops, by UDP, by ICMPv6 and by TCP', async () => {
    for (const how of ['', '-I', '-T -p 80']) {
      const out = await at('a').sh(`traceroute -6 -n -q1 -w10,0,0 -m6 ${how} ${DNS6}`)
      const hops = out
        .split('\n')
        .slice(1)
        .map((l) => l.trim().split(/\s+/)[1])
      // A TCP connection is the relay's: it ends where the host's does.
      if (how.startsWith('-T')) assert.deepEqual([hops[0], hops.at(-1)], [`${P1}::1`, DNS6], out)
      else assert.deepEqual(hops, [`${P1}::1`, '2001:db8:77::1', DNS6], out)
    }
  })

  test('a closed port and a host that is not there are said as what they are, at once', async () => {
    const refused = await at('a').run(['curl', '-6', '-sS', '--max-time', '30', `http://[${EXAMPLE6}]:99/`])
    assert.equal(refused.code, 7, refused.all)
    const udp = await at('a').run(['socat', '-t5', '-', `UDP6:[${EXAMPLE6}]:99`], {
      input: 'anybody?',
      timeoutMs: 20_000,
    })
    assert.match(udp.stderr, /refused/)
    await lab.router.sh('ip route replace unreachable 2001:db8:dead::/48')
    const r = await at('a').run(['ping', '-6', '-c3', '-i0.5', '-W3', '2001:db8:dead::1'])
    assert.match(r.stdout, /unreachable/i)
  })

  test('VMs of one network reach each other, by any of their addresses', async () => {
    assert.ok(await serves(at('a'), `${P1}::11`, 80))
    assert.ok(await answers(at('b'), EUI64))
    assert.ok(await answers(auto, `${P1}::10`))
    const local = /fe80:[0-9a-f:]+/.exec(await at('b').sh('ip -6 -o addr show dev eth0 scope link'))?.[0] as string
    assert.ok(await answers(at('a'), `${local}%eth0`))
  })

  test('VMs of different networks never do: by address, by gateway, by the host', async () => {
    assert.ok(!(await reaches(at('a'), `${P2}::10`, 80)))
    assert.ok(!(await pings(at('a'), `${P2}::10`)))
    for (const via of [`${P1}::1`, `${P1}::254`, `${P1}::11`]) {
      await at('a').sh(`ip route replace ${P2}::/64 via ${via}`)
      assert.ok(!(await reaches(at('a'), `${P2}::10`, 80)), via)
      assert.ok(!(await pings(at('a'), `${P2}::10`)), via)
    }
    await at('a').sh(`ip route del ${P2}::/64`)
    for (const other of [`${P2}::1`, `${P2}::254`]) assert.ok(!(await reaches(at('a'), other, 9000)), other)
  })

  test('the host: its services on its own addresses; its loopback only by --allow-host', async () => {
    for (const a of [HOST6, `${P1}::254`]) assert.ok(await serves(at('a'), a, 9000), a)
    assert.ok(await serves(at('a'), `${P1}::254`, 9100))
    assert.ok(!(await reaches(at('a'), `${P1}::254`, 9200)))
    assert.ok(!(await reaches(at('a'), '::1', 9200)))
    // As a name of the loopback that the guest's own kernel lets out.
    await at('a').sh(`ip route add 2001:db8:77::/64 via ${P1}::1`)
    assert.ok(!(await reaches(at('a'), HOST6, 9200)))
    await at('a').sh('ip route del 2001:db8:77::/64')
  })

  test('the host reaches VMs by address, from its own on that network, also when they are only heard by SLAAC', async () => {
    assert.ok(await serves(lab.host, `${P1}::10`, 80))
    assert.ok(await answers(lab.host, EUI64))
    const nic = await lab.host.sh(`ip -6 -o addr show to ${P1}::254`)
    assert.match(nic, /noid\d+ +inet6 fd00:77:0:71::254\/64/)
    assert.doesNotMatch(nic, /tentative/)
    // Nobody hears the host's kernel on a VM's link, and it hears no router there.
    const ifname = /noid\d+/.exec(nic)?.[0] as string
    assert.doesNotMatch(await lab.host.sh(`ip -6 addr show dev ${ifname}`), /fe80|proto kernel_ra/)
    assert.doesNotMatch(await lab.host.sh('ip -6 route show default'), /noid/)
  })

  test('the host forwards nothing in or out, although its kernel forwards', async () => {
    assert.equal(await lab.host.sh('cat /proc/sys/net/ipv6/conf/all/forwarding'), '1')
    await lab.router.sh(`ip route replace ${P1}::/64 via ${HOST6}`)
    assert.ok(!(await pings(lab.router, `${P1}::10`)))
    assert.ok(!(await reaches(lab.router, `${P1}::10`, 80)))
    await lab.router.sh(`ip route del ${P1}::/64`)
    // By the host's MAC, to the outside and to another network.
    await at('a').sh(`ip route replace ${EXAMPLE6} via ${P1}::254`)
    assert.ok(!(await pings(at('a'), EXAMPLE6)))
    await at('a').sh(`ip route del ${EXAMPLE6}`)
  })

  test('isolated: outside yes, everybody else no, link-local too', async () => {
    assert.ok(await answers(at('x'), EXAMPLE6))
    assert.equal(await at('x').sh(`curl -6 -sS --max-time 30 http://[${EXAMPLE6}]/`), `hello ${HOST6}`)
    const local = /fe80:[0-9a-f:]+/.exec(await at('y').sh('ip -6 -o addr show dev eth0 scope link'))?.[0] as string
    for (const to of [`${P3}::11`, `${local}%eth0`, HOST6, `${P3}::254`, `${P1}::10`])
      assert.ok(!(await pings(at('x'), to)), to)
    for (const to of [`${P3}::11`, HOST6, `${P3}::254`]) assert.ok(!(await reaches(at('x'), to, 80)), to)
    assert.ok(!(await reaches(at('x'), HOST6, 9000)))
  })

  test('addresses that lead nowhere never leave', async () => {
    const dump = await lab.host.tcpdump('-i', 'uplink', 'ip6')
    const nowhere = ['ff0e::1', 'fe80::1', '::ffff:10.77.0.1', '::10.77.0.1']
    for (const to of nowhere) await reaches(at('a'), to, 80)
    for (const to of nowhere) await pings(at('a'), to)
    assert.ok(await answers(at('a'), EXAMPLE6))
    const seen = await dump.end(new RegExp(`> ${EXAMPLE6}`))
    assert.match(seen, new RegExp(`> ${EXAMPLE6}`))
    assert.doesNotMatch(seen, /> (ff0e|fe80::1[: ]|::ffff|::10|::a4d)/)
  })

  test('what a VM may not say is counted, and nobody hears it', async () => {
    const before = JSON.stringify((await agent.stats(one.id)).drops)
    // Another's address, and an advertisement of a router.
    await at('b').sh(
      `ip addr add ${P1}::10/128 dev eth0 nodad; ping -6 -c1 -W1 -I ${P1}::10 ${EXAMPLE6} || true; ip addr del ${P1}::10/128 dev eth0`,
    )
    assert.ok(await answers(at('a'), EXAMPLE6))
    const after = (await agent.stats(one.id)).drops
    assert.notEqual(JSON.stringify(after), before)
    assert.ok(
      after.some((d) => d.vm === 'b' && d.reason === 'guard-address'),
      JSON.stringify(after),
    )
  })
})
