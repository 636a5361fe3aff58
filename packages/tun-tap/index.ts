/**
 * Open and configure a TUN or TAP device and return its descriptor.
 *
 * Owns: the ioctls of linux/if_tun.h and those of netdevice(7) that a fresh device needs. Never does: reading or writing
 * frames. Read Documentation/networking/tuntap.rst and linux/virtio_net.h.
 * Invariant: either everything that was asked for holds, or the descriptor is closed and TunTapError is thrown. (A
 * device made persistent before a later step failed is unmade again when this call created it.)
 */
import { getSystemErrorMap } from 'node:util'
import { addressOf, close, ioctl, open, socket } from './libc.ts'

/** TUN_F_* (linux/if_tun.h): what the user side accepts unfinished. */
export const OFFLOAD = { CSUM: 0x01, TSO4: 0x02, TSO6: 0x04, USO4: 0x20, USO6: 0x40 } as const
/** Bytes of struct virtio_net_hdr in front of every frame when `vnetHdr` is on. */
export const VNET_HEADER = 10

export interface DeviceOptions {
  /** Up to 15 bytes; "tap%d" lets the kernel number it. Default "tap%d" or "tun%d". An existing persistent device is opened. */
  readonly name?: string
  /** Refuse when the device exists already. */
  readonly exclusive?: boolean
  /** The device outlives the descriptor. */
  readonly persist?: boolean
  /** virtio_net_hdr and all offloads the kernel knows. */
  readonly vnetHdr?: boolean
  /** One more queue of a multi-queue device. */
  readonly multiQueue?: boolean
  /** What is written to this queue goes through a NAPI instance of its own, which a thread of the kernel's may run (`/sys/class/net/NAME/threaded`). */
  readonly napi?: boolean
  /** Bytes that may have been written to each queue and not been received yet, EAGAIN beyond. Unbounded by default. */
  readonly sendBuffer?: number
  /** Who may open the persistent device without CAP_NET_ADMIN: uid, gid. */
  readonly owner?: number
  readonly group?: number
  /** TAP only: "02:00:00:00:00:01". */
  readonly mac?: string
  readonly mtu?: number
  /** Packets in the device's transmit queue. */
  readonly txQueueLen?: number
  /** IPv4 with prefix: "10.0.0.1/24". */
  readonly address?: string
  readonly up?: boolean
}

export interface Device {
  /** Non-blocking, close-on-exec. */
  readonly fd: number
  readonly name: string
  /** OFFLOAD bits that are on; 0 without vnetHdr. */
  readonly offloads: number
}

export class TunTapError extends Error {
  readonly errno: number
  readonly code: string
  readonly step: string

  constructor(step: string, errno: number) {
    const [code, text] = getSystemErrorMap().get(-errno) ?? [`errno ${errno}`, 'unknown error']
    super(`${step}: ${text} (${code})`)
    this.name = 'TunTapError'
    this.errno = errno
    this.code = code
    this.step = step
  }
}

const DEVICE = '/dev/net/tun'
const O_RDWR = 2
const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000
const EINVAL = 22
// linux/if_tun.h
const TUNSETIFF = 0x400454ca
const TUNSETPERSIST = 0x400454cb
const TUNSETOWNER = 0x400454cc
const TUNSETGROUP = 0x400454ce
const TUNSETOFFLOAD = 0x400454d0
const TUNGETIFF = 0x800454d2
const TUNSETSNDBUF = 0x400454d4
const TUNSETVNETHDRSZ = 0x400454d8
const TUNSETVNETLE = 0x400454dc
const IFF_TUN = 0x0001
const IFF_TAP = 0x0002
const IFF_NAPI = 0x0010
const IFF_MULTI_QUEUE = 0x0100
const IFF_NO_PI = 0x1000
const IFF_VNET_HDR = 0x4000
const IFF_TUN_EXCL = 0x8000
// linux/sockios.h, linux/if.h
const SIOCGIFFLAGS = 0x8913
const SIOCSIFFLAGS = 0x8914
const SIOCSIFADDR = 0x8916
const SIOCSIFNETMASK = 0x891c
const SIOCSIFMTU = 0x8922
const SIOCSIFHWADDR = 0x8924
const SIOCSIFTXQLEN = 0x8943
const IFF_UP = 0x1
const AF_INET = 2
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000
const ARPHRD_ETHER = 1
const IFNAMSIZ = 16

/** struct ifreq: the name, then a union at 16. Kept for ever: an address does not keep memory alive. */
const ifreq = new Uint8Array(new ArrayBuffer(64))
const view = new DataView(ifreq.buffer)
const at = addressOf(ifreq)

function check(step: string, r: number): number {
  if (r < 0) throw new TunTapError(step, -r)
  return r
}

function putName(name: string): void {
  if (name.length === 0 || Buffer.byteLength(name) >= IFNAMSIZ || /[\s/\0]/.test(name))
    throw new TunTapError(`use the name "${name}"`, EINVAL)
  ifreq.fill(0)
  ifreq.set(Buffer.from(name))
}

function putAddress(bytes: readonly number[]): void {
  ifreq.fill(0, 16, 40)
  view.setUint16(16, AF_INET, true)
  ifreq.set(bytes, 20)
}

function parseMac(text: string): number[] {
  const bytes = text.split(':').map((p) => (/^[0-9a-f]{2}$/i.test(p) ? Number.parseInt(p, 16) : Number.NaN))
  if (bytes.length !== 6 || bytes.some(Number.isNaN)) throw new TunTapError(`use the MAC address "${text}"`, EINVAL)
  return bytes
}

function parseCidr(text: string): { address: number[]; mask: number[] } {
  const m = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\/(\d{1,2})$/.exec(text)
  const n = m ? m.slice(1).map(Number) : []
  const prefix = n[4] ?? 33
  if (prefix > 32 || n.slice(0, 4).some((b) => b > 255)) throw new TunTapError(`use the address "${text}"`, EINVAL)
  const mask = prefix === 0 ? 0 : (-1 << (32 - prefix)) >>> 0
  return { address: n.slice(0, 4), mask: [mask >>> 24, (mask >>> 16) & 255, (mask >>> 8) & 255, mask & 255] }
}

/** Size and byte order of the header. */
function setVnetHeader(fd: number): void {
  const word = new Uint8Array(new ArrayBuffer(4))
  const value = new DataView(word.buffer)
  value.setInt32(0, VNET_HEADER, true)
  check('set the size of the vnet header', ioctl(fd, TUNSETVNETHDRSZ, addressOf(word)))
  value.setInt32(0, 1, true)
  ioctl(fd, TUNSETVNETLE, addressOf(word)) // legacy headers are native-endian otherwise; refused only where that is the same
}

/** The header, and the offloads the kernel knows; USO came with Linux 6.2. */
function enableOffloads(fd: number): number {
  setVnetHeader(fd)
  const { CSUM, TSO4, TSO6, USO4, USO6 } = OFFLOAD
  const all = CSUM | TSO4 | TSO6 | USO4 | USO6
  if (ioctl(fd, TUNSETOFFLOAD, all) >= 0) return all
  const withoutUso = CSUM | TSO4 | TSO6
  check('set offloads', ioctl(fd, TUNSETOFFLOAD, withoutUso))
  return withoutUso
}

function configure(name: string, o: DeviceOptions): void {
  const sock = check('open a socket', socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0))
  try {
    const set = (step: string, op: number): number => check(`${step} of ${name}`, ioctl(sock, op, at))
    putName(name)
    if (o.mac !== undefined) {
      const mac = parseMac(o.mac)
      view.setUint16(16, ARPHRD_ETHER, true)
      ifreq.set(mac, 18)
      set('set the MAC address', SIOCSIFHWADDR)
    }
    if (o.mtu !== undefined) {
      view.setInt32(16, o.mtu, true)
      set('set the MTU', SIOCSIFMTU)
    }
    if (o.txQueueLen !== undefined) {
      view.setInt32(16, o.txQueueLen, true)
      set('set the transmit queue', SIOCSIFTXQLEN)
    }
    if (o.address !== undefined) {
      const { address, mask } = parseCidr(o.address)
      putAddress(address)
      set('set the address', SIOCSIFADDR)
      putAddress(mask)
      set('set the netmask', SIOCSIFNETMASK)
    }
    if (o.up) {
      set('read the flags', SIOCGIFFLAGS)
      view.setUint16(16, view.getUint16(16, true) | IFF_UP, true)
      set('bring up', SIOCSIFFLAGS)
    }
  } finally {
    close(sock)
  }
}

function openDevice(mode: number, o: DeviceOptions): Device {
  const kind = mode === IFF_TAP ? 'tap' : 'tun'
  const fd = check(`open ${DEVICE}`, open(DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0))
  let persisted = false
  try {
    putName(o.name ?? `${kind}%d`)
    let flags = mode | IFF_NO_PI
    if (o.vnetHdr) flags |= IFF_VNET_HDR
    if (o.multiQueue) flags |= IFF_MULTI_QUEUE
    if (o.napi) flags |= IFF_NAPI
    if (o.exclusive) flags |= IFF_TUN_EXCL
    view.setUint16(16, flags, true)
    check(`make the ${kind} device ${o.name ?? ''}`.trim(), ioctl(fd, TUNSETIFF, at))
    const end = ifreq.indexOf(0)
    const name = Buffer.from(ifreq.subarray(0, end < 0 ? IFNAMSIZ : end)).toString()
    const offloads = o.vnetHdr ? enableOffloads(fd) : 0
    if (o.sendBuffer !== undefined) {
      view.setInt32(0, o.sendBuffer, true)
      check('set the send buffer', ioctl(fd, TUNSETSNDBUF, at))
    }
    if (o.owner !== undefined) check('set the owner', ioctl(fd, TUNSETOWNER, o.owner))
    if (o.group !== undefined) check('set the group', ioctl(fd, TUNSETGROUP, o.group))
    if (o.persist !== undefined) {
      persisted = o.persist && !isPersistent(fd)
      check('make it persistent', ioctl(fd, TUNSETPERSIST, o.persist ? 1 : 0))
    }
    configure(name, o)
    return { fd, name, offloads }
  } catch (error) {
    if (persisted) ioctl(fd, TUNSETPERSIST, 0)
    close(fd)
    throw error
  }
}

/** IFF_PERSIST of an attached descriptor. */
function isPersistent(fd: number): boolean {
  const r = new Uint8Array(new ArrayBuffer(64))
  return ioctl(fd, TUNGETIFF, addressOf(r)) >= 0 && (new DataView(r.buffer).getUint16(16, true) & 0x0800) !== 0
}

/** A TAP device: Ethernet frames. Throws TunTapError. */
export function openTap(options: DeviceOptions = {}): Device {
  return openDevice(IFF_TAP, options)
}

/**
 * The character device of a macvtap, by the path of a node of its own major and minor number. Frames carry a virtio_net_hdr; the
 * kernel finishes checksums and segments before it hands a frame over. Throws TunTapError.
 */
export function openTapNode(path: string): number {
  const fd = check(`open ${path}`, open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0))
  try {
    ifreq.fill(0)
    view.setUint16(16, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, true)
    check('set the flags of the macvtap', ioctl(fd, TUNSETIFF, at))
    setVnetHeader(fd)
    return fd
  } catch (error) {
    close(fd)
    throw error
  }
}

/** A TUN device: IP packets. Throws TunTapError. */
export function openTun(options: Omit<DeviceOptions, 'mac'> = {}): Device {
  return openDevice(IFF_TUN, options)
}

/**
 * Remove a persistent TAP of the current network namespace that nobody holds any more. False when there is none of that name;
 * throws TunTapError when it is held (EBUSY) or not ours (EPERM). A multi-queue device needs `multiQueue`.
 */
export function removeTap(name: string, options: { readonly multiQueue?: boolean } = {}): boolean {
  const sock = check('open a socket', socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0))
  try {
    putName(name)
    if (ioctl(sock, SIOCGIFFLAGS, at) < 0) return false
  } finally {
    close(sock)
  }
  const { fd } = openDevice(IFF_TAP, { name, persist: false, multiQueue: options.multiQueue })
  close(fd)
  return true
}
