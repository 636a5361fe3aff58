/** Who reaches whom: ping and traceroute outwards, the table of DESIGN 6a inwards, and a scan that must not hurt. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { type Agent, network } from './agent-client.ts'
import { EXAMPLE, eventually, Lab, missing, type Place } from './lab.ts'

const one = network(103, { allowHostPorts: [9100] })
const two = network(104)
const apart = network(105, { name: 'isolated', isolated: true })
let lab: Lab
let agent: Agent
const vm: Record<string, Place> = {}

describe('reach', { skip: missing('ping', 'traceroute', 'socat', 'curl', 'nmap', 'ss') }, () => {
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
    const greet = (where: Place, address: string, port: number) =>
      where.start(['socat', `TCP-LISTEN:${port},bind=${address},fork,reuseaddr`, 'SYSTEM:echo here'])
    greet(lab.host, '0.0.0.0', 9000)
    greet(lab.host, '127.0.0.1', 9100)
    greet(lab.host, '127.0.0.1', 9200)
    for (const p of Object.values(vm)) greet(p, '0.0.0.0', 80)
    await eventually('services are up', async () => (await lab.host.sh('ss -Hlnt | wc -l')) >= '3')
    await eventually('services are up', async () => (await (vm.y as Place).sh('ss -Hlnt | wc -l')) === '1')
  })
  after(async () => {
    await lab?.remove()
  })
  const at = (name: string) => vm[name] as Place
  const reaches = async (from: Place, address: string, port: number) =>
    (
      await from.run(['socat', '-T2', '-', `TCP:${address}:${port},connect-timeout=2`], { timeoutMs: 15_000 })
    ).stdout.trim() === 'here'
  const pings = async (from: Place, address: string, ...more: string[]) =>
    (await from.run(['ping', '-c1', '-W1', ...more, address], { timeoutMs: 15_000 })).code === 0

  // What must work may take its time on a busy machine; what must not is asked once.
  const answers = (from: Place, address: string, ...more: string[]) =>
    eventually(`${address} answers`, () => pings(from, address, ...more))
  const serves = (from: Place, address: string, port: number) =>
    eventually(`${address}:${port} serves`, () => reaches(from, address, port))

  test('ping: the gateway, the services, the internet', async () => {
    for (const to of ['192.168.103.1', '192.168.103.2', '8.8.8.8', EXAMPLE]) assert.ok(await answers(at('a'), to), to)
    const many = await at('a').sh('ping -c20 -i0.02 -W10 -s1300 8.8.8.8')
    assert.match(many, /20 received, 0% packet loss/)
  })

  test('ping in fragments', async () => {
    assert.ok(await answers(at('a'), '192.168.103.1', '-s', '4000'))
    assert.ok(await answers(at('a'), '8.8.8.8', '-s', '4000'))
  })

  test('the path is shorter than the guest believes: "do not fragment" is answered with its MTU', async () => {
    // The uplink takes 1400 bytes; 1500 pass when they may be fragmented.
    const r = await at('a').run(['ping', '-M', 'do', '-c1', '-W10', '-s', '1472', '8.8.8.8'])
    assert.match(r.all, /Frag needed and DF set \(mtu = 1400\)|message too long, mtu[:=] ?1400/)
    assert.ok(await answers(at('a'), '8.8.8.8', '-M', 'dont', '-s', '1472'))
    assert.ok(await answers(at('a'), '8.8.8.8', '-M', 'do', '-s', '1372'))
  })

  test('the MTU of the path is found', async () => {
    const out = await at('a').sh('traceroute --mtu -n -q1 -w10,0,0 -m5 8.8.8.8')
    assert.match(out, /192\.168\.103\.1 .*F=1500/)
    assert.match(out, /10\.77\.0\.1 .*F=1400/)
    const r = await at('a').run(['ping', '-c2', '-W10', '-M', 'do', '-s', '1450', '8.8.8.8'])
    assert.match(r.all, /mtu ?= ?1400/, r.all)
  })

  test('traceroute shows the hops, by UDP and by ICMP', async () => {
    for (const how of [[], ['-I']]) {
      const out = await at('a').sh(`traceroute -n -q1 -w10,0,0 -m6 ${how.join(' ')} 8.8.8.8`)
      const hops = out
        .split('\n')
        .slice(1)
        .map((l) => l.trim().split(/\s+/)[1])
      assert.deepEqual(hops, ['192.168.103.1', '10.77.0.1', '8.8.8.8'], out)
    }
  })

  test('an unreachable port and host are said as what they are', async () => {
    const udp = await at('a').run(['traceroute', '-n', '-q1', '-w10,0,0', '-m4', '-U', '-p', '4444', EXAMPLE])
    assert.match(udp.stdout, new RegExp(`${EXAMPLE.replaceAll('.', '\\.')}  `))
    await lab.router.sh('ip route replace unreachable 198.18.0.0/15')
    const r = await at('a').run(['ping', '-c3', '-i0.5', '-W3', '198.18.0.1'])
    assert.match(r.stdout, /Unreachable/)
  })

  test('VMs of one network reach each other', async () => {
    assert.ok(await serves(at('a'), '192.168.103.11', 80))
    assert.ok(await answers(at('b'), '192.168.103.10'))
  })

  test('VMs of different networks never do: by address, by gateway, by the host', async () => {
    assert.ok(!(await reaches(at('a'), '192.168.104.10', 80)))
    assert.ok(!(await pings(at('a'), '192.168.104.10')))
    for (const via of ['192.168.103.1', '192.168.103.254', '192.168.103.11']) {
      await at('a').sh(`ip route replace 192.168.104.0/24 via ${via}`)
      assert.ok(!(await reaches(at('a'), '192.168.104.10', 80)), via)
      assert.ok(!(await pings(at('a'), '192.168.104.10')), via)
    }
    await at('a').sh('ip route del 192.168.104.0/24')
    for (const other of ['192.168.104.1', '192.168.104.254']) assert.ok(!(await reaches(at('a'), other, 9000)), other)
  })

  test('the outside: yes, from everywhere', async () => {
    for (const from of ['a', 'c', 'x'])
      assert.match(await at(from).sh('curl -sS --max-time 30 http://example.com/'), /hello/)
  })

  test("the host's services: on its addresses yes, on its loopback only what was allowed", async () => {
    assert.ok(await serves(at('a'), '10.77.0.2', 9000))
    assert.ok(await serves(at('a'), '192.168.103.254', 9000))
    assert.ok(await serves(at('a'), '192.168.103.254', 9100), 'allowed')
    assert.ok(!(await reaches(at('a'), '192.168.103.254', 9200)))
    assert.ok(!(await reaches(at('c'), '192.168.104.254', 9100)), 'allowed on the other network only')
    assert.ok(!(await reaches(at('a'), '127.0.0.1', 9100)))
  })

  test('link-local and metadata: no', async () => {
    await lab.host.sh('ip addr add 169.254.169.254/32 dev lo')
    assert.ok(!(await reaches(at('a'), '169.254.169.254', 9000)))
  })

  test('from isolated: nothing but the outside', async () => {
    assert.ok(!(await reaches(at('x'), '192.168.105.11', 80)), 'the other VM')
    assert.ok(!(await pings(at('x'), '192.168.105.11')), 'the other VM')
    assert.ok(!(await reaches(at('x'), '10.77.0.2', 9000)), 'the host')
    assert.ok(!(await reaches(at('x'), '192.168.105.254', 9000)), 'the host')
    assert.ok(!(await reaches(at('x'), '192.168.103.10', 80)), 'another network')
    await at('x').sh('ip route add 192.168.105.11 via 192.168.105.1')
    assert.ok(!(await reaches(at('x'), '192.168.105.11', 80)), 'the other VM by the gateway')
    assert.ok(!(await reaches(lab.host, '192.168.105.10', 80)), 'from the host')
  })

  test('refusals are counted by reason', async () => {
    const { drops } = await agent.stats(one.id)
    assert.ok(
      drops.some((d) => d.vm === 'a' && d.count > 0 && d.meaning.length > 0),
      JSON.stringify(drops),
    )
  })

  test('the host reaches VMs by address', async () => {
    assert.ok(await serves(lab.host, '192.168.103.10', 80))
    assert.ok(await serves(lab.host, '192.168.104.10', 80))
    assert.ok(await answers(lab.host, '192.168.103.11'))
  })

  test('a VM that claims the address of another is refused', async () => {
    await at('b').sh('ip addr add 192.168.103.99/24 dev eth0')
    assert.ok(!(await pings(at('b'), '192.168.103.10', '-I', '192.168.103.99')))
    await at('b').sh('ip addr del 192.168.103.99/24 dev eth0')
  })

  test('a VM that takes the MAC of another does not take its traffic, and it is reported', async () => {
    const [own, other] = [
      await at('b').sh('cat /sys/class/net/eth0/address'),
      await at('a').sh('cat /sys/class/net/eth0/address'),
    ]
    await at('b').sh(`ip link set eth0 address ${other}`)
    await at('b').run(['ping', '-c2', '-i0.2', '-W1', '192.168.103.1'])
    assert.ok(await answers(at('a'), '8.8.8.8'))
    assert.ok(await serves(lab.host, '192.168.103.10', 80))
    const s = await agent.stats(one.id)
    const told = [...s.warnings, ...s.drops.filter((d) => d.vm === 'b').map((d) => d.meaning)].join('\n')
    assert.match(told, /MAC/)
    await at('b').sh(`ip link set eth0 address ${own}; ip route replace default via 192.168.103.1`)
    await eventually('b is back', () => pings(at('b'), '192.168.103.1'))
  })

  test('a scan of the gateway and of the world does not hurt', async () => {
    await at('a').run(
      [
        'nmap',
        '-n',
        '-Pn',
        '-sS',
        '-T5',
        '--max-retries',
        '1',
        '--host-timeout',
        '12s',
        '-p1-1500',
        '192.168.103.1',
        '192.168.103.2',
        EXAMPLE,
      ],
      { timeoutMs: 60_000 },
    )
    // What such a hasty scan finds depends on the machine; that it saw the world is asked of one port.
    await eventually('the open port is found', async () =>
      /80\/tcp +open/.test((await at('a').run(['nmap', '-n', '-Pn', '-sS', '-p80', EXAMPLE])).stdout),
    )
    await at('a').run(
      [
        'nmap',
        '-n',
        '-Pn',
        '-sU',
        '-T5',
        '--max-retries',
        '0',
        '--host-timeout',
        '8s',
        '--top-ports',
        '200',
        '192.168.103.2',
        EXAMPLE,
      ],
      { timeoutMs: 40_000 },
    )
    assert.equal(await at('b').sh('curl -sS --max-time 30 http://example.com/'), 'hello 10.77.0.2')
    assert.equal(await at('a').sh('curl -sS --max-time 30 http://example.com/'), 'hello 10.77.0.2')
  })

  test('a guest that sends rubbish harms nobody but itself', async () => {
    const { pid } = JSON.parse(readFileSync(join(agent.home, 'run', one.id, 'pid'), 'utf8')) as { pid: number }
    const mac = await at('a').sh('cat /sys/class/net/eth0/address')
    const gateway = (await at('a').sh('ping -c1 -w20 192.168.103.1 >/dev/null; ip neigh show 192.168.103.1')).split(
      ' ',
    )[4] as string
    const fuzz = [process.execPath, join(import.meta.dirname, 'fuzz.ts'), mac, gateway, '192.168.103.10', '60000']
    for (const seed of ['1', '2']) {
      const r = await at('a').run([...fuzz, seed])
      assert.ok(Number(r.stdout) > 10_000, r.all)
      assert.equal(await at('b').sh('curl -sS --max-time 30 http://example.com/'), 'hello 10.77.0.2')
    }
    const after = JSON.parse(readFileSync(join(agent.home, 'run', one.id, 'pid'), 'utf8')) as { pid: number }
    assert.equal(after.pid, pid, 'the data plane is the same')
    assert.doesNotMatch(readFileSync(join(agent.home, 'run', one.id, 'dataplane.log'), 'utf8'), /Error/)
    await eventually(
      'the guest itself is served again',
      async () => /hello/.test((await at('a').run(['curl', '-sS', '--max-time', '10', 'http://example.com/'])).stdout),
      40_000,
    )
  })
})
