/**
 * The device that a VM sees as its nic, made and opened in the current network namespace: a TAP, or, where no TAP can be opened,
 * a veth whose far end lies in the VM's second namespace under a packet socket.
 *
 * Everything is synchronous, because the caller's thread stands in a foreign namespace meanwhile (src/sys/netns.ts). It runs in the daemon
 * (root) and in opener.ts (rootless).
 *
 * Theory. The TAP persists: if whoever holds its descriptor dies, the guest keeps interface, address and routes, and the next
 * opener finds it again. A veth does so by nature. The far end speaks no protocol of its own: no ARP, no IPv6.
 */
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { openTap, TunTapError } from '#tun-tap'
import { SysError } from '../../sys/errno.ts'
import { linkIndex, setLinkUp } from '../../sys/netdev.ts'
import { inNetns } from '../../sys/netns.ts'
import { openPackets } from '../../sys/packet.ts'

/** The nic's name in the VM, unless another one is asked for. */
export const IFNAME = 'eth0'
/** The far end of its veth, in the second namespace. */
export const WIRE = 'wire0'
/**
 * Frames that wait for the data plane; a TAP drops what comes on top, it has no back pressure. With 64 to 100, eight flows lost 40,000
 * segments in 3 s (half the throughput), because ACKs of one direction fill it while the data plane is off the CPU for 3 ms. With 1000, a hundred
 * connections that begin at once lost a tenth of their frames on a busy machine; with 4000 none, and bulk is as fast.
 */
const QUEUE = 4000

export interface DeviceSpec {
  readonly ifname: string
  readonly mac: string
  readonly mtu: number
  /** Where the far end of a veth may live; absent: only a TAP will do. */
  readonly wireNetns?: string
}

export interface OpenDevice {
  /** The TAP, or the packet sockets of one group in their order. */
  readonly fds: readonly number[]
  readonly kind: 'tap' | 'packet'
  readonly vnetHdr: boolean
  /** It was there before: a guest may have configured it already. */
  readonly existed: boolean
}

/** @throws TunTapError or SysError when neither kind can be made; nothing is left then */
export function openDevice(spec: DeviceSpec): OpenDevice {
  const existed = linkIndex(spec.ifname) >= 0
  try {
    return { fds: [openOwnTap(spec)], kind: 'tap', vnetHdr: true, existed }
  } catch (e) {
    // EINVAL: it is there and is no TAP, so it is the veth of an earlier time.
    const veth =
      e instanceof TunTapError && (e.step.startsWith('open /dev/net/tun') || (existed && e.code === 'EINVAL'))
    if (!veth || spec.wireNetns === undefined) throw e
    return openVeth(spec, spec.wireNetns, existed)
  }
}

/**
 * SIOCSIFTXQLEN asks for rights over the whole machine (net/core/dev_ioctl.c), rtnetlink only for rights over the namespace: where
 * the first is refused, iproute2 does it. Without iproute2 the queue is the kernel's 500 frames.
 */
function openOwnTap(spec: DeviceSpec): number {
  const options = { name: spec.ifname, mac: spec.mac, mtu: spec.mtu, vnetHdr: true, persist: true }
  try {
    return openTap({ ...options, txQueueLen: QUEUE }).fd
  } catch (e) {
    if (!(e instanceof TunTapError && e.code === 'EPERM' && e.step.startsWith('set the transmit queue'))) throw e
  }
  const { fd } = openTap(options)
  try {
    ip('link', 'set', spec.ifname, 'txqueuelen', String(QUEUE))
  } catch {
    // As said above.
  }
  return fd
}

function openVeth(spec: DeviceSpec, wireNetns: string, existed: boolean): OpenDevice {
  if (existed && inNetns(wireNetns, () => linkIndex(WIRE)) < 0) {
    ip('link', 'delete', spec.ifname)
    existed = false
  }
  const mtu = String(spec.mtu)
  if (!existed)
    ip(
      'link',
      'add',
      spec.ifname,
      'mtu',
      mtu,
      'address',
      spec.mac,
      'type',
      'veth',
      'peer',
      WIRE,
      'mtu',
      mtu,
      'netns',
      wireNetns,
    )
  try {
    const fds = inNetns(wireNetns, () => {
      writeFileSync(`/proc/sys/net/ipv6/conf/${WIRE}/disable_ipv6`, '1')
      ip('link', 'set', WIRE, 'arp', 'off')
      const up = setLinkUp(WIRE)
      const opened = up < 0 ? up : openPackets(linkIndex(WIRE), true)
      if (typeof opened === 'number') throw new SysError('open a packet socket', opened)
      return opened
    })
    return { fds, kind: 'packet', vnetHdr: true, existed }
  } catch (e) {
    if (!existed) ip('link', 'delete', spec.ifname)
    throw e
  }
}

/** iproute2, in the current namespace: a child is forked by this thread. */
function ip(...args: string[]): void {
  execFileSync('ip', args, { stdio: ['ignore', 'ignore', 'pipe'], timeout: 5000 })
}
