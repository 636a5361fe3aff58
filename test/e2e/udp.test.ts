/** UDP through the gateway and into published ports. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Agent, network } from './agent-client.ts'
import { EXAMPLE, eventually, Lab, missing, type Place } from './lab.ts'

const net = network(106)
const ECHO = `UDP:${EXAMPLE}:7`
let lab: Lab
let agent: Agent
let vm: Place

describe('udp', { skip: missing('socat', 'ss', 'iperf3') }, () => {
  before(async () => {
    lab = await Lab.create()
    agent = lab.agent()
    await agent.createNetwork(net)
    vm = lab.guest('vm')
    await agent.join(net, vm, 10)
  })
  after(async () => {
    await lab?.remove()
  })

  test('an echo, small and as large as the path takes in one piece', async () => {
    assert.equal(await vm.echo(ECHO, 'hello'), 'hello')
    assert.equal((await vm.echo(ECHO, 'x'.repeat(1300))).length, 1300)
  })

  test('datagrams of several fragments, both ways', async () => {
    for (const n of [1473, 4000, 20_000, 60_000])
      assert.equal((await vm.echo(ECHO, 'f'.repeat(n))).length, n, `${n} bytes`)
  })

  test('a closed port is refused by ICMP', async () => {
    const argv = ['socat', '-t2', '-', `UDP:${EXAMPLE}:99`]
    const ask = async () => (await vm.run(argv, { input: 'anybody?', timeoutMs: 20_000 })).stderr
    await eventually('it is refused', async () => /refused/.test(await ask()))
  })

  test('a stream of datagrams arrives', async () => {
    lab.inet.start(['iperf3', '-s', '-B', EXAMPLE, '-1'])
    await eventually('iperf3 listens', async () => (await lab.inet.sh('ss -Hlnt sport = 5201 | wc -l')) === '1')
    // What came to the far end, also what iperf3 there was too late to take: on a busy machine that is nearly all that is lost.
    const arrived = async () => {
      const [names, values] = (await lab.inet.sh('grep ^Udp: /proc/net/snmp')).split('\n').map((l) => l.split(' '))
      const value = (name: string) => Number(values?.[names?.indexOf(name) ?? -1])
      return value('InDatagrams') + value('RcvbufErrors')
    }
    const before = await arrived()
    const out = await vm.sh(`iperf3 -u -b 5M -l 1300 -t 4 -J -c ${EXAMPLE}`, 60_000)
    const { sum } = (JSON.parse(out) as { end: { sum: { packets: number; lost_packets: number } } }).end
    const came = (await arrived()) - before
    // A nic's queue holds all of this: nothing is lost while the machine has others to serve.
    assert.ok(sum.packets > 1000 && came > sum.packets * 0.95, `${came} came: ${JSON.stringify(sum)}`)
  })

  test('flows are bounded: three thousand destinations, and the newest works', async () => {
    await vm.sh(
      `for i in $(seq 1 3000); do echo x > /dev/udp/${EXAMPLE}/$((10000 + i)); done 2>/dev/null || true`
        .replace(/^/, "exec bash -c '")
        .concat("'"),
      60_000,
    )
    assert.equal(await vm.echo(ECHO, 'still'), 'still')
    const { flows } = await agent.stats(net.id)
    assert.ok(flows.length <= 4096, `${flows.length} flows`)
  })

  test('two clients of a published UDP port are told apart', async () => {
    const server = `require('node:dgram').createSocket('udp4').on('message', function (m, from) {
      this.send(from.address + ' ' + from.port + '\\n' + m, from.port, from.address)
    }).bind(5353)`
    vm.start([process.execPath, '-e', server])
    await eventually('the VM listens', async () => (await vm.sh('ss -Hlnu | wc -l')) === '1')
    const { hostPort } = await agent.publish({
      id: 'u1',
      attachment: `${net.id}-10`,
      proto: 'udp',
      hostAddress: '0.0.0.0',
      hostPort: 5353,
      guestAddress: '192.168.106.10',
      guestPort: 5353,
    })
    assert.equal(hostPort, 5353)
    const [first, second] = await Promise.all([
      lab.inet.echo('UDP:10.77.0.2:5353,sourceport=4001', 'from-one'),
      lab.inet.echo('UDP:10.77.0.2:5353,sourceport=4002', 'from-two'),
    ])
    // An answer that was late comes to the next try as well: its port is the same.
    assert.match(first, /^(203\.0\.113\.2 4001\nfrom-one)+$/)
    assert.match(second, /^(203\.0\.113\.2 4002\nfrom-two)+$/)
    assert.match(await lab.host.echo('UDP:127.0.0.1:5353', 'local'), /^192\.168\.106\.254 \d+\nlocal$/)
    await agent.unpublish('u1')
    assert.equal(await lab.host.sh('ss -Hlnu sport = 5353'), '')
  })
})
