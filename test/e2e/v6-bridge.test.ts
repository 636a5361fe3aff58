/** IPv6 on bridges of the kernel: whom a VM reaches, whom it never does, what it may not say, and that nothing is left. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Agent, dual } from './agent-client.ts'
import { becomes, DNS6, EXAMPLE6, eventually, HOST6, Lab, missing, type Place } from './lab.ts'

const one = dual(133)
const two = dual(134)
const apart = dual(135, { name: 'isolated', isolated: true })
const user = dual(136)
const P1 = 'fd00:77:0:85'
const P2 = 'fd00:77:0:86'
const P3 = 'fd00:77:0:87'
const P4 = 'fd00:77:0:88'
let lab: Lab
let agent: Agent
let other: Agent
const vm: Record<string, Place> = {}
const PLACES = [
  ['a', one, 10],
  ['b', one, 11],
  ['v', one, 12],
  ['c', two, 10],
  ['x', apart, 10],
  ['y', apart, 11],
  ['u', user, 10],
] as const

/** Messages of neighbour discovery by hand. */
const RAW = `
import socket, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
mac = lambda t: bytes.fromhex(t.replace(':', ''))
ip = lambda t: socket.inet_pton(socket.AF_INET6, t)
def fold(b):
    n = sum(struct.unpack('!%dH' % (len(b) // 2), b)); n = (n >> 16) + (n & 0xffff); return ~(n + (n >> 16)) & 0xffff
def icmp(dmac, smac, src, dst, body):
    c = fold(ip(src) + ip(dst) + struct.pack('!II', len(body), 58) + body)
    p = struct.pack('!IHBB', 0x60000000, len(body), 58, 255) + ip(src) + ip(dst) + body[:2] + struct.pack('!H', c) + body[4:]
    s.send(mac(dmac) + mac(smac) + b'\\x86\\xdd' + p)
def na(target, smac): return struct.pack('!BBHI', 136, 0, 0, 0x60000000) + ip(target) + b'\\x02\\x01' + mac(smac)
def ra(): return struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0)
`

describe('IPv6 on bridges', {
  skip: missing(
    'ping',
    'socat',
    'curl',
    'python3',
    'ip6tables-restore',
    'ebtables-restore',
    'conntrack',
    'rdisc6',
    'tcpdump',
  ),
}, () => {
  before(async () => {
    lab = await Lab.create()
    await lab.host.sh('iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT')
    agent = lab.agent(undefined, 'bridge')
    other = lab.agent(`${lab.dir}/other`)
    await Promise.all([one, two, apart].map((n) => agent.createNetwork(n)))
    await other.createNetwork(user)
    for (const [name, n, last] of PLACES) {
      vm[name] = lab.guest(name)
      await (n === user ? other : agent).join(n, vm[name] as Place, last)
    }
    const greet = (where: Place, port: number) =>
      where.start([
        'socat',
        `TCP6-LISTEN:${port},bind=[::],fork,reuseaddr,ipv6only=1`,
        'SYSTEM:echo here $SOCAT_PEERADDR',
      ])
    greet(lab.host, 9000)
    for (const p of Object.values(vm)) greet(p, 80)
    for (const p of Object.values(vm)) await eventually('it listens', async () => (await p.sh('ss -Hlnt')) !== '')
  })
  after(async () => {
    for (const n of [one, two, apart]) await agent?.deleteNetwork(n.id)
    await lab?.remove()
  })
  const at = (name: string) => vm[name] as Place
  const asks = async (from: Place, address: string, port: number) =>
    (
      await from.run(['socat', '-T2', '-', `TCP6:[${address}]:${port},connect-timeout=2`], { timeoutMs: 15_000 })
    ).stdout.trim()
  const reaches = async (from: Place, address: string, port: number) =>
    (await asks(from, address, port)).startsWith('here')
  const pings = async (from: Place, address: string) =>
    (await from.run(['ping', '-6', '-c1', '-W1', address], { timeoutMs: 15_000 })).code === 0
  const answers = (from: Place, address: string) => eventually(`${address} answers`, () => pings(from, address))
  const serves = (from: Place, address: string, port: number) =>
    eventually(`${address}:${port} serves`, () => reaches(from, address, port))
  const none = async (tries: readonly (readonly [who: string, address: string, port: number])[]) => {
    const got = await Promise.all(
      tries.map(async ([who, address, port]) => {
        const from = who === 'host' ? lab.host : who === 'router' ? lab.router : at(who)
        const did = port === 0 ? await pings(from, address) : await reaches(from, address, port)
        return did ? [`${who} → ${address}:${port}`] : []
      }),
    )
    assert.deepEqual(got.flat(), [])
  }
  const local = async (name: string) =>
    /fe80:[0-9a-f:]+/.exec(await at(name).sh('ip -6 -o addr show dev eth0 scope link'))?.[0] as string
  const macOf = (name: string) => at(name).sh('cat /sys/class/net/eth0/address')
  const drops = async () => (await agent.stats(one.id)).drops

  test('the router, the services, the outside, the host, neighbours by all of their addresses', async () => {
    assert.match(await at('a').sh('rdisc6 -1 -r5 -w2000 eth0'), new RegExp(`Recursive DNS server +: ${P1}::2`))
    for (const to of [`${P1}::1`, `${P1}::2`, `${P1}::254`, HOST6, DNS6, EXAMPLE6])
      assert.ok(await answers(at('a'), to), to)
    for (const from of ['a', 'c', 'x'])
      assert.equal(await at(from).sh(`curl -6 -sS --max-time 30 http://[${EXAMPLE6}]/`), `hello ${HOST6}`, from)
    assert.ok(await serves(at('a'), `${P1}::11`, 80))
    assert.ok(await answers(at('a'), `${await local('b')}%eth0`))
    assert.ok(await serves(lab.host, `${P1}::10`, 80))
    for (const to of [HOST6, `${P1}::254`]) assert.ok(await serves(at('a'), to, 9000), to)
  })

  test('another network never, nor from outside; the userspace network neither, both ways', async () => {
    await at('a').sh(`for p in ${P2} ${P3} ${P4}; do ip -6 route replace $p::/64 via ${P1}::1; done`)
    await at('u').sh(`for p in ${P1} ${P2} ${P3}; do ip -6 route replace $p::/64 via ${P4}::1; done`)
    await lab.router.sh(`ip -6 route replace ${P1}::/64 via ${HOST6}`)
    await none([
      ['a', `${P2}::10`, 80],
      ['a', `${P2}::10`, 0],
      ['a', `${P2}::1`, 9000],
      ['a', `${P2}::254`, 9000],
      ['a', `${P3}::10`, 80],
      ['a', `${P4}::10`, 80],
      ['a', `${P4}::254`, 9000],
      ['u', `${P1}::10`, 80],
      ['u', `${P1}::1`, 9000],
      ['u', `${P1}::254`, 9000],
      ['router', `${P1}::10`, 80],
      ['router', `${P1}::10`, 0],
      ['a', 'fd00:ec2::254', 80],
    ])
    await lab.router.sh(`ip -6 route del ${P1}::/64`)
  })

  test('from isolated: the outside and nothing else, link-local neither', async () => {
    const there = `${await local('y')}%eth0`
    await none([
      ['x', `${P3}::11`, 80],
      ['x', `${P3}::11`, 0],
      ['x', there, 0],
      ['x', HOST6, 9000],
      ['x', `${P3}::254`, 9000],
      ['x', `${P3}::1`, 9000],
      ['x', `${P1}::10`, 80],
      ['host', `${P3}::10`, 80],
    ])
    assert.ok(await answers(at('x'), EXAMPLE6))
  })

  test('a published port: for ::1, the host’s addresses, a client outside who is shown as he is, a neighbour', async () => {
    const spec = { attachment: `${one.id}-10`, proto: 'tcp', hostAddress: '*', guestPort: 80 } as const
    await agent.publish({
      ...spec,
      id: 'p6',
      hostPort: 8086,
      guestAddress: '192.168.133.10',
      guestAddress6: `${P1}::10`,
    })
    for (const to of ['::1', HOST6, `${P1}::254`]) assert.ok(await serves(lab.host, to, 8086), to)
    assert.match(await eventually('it answers', () => asks(lab.router, HOST6, 8086)), /2001:0?db8:0?0?77:.*1\]/)
    assert.ok(await serves(at('b'), HOST6, 8086))
    assert.ok(await serves(at('u'), HOST6, 8086))
    await agent.unpublish('p6')
    await none([
      ['host', '::1', 8086],
      ['host', HOST6, 8086],
    ])
  })

  test('who says that he is the router, or his neighbour, is not heard; a foreign address neither', async () => {
    const [own, victim] = [await macOf('b'), await macOf('v')]
    const seen = await at('v').tcpdump('-nvi', 'eth0', '-Q', 'in', 'icmp6')
    await at('b').sh(`python3 -c "${RAW}
me = '${await local('b')}'
icmp('33:33:00:00:00:01', '${own}', me, 'ff02::1', ra())
icmp('${victim}', '${own}', '${P1}::11', '${P1}::12', na('${P1}::1', '${own}'))
icmp('33:33:00:00:00:01', '${own}', '${P1}::11', 'ff02::1', na('${P1}::10', '${own}'))
icmp('${victim}', '${own}', '${P1}::10', '${P1}::12', struct.pack('!BBHHH', 128, 0, 0, 7777, 1))
icmp('${victim}', '${own}', '${P1}::11', '${P1}::12', struct.pack('!BBHHH', 128, 0, 0, 8888, 1))
"`)
    const said = await seen.end(/id 8888/)
    assert.match(said, /id 8888/, 'the tap works')
    assert.doesNotMatch(said, /router advertisement, length 16\b|id 7777/)
    // The services tell where b is; nobody tells that the router or a is there.
    assert.doesNotMatch(said, new RegExp(`tgt is ${P1}::(1|10),.*\\n.*${own}`))
    const rows = await drops()
    for (const [who, reason] of [
      ['b', 'guard-ra'],
      ['-', 'guard-nd'],
      ['-', 'guard-address'],
    ])
      assert.ok(
        rows.some((d) => d.vm === who && d.reason === reason && d.count > 0),
        `${who} ${reason}: ${JSON.stringify(rows)}`,
      )
    for (const to of [`${P1}::1`, `${P1}::10`]) assert.ok(await answers(at('v'), to))
  })

  test('a guest’s own address of the prefix works, as long as it is nobody’s', async () => {
    await at('v').sh(`ip addr add ${P1}::cafe/64 dev eth0 nodad; ping -6 -c2 -W5 -I ${P1}::cafe ${EXAMPLE6}`)
    await at('v').sh(`ip addr del ${P1}::cafe/64 dev eth0`)
  })

  test('nothing is left of a network: addresses, rules, neighbours, switches', async () => {
    const net = dual(137)
    const state = async () => {
      const said = await lab.host.sh(
        'ip6tables-save | grep -v "^[#:]"; ip -6 addr; ip -6 neigh show nud permanent; grep -rs . /proc/sys/net/ipv6/conf/*/force_forwarding',
      )
      return said.split('\n')
    }
    const before = await state()
    await agent.createNetwork(net)
    const guest = lab.guest('brief')
    await agent.join(net, guest, 10)
    assert.ok(await answers(guest, EXAMPLE6))
    assert.notDeepEqual(await state(), before)
    await agent.detach(`${net.id}-10`, net.id)
    await agent.deleteNetwork(net.id)
    // Not at that instant: the other networks look at the host's links again when one has gone.
    await becomes('the host is as it was', state, before)
  })
})
