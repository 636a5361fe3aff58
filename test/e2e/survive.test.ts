/** Kill anything at any time: guests keep address, names and ports; the end leaves nothing. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { type Agent, network } from './agent-client.ts'
import { becomes, EXAMPLE, eventually, Lab, missing, type Place } from './lab.ts'

const net = network(109)
let lab: Lab
let agent: Agent
let vm: Place
let clean: Record<string, string[]>

const published = {
  id: 'p',
  attachment: `${net.id}-10`,
  proto: 'tcp',
  hostAddress: '0.0.0.0',
  hostPort: 8080,
  guestAddress: '192.168.109.10',
  guestPort: 80,
} as const

describe('survive', { skip: missing('dig', 'curl', 'socat', 'ss') }, () => {
  before(async () => {
    lab = await Lab.create()
    clean = await lab.snapshot()
    agent = lab.agent()
    await agent.createNetwork(net)
    vm = lab.guest('vm')
    await agent.publish(published)
    await agent.join(net, vm, 10)
    vm.start(['socat', 'TCP-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo here'])
    await eventually('the VM listens', async () => (await vm.sh('ss -Hlnt | wc -l')) === '1')
  })
  after(async () => {
    await lab?.remove()
  })
  const planePid = () =>
    (JSON.parse(readFileSync(join(agent.home, 'run', net.id, 'pid'), 'utf8')) as { pid: number }).pid
  const works = async () => {
    const page = await vm.run(['curl', '-sS', '--max-time', '10', 'http://example.com/'], { timeoutMs: 20_000 })
    const name = await vm.run(['dig', '+short', '+tries=1', '+time=8', 'vm.noid.internal'], { timeoutMs: 20_000 })
    const port = await lab.inet.run(['socat', '-T8', '-', 'TCP:10.77.0.2:8080,connect-timeout=8'], {
      timeoutMs: 20_000,
    })
    const said = [page.stdout.trim(), name.stdout.trim(), port.stdout.trim()]
    assert.deepEqual(said, ['hello 10.77.0.2', '192.168.109.10', 'here'])
    return true
  }
  /** What a daemon does that has come back: says again all that it knows. */
  const sayAgain = async () => {
    await agent.createNetwork(net)
    await agent.publish(published)
    await agent.attach(net, vm, 10)
  }

  test('it works at all', async () => {
    await works()
  })

  test('the data plane killed: the guest notices a pause', async () => {
    const before = planePid()
    process.kill(before, 'SIGKILL')
    await eventually('it works again', works)
    assert.notEqual(planePid(), before)
    assert.ok(agent.events.some((e) => e.type === 'restored' && e.attachments.length === 1))
    assert.equal((await agent.stats(net.id)).leases.find((l) => l.vm === 'vm')?.state, 'bound')
  })

  test('the daemon killed: nobody notices, and it finds what it left', async () => {
    const download = vm.sh(`curl -sS --limit-rate 20M http://${EXAMPLE}/bytes/${60 << 20} | wc -c`)
    await agent.kill()
    await works()
    const pid = planePid()
    agent.again()
    await sayAgain()
    assert.equal(planePid(), pid, 'adopted')
    assert.equal(await download, String(60 << 20))
    await works()
  })

  test('both killed: the daemon makes it again', async () => {
    await agent.kill()
    process.kill(planePid(), 'SIGKILL')
    agent.again()
    await sayAgain()
    await works()
  })

  test('the daemon came back to a VM that is another one now', async () => {
    await agent.kill()
    await vm.remove()
    vm = lab.guest('vm')
    agent.again()
    await agent.createNetwork(net)
    await agent.publish(published)
    await agent.join(net, vm, 10)
    vm.start(['socat', 'TCP-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo here'])
    await eventually('it works', works)
  })

  test('a data plane that hangs is replaced', async () => {
    const hung = planePid()
    process.kill(hung, 'SIGSTOP')
    await agent.stats(net.id).catch(() => {})
    await eventually('it works again', works)
    assert.notEqual(planePid(), hung)
  })

  test('the end leaves nothing', async () => {
    await agent.detach(`${net.id}-10`, net.id)
    await agent.detach(`${net.id}-10`, net.id)
    await agent.unpublish('p')
    assert.doesNotMatch(await vm.sh('ip -o link'), /eth0/)
    await agent.deleteNetwork(net.id)
    await agent.deleteNetwork(net.id)
    await agent.kill()
    await vm.remove()
    await becomes('as before', () => lab.snapshot(), clean)
  })

  test('a network whose directory was removed ends by itself', async () => {
    agent.again()
    const lone = network(110)
    await agent.createNetwork(lone)
    await agent.kill()
    await lab.host.sh(`rm -r ${join(agent.home, 'run', lone.id)}`)
    await becomes('as before', () => lab.snapshot(), clean)
  })
})
