/**
 * macvlan and macvtap devices on a parent: made, opened, removed, by `ip` of iproute2 and the character device of a macvtap.
 *
 * A sandbox gets a macvlan in its own namespace; a runtime with a descriptor of its own (QEMU) gets a macvtap in the host's namespace. Its
 * character device is named by major and minor, because /dev/tapN collides between namespaces: whoever opens it makes a private node.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { openTapNode } from '#tun-tap'
import { linkIndex, linkMac } from '../../sys/netdev.ts'
import { inNetns } from '../../sys/netns.ts'
import type { MacvtapConfig } from './config.ts'

const run = promisify(execFile)
const IP_MS = 10_000
/** The nic's name in the VM. */
export const IFNAME = 'eth0'

async function ip(...argv: string[]): Promise<string> {
  return (await run('ip', argv, { timeout: IP_MS })).stdout
}

/** The name of a macvtap in the host's namespace. */
export const tapName = (what: string): string => `mv${createHash('sha256').update(what).digest('hex').slice(0, 12)}`

export interface Parent {
  readonly mtu: number
  readonly up: boolean
}

/** The parent, or undefined when there is none of that name. */
export async function parentOf(name: string): Promise<Parent | undefined> {
  const text = await ip('-j', 'link', 'show', 'dev', name).catch(() => '[]')
  const [l] = JSON.parse(text || '[]') as { mtu: number; flags: string[] }[]
  return l === undefined ? undefined : { mtu: l.mtu, up: l.flags.includes('UP') }
}

/** A macvlan named eth0 inside `netns`. */
export async function addMacvlan(c: MacvtapConfig, netns: string, mac: string, mtu: number): Promise<void> {
  const device = ['address', mac, 'mtu', String(mtu), 'type', 'macvlan', 'mode', c.mode]
  await ip('link', 'add', 'link', c.parent, 'name', IFNAME, 'netns', netns, ...device)
  // A new passthru device has its parent's MAC, whatever it was given; set again, it becomes the parent's (and goes with the device).
  if (c.mode === 'passthru')
    await run('nsenter', [`--net=${netns}`, 'ip', 'link', 'set', IFNAME, 'address', mac], { timeout: IP_MS })
}

/** Is eth0 with this MAC in the namespace? */
export function macvlanThere(netns: string, mac: string): boolean {
  try {
    const found = inNetns(netns, () => linkMac(IFNAME))
    return typeof found !== 'number' && Buffer.from(found).toString('hex') === mac.replaceAll(':', '').toLowerCase()
  } catch {
    return false
  }
}

export async function removeMacvlan(netns: string): Promise<void> {
  await run('nsenter', [`--net=${netns}`, 'ip', 'link', 'delete', IFNAME], { timeout: IP_MS }).catch(() => {})
}

/** A macvtap in this namespace, up. Idempotent. */
export async function addMacvtap(c: MacvtapConfig, ifname: string, mac: string, mtu: number): Promise<void> {
  if (linkIndex(ifname) >= 0) return
  await ip(
    'link',
    'add',
    'link',
    c.parent,
    'name',
    ifname,
    'address',
    mac,
    'mtu',
    String(mtu),
    'type',
    'macvtap',
    'mode',
    c.mode,
  )
  if (c.mode === 'passthru') await ip('link', 'set', ifname, 'address', mac)
  await ip('link', 'set', ifname, 'up')
}

export async function removeMacvtap(ifname: string): Promise<void> {
  await ip('link', 'delete', ifname).catch(() => {})
}

/** Numbers of the character device of a macvtap, from this namespace's sysfs. */
export function tapNumbers(ifname: string): { readonly major: number; readonly minor: number } {
  const dir = `/sys/class/net/${ifname}`
  const tap = readdirSync(dir).find((n) => /^tap\d+$/.test(n))
  if (tap === undefined) throw new Error(`${ifname} has no character device`)
  const [major, minor] = readFileSync(join(dir, tap, 'dev'), 'utf8')
    .trim()
    .split(':')
    .map(Number)
  return { major: major as number, minor: minor as number }
}

/** The macvtap's descriptor, with a vnet header before each frame. The caller closes it. */
export async function openMacvtap(ifname: string, dir: string): Promise<number> {
  const { major, minor } = tapNumbers(ifname)
  const node = join(dir, `${ifname}.node`)
  rmSync(node, { force: true })
  await run('mknod', ['-m', '0600', node, 'c', String(major), String(minor)], { timeout: IP_MS })
  try {
    return openTapNode(node)
  } finally {
    rmSync(node, { force: true })
  }
}
