/**
 * QEMU's user networking (libslirp), without a machine: its hub joins it to a TAP that is then moved into the guest, so that the same tools run in the
 * same kind of guest as for everybody. Its MTU is 1500 and cannot be chosen; the hub carries no offloads, as none of QEMU's nics has with it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { GUEST_PORT, PUBLISHED_PORT } from '../ports.ts'
import { makeGuest, makeHost, type Stand, type Subject, tune, versionOf } from '../stand.ts'

const TOOL = `qemu-system-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}`
const ADDRESS = '10.0.2.15'
const GATEWAY = '10.0.2.2'
const TAP = 'tapq'
const READY_MS = 5000

export const qemuUser: Subject = {
  name: 'qemu-user',
  async open(): Promise<Stand> {
    const version = await versionOf([TOOL, '--version'], /QEMU emulator version \S+/)
    const host = await makeHost()
    const place = await makeGuest()
    const forward = `hostfwd=tcp::${PUBLISHED_PORT}-${ADDRESS}:${GUEST_PORT}`
    const argv = [
      ...[TOOL, '-M', 'none', '-nodefaults', '-no-user-config', '-display', 'none', '-monitor', 'none'],
      ...['-netdev', `user,id=u,${forward}`, '-netdev', 'hubport,id=hu,hubid=0,netdev=u'],
      ...['-netdev', `tap,id=t,ifname=${TAP},script=no,downscript=no,vnet_hdr=off`],
      ...['-netdev', 'hubport,id=ht,hubid=0,netdev=t'],
    ]
    const child = await host.start(argv, false)
    let words = ''
    child.stderr?.on('data', (d: Buffer) => {
      words = (words + d).slice(-300)
    })
    for (const until = Date.now() + READY_MS; ; await sleep(50)) {
      if (child.exitCode !== null || Date.now() > until)
        throw new Error(words.trim().split('\n').at(-1) || 'it does not open its TAP')
      if ((await host.sh('ip -o link')).includes(` ${TAP}:`)) break
    }
    await host.sh(`ip link set ${TAP} netns ${place.netns.split('/')[2]}`)
    await place.sh(
      `ip link set ${TAP} name eth0; ip addr add ${ADDRESS}/24 dev eth0; ip link set eth0 up; ip route add default via ${GATEWAY}`,
    )
    await tune(place)
    const more = { out: true, published: true, dns: undefined, pids: [child.pid as number] }
    return {
      name: 'qemu-user',
      kind: 'peer',
      version,
      note: 'through a TAP, without a machine',
      host,
      guests: [{ place, address: ADDRESS, ifname: 'eth0' }],
      ...more,
    }
  },
}
