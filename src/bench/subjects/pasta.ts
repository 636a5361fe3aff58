/**
 * pasta (of passt): runs as an ordinary user, refuses root; so root's bench runs it as `nobody`. Its guest is a namespace that it makes
 * itself. Once with its default MTU, once with the MTU that guests have elsewhere.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Place } from '../place.ts'
import { GUEST_PORT, PUBLISHED_PORT } from '../ports.ts'
import { makeHost, type Stand, type Subject, tune, versionOf } from '../stand.ts'

const DEFAULT_MTU = 65520
const READY_MS = 5000
const NOBODY = '65534'

export const pasta = (mtu: number, asUser: boolean): Subject => ({
  name: `pasta-${mtu}`,
  async open(): Promise<Stand> {
    const version = await versionHere()
    const host = await makeHost()
    const user = asUser ? [] : ['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups']
    const size = mtu === DEFAULT_MTU ? [] : ['--mtu', String(mtu)]
    // A number nobody else sleeps for: it names the process that holds the guest's namespace.
    const mark = `9${mtu}${process.pid}`
    const ports = ['-t', `${PUBLISHED_PORT}:${GUEST_PORT}`, '-u', 'none', '-T', 'none', '-U', 'none']
    const argv = ['pasta', '--foreground', '--quiet', '--config-net', ...size, ...ports, '--', 'sleep', mark]
    const child = await host.start([...user, ...argv], false)
    let words = ''
    child.stderr?.on('data', (d: Buffer) => {
      words = (words + d).slice(-300)
    })
    for (const until = Date.now() + READY_MS; ; await sleep(50)) {
      if (child.exitCode !== null || Date.now() > until)
        throw new Error(words.trim().split('\n').at(-1) || 'it does not make its guest')
      const pid = sleeperPid(mark)
      if (pid === undefined) continue
      const place = new Place(`/proc/${pid}/ns/net`)
      const found = JSON.parse(await place.sh('ip -j -4 addr')) as { ifname: string; addr_info: { local: string }[] }[]
      const nic = found.find((l) => l.ifname !== 'lo' && l.addr_info.length > 0)
      if (nic === undefined) continue
      await tune(place)
      return {
        name: `pasta-${mtu}`,
        kind: 'peer',
        version,
        note: `${mtu === DEFAULT_MTU ? 'its default MTU' : 'at the MTU of the others'}, as an ordinary user`,
        host,
        guests: [{ place, address: nic.addr_info[0]?.local as string, ifname: nic.ifname }],
        out: true,
        published: true,
        dns: undefined,
        pids: [child.pid as number],
      }
    }
  },
})

/** Distributions build it without a version; the package knows. */
async function versionHere(): Promise<string> {
  const said = await versionOf(['pasta', '--version'], /pasta \S+/)
  if (!said.endsWith('unknown')) return said
  const packaged = await versionOf(['dpkg-query', '-W', 'passt'], /\S+$/m).catch(() => 'unknown')
  return `pasta ${packaged}`
}

function sleeperPid(mark: string): string | undefined {
  return readdirSync('/proc').find((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, 'latin1') === `sleep\0${mark}\0`
    } catch {
      return false
    }
  })
}
