/** vde_switch: a userspace Ethernet switch. It opens the TAPs itself, which are then moved into the guests: nothing stands between. VM to VM only. */
import { setTimeout as sleep } from 'node:timers/promises'
import { makeGuest, makeHost, type Stand, type Station, type Subject, tune, versionOf } from '../stand.ts'

const NET = '10.215.16'

export const vde: Subject = {
  name: 'vde_switch',
  async open(): Promise<Stand> {
    const version = await versionOf(['vde_switch', '--version'], /VDE \S+/)
    const host = await makeHost()
    const socket = `${process.env.TMPDIR ?? '/tmp'}/vde.ctl`
    // Its console is stdin: it ends when that does.
    const child = await host.start(['vde_switch', '-sock', socket, '-tap', 'tap0', '-tap', 'tap1'], false)
    await sleep(300)
    if (child.exitCode !== null) throw new Error('it does not start')
    if ((await host.sh('ip -o link')).includes(' tap1') === false) throw new Error('it cannot open a TAP here')
    const guests: Station[] = []
    for (const n of [0, 1]) {
      const place = await makeGuest()
      const address = `${NET}.${100 + n}`
      await host.sh(`ip link set tap${n} netns ${place.netns.split('/')[2]}`)
      await place.sh(`ip link set tap${n} name eth0; ip addr add ${address}/24 dev eth0; ip link set eth0 up`)
      await tune(place)
      guests.push({ place, address, ifname: 'eth0' })
    }
    const more = { out: false, published: false, dns: undefined, pids: [child.pid as number] }
    return { name: 'vde_switch', kind: 'peer', version, note: 'TAPs of its own', host, guests, ...more }
  },
}
