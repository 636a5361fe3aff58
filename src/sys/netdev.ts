/**
 * Links and routes by ioctl: netdevice(7), ipv6(7), rtentry of linux/route.h. What a stage needs to configure one nic.
 *
 * Everything works on the current network namespace and returns ≥ 0 or −errno.
 */
import { close, ioctl, O_WRONLY, open, write } from './fd.ts'
import { addressOf, Scratch } from './libc.ts'
import { detached } from './mount.ts'
import { AF_INET, AF_INET6, addressBytes, SOCK_DGRAM, socket } from './socket.ts'

// linux/sockios.h
const SIOCADDRT = 0x890b
const SIOCGIFFLAGS = 0x8913
const SIOCSIFFLAGS = 0x8914
const SIOCSIFADDR = 0x8916
const SIOCSIFNETMASK = 0x891c
const SIOCGIFMTU = 0x8921
const SIOCSIFMTU = 0x8922
const SIOCSIFHWADDR = 0x8924
const SIOCGIFHWADDR = 0x8927
const SIOCGIFINDEX = 0x8933
const IFF_UP = 0x1
const ARPHRD_ETHER = 1
const IFNAMSIZ = 16
const EINVAL = 22
// linux/route.h: struct rtentry, 120 bytes on 64-bit
const RT_DST = 8
const RT_GATEWAY = 24
const RT_GENMASK = 40
const RT_FLAGS = 56
const RT_METRIC = 80
const RT_DEV = 88
const RTF_UP = 1
const RTF_GATEWAY = 2
const RTF_HOST = 4

/** struct ifreq (40 bytes) at 0, struct rtentry at 64, a device name at 192. */
const s = new Scratch(224)

function request(name: string, op: number): number {
  if (name.length === 0 || name.length >= IFNAMSIZ) return -EINVAL
  const fd = socket(AF_INET, SOCK_DGRAM)
  if (fd < 0) return fd
  s.bytes.fill(0, 0, 16)
  s.setText(0, name)
  const r = ioctl(fd, op, s.address)
  close(fd)
  return r
}

function putAddress(at: number, text: string): void {
  s.bytes.fill(0, at, at + 16)
  s.setU16(at, AF_INET)
  text.split('.').forEach((part, i) => {
    s.bytes[at + 4 + i] = Number(part)
  })
}

const maskText = (prefix: number): string => {
  const m = prefix === 0 ? 0 : (-1 << (32 - prefix)) >>> 0
  return [m >>> 24, (m >>> 16) & 255, (m >>> 8) & 255, m & 255].join('.')
}

/** Index of a link. */
export function linkIndex(name: string): number {
  const r = request(name, SIOCGIFINDEX)
  return r < 0 ? r : s.i32(16)
}

export function setLinkUp(name: string, up = true): number {
  const r = request(name, SIOCGIFFLAGS)
  if (r < 0) return r
  const flags = s.u16(16)
  s.setU16(16, up ? flags | IFF_UP : flags & ~IFF_UP)
  return request(name, SIOCSIFFLAGS)
}

/** Bytes of L3 payload. */
export function linkMtu(name: string): number {
  const r = request(name, SIOCGIFMTU)
  return r < 0 ? r : s.i32(16)
}

export function setLinkMtu(name: string, mtu: number): number {
  s.setI32(16, mtu)
  return request(name, SIOCSIFMTU)
}

/**
 * Have what arrives at the link's NAPI instances, now and later, received by threads of the kernel's. Linux 5.12 (`threaded` of
 * Documentation/ABI/testing/sysfs-class-net); rights over the namespace. The namespace's sysfs is mounted for that nowhere.
 */
export function setThreaded(name: string): number {
  const sysfs = detached('sysfs')
  if (sysfs < 0) return sysfs
  const fd = open(`/proc/self/fd/${sysfs}/class/net/${name}/threaded`, O_WRONLY)
  close(sysfs)
  if (fd < 0) return fd
  const r = write(fd, addressOf(ONE), 1)
  close(fd)
  return r
}
const ONE = Uint8Array.of(0x31)

/** The MAC address as 6 bytes, or −errno. */
export function linkMac(name: string): Uint8Array | number {
  const r = request(name, SIOCGIFHWADDR)
  return r < 0 ? r : s.bytes.slice(18, 24)
}

export function setLinkMac(name: string, mac: Uint8Array): number {
  s.bytes.fill(0, 16, 40)
  s.setU16(16, ARPHRD_ETHER)
  s.bytes.set(mac.subarray(0, 6), 18)
  return request(name, SIOCSIFHWADDR)
}

/** Replace the link's IPv4 address; "0.0.0.0" takes it away. */
export function setLinkAddress(name: string, address: string, prefix: number): number {
  putAddress(16, address)
  const r = request(name, SIOCSIFADDR)
  if (r < 0 || address === '0.0.0.0') return r
  putAddress(16, maskText(prefix))
  return request(name, SIOCSIFNETMASK)
}

/**
 * Add an IPv6 address to the link (struct in6_ifreq, linux/ipv6.h), beside those that it has; −EEXIST when it is there. Whether it is
 * probed for duplicates first is the link's accept_dad.
 */
export function addLinkAddress6(name: string, address: string, prefix: number): number {
  const index = linkIndex(name)
  if (index < 0) return index
  const fd = socket(AF_INET6, SOCK_DGRAM)
  if (fd < 0) return fd
  s.bytes.set(addressBytes(address), 0)
  s.setI32(16, prefix)
  s.setI32(20, index)
  const r = ioctl(fd, SIOCSIFADDR, s.address)
  close(fd)
  return r
}

/** An IPv4 route through the link; "0.0.0.0"/0 is the default route. Without a gateway the destination is on the link. */
export function addRoute(name: string, destination: string, prefix: number, gateway?: string): number {
  const at = 64
  s.bytes.fill(0, at, at + 120)
  putAddress(at + RT_DST, destination)
  putAddress(at + RT_GENMASK, maskText(prefix))
  if (gateway !== undefined) putAddress(at + RT_GATEWAY, gateway)
  s.setU16(at + RT_FLAGS, RTF_UP | (gateway === undefined ? 0 : RTF_GATEWAY) | (prefix === 32 ? RTF_HOST : 0))
  s.setU16(at + RT_METRIC, 0)
  s.setText(192, name)
  s.setWord(at + RT_DEV, s.address + 192)
  const fd = socket(AF_INET, SOCK_DGRAM)
  if (fd < 0) return fd
  const r = ioctl(fd, SIOCADDRT, s.address + at)
  close(fd)
  return r
}
