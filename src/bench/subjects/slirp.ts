/** slirp4netns: the usual rootless tool of containers. Once with its best MTU, once with the MTU that guests have elsewhere. */
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { GUEST_PORT, PUBLISHED_PORT } from '../ports.ts'
import { makeGuest, makeHost, type Stand, type Subject, tune, versionOf } from '../stand.ts'

const ADDRESS = '10.0.2.100'
const READY_MS = 5000

export const slirp = (mtu: number): Subject => ({
  name: `slirp4netns-${mtu}`,
  async open(): Promise<Stand> {
    const version = await versionOf(['slirp4netns', '--version'], /slirp4netns version \S+/)
    const host = await makeHost()
    const place = await makeGuest()
    const socket = `${process.env.TMPDIR ?? '/tmp'}/slirp-${mtu}.sock`
    const argv = ['slirp4netns', '--configure', `--mtu=${mtu}`, '--netns-type=path', `--api-socket=${socket}`]
    const child = await host.start([...argv, place.netns, 'tap0'], false)
    let words = ''
    child.stderr?.on('data', (d: Buffer) => {
      words = (words + d).slice(-300)
    })
    for (const until = Date.now() + READY_MS; ; await sleep(50)) {
      if (child.exitCode !== null || Date.now() > until)
        throw new Error(words.trim().split('\n').slice(-2).join('; ') || 'it does not configure its device')
      if ((await place.sh('ip -4 addr show tap0 2>/dev/null || true')).includes(ADDRESS)) break
    }
    await tune(place)
    const published = await forward(socket).then(
      () => true,
      () => false,
    )
    return {
      name: `slirp4netns-${mtu}`,
      kind: 'peer',
      version,
      note: mtu === 1500 ? 'at the MTU of the others' : 'at its largest MTU',
      host,
      guests: [{ place, address: ADDRESS, ifname: 'tap0' }],
      out: true,
      published,
      dns: undefined,
      pids: [child.pid as number],
    }
  },
})

/** add_hostfwd of its API socket. */
function forward(socket: string): Promise<void> {
  const call = {
    execute: 'add_hostfwd',
    arguments: { proto: 'tcp', host_addr: '0.0.0.0', host_port: PUBLISHED_PORT, guest_port: GUEST_PORT },
  }
  return new Promise((resolve, reject) => {
    const s = connect(socket, () => s.end(JSON.stringify(call)))
    let text = ''
    s.on('data', (d: Buffer) => {
      text += d
    })
    s.on('error', reject)
    s.on('close', () => (text.includes('error') ? reject(new Error(text)) : resolve()))
  })
}
