/** Published TCP ports: bound before anything else, moved while traffic flows, the client's address kept. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { PublishSpec } from '../../src/plugins/contract.ts'
import { type Agent, network } from './agent-client.ts'
import { eventually, Lab, missing, type Place } from './lab.ts'

const net = network(107)
const other = network(108)
let lab: Lab
let agent: Agent
let web: Place

const spec = (id: string, hostPort: number, more: Partial<PublishSpec> = {}): PublishSpec => ({
  id,
  attachment: `${net.id}-10`,
  proto: 'tcp',
  hostAddress: '0.0.0.0',
  hostPort,
  guestAddress: '192.168.107.10',
  guestPort: 80,
  ...more,
})

describe('publish', { skip: missing('socat', 'curl', 'ss') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
    await agent.createNetwork(other)
  })
  after(async () => {
    await lab?.remove()
  })
  const greeting = async (from: Place, address: string, port: number) =>
    (
      await from.run(['socat', '-T3', '-', `TCP:${address}:${port},connect-timeout=3`], { timeoutMs: 6000 })
    ).stdout.trim()
  // What must answer may take its time on a busy machine; what must not is asked once.
  const greets = async (from: Place, address: string, port: number, expected: string) =>
    assert.equal(await eventually(`${address}:${port} answers`, () => greeting(from, address, port)), expected)

  test('published before the VM exists; served when it does', async () => {
    assert.deepEqual(await agent.publish(spec('p1', 8080)), { hostPort: 8080 })
    web = lab.guest('web')
    await agent.join(net, web, 10)
    web.start(['socat', 'TCP-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo $SOCAT_PEERADDR'])
    await eventually('the VM listens', async () => (await web.sh('ss -Hlnt | wc -l')) === '1')
    await greets(lab.inet, '10.77.0.2', 8080, '203.0.113.2')
  })

  test("the client's address: its own, or .254 for loopback", async () => {
    await greets(lab.host, '127.0.0.1', 8080, '192.168.107.254')
    await greets(lab.host, '10.77.0.2', 8080, '10.77.0.2')
  })

  test('a port again is the same port; host port 0 picks one and keeps it', async () => {
    assert.deepEqual(await agent.publish(spec('p1', 8080)), { hostPort: 8080 })
    const { hostPort } = await agent.publish(spec('p0', 0))
    assert.ok(hostPort > 1023)
    assert.deepEqual(await agent.publish(spec('p0', 0)), { hostPort })
    await greets(lab.inet, '10.77.0.2', hostPort, '203.0.113.2')
    await agent.unpublish('p0')
    assert.equal(await greeting(lab.inet, '10.77.0.2', hostPort), '')
  })

  test('a busy port names the VM, or the process', async () => {
    await assert.rejects(agent.publish(spec('busy', 8080)), { code: 'PORT_BUSY', message: /the VM "web"/ })
    const holder = lab.host.start(['socat', 'TCP-LISTEN:8085,fork', 'SYSTEM:true'])
    await eventually('it listens', async () => (await lab.host.sh('ss -Hlnt sport = 8085')) !== '')
    await assert.rejects(agent.publish(spec('busy', 8085)), {
      code: 'PORT_BUSY',
      message: new RegExp(`socat \\(pid ${holder.pid}\\)`),
    })
    holder.kill('SIGKILL')
    assert.equal((await agent.stats(net.id)).warnings.length, 0)
  })

  test('one address only', async () => {
    await agent.publish(spec('lo', 8090, { hostAddress: '127.0.0.1' }))
    await greets(lab.host, '127.0.0.1', 8090, '192.168.107.254')
    assert.equal(await greeting(lab.inet, '10.77.0.2', 8090), '')
    await agent.unpublish('lo')
  })

  test('a range, added and removed while a download runs', async () => {
    const bytes = 200 << 20
    web.start(['socat', 'TCP-LISTEN:81,fork,reuseaddr', `SYSTEM:head -c ${bytes} /dev/zero`])
    await agent.publish(spec('big', 8100, { guestPort: 81 }))
    const download = lab.inet.sh('socat -u TCP:10.77.0.2:8100 - | wc -c')
    for (let i = 0; i < 11; i++) await agent.publish(spec(`r${i}`, 8200 + i))
    for (let i = 0; i < 11; i++) await greets(lab.inet, '10.77.0.2', 8200 + i, '203.0.113.2')
    for (let i = 0; i < 11; i++) await agent.unpublish(`r${i}`)
    assert.equal(await download, String(bytes))
    assert.equal(await lab.host.sh('ss -Hlnt "sport >= 8200 and sport <= 8210"'), '')
  })

  test('a guest that refuses resets the client', async () => {
    await agent.publish(spec('none', 8300, { guestPort: 9 }))
    const r = await lab.inet.run(['curl', '-sS', '--max-time', '30', 'http://10.77.0.2:8300/'])
    // 28 would be a timeout: it must be told at once, in whichever of curl's words.
    assert.ok(r.code !== 0 && r.code !== 28, r.all)
    await agent.unpublish('none')
  })

  test('a published port can be reached from another network, as a service of the host', async () => {
    const far = lab.guest('far')
    await agent.join(other, far, 10)
    assert.match(await eventually('it answers', () => greeting(far, '10.77.0.2', 8080)), /^\d+\.\d+\.\d+\.\d+$/)
  })

  test('gc takes back what no attachment owns', async () => {
    await agent.publish(spec('left', 8400, { attachment: 'nobody' }))
    await agent.call({ verb: 'gc', network: net.id, valid: [`${net.id}-10`] })
    assert.equal(await lab.host.sh('ss -Hlnt sport = 8400'), '')
    await greets(lab.inet, '10.77.0.2', 8080, '203.0.113.2')
  })
})
