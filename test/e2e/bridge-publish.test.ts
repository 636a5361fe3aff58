/**
 * Published ports of kernel bridges: for the outside, for the host's own addresses, for localhost and for VMs, TCP and UDP; added and removed while
 * traffic flows; what holds a port is named.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { PublishSpec } from '../../src/plugins/contract.ts'
import { type Agent, network } from './agent-client.ts'
import { becomes, eventually, Lab, missing, type Place } from './lab.ts'

const net = network(127)
const second = network(128)
const apart = network(129, { name: 'isolated', isolated: true })
const user = network(130)
let lab: Lab
let agent: Agent
let other: Agent
const vm: Record<string, Place> = {}

const spec = (id: string, hostPort: number, more: Partial<PublishSpec> = {}): PublishSpec => ({
  id,
  attachment: `${net.id}-10`,
  proto: 'tcp',
  hostAddress: '0.0.0.0',
  hostPort,
  guestAddress: '192.168.127.10',
  guestPort: 80,
  ...more,
})

/** Answers whom it saw, then the word itself. */
const ECHO = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 53))
while True:
    data, who = s.recvfrom(2048)
    s.sendto(who[0].encode() + b'\\n' + data, who)
`

/** Asks from one port, without end. */
const ASK = `
const s = require('node:dgram').createSocket('udp4').bind(6000)
s.on('message', (m) => process.stdout.write(m))
setInterval(() => s.send('ask\\n', 5353, '10.77.0.2'), 100)
`

describe('publish on bridges', {
  skip: missing('socat', 'ss', 'iptables-restore', 'ebtables-restore', 'bridge', 'conntrack', 'python3'),
}, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent(undefined, 'bridge')
    other = lab.agent(`${lab.dir}/other`)
    // The isolated one first: the second network's chains then come before its own.
    await agent.createNetwork(apart)
    await Promise.all([net, second].map((n) => agent.createNetwork(n)))
    await other.createNetwork(user)
    for (const [name, n, last] of [
      ['web', net, 10],
      ['peer', net, 11],
      ['far', second, 10],
      ['x', apart, 10],
      ['u', user, 10],
    ] as const) {
      vm[name] = lab.guest(name)
      await (n === user ? other : agent).join(n, vm[name] as Place, last)
    }
    at('web').start(['socat', 'TCP-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo $SOCAT_PEERADDR'])
    at('web').start(['python3', '-c', ECHO])
    at('far').start(['socat', 'TCP-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo far $SOCAT_PEERADDR'])
    at('x').start(['socat', 'TCP-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo x $SOCAT_PEERADDR'])
    for (const name of ['web', 'far', 'x'])
      await eventually('it listens', async () => (await at(name).sh('ss -Hlnt')) !== '')
    await eventually('it listens', async () => (await at('web').sh('ss -Hlnu sport = 53')) !== '')
    await agent.publish(spec('p1', 8080))
    await agent.publish(spec('u1', 5353, { proto: 'udp', guestPort: 53 }))
  })
  after(async () => {
    // Claims of switches are kept outside the laboratory.
    for (const n of [net, second, apart]) await agent?.deleteNetwork(n.id)
    await lab?.remove()
  })
  const at = (name: string) => vm[name] as Place
  const greeting = async (from: Place, address: string, port: number, how = 'TCP') =>
    (
      await from.run(['socat', '-T5', '-', `${how}:${address}:${port}${how === 'TCP' ? ',connect-timeout=5' : ''}`], {
        timeoutMs: 20_000,
        input: how === 'TCP' ? '' : 'hi\n',
      })
    ).stdout
      .trim()
      .split('\n')[0]
  // What must answer may take its time on a busy machine; what must not is asked once.
  const greets = async (from: Place, address: string, port: number, expected: string, how = 'TCP') =>
    assert.equal(await eventually(`${address}:${port} answers`, () => greeting(from, address, port, how)), expected)

  test("from outside and from the host's own address the client's address is kept; localhost is .1", async () => {
    await greets(lab.inet, '10.77.0.2', 8080, '203.0.113.2')
    await greets(lab.host, '10.77.0.2', 8080, '10.77.0.2')
    await greets(lab.host, '127.0.0.1', 8080, '192.168.127.1')
    await greets(lab.host, 'localhost', 8080, '192.168.127.1')
  })

  test('UDP, the same', async () => {
    await greets(lab.inet, '10.77.0.2', 5353, '203.0.113.2', 'UDP')
    await greets(lab.host, '10.77.0.2', 5353, '10.77.0.2', 'UDP')
    await greets(lab.host, '127.0.0.1', 5353, '192.168.127.1', 'UDP')
  })

  test('two clients of a UDP forward each get their own answers', async () => {
    const client = async (from: Place, name: string) => {
      const { child, said } = from.hear(['socat', '-', 'UDP:10.77.0.2:5353'], { stdio: 'pipe' })
      const words = [1, 2, 3, 4, 5].map((i) => `${name}${i}`)
      for (const word of words) {
        child.stdin?.write(`${word}\n`)
        await sleep(100)
      }
      await becomes('its own answers', () => said.out.split('\n').filter((l) => /^[a-z]/.test(l)), words)
      child.kill('SIGKILL')
    }
    await Promise.all([client(lab.inet, 'one'), client(lab.inet, 'two'), client(lab.router, 'three')])
  })

  test('hairpin: from a VM to the published port of another, of itself, and of another network; never from isolated', async () => {
    await greets(at('peer'), '10.77.0.2', 8080, '192.168.127.1')
    await greets(at('peer'), '192.168.127.1', 8080, '192.168.127.1')
    await greets(at('web'), '10.77.0.2', 8080, '192.168.127.1')
    await greets(at('far'), '10.77.0.2', 8080, '192.168.128.10')
    await greets(at('u'), '10.77.0.2', 8080, '10.77.0.2')
    assert.equal(await greeting(at('x'), '10.77.0.2', 8080), '')
    assert.equal(await greeting(at('x'), '192.168.129.1', 8080), '')
    await greets(at('peer'), '10.77.0.2', 5353, '192.168.127.1', 'UDP')
  })

  test('an isolated VM may be published, and still reaches nobody', async () => {
    await agent.publish(spec('iso', 8070, { attachment: `${apart.id}-10`, guestAddress: '192.168.129.10' }))
    await greets(lab.inet, '10.77.0.2', 8070, 'x 203.0.113.2')
    await greets(lab.host, '127.0.0.1', 8070, 'x 192.168.129.1')
    assert.equal(await greeting(at('x'), '10.77.0.2', 8070), '')
    await agent.unpublish('iso')
  })

  test('one address only; host port 0 picks one and keeps it', async () => {
    await agent.publish(spec('lo', 8090, { hostAddress: '127.0.0.1' }))
    await greets(lab.host, '127.0.0.1', 8090, '192.168.127.1')
    assert.equal(await greeting(lab.inet, '10.77.0.2', 8090), '')
    await agent.unpublish('lo')
    const { hostPort } = await agent.publish(spec('p0', 0))
    assert.ok(hostPort > 1023)
    assert.deepEqual(await agent.publish(spec('p0', 0)), { hostPort })
    await greets(lab.inet, '10.77.0.2', hostPort, '203.0.113.2')
    await agent.unpublish('p0')
    assert.equal(await greeting(lab.inet, '10.77.0.2', hostPort), '')
  })

  test('who holds a port is named: a program, a VM here, a VM of a userspace network, a rule of somebody else', async () => {
    await assert.rejects(agent.publish(spec('busy', 8080)), { code: 'PORT_BUSY', message: /the VM "web"/ })
    const holder = lab.host.start(['socat', 'TCP-LISTEN:8085,fork', 'SYSTEM:true'])
    await eventually('it listens', async () => (await lab.host.sh('ss -Hlnt sport = 8085')) !== '')
    await assert.rejects(agent.publish(spec('busy', 8085)), { code: 'PORT_BUSY', message: /socat \(pid \d+\)/ })
    holder.kill('SIGKILL')
    await other.publish(spec('theirs', 8086, { attachment: `${user.id}-10`, guestAddress: '192.168.130.10' }))
    await assert.rejects(agent.publish(spec('busy', 8086)), { code: 'PORT_BUSY', message: /another noid network/ })
    await assert.rejects(
      other.publish(spec('mine', 8080, { attachment: `${user.id}-10`, guestAddress: '192.168.130.10' })),
      {
        code: 'PORT_BUSY',
      },
    )
    await lab.host.sh(
      'iptables -t nat -N DOCKER; iptables -t nat -A DOCKER ! -i docker0 -p tcp --dport 8087 -j DNAT --to 10.77.0.1:80',
    )
    await assert.rejects(agent.publish(spec('busy', 8087)), { code: 'PORT_BUSY', message: /chain DOCKER of iptables/ })
    await lab.host.sh('iptables -t nat -F DOCKER; iptables -t nat -X DOCKER')
  })

  test('a range, added and removed while a download runs', async () => {
    const bytes = 200 << 20
    at('web').start(['socat', 'TCP-LISTEN:81,fork,reuseaddr', `SYSTEM:head -c ${bytes} /dev/zero`])
    await agent.publish(spec('big', 8100, { guestPort: 81 }))
    const download = lab.inet.sh('socat -u TCP:10.77.0.2:8100 - | wc -c')
    for (let i = 0; i < 6; i++) await agent.publish(spec(`r${i}`, 8200 + i))
    for (let i = 0; i < 6; i++) await greets(lab.inet, '10.77.0.2', 8200 + i, '203.0.113.2')
    for (let i = 0; i < 6; i++) await agent.unpublish(`r${i}`)
    assert.equal(await download, String(bytes))
    assert.equal(await lab.host.sh('ss -Hlnt "sport >= 8200 and sport <= 8210"'), '')
    await agent.unpublish('big')
  })

  test('a forward that changes takes its flows with it: a client that never stops asking gets the new VM', async () => {
    at('peer').start(['socat', 'UDP-LISTEN:53,fork,reuseaddr', 'SYSTEM:cat >/dev/null & echo peer; wait'])
    await eventually('it listens', async () => (await at('peer').sh('ss -Hlnu')) !== '')
    const { child, said } = lab.inet.hear([process.execPath, '-e', ASK])
    await eventually('a flow', async () => /sport=6000/.test(await lab.host.sh('conntrack -L -p udp 2>/dev/null')))
    await agent.unpublish('u1')
    await agent.publish(
      spec('u1', 5353, { proto: 'udp', guestPort: 53, attachment: `${net.id}-11`, guestAddress: '192.168.127.11' }),
    )
    await eventually('the new VM answers', () => /peer/.test(said.out))
    child.kill('SIGKILL')
    await once(child, 'exit')
    await agent.unpublish('u1')
    assert.doesNotMatch(await lab.host.sh('conntrack -L -p udp 2>/dev/null'), /dport=5353/)
  })

  /** A server whose only connection gets its word when it is told to. */
  const waiting = async (where: Place, port: number) => {
    const told = `${lab.dir}/told-${port}`
    where.start([
      'socat',
      `TCP-LISTEN:${port},reuseaddr`,
      `SYSTEM:while [ ! -e ${told} ]; do sleep 0.05; done; echo later`,
    ])
    await eventually('it listens', async () => (await where.sh(`ss -Hlnt sport = ${port}`)) !== '')
    return () => writeFileSync(told, '')
  }
  const connected = (port: number, from: string) =>
    eventually(`a connection to ${port}`, async () =>
      new RegExp(`ESTABLISHED src=${from} .*dport=${port} `).test(await lab.host.sh('conntrack -L -p tcp 2>/dev/null')),
    )

  test("a port that is opened and closed is nothing to others' connections to that port elsewhere", async () => {
    const tell = await waiting(lab.inet, 8400)
    const client = at('far').run(['socat', '-u', 'TCP:203.0.113.2:8400', '-'])
    await connected(8400, '192.168.128.10')
    await agent.publish(spec('same', 8400))
    assert.equal(await greeting(lab.inet, '10.77.0.2', 8400), '203.0.113.2')
    await agent.unpublish('same')
    tell()
    assert.equal((await client).stdout, 'later\n')
  })

  test('a connection to a program of the host that listens no more goes on, though its port is published', async () => {
    lab.host.start(['socat', 'TCP-LISTEN:8401,reuseaddr', 'SYSTEM:read word; echo $word'])
    await eventually('it listens', async () => (await lab.host.sh('ss -Hlnt sport = 8401')) !== '')
    const told = `${lab.dir}/told`
    const word = `while [ ! -e ${told} ]; do sleep 0.05; done; echo later`
    const client = lab.inet.run(['sh', '-c', `(${word}) | socat -t30 - TCP:10.77.0.2:8401`])
    await connected(8401, '203.0.113.2')
    await eventually('it listens no more', async () => (await lab.host.sh('ss -Hlnt sport = 8401')) === '')
    await agent.publish(spec('late', 8401))
    assert.equal(await greeting(lab.inet, '10.77.0.2', 8401), '203.0.113.2')
    writeFileSync(told, '')
    assert.equal((await client).stdout, 'later\n')
    await agent.unpublish('late')
  })

  test('a port published at two addresses is closed at one: connections at the other go on', async () => {
    const tell = await waiting(at('peer'), 82)
    const to = { attachment: `${net.id}-11`, guestAddress: '192.168.127.11', guestPort: 82 }
    await agent.publish(spec('inner', 8402, { ...to, hostAddress: '127.0.0.1' }))
    await agent.publish(spec('outer', 8402, { ...to, hostAddress: '10.77.0.2' }))
    const client = lab.inet.run(['socat', '-u', 'TCP:10.77.0.2:8402', '-'])
    await connected(8402, '203.0.113.2')
    await agent.unpublish('inner')
    tell()
    assert.equal((await client).stdout, 'later\n')
    await agent.unpublish('outer')
    assert.doesNotMatch(await lab.host.sh('conntrack -L -p tcp 2>/dev/null'), /dport=8402/)
  })

  test('a guest that refuses resets the client', async () => {
    await agent.publish(spec('none', 8300, { guestPort: 9 }))
    const r = await lab.inet.run(['socat', '-', 'TCP:10.77.0.2:8300,connect-timeout=30'])
    assert.match(r.all, /refused/)
    await agent.unpublish('none')
  })
})
