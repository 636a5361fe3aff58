/** A VM with a kernel of its own on a LAN, by the descriptor of a macvtap: it is a neighbour there, of a sandbox too, and nothing is left of its device. */
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { Vm } from '../../src/api/contract.ts'
import { Images } from '../../src/images/index.ts'
import { sharedImages } from '../images/shared.ts'
import { qemuSkip } from '../runtimes/qemu-lab.ts'
import { Cli } from './command-line.ts'
import { eventually, Lab, missing, type Place } from './lab.ts'

const skip = missing('dnsmasq', 'ping') || qemuSkip()

describe("QEMU's VMs on a LAN by macvtap", { skip }, () => {
  let lab: Lab
  let cli: Cli
  let lan: Place
  let q: Vm

  before(async () => {
    const images = sharedImages()
    await new Images(images, () => {}).resolve('tiny')
    lab = await Lab.create()
    const home = join(lab.dir, 'root')
    mkdirSync(home)
    cli = new Cli(lab.host, home, [], { NOID_IMAGES_DIR: images, NOID_TEMPLATES: '0' })
    lan = lab.guest('lan')
    await lan.sh('ip link add eth0 type veth peer name lan0; ip addr add 10.44.0.1/24 dev eth0; ip link set eth0 up')
    await lan.sh(`ip link set lan0 netns ${lab.host.name}`)
    await lab.host.sh('ip link set lan0 up')
    lan.start([
      'dnsmasq',
      ...['--no-daemon', '--port=0', '--interface=eth0', '--bind-interfaces', '--leasefile-ro', '--user=root'],
      ...['--dhcp-range=10.44.0.50,10.44.0.60,1h', '--dhcp-option=3,10.44.0.1'],
    ])
    await cli.noid('network', 'create', 'lan', '--backend', 'macvtap', '--config', 'parent=lan0')
  })
  after(async () => {
    await cli?.run('destroy', '--all').catch(() => {})
    await cli?.run('daemon', 'stop').catch(() => {})
    await lab?.remove()
  })
  const exec = (vm: string, ...argv: string[]) => cli.run('exec', vm, '--', ...argv)
  const answers = async (vm: string, address: string) =>
    assert.equal((await exec(vm, 'ping', '-c1', '-w20', address)).code, 0, `${vm} → ${address}`)

  test("the LAN's own DHCP server gives the address, which noid shows; neighbours answer", async () => {
    q = await cli.json<Vm>('create', 'q', '--runtime', 'qemu', '--image', 'tiny', '--mem', '256', '--network', 'lan')
    assert.match(q.address ?? '', /^10\.44\.0\.5\d$/)
    assert.match((await exec('q', 'ip', 'addr', 'show', 'eth0')).stdout, new RegExp(`${q.mac}[^]*inet ${q.address}/24`))
    await answers('q', '10.44.0.1')
    const s = await cli.json<Vm>('create', 's', '--runtime', 'sandbox', '--network', 'lan')
    await answers('q', s.address as string)
    await answers('s', q.address as string)
    await eventually(
      'the LAN reaches it',
      async () => (await lan.run(['ping', '-c1', '-W2', q.address as string])).code === 0,
    )
  })

  test('it is there again after a restart; what macvtap cannot do is refused; its device goes with it', async () => {
    await cli.noid('restart', 'q')
    await answers('q', '10.44.0.1')
    assert.match(
      (await cli.fails('create', 'p', '--network', 'lan', '--runtime', 'qemu', '--port', '8080:80')).text,
      /publish ports/,
    )
    assert.notEqual(await lab.host.sh('ip -o link show type macvtap'), '')
    await cli.noid('destroy', 'q')
    assert.equal(await lab.host.sh('ip -o link show type macvtap'), '')
  })
})
