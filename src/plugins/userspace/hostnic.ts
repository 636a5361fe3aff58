/**
 * The host's own nic on a network: a TAP `noid<N>` in the host's namespace with the network's host address, so that people reach
 * VMs by address. One more port of the switch.
 *
 * Theory. The device does not persist: the data plane's descriptor keeps it, so whatever ends the data plane removes the device with its
 * address and route, and nothing is left to clean up. Its MAC follows from the network's id, so that guests' ARP caches stay right when it comes back.
 * The host must not become a way around the isolation of networks: `forwarding` is off for what comes in here, whatever ip_forward says; it
 * answers ARP only for its own address on this link and announces only that one (the switch refuses foreign senders).
 * Over IPv6 it has ::254 and nothing else: no link-local address, no ear for router advertisements, no probe for duplicates (the switch lets
 * nobody else have it), so that it can be used at once. The kernel has no switch against forwarding what comes in by one link (`forwarding` of a
 * link only says how it behaves as a host): there it is the switch that hands the host nothing but what is for ::254 (netstack/switch/switch.ts).
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { openTap, TunTapError } from '#tun-tap'
import { errnoText, must } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import { addLinkAddress6, setLinkAddress, setLinkUp } from '../../sys/netdev.ts'
import type { NetworkSpec } from '../contract.ts'

const run = promisify(execFile)
/** The data plane's policy knows noid's links by this prefix. */
const PREFIX = 'noid'
const LINKS_MAX = 256
const PREFIX6 = 64
/** As device.ts has it. */
const QUEUE = 4000

export interface HostNic {
  /** The caller's to close, after the data plane has its own. */
  readonly fd: number
  readonly ifname: string
  readonly mac: string
  /** What it is without. */
  readonly problem: string | undefined
}

/** A locally administered unicast MAC that only depends on the network. */
export function hostMac(network: string): string {
  const h = createHash('sha256').update(`host ${network}`).digest()
  return ['02', ...[...h.subarray(0, 5)].map((b) => b.toString(16).padStart(2, '0'))].join(':')
}

/** @throws TunTapError or SysError; nothing is left then */
export function openHostNic(n: NetworkSpec): HostNic {
  const mac = hostMac(n.id)
  const prefix = Number(n.subnet.split('/')[1])
  for (let i = 0; i < LINKS_MAX; i++) {
    const ifname = `${PREFIX}${i}`
    let fd: number
    try {
      fd = openTap({ name: ifname, exclusive: true, mac, mtu: n.mtu, vnetHdr: true, txQueueLen: QUEUE }).fd
    } catch (e) {
      // EBUSY: the name is taken.
      if (e instanceof TunTapError && (e.code === 'EBUSY' || e.code === 'EEXIST')) continue
      throw e
    }
    try {
      quiet6(ifname, n.ipv6 !== undefined)
      sysctl('ipv4', ifname, 'forwarding', 0)
      sysctl('ipv4', ifname, 'arp_ignore', 1)
      sysctl('ipv4', ifname, 'arp_announce', 2)
      sysctl('ipv4', ifname, 'rp_filter', 1)
      if (n.ipv4 !== false) must(`give ${ifname} an address`, setLinkAddress(ifname, n.hostAddress, prefix))
      must(`bring ${ifname} up`, setLinkUp(ifname))
      const six = n.ipv6 === undefined ? 0 : addLinkAddress6(ifname, n.ipv6.hostAddress, PREFIX6)
      return { fd, ifname, mac, problem: six < 0 ? `it has no IPv6 address there: ${errnoText(six)}` : undefined }
    } catch (e) {
      close(fd)
      throw e
    }
  }
  throw new Error(`there are ${LINKS_MAX} links named ${PREFIX}N already`)
}

/** No address but those that are given; `on`: those at once, without probing. */
function quiet6(ifname: string, on: boolean): void {
  if (!on) return sysctl('ipv6', ifname, 'disable_ipv6', 1)
  // linux/if_link.h: IN6_ADDR_GEN_MODE_NONE
  sysctl('ipv6', ifname, 'addr_gen_mode', 1)
  sysctl('ipv6', ifname, 'accept_ra', 0)
  sysctl('ipv6', ifname, 'autoconf', 0)
  sysctl('ipv6', ifname, 'accept_redirects', 0)
  sysctl('ipv6', ifname, 'accept_dad', 0)
  sysctl('ipv6', ifname, 'forwarding', 0)
}

/**
 * Remove the host's nic of a network, if it is there. The end of a data plane does that too, but only when the last of its threads
 * has let go of the descriptor, which is after the process is said to be dead.
 */
export async function removeHostNic(network: string): Promise<void> {
  const mac = hostMac(network)
  const { stdout } = await run('ip', ['-j', 'link', 'show'], { timeout: 5000 }).catch(() => ({ stdout: '[]' }))
  const links = JSON.parse(stdout) as { ifname: string; address?: string }[]
  for (const l of links)
    if (l.address === mac && l.ifname.startsWith(PREFIX))
      await run('ip', ['link', 'delete', l.ifname], { timeout: 5000 }).catch(() => {})
}

/** Refused where /proc/sys is read-only (a container): the device works all the same. */
function sysctl(family: 'ipv4' | 'ipv6', ifname: string, key: string, value: number): void {
  try {
    writeFileSync(`/proc/sys/net/${family}/conf/${ifname}/${key}`, String(value))
  } catch {
    // Without IPv6, or read-only.
  }
}
