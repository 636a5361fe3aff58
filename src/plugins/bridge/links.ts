/**
 * The kernel's links of a bridged network: the bridge noid<N> with the network's own addresses, a veth or TAP for each VM, the TAP of the
 * services. Through `ip` and `bridge` of iproute2.
 *
 * What is there is read from the kernel. A bridge is known by its MAC and a port by its name, which follow from ids and are there from the link's
 * first moment; so a daemon that was killed anywhere, or lost everything else, finds its own again. A VM's port learns no MACs and floods
 * nothing: its own MAC is entered by hand, so nobody takes over a neighbour's traffic, and so are the IPv6 addresses that are a VM's from the beginning, as
 * neighbours for good: the host never asks for them, so nobody can answer for another. Never does: rules (rules.ts), switches of other links (claims.ts).
 */
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import { promisify } from 'node:util'
import { openTap } from '#tun-tap'
import { close } from '../../sys/fd.ts'
import { inNetns } from '../../sys/netns.ts'
import type { AttachRequest, NetworkSpec } from '../contract.ts'
import { addressesOf } from '../dataplane/config.ts'
import { linkLocal } from './addresses6.ts'
import { addresses6Of, PORT_PREFIX } from './guard.ts'

const run = promisify(execFile)
const IP_MS = 10_000
const LINKS_MAX = 256
/** The nic's name in the VM. */
export const IFNAME = 'eth0'
const QUEUE = 1000

export async function ip(...argv: string[]): Promise<string> {
  return (await run('ip', argv, { timeout: IP_MS })).stdout
}

/** Several commands of `tool` (ip or bridge) in one process; the first that fails ends it, unless forced. Throws if any failed. */
async function batch(tool: 'ip' | 'bridge', lines: readonly string[], ...flags: '-force'[]): Promise<void> {
  const child = spawn(tool, [...flags, '-batch', '-'], { stdio: ['pipe', 'ignore', 'pipe'], timeout: IP_MS })
  let said = ''
  child.stderr.on('data', (d: Buffer) => {
    said = (said + d).slice(-2000)
  })
  child.stdin.on('error', () => {})
  child.stdin.end(`${lines.join('\n')}\n`)
  const code = await new Promise<number | null>((resolve, reject) => child.on('error', reject).on('close', resolve))
  if (code !== 0) throw new Error(`${tool}: ${said.trim() || code} (${lines.join('; ')})`)
}

interface LinkInfo {
  readonly ifname: string
  readonly ifalias?: string
  readonly address?: string
  readonly master?: string
  readonly flags?: readonly string[]
  readonly operstate?: string
  readonly linkinfo?: { readonly info_slave_data?: { readonly isolated?: boolean; readonly learning?: boolean } }
}

async function links(...filter: string[]): Promise<LinkInfo[]> {
  const text = await ip('-j', '-d', 'link', 'show', ...filter)
  // An empty list is printed as nothing, or as [{}].
  return (JSON.parse(text || '[]') as LinkInfo[]).filter((l) => l.ifname !== undefined)
}

const hashOf = (text: string): string => createHash('sha256').update(text).digest('hex')
const portAlias = (id: string): string => `noid attachment ${id}`
const networkAlias = (id: string): string => `noid network ${id}`
const NOID_LINK = /^noid\d+$/
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
  const mac = macFor(id)
  return (await links('type', 'bridge')).find((l) => l.address === mac && NOID_LINK.test(l.ifname))?.ifname
}

export async function isBridge(ifname: string): Promise<boolean> {
  return (await links('type', 'bridge')).some((l) => l.ifname === ifname)
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
    const bridge = ['type', 'bridge', 'stp_state', '0', 'forward_delay', '0', 'mcast_snooping', '0']
    try {
      await ip('link', 'add', candidate, 'address', macFor(n.id), 'mtu', String(n.mtu), ...bridge)
    } catch (e) {
      if (/exists/i.test((e as { stderr?: string }).stderr ?? '')) continue
      throw e
    }
    name = candidate
  }
  if (name === undefined) throw new Error(`there are ${LINKS_MAX} links named noidN already`)
  sixth(name, n.ipv6 !== undefined)
  sysctl('ipv4', name, 'forwarding', 1)
  sysctl('ipv4', name, 'send_redirects', 0)
  sysctl('ipv4', name, 'accept_redirects', 0)
  sysctl('ipv4', name, 'arp_ignore', 1)
  const prefix = n.subnet.split('/')[1]
  await batch('ip', [
    `link set ${name} alias "${networkAlias(n.id)}"`,
    ...(n.ipv4 === false ? [] : [n.gateway, n.hostAddress]).map((a) => `addr replace ${a}/${prefix} dev ${name}`),
    `link set ${name} up`,
  ])
  const { ipv6 } = n
  if (ipv6 !== undefined) {
    const own = [linkLocal(macFor(n.id)), ipv6.gateway, ipv6.hostAddress]
    await batch(
      'ip',
      own.map((a) => `addr replace ${a}/64 dev ${name} nodad`),
    )
  }
  return name
}

/** May packets of the loopback pass by this bridge? One that is gone passes none. */
export function routeLocalnet(bridge: string, on: boolean): void {
  if (existsSync(`/proc/sys/net/ipv4/conf/${bridge}`)) sysctl('ipv4', bridge, 'route_localnet', on ? 1 : 0)
}

/** IPv6 of the bridge: the addresses that it is given, used at once, and no others; or none at all. */
function sixth(name: string, on: boolean): void {
  if (!on) return sysctl('ipv6', name, 'disable_ipv6', 1)
  sysctl('ipv6', name, 'accept_ra', 0)
  sysctl('ipv6', name, 'autoconf', 0)
  sysctl('ipv6', name, 'accept_redirects', 0)
  sysctl('ipv6', name, 'addr_gen_mode', 1)
  sysctl('ipv6', name, 'disable_ipv6', 0)
}

/** The bridge and every port of it, in one go. */
export async function removeBridge(id: string): Promise<void> {
  const name = await bridgeOf(id)
  if (name === undefined) return
  const ports = (await links('master', name)).map((l) => l.ifname)
  // One may go by itself meanwhile, with its VM.
  await batch(
    'ip',
    [...ports, name].map((l) => `link delete ${l}`),
    '-force',
  ).catch(() => {})
}

/** Lines of `ip -batch` that make a link a port of the bridge and bring it up. */
const enslave = (ifname: string, bridge: string): string[] => [
  `link set ${ifname} addrgenmode none`,
  `link set ${ifname} master ${bridge} up`,
]

/** The VM's nic: a veth into its namespace, or a persistent TAP that its runtime opens. Made anew when it is not whole. */
export async function ensurePort(n: NetworkSpec, bridge: string, r: AttachRequest): Promise<void> {
  const ifname = portName(r.id)
  const state = await portState(n, bridge, r)
  if (state === 'whole') return
  if (state !== 'absent') await removePort(r.id)
  const lines: string[] = []
  const mtu = String(n.mtu)
  if (r.netns !== undefined)
    lines.push(
      `link add ${ifname} mtu ${mtu} type veth peer name ${IFNAME} netns ${r.netns} address ${r.mac} mtu ${mtu}`,
    )
  else close(openTap({ name: ifname, mtu: n.mtu, vnetHdr: true, persist: true, txQueueLen: QUEUE }).fd)
  // Hairpin: with bridge-nf-call-iptables a VM's packet to its own published port is translated on the bridge and must leave where it came from.
  const own = `learning off flood off isolated ${n.isolated ? 'on hairpin off' : 'off hairpin on'}`
  const [unborn = '', up = ''] = enslave(ifname, bridge)
  await batch('ip', [
    ...lines,
    `link set ${ifname} alias "${portAlias(r.id)}"`,
    unborn,
    `link set ${ifname} master ${bridge}`,
    `link set ${ifname} type bridge_slave ${own}`,
    up,
  ])
  sysctl('ipv6', ifname, 'disable_ipv6', 1)
  await batch('bridge', [`fdb replace ${r.mac} dev ${ifname} master static`])
  const known = neighboursOf(n, r)
  if (known.length > 0)
    await batch(
      'ip',
      known.map((a) => `neigh replace ${a} lladdr ${r.mac} dev ${bridge} nud permanent`),
    )
  // Read back: an older kernel takes the option and does nothing.
  if (n.isolated && (await portState(n, bridge, r)) !== 'whole') {
    await removePort(r.id)
    throw new Error(`the kernel did not isolate ${ifname}: isolated networks cannot be had here`)
  }
}

/** Is the port on its bridge, apart from its neighbours if it must be, and its other end in the VM? */
export async function portState(
  n: NetworkSpec,
  bridge: string,
  r: AttachRequest,
): Promise<'whole' | 'broken' | 'absent'> {
  const ifname = portName(r.id)
  if (!readFileSync('/proc/thread-self/net/dev', 'utf8').includes(`${ifname}:`)) return 'absent'
  const [port] = await links('dev', ifname).catch(() => [])
  if (port === undefined) return 'absent'
  const { isolated = false, learning = true } = port.linkinfo?.info_slave_data ?? {}
  if (port.master !== bridge || port.ifalias !== portAlias(r.id) || !port.flags?.includes('UP')) return 'broken'
  if (learning || isolated !== n.isolated) return 'broken'
  if (r.netns === undefined) return 'whole'
  try {
    // By the namespace's own view: /proc/net/dev of whoever stands in it.
    const there = inNetns(r.netns, () => readFileSync('/proc/thread-self/net/dev', 'utf8'))
    return there.includes(`${IFNAME}:`) ? 'whole' : 'broken'
  } catch {
    return 'broken'
  }
}

/** IPv6 addresses that are the VM's, whoever says otherwise. */
function neighboursOf(n: NetworkSpec, r: AttachRequest): readonly string[] {
  if (n.ipv6 === undefined) return []
  return addresses6Of(n.ipv6.subnet, { mac: r.mac, ...addressesOf(r.addresses) })
}

/** The host forgets a VM that is gone. */
export async function forgetNeighbours(n: NetworkSpec, bridge: string, r: AttachRequest): Promise<void> {
  const known = neighboursOf(n, r)
  if (known.length === 0) return
  await batch(
    'ip',
    known.map((a) => `neigh del ${a} dev ${bridge}`),
    '-force',
  ).catch(() => {})
}

export async function removePort(attachment: string): Promise<void> {
  await ip('link', 'delete', portName(attachment)).catch(() => {})
}

/** Ports that are on no bridge any more, too. */
export async function removePorts(attachments: readonly string[]): Promise<void> {
  if (attachments.length === 0) return
  await batch(
    'ip',
    attachments.map((a) => `link delete ${portName(a)}`),
    '-force',
  ).catch(() => {})
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

/** Is the services' TAP on the bridge, with somebody behind it? */
export async function servicesJoined(bridge: string): Promise<boolean> {
  const name = servicesName(bridge)
  if (!readFileSync('/proc/thread-self/net/dev', 'utf8').includes(`${name}:`)) return false
  const [tap] = await links('dev', name).catch(() => [])
  return tap?.master === bridge && tap.operstate === 'UP'
}

/** The services' TAP on the bridge, opened. It goes when its last descriptor does. The caller closes the descriptor. */
export async function openServicesTap(bridge: string, mtu: number): Promise<number> {
  const name = servicesName(bridge)
  await ip('link', 'delete', name).catch(() => {})
  const { fd } = openTap({ name, mtu, vnetHdr: true, txQueueLen: QUEUE })
  try {
    await batch('ip', enslave(name, bridge))
    sysctl('ipv6', name, 'disable_ipv6', 1)
    return fd
  } catch (e) {
    close(fd)
    throw e
  }
}

interface AddressInfo {
  readonly ifname?: string
  readonly flags?: readonly string[]
  readonly addr_info?: readonly { readonly family?: string; readonly local?: string }[]
}

/** What the host is outside of noid in one family: the links by which packets come in, and its addresses, also on links that are down. */
export interface Outside {
  readonly links: readonly string[]
  readonly addresses: readonly string[]
}

export async function outside(): Promise<{ readonly four: Outside; readonly six: Outside }> {
  const all = JSON.parse((await ip('-j', 'addr', 'show')) || '[]') as AddressInfo[]
  const of = (family: 'inet' | 'inet6'): Outside => {
    const links: string[] = []
    const addresses = new Set<string>()
    for (const { ifname, flags = [], addr_info = [] } of all) {
      const own = addr_info.flatMap((a) =>
        a.family !== family || isInner(a.local ?? '::1') ? [] : [a.local as string],
      )
      if (ifname === undefined || NOID_LINK.test(ifname) || own.length === 0) continue
      if (flags.includes('UP') && !flags.includes('LOOPBACK')) links.push(ifname)
      for (const a of own) addresses.add(a)
    }
    return { links, addresses: [...addresses].sort() }
  }
  return { four: of('inet'), six: of('inet6') }
}

/** Of the loopback, or of one link alone. */
const isInner = (a: string): boolean => a.startsWith('127.') || a === '::1' || /^fe[89ab]/i.test(a)

/** The host's links and their addresses, cheaply: to see whether anything has changed. */
export const addresses = (): [ifname: string, address: string][] =>
  Object.entries(networkInterfaces()).flatMap(([ifname, all]) =>
    (all ?? []).map((a): [string, string] => [ifname, a.address]),
  )
