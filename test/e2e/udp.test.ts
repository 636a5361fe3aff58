/** UDP through the gateway and into published ports. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Agent, network } from './agent-client.ts'
import { EXAMPLE, eventually, Lab, missing, type Place } from './lab.ts'

const net = network(106)
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
  /** What comes back. A datagram may be lost and a busy machine be late: then it is said again. */
  const echo = async (from: Place, to: string, text: string, more = ''): Promise<string> => {
    for (let times = 0; times < 5; times++) {
      const argv = ['socat', '-t1', '-b65000', '-', `UDP:${to}${more}`]
      const { stdout } = await from.run(argv, { input: text, timeoutMs: 20_000 })
      if (stdout !== '') return stdout
    }
    return ''
  }

  test('an echo, small and as large as the path takes in one piece', async () => {
    assert.equal(await echo(vm, `${EXAMPLE}:7`, 'hello'), 'hello')
    assert.equal((await echo(vm, `${EXAMPLE}:7`, 'x'.repeat(1300))).length, 1300)
  })

  test('datagrams of several fragments, both ways', async () => {
    for (const n of [1473, 4000, 20_000, 60_000])
      assert.equal((await echo(vm, `${EXAMPLE}:7`, 'f'.repeat(n))).length, n, `${n} bytes`)
  })

  test('a closed port is refused by ICMP', async () => {
    const r = await vm.run(['socat', '-t2', '-', `UDP:${EXAMPLE}:99`], { input: 'anybody?', timeoutMs: 20_000 })
    assert.match(r.stderr, /refused/)
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
    const out = await vm.sh(`iperf3 -u -b 50M -l 1300 -t 2 -J -c ${EXAMPLE}`, 60_000)
    const { sum } = (JSON.parse(out) as { end: { sum: { packets: number; lost_packets: number } } }).end
    const came = (await arrived()) - before
    // A nic's queue holds most of a second of this.
    assert.ok(sum.packets > 1000 && came > sum.packets * 0.95, `${came} came: ${JSON.stringify(sum)}`)
  })

  test('flows are bounded: three thousand destinations, and the newest works', async () => {
    await vm.sh(
      `for i in $(seq 1 3000); do echo x > /dev/udp/${EXAMPLE}/$((10000 + i)); done 2>/dev/null || true`
        .replace(/^/, "exec bash -c '")
        .concat("'"),
      60_000,
    )
    assert.equal(await echo(vm, `${EXAMPLE}:7`, 'still'), 'still')
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
      echo(lab.inet, '10.77.0.2:5353', 'from-one', ',sourceport=4001'),
      echo(lab.inet, '10.77.0.2:5353', 'from-two', ',sourceport=4002'),
    ])
    assert.equal(first, '203.0.113.2 4001\nfrom-one')
    assert.equal(second, '203.0.113.2 4002\nfrom-two')
    assert.match(await echo(lab.host, '127.0.0.1:5353', 'local'), /^192\.168\.106\.254 \d+\nlocal$/)
    await agent.unpublish('u1')
    assert.equal(await lab.host.sh('ss -Hlnu sport = 5353'), '')
  })
})
