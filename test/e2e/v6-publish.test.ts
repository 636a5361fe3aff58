/** Published ports over IPv6: both families on one socket or each alone, the client's own address, clients that cannot show it. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { PublishSpec } from '../../src/plugins/contract.ts'
import { type Agent, dual } from './agent-client.ts'
import { eventually, HOST6, Lab, missing, type Place } from './lab.ts'

const net = dual(118)
const P = 'fd00:77:0:76'
const INET6 = '2001:db8:113::2'
let lab: Lab
let agent: Agent
let web: Place
let six: Place

const spec = (id: string, hostPort: number, more: Partial<PublishSpec> = {}): PublishSpec => ({
  id,
  attachment: `${net.id}-10`,
  proto: 'tcp',
  hostAddress: '*',
  hostPort,
  guestAddress: '192.168.118.10',
  guestAddress6: `${P}::10`,
  guestPort: 80,
  ...more,
})
const toSix = { attachment: `${net.id}-11`, guestAddress: '', guestAddress6: `${P}::11` }

describe('IPv6: publish', { skip: missing('socat', 'curl', 'ss') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
    web = lab.guest('web')
    await agent.join(net, web, 10)
    // A VM that has IPv6 alone.
    six = lab.guest('six')
    await agent.attach(net, six, 11, { addresses: [`${P}::11/64`] })
    await six.sh(
      `echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip addr add ${P}::11/64 dev eth0; ip link set eth0 up; ip -6 route replace default via ${P}::1`,
    )
    for (const vm of [web, six]) {
      // One server for each family, so that whoever answers was really asked in it.
      vm.start(['socat', 'TCP4-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo 4 $SOCAT_PEERADDR'])
      vm.start(['socat', 'TCP6-LISTEN:80,fork,reuseaddr,ipv6only=1', 'SYSTEM:echo 6 $SOCAT_PEERADDR'])
      vm.start(['socat', 'UDP6-RECVFROM:53,fork,ipv6only=1', 'SYSTEM:echo 6 $SOCAT_PEERADDR'])
      await eventually('the VM listens', async () => Number(await vm.sh('ss -Hlntu | wc -l')) >= 3)
    }
  })
  after(async () => {
    await lab?.remove()
  })
  /** What the VM saw: family, and the client's address as the VM wrote it, in full. */
  const greeting = async (from: Place, address: string, port: number, how = 'TCP') => {
    const to = address.includes(':') ? `${how}6:[${address}]:${port}` : `${how}4:${address}:${port}`
    const argv = ['socat', '-T3', '-', how === 'TCP' ? `${to},connect-timeout=3` : to]
    const { stdout } = await from.run(argv, { timeoutMs: 8000, input: how === 'UDP' ? 'hello' : undefined })
    const [family, client = ''] = stdout.trim().split(' ')
    const bare = client.replace(/[[\]]/g, '')
    return family ? `${family} ${bare.includes(':') ? new URL(`http://[${bare}]`).hostname.slice(1, -1) : bare}` : ''
  }
  // What must answer may take its time on a busy machine; what must not is asked once.
  const greets = async (from: Place, address: string, port: number, expected: string, how = 'TCP') =>
    assert.equal(await eventually(`${address}:${port} answers`, () => greeting(from, address, port, how)), expected)

  test('both families on one socket: each client is led to its own family, and shown as itself', async () => {
    assert.deepEqual(await agent.publish(spec('both', 8080)), { hostPort: 8080 })
    assert.equal((await lab.host.sh('ss -Hlnt sport = 8080')).split('\n').length, 1)
    await eventually('it was heard', async () => (await greeting(lab.inet, HOST6, 8080)).startsWith('6'))
    await greets(lab.inet, HOST6, 8080, `6 ${INET6}`)
    await greets(lab.inet, '10.77.0.2', 8080, '4 203.0.113.2')
  })

  test("clients that cannot show themselves come from the host's address of that family", async () => {
    await greets(lab.host, '::1', 8080, `6 ${P}::254`)
    await greets(lab.host, '127.0.0.1', 8080, '4 192.168.118.254')
    await greets(lab.host, HOST6, 8080, `6 ${HOST6}`)
    // From its link the router is a stranger without an address that a VM could answer.
    const local = /fe80:[0-9a-f:]+/.exec(await lab.host.sh('ip -6 -o addr show dev uplink scope link'))?.[0] as string
    await greets(lab.router, `${local}%down0`, 8080, `6 ${P}::254`)
  })

  test('a VM with IPv6 alone is there for both', async () => {
    await agent.publish(spec('six', 8084, toSix))
    await greets(lab.inet, HOST6, 8084, `6 ${INET6}`)
    await greets(lab.inet, '10.77.0.2', 8084, `6 ${P}::254`)
  })

  test('a server of one family alone serves clients of both: localhost is ::1 first', async () => {
    web.start(['socat', 'TCP4-LISTEN:81,fork,reuseaddr', 'SYSTEM:echo 4 $SOCAT_PEERADDR'])
    web.start(['socat', 'TCP6-LISTEN:82,fork,reuseaddr,ipv6only=1', 'SYSTEM:echo 6 $SOCAT_PEERADDR'])
    await eventually(
      'they listen',
      async () => Number(await web.sh('ss -Hlnt "sport >= 81 and sport <= 82" | wc -l')) === 2,
    )
    for (const guestPort of [81, 82, 83]) await agent.publish(spec(`one${guestPort}`, 8000 + guestPort, { guestPort }))
    for (const [from, address, seen] of [
      [lab.host, '::1', '4 192.168.118.254'],
      [lab.host, '127.0.0.1', '4 192.168.118.254'],
      [lab.inet, HOST6, '4 192.168.118.254'],
      [lab.inet, '10.77.0.2', '4 203.0.113.2'],
    ] as const)
      await greets(from, address, 8081, seen)
    for (const [from, address, seen] of [
      [lab.host, '127.0.0.1', `6 ${P}::254`],
      [lab.inet, '10.77.0.2', `6 ${P}::254`],
      [lab.inet, HOST6, `6 ${INET6}`],
    ] as const)
      await greets(from, address, 8082, seen)
    // Nobody in either: told at once.
    for (const url of ['http://[::1]:8083/', 'http://127.0.0.1:8083/']) {
      const r = await lab.host.run(['curl', '-sS', '--max-time', '30', url])
      assert.ok(r.code !== 0 && r.code !== 28, r.all)
    }
    // Bytes that came before the turn are not lost.
    const head = `printf 'GET / HTTP/1.0\\r\\n\\r\\n' | socat -T5 - TCP6:[::1]:8081`
    assert.equal(await eventually('an answer', () => lab.host.sh(head)), '4 192.168.118.254')
    assert.equal((await agent.stats(net.id)).flows.filter((f) => f.proto === 'tcp' && f.state === 'SYN-SENT').length, 0)
    for (const guestPort of [81, 82, 83]) await agent.unpublish(`one${guestPort}`)
  })

  test('a VM that uses no IPv6 is not waited for; one that asks no DHCPv6 is at what its kernel makes of the prefix', async () => {
    for (const [n, prepare] of [
      [
        30,
        'echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip addr add 192.168.118.30/24 dev eth0; ip route add default via 192.168.118.1',
      ],
      [31, 'echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad'],
    ] as const) {
      const vm = lab.guest()
      await agent.attach(net, vm, n)
      await vm.sh(`ip link set eth0 up; ${prepare}`)
      vm.start(['socat', 'TCP6-LISTEN:80,fork,reuseaddr,ipv6only=0', 'SYSTEM:echo $SOCAT_SOCKADDR'])
      await eventually('it listens', async () => (await vm.sh('ss -Hlnt sport = 80')) !== '')
      const guest = { guestAddress: `192.168.118.${n}`, guestAddress6: `${P}::${n}`, attachment: `${net.id}-${n}` }
      await agent.publish(spec(`g${n}`, 8400 + n, guest))
    }
    const curl = (port: number) => lab.inet.run(['socat', '-T9', '-', `TCP6:[${HOST6}]:${port}`], { timeoutMs: 20_000 })
    const four = await eventually('it answers', async () => (await curl(8430)).stdout)
    assert.match(four, /0000:ffff:c0a8:761e/, 'at its IPv4 address')
    await eventually('by SLAAC', async () => /5054:00ff:fe00:1f01/.test((await curl(8431)).stdout))
  })

  test('one family alone leaves the other; a busy port names its holder in either', async () => {
    await agent.publish(spec('only6', 8182, { hostAddress: '::' }))
    await greets(lab.inet, HOST6, 8182, `6 ${INET6}`)
    assert.equal(await greeting(lab.inet, '10.77.0.2', 8182), '')
    await agent.publish(spec('only4', 8182, { hostAddress: '0.0.0.0' }))
    await greets(lab.inet, '10.77.0.2', 8182, '4 203.0.113.2')
    for (const hostAddress of ['*', '::', '0.0.0.0', HOST6])
      await assert.rejects(agent.publish(spec('busy', 8182, { hostAddress })), {
        code: 'PORT_BUSY',
        message: /the VM "web"/,
      })
    const holder = lab.host.start(['socat', `TCP6-LISTEN:8085,bind=[${HOST6}],fork`, 'SYSTEM:true'])
    await eventually('it listens', async () => (await lab.host.sh('ss -Hlnt sport = 8085')) !== '')
    await assert.rejects(agent.publish(spec('busy', 8085)), {
      code: 'PORT_BUSY',
      message: new RegExp(`socat \\(pid ${holder.pid}\\)`),
    })
    holder.kill('SIGKILL')
  })

  test('one address of the host alone', async () => {
    await agent.publish(spec('lo', 8183, { hostAddress: '::1' }))
    await greets(lab.host, '::1', 8183, `6 ${P}::254`)
    assert.equal(await greeting(lab.inet, HOST6, 8183), '')
  })

  test('UDP: each client has its own flow and is answered from the address it spoke to', async () => {
    await lab.host.sh('ip addr add 2001:db8:77::55/64 dev uplink nodad')
    await agent.publish(spec('dns', 5353, { proto: 'udp', guestPort: 53 }))
    for (const address of [HOST6, '2001:db8:77::55']) await greets(lab.inet, address, 5353, `6 ${INET6}`, 'UDP')
    const local = /fe80:[0-9a-f:]+/.exec(await lab.host.sh('ip -6 -o addr show dev uplink scope link'))?.[0] as string
    await greets(lab.router, `${local}%down0`, 5353, `6 ${P}::254`, 'UDP')
  })

  test('it survives the data plane: published again in both families', async () => {
    const planes = lab.processes().filter((p) => p.argv.startsWith('noid data plane'))
    assert.equal(planes.length, 1)
    process.kill((planes[0] as { pid: number }).pid, 'SIGKILL')
    await eventually('it serves again', async () => (await greeting(lab.inet, HOST6, 8080)) === `6 ${INET6}`)
    await greets(lab.inet, '10.77.0.2', 8080, '4 203.0.113.2')
    await agent.unpublish('both')
    assert.equal(await greeting(lab.inet, HOST6, 8080), '')
  })
})
