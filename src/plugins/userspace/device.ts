/**
 * The device that a VM sees as its nic, made and opened in the current network namespace: a TAP, or, where no TAP can be opened,
 * a veth whose far end lies in the VM's second namespace under a packet socket.
 *
 * Everything is synchronous, because the caller's thread stands in a foreign namespace meanwhile (src/sys/netns.ts). It runs in the daemon
 * (root) and in opener.ts (rootless).
 *
 * Theory. The TAP persists: if whoever holds its descriptor dies, the guest keeps interface, address and routes, and the next
 * opener finds it again. A veth does so by nature. The far end speaks no protocol of its own: no ARP, no IPv6.
 *
 * A TAP has a second queue, for acknowledgments of long streams (netstack/tcp/streams.ts). What is written to the first is received by the guest's stack
 * within the write, which is the shortest way for one frame; what is written to the second, by a thread of the kernel's beside it, which spares whoever writes
 * what the guest does with it. There is one queue alone where the kernel has no such threads, where they may not be asked for, and where they would have no processor.
 */
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { openTap, TunTapError } from '#tun-tap'
import { SysError } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import { linkIndex, setLinkUp, setThreaded } from '../../sys/netdev.ts'
import { RouteSocket } from '../../sys/netlink.ts'
import { inNetns } from '../../sys/netns.ts'
import { openPackets } from '../../sys/packet.ts'

const EBUSY = 16

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
/**
 * Bytes of frames that wait for the kernel's thread: what one VM, whose rules may make its stack slow, keeps of the machine's memory. A thousand acknowledgments
 * with what the kernel adds to each; what comes on top is dropped, and the next one says the same.
 */
const WAITING = 1 << 20

export interface DeviceSpec {
  readonly ifname: string
  readonly mac: string
  readonly mtu: number
  /** Where the far end of a veth may live; absent: only a TAP will do. */
  readonly wireNetns?: string
}

export interface OpenDevice {
  /** The TAP's queues, that for streams last; or the packet sockets of one group in their order. */
  readonly fds: readonly number[]
  readonly kind: 'tap' | 'packet'
  readonly vnetHdr: boolean
  /** It was there before: a guest may have configured it already. */
  readonly existed: boolean
}

/** @throws TunTapError or SysError when neither kind can be made; nothing is left then */
export function openDevice(spec: DeviceSpec): OpenDevice {
  const link = linkIndex(spec.ifname)
  const existed = link >= 0
  try {
    return { fds: openQueues(spec, link), kind: 'tap', vnetHdr: true, existed }
  } catch (e) {
    // EINVAL: it is there and is no TAP, so it is the veth of an earlier time.
    const veth =
      e instanceof TunTapError && (e.step.startsWith('open /dev/net/tun') || (existed && e.code === 'EINVAL'))
    if (!veth || spec.wireNetns === undefined) throw e
    return openVeth(spec, spec.wireNetns, existed)
  }
}

/**
 * @param link index of the device when it is there
 * @throws TunTapError EBUSY when somebody holds it already
 */
function openQueues(spec: DeviceSpec, link: number): number[] {
  const was = link < 0 ? undefined : infoOf(link)
  // One of a single queue (of an earlier version of noid) the kernel refuses itself.
  if (was?.multiQueue && was.queues > 0) throw new TunTapError(`open ${spec.ifname}`, EBUSY)
  const several = was === undefined ? availableParallelism() > 1 : was.multiQueue
  const first = openOwnTap(spec, several)
  const second = several ? openStreams(spec.ifname) : undefined
  return second === undefined ? [first] : [first, second]
}

function infoOf(link: number): Pick<RouteSocket, 'multiQueue' | 'queues'> | undefined {
  const netlink = new RouteSocket()
  try {
    return netlink.linkInfo(link) < 0 ? undefined : netlink
  } finally {
    netlink.close()
  }
}

/** The queue for what streams are told, if there can be one. */
function openStreams(name: string): number | undefined {
  let fd: number | undefined
  try {
    ;({ fd } = openTap({ name, vnetHdr: true, multiQueue: true, napi: true, sendBuffer: WAITING }))
    if (setThreaded(name) >= 0) return fd
  } catch (e) {
    if (!(e instanceof TunTapError)) throw e
  }
  if (fd !== undefined) close(fd)
  return undefined
}

/**
 * SIOCSIFTXQLEN asks for rights over the whole machine (net/core/dev_ioctl.c), rtnetlink only for rights over the namespace: where
 * the first is refused, iproute2 does it. Without iproute2 the queue is the kernel's 500 frames.
 */
function openOwnTap(spec: DeviceSpec, multiQueue: boolean): number {
  const options = { name: spec.ifname, mac: spec.mac, mtu: spec.mtu, vnetHdr: true, persist: true, multiQueue }
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
