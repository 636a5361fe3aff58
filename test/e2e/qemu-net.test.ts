/**
 * The data plane and a real guest: QEMU's virtio-net over vhost-user and over a datagram socket, a namespace as the neighbour. The guest is the tiny
 * image with an init of its own in front, so that nothing but the nic is between the two.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import type { StatsAnswer } from '../../src/dataplane/protocol.ts'
import { Cpio } from '../../src/images/cpio.ts'
import { Images } from '../../src/images/index.ts'
import { joinParts } from '../../src/images/initrd.ts'
import { DUAL, Lab, skipWithoutRoot } from '../dataplane/lab.ts'
import { sharedImages } from '../images/shared.ts'
import { eventually, missing } from './lab.ts'

const skip = skipWithoutRoot || missing('qemu-system-x86_64', 'socat')
const ADDRESS = '192.168.100.10'
const ADDRESS6 = 'fd00:77::10'
const MAC = '52:54:00:00:00:10'
const BYTES = 8 << 20
/** A kernel that is emulated, on a busy machine. */
const BOOT_MS = 300_000

/** It takes its address, says what its driver and the back-end agreed on, and gives back what it is sent. */
const INIT = `#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net; do modprobe $m; done
until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
ip addr add ${ADDRESS}/24 dev eth0; ip link set eth0 up; ip -6 addr add ${ADDRESS6}/64 dev eth0; ip route add default via 192.168.100.1
echo "FEATURES $(cat /sys/class/net/eth0/device/features)"
echo "MTU $(cat /sys/class/net/eth0/mtu)"
nc -ll -p 7 -e cat &
until netstat -ltn | grep -q ':7 '; do sleep 0.1; done
echo GUEST-UP
while true; do sleep 1000; done
`

for (const kind of ['vhost-user', 'dgram'] as const)
  describe(`a guest of QEMU over ${kind}`, { skip }, () => {
    test('bytes both ways and by both families, whole; another data plane takes over and the guest need not know', async (t) => {
      const image = await new Images(sharedImages(), () => {}).resolve('tiny')
      const lab = new Lab()
      let qemu: ChildProcess | undefined
      t.after(async () => {
        qemu?.kill('SIGKILL')
        await lab.close()
      })
      await lab.start(DUAL)
      const record = lab.sockets.record(kind, 'guest')
      const attach = async () => {
        const fd = lab.sockets.open(record)
        const who = {
          id: 'guest',
          role: 'vm',
          name: 'guest',
          mac: MAC,
          address: ADDRESS,
          address6: ADDRESS6,
          bound: true,
        } as const
        await lab.link.give({ op: 'attach', fds: 1, kind, vnetHdr: false, ...who }, fd)
      }
      await attach()
      const neighbour = await lab.guest('c', 12)

      const init = new Cpio().file('test-init', 0o755, INIT).end()
      const initrd = join(lab.dir, 'initrd')
      writeFileSync(initrd, joinParts([readFileSync(image.initrd), init]))
      const { path, peer } = record
      const netdev =
        kind === 'dgram'
          ? ['-netdev', `dgram,id=n,local.type=unix,local.path=${peer},remote.type=unix,remote.path=${path}`]
          : ['-chardev', `socket,id=v,path=${path},reconnect=1`, '-netdev', 'vhost-user,id=n,chardev=v']
      // vectors=0: without KVM, QEMU 7.2.22 dies in msix_set_vector_notifiers when a vhost nic on PCI starts; on mmio (microvm) it does not.
      const guest = spawn(
        'qemu-system-x86_64',
        [
          ...['-nodefaults', '-no-user-config', '-display', 'none', '-accel', 'tcg,tb-size=64', '-cpu', 'max'],
          ...['-M', 'q35,memory-backend=ram', '-m', '256', '-object', 'memory-backend-memfd,id=ram,size=256M,share=on'],
          ...['-kernel', image.kernel, '-initrd', initrd, '-append', 'console=ttyS0 quiet rdinit=/test-init'],
          ...['-serial', 'stdio', ...netdev, '-device', `virtio-net-pci,netdev=n,mac=${MAC},host_mtu=1400,vectors=0`],
        ],
        { stdio: ['ignore', 'pipe', 'inherit'] },
      )
      qemu = guest
      let said = ''
      guest.stdout.on('data', (d: Buffer) => {
        said += d
      })
      const ended = () => guest.exitCode !== null || guest.signalCode !== null
      await eventually('the guest is up, or QEMU has ended', () => said.includes('GUEST-UP') || ended(), BOOT_MS)
      assert.match(said, /GUEST-UP/)
      assert.match(said, /MTU 1400/)
      lab.sockets.look()
      const features = said.match(/FEATURES ([01]+)/)?.[1] ?? ''
      // Checksums and segments left to the other side, each way: VIRTIO_NET_F_CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, and MRG_RXBUF.
      const offloads = [0, 1, 7, 11, 15].map((bit) => features[bit]).join('')
      if (kind === 'vhost-user') assert.equal(offloads, '11111')

      const file = join(lab.dir, 'bytes')
      const bytes = randomBytes(BYTES)
      writeFileSync(file, bytes)
      const echo = (address: string) =>
        lab.in(
          neighbour.netns,
          ...['sh', '-c', `socat -t 60 - TCP:${address}:7 <${file} | head -c ${BYTES} | sha256sum`],
        )
      const hash = createHash('sha256').update(bytes).digest('hex')
      lab.in(neighbour.netns, 'ping', '-c', '1', '-w', '20', ADDRESS)
      for (const address of [ADDRESS, `[${ADDRESS6}]`]) assert.equal(echo(address).slice(0, 64), hash, address)

      const was = lab.process
      was.kill('SIGKILL')
      await new Promise((resolve) => was.once('exit', resolve))
      lab.link.close()
      await lab.start(DUAL)
      await attach()
      await lab.attach(neighbour)
      lab.in(neighbour.netns, 'ping', '-c', '1', '-w', '20', ADDRESS)
      for (const address of [ADDRESS, `[${ADDRESS6}]`]) assert.equal(echo(address).slice(0, 64), hash, address)
      const { drops } = await lab.link.request<StatsAnswer>({ op: 'stats' })
      assert.deepEqual(
        drops.filter((d) => ['fault', 'virtio', 'vnet-header', 'checksum'].includes(d.reason)),
        [],
      )
    })
  })
