/**
 * The kernel's links of a bridged network: the bridge noid<N> with the network's own addresses, a veth or TAP for each VM, the TAP of the
 * services. Through `ip` and `bridge` of iproute2.
 *
 * What is there is read from the kernel; links carry an alias that names what they are for, so that a daemon that lost everything else
 * finds its own again. Never does: rules (rules.ts), switches of other links (claims.ts).
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { openTap } from '#tun-tap'
import { close } from '../../sys/fd.ts'
import { inNetns } from '../../sys/netns.ts'
import type { AttachRequest, NetworkSpec } from '../contract.ts'

const run = promisify(execFile)
const IP_MS = 10_000
const LINKS_MAX = 256
/** The nic's name in the VM. */
export const IFNAME = 'eth0'
const QUEUE = 1000

export async function ip(...argv: string[]): Promise<string> {
  return (await run('ip', argv, { timeout: IP_MS })).stdout
}

interface LinkInfo {
  readonly ifname: string
  readonly ifalias?: string
  readonly master?: string
  readonly operstate: string
}

async function links(...filter: string[]): Promise<LinkInfo[]> {
  const text = await ip('-j', 'link', 'show', ...filter)
  // An empty list is printed as nothing, or as [{}].
  return (JSON.parse(text || '[]') as LinkInfo[]).filter((l) => l.ifname !== undefined)
}

const hashOf = (text: string): string => createHash('sha256').update(text).digest('hex')
const networkAlias = (id: string): string => `noid network ${id}`
/** What the name of every port of a VM begins with. */
export const PORT_PREFIX = 'nb'
/** The host's end of a VM's veth, or its TAP. */
export const portName = (attachment: string): string => `${PORT_PREFIX}${hashOf(attachment).slice(0, 11)}`
/** The services' TAP. */
export const servicesName = (link: string): string => `ns${link}`

/** A locally administered unicast MAC that only depends on `what`: bridges take one of their ports' unless they have their own. */
export function macFor(what: string): string {
  const h = hashOf(what)
  return `02:${h.slice(0, 2)}:${h.slice(2, 4)}:${h.slice(4, 6)}:${h.slice(6, 8)}:${h.slice(8, 10)}`
}

/** The bridge of a network, or undefined. */
export async function bridgeOf(id: string): Promise<string | undefined> {
  return (await links('type', 'bridge')).find((l) => l.ifalias === networkAlias(id))?.ifname
}

function sysctl(family: 'ipv4' | 'ipv6', ifname: string, key: string, value: number): void {
  try {
    writeFileSync(`/proc/sys/net/${family}/conf/${ifname}/${key}`, String(value))
  } catch (e) {
    // A kernel without IPv6.
    if (family === 'ipv4') throw e
  }
}

/** Make the bridge and give it what the network says. Idempotent. Returns its name. */
export async function ensureBridge(n: NetworkSpec): Promise<string> {
  let name = await bridgeOf(n.id)
  for (let i = 0; name === undefined && i < LINKS_MAX; i++) {
    const candidate = `noid${i}`
    const made = await ip(
      'link',
      'add',
      candidate,
      'address',
      macFor(n.id),
      'mtu',
      String(n.mtu),
      'type',
      'bridge',
      'stp_state',
      '0',
      'forward_delay',
      '0',
      'mcast_snooping',
      '0',
    )
      .then(() => true)
      .catch((e: Error & { stderr?: string }) => {
        if (/exists/i.test(e.stderr ?? '')) return false
        throw e
      })
    if (!made) continue
    await ip('link', 'set', candidate, 'alias', networkAlias(n.id))
    name = candidate
  }
  if (name === undefined) throw new Error(`there are ${LINKS_MAX} links named noidN already`)
  sysctl('ipv6', name, 'disable_ipv6', 1)
  sysctl('ipv4', name, 'forwarding', 1)
  // Only published ports and --allow-host use it; what comes from the network for 127/8 is dropped in table raw.
  sysctl('ipv4', name, 'route_localnet', 1)
  sysctl('ipv4', name, 'send_redirects', 0)
  sysctl('ipv4', name, 'accept_redirects', 0)
  sysctl('ipv4', name, 'arp_ignore', 1)
  const prefix = n.subnet.split('/')[1]
  for (const address of [n.gateway, n.hostAddress]) await ip('addr', 'replace', `${address}/${prefix}`, 'dev', name)
  await ip('link', 'set', name, 'up')
  return name
}

export async function removeBridge(id: string): Promise<void> {
  const name = await bridgeOf(id)
  if (name === undefined) return
  for (const l of await links('master', name)) await ip('link', 'delete', l.ifname).catch(() => {})
  await ip('link', 'delete', name).catch(() => {})
}

async function enslave(ifname: string, bridge: string, isolated: boolean): Promise<void> {
  sysctl('ipv6', ifname, 'disable_ipv6', 1)
  await ip('link', 'set', ifname, 'master', bridge)
  if (isolated) {
    await run('bridge', ['link', 'set', 'dev', ifname, 'isolated', 'on'], { timeout: IP_MS })
    const said = (await run('bridge', ['-d', 'link', 'show', 'dev', ifname], { timeout: IP_MS })).stdout
    if (!said.includes('isolated on'))
      throw new Error(`the kernel did not isolate ${ifname}: isolated networks cannot be had here`)
  }
  await ip('link', 'set', ifname, 'up')
}

/** The VM's nic: a veth into its namespace, or a persistent TAP that its runtime opens. Made anew when it is not whole. */
export async function ensurePort(n: NetworkSpec, bridge: string, r: AttachRequest): Promise<void> {
  if (await portWhole(bridge, r)) return
  const ifname = portName(r.id)
  await removePort(r.id)
  const mtu = String(n.mtu)
  if (r.netns !== undefined) {
    await ip(
      'link',
      'add',
      ifname,
      'mtu',
      mtu,
      'type',
      'veth',
      'peer',
      'name',
      IFNAME,
      'netns',
      r.netns,
      'address',
      r.mac,
      'mtu',
      mtu,
    )
  } else {
    const { fd } = openTap({ name: ifname, mtu: n.mtu, vnetHdr: true, persist: true, txQueueLen: QUEUE })
    close(fd)
  }
  await ip('link', 'set', ifname, 'alias', `noid attachment ${r.id}`)
  await enslave(ifname, bridge, n.isolated)
}

/** Is the port on its bridge, and its other end in the VM? */
export async function portWhole(bridge: string, r: AttachRequest): Promise<boolean> {
  const [port] = await links('dev', portName(r.id)).catch(() => [])
  if (port?.master !== bridge || port.ifalias !== `noid attachment ${r.id}`) return false
  if (r.netns === undefined) return true
  try {
    // By the namespace's own view: /proc/net/dev of whoever stands in it.
    return inNetns(r.netns, () => readFileSync('/proc/thread-self/net/dev', 'utf8')).includes(`${IFNAME}:`)
  } catch {
    return false
  }
}

export async function removePort(attachment: string): Promise<void> {
  await ip('link', 'delete', portName(attachment)).catch(() => {})
}

/** Attachment ids of the ports of a bridge. */
export async function portsOf(bridge: string): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  for (const l of await links('master', bridge)) {
    const id = l.ifalias?.match(/^noid attachment (.+)$/)?.[1]
    if (id !== undefined) found.set(id, l.ifname)
  }
  return found
}

/** The services' TAP on the bridge, opened. It goes when its last descriptor does. The caller closes the descriptor. */
export async function openServicesTap(bridge: string, mtu: number): Promise<number> {
  const name = servicesName(bridge)
  await ip('link', 'delete', name).catch(() => {})
  const { fd } = openTap({ name, mtu, vnetHdr: true, txQueueLen: QUEUE })
  try {
    await enslave(name, bridge, false)
    return fd
  } catch (e) {
    close(fd)
    throw e
  }
}

/** Links by which packets of the outside come in: up, with an IPv4 address, not loopback and not noid's. */
export async function outsideLinks(): Promise<string[]> {
  const all = JSON.parse(await ip('-j', '-4', 'addr', 'show', 'up')) as {
    ifname?: string
    flags?: string[]
    addr_info?: unknown[]
  }[]
  return all.flatMap(({ ifname, flags, addr_info }) =>
    ifname === undefined || flags?.includes('LOOPBACK') || /^noid\d+$/.test(ifname) || (addr_info ?? []).length === 0
      ? []
      : [ifname],
  )
}
