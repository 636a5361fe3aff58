/**
 * Who reaches whom on kernel bridges: the table of DESIGN 6a, by address, by gateway and by route, between bridges and with a userspace network beside
 * them, whatever bridge-nf-call-iptables says and with a FORWARD policy of ACCEPT; what a port may not send; the path's MTU.
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Agent, network } from './agent-client.ts'
import { EXAMPLE, eventually, Lab, missing, type Place } from './lab.ts'

const one = network(123, { allowHostPorts: [9100] })
const two = network(124)
const apart = network(125, { name: 'isolated', isolated: true })
const user = network(126)
let lab: Lab
let agent: Agent
let other: Agent
const vm: Record<string, Place> = {}
const PLACES = [
  ['a', one, 10],
  ['b', one, 11],
  ['c', two, 10],
  ['x', apart, 10],
  ['y', apart, 11],
  ['u', user, 10],
] as const

/** Frames by hand: python3 has packet sockets, and a guest may have python3. */
const RAW = `
import socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
mac = lambda t: bytes.fromhex(t.replace(':', ''))
ip = lambda t: socket.inet_aton(t)
def csum(b):
    n = sum(struct.unpack('!%dH' % (len(b) // 2), b)); n = (n >> 16) + (n & 0xffff); return ~(n + (n >> 16)) & 0xffff
def ipv4(src, dst, proto, payload):
    h = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(payload), 1, 0, 64, proto, 0, ip(src), ip(dst))
    return h[:10] + struct.pack('!H', csum(h)) + h[12:] + payload
def udp(sport, dport, data=b'x'): return struct.pack('!HHHH', sport, dport, 8 + len(data), 0) + data
def eth(dst, src, kind, payload): s.send(mac(dst) + mac(src) + struct.pack('!H', kind) + payload)
def arp(op, smac, sip, tip): return struct.pack('!HHBBH6s4s6s4s', 1, 0x800, 6, 4, op, mac(smac), ip(sip), b'\\0' * 6, ip(tip))
`

describe('reach on bridges', {
  skip: missing(
    'ping',
    'socat',
    'curl',
    'python3',
    'iptables-restore',
    'ebtables-restore',
    'bridge',
    'conntrack',
    'tcpdump',
  ),
}, () => {
  before(async () => {
    lab = await Lab.create()
    await lab.host.sh('iptables -P FORWARD ACCEPT')
    agent = lab.agent(undefined, 'bridge')
    other = lab.agent(`${lab.dir}/other`)
    await Promise.all([one, two, apart].map((n) => agent.createNetwork(n)))
    await other.createNetwork(user)
    for (const [name, n, last] of PLACES) {
      vm[name] = lab.guest(name)
      await (n === user ? other : agent).join(n, vm[name] as Place, last)
    }
    const greet = (where: Place, address: string, port: number) =>
      where.start(['socat', `TCP-LISTEN:${port},bind=${address},fork,reuseaddr`, 'SYSTEM:echo here'])
    greet(lab.host, '0.0.0.0', 9000)
    greet(lab.host, '127.0.0.1', 9100)
    greet(lab.host, '127.0.0.1', 9200)
    for (const p of Object.values(vm)) greet(p, '0.0.0.0', 80)
    for (const p of Object.values(vm)) await eventually('it listens', async () => (await p.sh('ss -Hlnt')) !== '')
  })
  after(async () => {
    // Claims of switches are kept outside the laboratory.
    for (const n of [one, two, apart]) await agent?.deleteNetwork(n.id)
    await lab?.remove()
  })
  const at = (name: string) => vm[name] as Place
  const localnet = (gateway: string) =>
    lab.host.sh(`cat /proc/sys/net/ipv4/conf/$(ip -o addr show to ${gateway} | awk '{print $2}')/route_localnet`)
  const reaches = async (from: Place, address: string, port: number) =>
    (
      await from.run(['socat', '-T1', '-', `TCP:${address}:${port},connect-timeout=1`], { timeoutMs: 15_000 })
    ).stdout.trim() === 'here'
  const pings = async (from: Place, address: string, ...more: string[]) =>
    (await from.run(['ping', '-c1', '-W1', ...more, address], { timeoutMs: 15_000 })).code === 0
  // What must work may take its time on a busy machine; what must not is asked once.
  const answers = (from: Place, address: string, ...more: string[]) =>
    eventually(`${address} answers`, () => pings(from, address, ...more))
  const serves = (from: Place, address: string, port: number) =>
    eventually(`${address}:${port} serves`, () => reaches(from, address, port))
  /** All of these at once: what is refused may take its second. */
  const none = async (tries: readonly (readonly [who: string, address: string, port: number])[]) => {
    const got = await Promise.all(
      tries.map(async ([who, address, port]) => {
        const from = who === 'host' ? lab.host : at(who)
        const did = port === 0 ? await pings(from, address) : await reaches(from, address, port)
        return did ? [`${who} → ${address}:${port}`] : []
      }),
    )
    assert.deepEqual(got.flat(), [])
  }
  const drops = async (n = one) => (await agent.stats(n.id)).drops

  for (const nf of ['1', '0'])
    describe(`bridge-nf-call-iptables ${nf}`, () => {
      before(async () => {
        // Absent where br_netfilter is not loaded: then frames of bridges never come by iptables.
        await lab.host.run(['sh', '-c', `echo ${nf} >/proc/sys/net/bridge/bridge-nf-call-iptables`])
      })

      test('VMs of one network, the gateway, the services, the outside, the host', async () => {
        assert.ok(await serves(at('a'), '192.168.123.11', 80))
        assert.ok(await answers(at('b'), '192.168.123.10'))
        for (const to of ['192.168.123.1', '192.168.123.2', '8.8.8.8', EXAMPLE])
          assert.ok(await answers(at('a'), to), to)
        for (const from of ['a', 'c', 'x'])
          assert.equal(await at(from).sh('curl -sS --max-time 30 http://example.com/'), 'hello 10.77.0.2', from)
        assert.ok(await serves(at('a'), '10.77.0.2', 9000))
        assert.ok(await serves(at('a'), '192.168.123.254', 9000))
        assert.ok(await serves(lab.host, '192.168.123.10', 80), 'the host reaches the VM')
      })

      test("the host's loopback only where it was allowed; link-local never", async () => {
        assert.ok(await serves(at('a'), '192.168.123.254', 9100), 'allowed')
        await lab.host.sh('ip addr replace 169.254.169.254/32 dev lo')
        await none([
          ['a', '192.168.123.254', 9200],
          ['c', '192.168.124.254', 9100],
          ['a', '127.0.0.1', 9100],
          ['a', '169.254.169.254', 9000],
        ])
      })

      test('another network never: by address, by gateways, by routes; the userspace network neither, both ways', async () => {
        await at('a').sh(
          'for n in 124 125 126; do ip route replace 192.168.$n.0/24 via 192.168.123.1; done; ip route replace 192.168.125.0/24 via 192.168.123.254',
        )
        await at('u').sh('for n in 123 124 125; do ip route replace 192.168.$n.0/24 via 192.168.126.1; done')
        await none([
          ['a', '192.168.124.10', 80],
          ['a', '192.168.124.10', 0],
          ['a', '192.168.124.1', 9000],
          ['a', '192.168.124.1', 0],
          ['a', '192.168.124.254', 9000],
          ['a', '192.168.125.10', 80],
          ['a', '192.168.126.10', 80],
          ['a', '192.168.126.254', 9000],
          ['a', '192.168.126.10', 0],
          ['u', '192.168.123.10', 80],
          ['u', '192.168.123.10', 0],
          ['u', '192.168.123.1', 9000],
          ['u', '192.168.123.254', 9000],
          ['u', '192.168.125.10', 80],
        ])
      })

      test('an address of the host is refused until it is known whose it is: a new noid link never answers, a new one outside soon', async () => {
        await lab.host.run(['ip', 'link', 'delete', 'noid99'])
        const knocks = at('a').sh(
          'for i in $(seq 25); do socat -T1 - TCP:192.168.199.254:9000,connect-timeout=0.1 2>/dev/null || true; sleep 0.1; done; echo knocked',
        )
        await lab.host.sh(
          'ip tuntap add noid99 mode tap; ip link set noid99 up; ip addr add 192.168.199.254/24 dev noid99',
        )
        assert.equal(await knocks, 'knocked')
        await lab.host.sh('ip link delete noid99; ip addr replace 10.66.0.1/32 dev lo; sleep 0.1')
        assert.ok(await serves(at('a'), '10.66.0.1', 9000))
        await lab.host.sh('ip addr del 10.66.0.1/32 dev lo')
      })

      test('from isolated: the outside and nothing else', async () => {
        await at('x').sh('ip route replace 192.168.125.11 via 192.168.125.1')
        await none([
          ['x', '192.168.125.11', 80],
          ['x', '192.168.125.11', 0],
          ['x', '10.77.0.2', 9000],
          ['x', '10.77.0.2', 0],
          ['x', '192.168.125.254', 9000],
          ['x', '192.168.125.1', 9000],
          ['x', '192.168.123.10', 80],
          ['x', '192.168.126.254', 9000],
          ['host', '192.168.125.10', 80],
          ['host', '192.168.125.10', 0],
        ])
        await at('x').sh('ip route del 192.168.125.11')
        await none([
          ['x', '192.168.125.11', 80],
          ['x', '192.168.125.11', 0],
        ])
      })
    })

  test('isolated VMs do not see each other on the wire: ARP, broadcast, IPv6', async () => {
    const seen = await at('y').tcpdump('-ei', 'eth0', '-Q', 'in')
    assert.ok(await answers(at('y'), '192.168.125.1'))
    await at('x').sh('ip neigh flush dev eth0')
    await at('x').run(['ping', '-c1', '-W1', '192.168.125.11'])
    await at('x').run(['ping', '-b', '-c1', '-W1', '192.168.125.255'])
    await at('x').run(['ping', '-6', '-c1', '-W1', 'ff02::1%eth0'])
    const mac = await at('x').sh('cat /sys/class/net/eth0/address')
    const gateway = /192\.168\.125\.1 > 192\.168\.125\.11/
    const said = await seen.end(gateway)
    assert.match(said, gateway, 'the tap works')
    assert.doesNotMatch(said, new RegExp(mac))
    const details = await lab.host.sh('bridge -d link show')
    assert.equal(details.match(/isolated on/g)?.length, 2, details)
  })

  test('nobody reaches 127.0.0.1 of the host while route_localnet is on: neither a VM nor the outside (CVE-2020-8558)', async () => {
    assert.equal(await localnet('192.168.123.1'), '1')
    assert.equal(await localnet('192.168.124.1'), '0', 'nothing of it needs the loopback')
    const mac = (await at('a').sh('ping -c1 -w20 192.168.123.1 >/dev/null; ip neigh show 192.168.123.1')).split(' ')[4]
    const own = await at('a').sh('cat /sys/class/net/eth0/address')
    const { child, said } = lab.host.hear(['socat', '-u', 'UDP-RECV:7000,bind=127.0.0.1', '-'])
    await eventually('it listens', async () => (await lab.host.sh('ss -Hlnu sport = 7000')) !== '')
    await at('a').sh(
      `python3 -c "${RAW}\neth('${mac}', '${own}', 0x800, ipv4('192.168.123.10', '127.0.0.1', 17, udp(5, 7000, b'guest')))"`,
    )
    const upstream = (await lab.router.sh('ping -c1 -w20 10.77.0.2 >/dev/null; ip neigh show 10.77.0.2')).split(' ')[4]
    const routers = await lab.router.sh('cat /sys/class/net/down0/address')
    await lab.router.sh(
      `python3 -c "${RAW.replace("'eth0'", "'down0'")}\neth('${upstream}', '${routers}', 0x800, ipv4('10.77.0.1', '127.0.0.1', 17, udp(5, 7000, b'outside')))"`,
    )
    await lab.host.sh('printf own | socat -u - UDP:127.0.0.1:7000')
    await eventually('it hears the host itself', () => said.out.includes('own'))
    await sleep(1000)
    child.kill('SIGKILL')
    assert.equal(said.out, 'own')
  })

  test('the guard: MAC, address, ARP, DHCP answers, redirects, IPv6; each refused and counted', async () => {
    const own = await at('b').sh('cat /sys/class/net/eth0/address')
    const a = await at('a').sh('cat /sys/class/net/eth0/address')
    const all = 'ff:ff:ff:ff:ff:ff'
    const seen = await at('a').tcpdump('-Ai', 'eth0', '-Q', 'in')
    await at('b').sh(`python3 -c "${RAW}
eth('${a}', '${own}', 0x800, ipv4('192.168.123.11', '192.168.123.10', 17, udp(5, 6, b'HONEST')))
eth('${a}', '02:00:00:00:00:99', 0x800, ipv4('192.168.123.11', '192.168.123.10', 17, udp(5, 6, b'FORGED')))
eth('${a}', '${own}', 0x800, ipv4('192.168.123.77', '192.168.123.10', 17, udp(5, 6, b'FORGED')))
eth('${a}', '${own}', 0x800, ipv4('192.168.123.11', '192.168.123.10', 17, udp(67, 68, b'FORGED')))
eth('${a}', '${own}', 0x800, ipv4('192.168.123.11', '192.168.123.10', 1, bytes([5, 1, 0, 0]) + b'FORGED'))
eth('${all}', '${own}', 0x806, arp(2, '${own}', '192.168.123.1', '192.168.123.10'))
eth('${all}', '${own}', 0x806, arp(1, '02:00:00:00:00:98', '192.168.123.11', '192.168.123.10'))
eth('${all}', '${own}', 0x86dd, b'FORGED' * 10)
"`)
    const said = await seen.end(/HONEST/)
    assert.match(said, /HONEST/, 'the tap works')
    assert.doesNotMatch(said, /FORGED/)
    assert.doesNotMatch(said, /192\.168\.123\.1 is-at/)
    const rows = (await drops()).filter((d) => d.vm === 'b')
    for (const reason of [
      'guard-mac',
      'guard-address',
      'guard-arp',
      'guard-dhcp-server',
      'guard-redirect',
      'ethertype',
    ])
      assert.ok(
        rows.some((d) => d.reason === reason && d.count > 0 && d.meaning !== ''),
        `${reason}: ${JSON.stringify(rows)}`,
      )
    assert.ok(await answers(at('b'), '192.168.123.1'), 'b itself goes on')
  })

  test('a VM that takes the MAC of another does not take its traffic, and it is reported', async () => {
    const own = await at('b').sh('cat /sys/class/net/eth0/address')
    const mac = await at('a').sh('cat /sys/class/net/eth0/address')
    await at('b').sh(`ip link set eth0 address ${mac}`)
    await at('b').run(['ping', '-c3', '-i0.2', '-W1', '192.168.123.1'])
    for (let i = 0; i < 5; i++) assert.ok(await answers(at('a'), '8.8.8.8'))
    assert.ok(await serves(lab.host, '192.168.123.10', 80))
    const { warnings } = await agent.stats(one.id)
    assert.match(warnings.join('\n'), new RegExp(`b sends from MAC ${mac}, which belongs to a`))
    assert.ok(agent.events.some((e) => e.type === 'warning' && e.message.includes(mac)))
    await at('b').sh(`ip link set eth0 address ${own}; ip route replace default via 192.168.123.1`)
    await eventually('b is back', () => pings(at('b'), '192.168.123.1'))
  })

  test('counters of a port outlive the attaches of others', async () => {
    const before = (await drops()).find((d) => d.vm === 'b' && d.reason === 'guard-mac')?.count ?? 0
    assert.ok(before > 0)
    const late = lab.guest('late')
    await agent.join(one, late, 12)
    assert.ok(((await drops()).find((d) => d.vm === 'b' && d.reason === 'guard-mac')?.count ?? 0) >= before)
    await agent.detach(`${one.id}-12`, one.id)
    assert.ok(((await drops()).find((d) => d.vm === 'b' && d.reason === 'guard-mac')?.count ?? 0) >= before)
  })

  test('the path is shorter than guests believe: the MSS is clamped, and "do not fragment" is answered', async () => {
    const r = await at('a').run(['ping', '-M', 'do', '-c1', '-W10', '-s', '1472', '8.8.8.8'])
    assert.match(r.all, /Frag needed and DF set \(mtu = 1400\)|message too long, mtu[:=] ?1400/)
    const seen = await lab.inet.tcpdump('-v', 'tcp[tcpflags] & tcp-syn != 0 and dst port 80')
    const size = await at('b').sh(`curl -sS --max-time 60 http://${EXAMPLE}/bytes/3000000 | wc -c`)
    assert.equal(size, '3000000')
    assert.match(await seen.end(/mss/), /mss 1360/)
    const up = await at('b').sh(
      `head -c 3000000 /dev/zero | curl -sS --max-time 60 --data-binary @- http://${EXAMPLE}/hash`,
    )
    assert.match(up, /[0-9a-f]{64}/)
  })
})
