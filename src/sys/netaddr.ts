/**
 * IPv6 addresses of links, by rtnetlink(7): RTM_NEWADDR and RTM_DELADDR with the flags that ioctls do not have (linux/if_addr.h).
 *
 * Works on the current network namespace; results are ≥ 0 or −errno. Never does: deciding which address.
 */
import { close } from './fd.ts'
import { addressOf, Scratch } from './libc.ts'
import { linkIndex } from './netdev.ts'
import { addressBytes, recv, SOCK_RAW, send, socket } from './socket.ts'

const AF_INET6 = 10
const AF_NETLINK = 16
const NETLINK_ROUTE = 0
// linux/netlink.h
const NLM_F_REQUEST = 1
const NLM_F_ACK = 4
const NLM_F_REPLACE = 0x100
const NLM_F_CREATE = 0x400
const NLMSG_ERROR = 2
const HEADER = 16
// linux/rtnetlink.h, linux/if_addr.h
const RTM_NEWADDR = 20
const RTM_DELADDR = 21
const IFA_ADDRESS = 1
const IFA_LOCAL = 2
const IFA_FLAGS = 8
const IFA_F_NODAD = 0x02
const EBADMSG = 74

/** The request at 0 (68 bytes at most), its answer at 128. */
const s = new Scratch(384)
const ANSWER = 128

function change(type: number, flags: number, name: string, address: string, prefix: number): number {
  const index = linkIndex(name)
  if (index < 0) return index
  s.bytes.fill(0)
  // struct ifaddrmsg: family, prefix length, flags, scope, index
  s.bytes[HEADER] = AF_INET6
  s.bytes[HEADER + 1] = prefix
  s.setI32(HEADER + 4, index)
  let at = HEADER + 8
  for (const attribute of [IFA_LOCAL, IFA_ADDRESS]) {
    s.setU16(at, 20)
    s.setU16(at + 2, attribute)
    s.bytes.set(addressBytes(address), at + 4)
    at += 20
  }
  s.setU16(at, 8)
  s.setU16(at + 2, IFA_FLAGS)
  s.setI32(at + 4, IFA_F_NODAD)
  at += 8
  s.setI32(0, at)
  s.setU16(4, type)
  s.setU16(6, NLM_F_REQUEST | NLM_F_ACK | flags)
  const fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)
  if (fd < 0) return fd
  const base = addressOf(s.bytes)
  const sent = send(fd, base, at)
  const n = sent < 0 ? sent : recv(fd, base + ANSWER, 256)
  close(fd)
  if (n < 0) return n
  return n >= HEADER + 4 && s.u16(ANSWER + 4) === NLMSG_ERROR ? s.i32(ANSWER + HEADER) : -EBADMSG
}

/** Give the link an IPv6 address for ever, to be used at once: nobody is asked whether it is a duplicate. Again is no error. */
export const giveAddress6 = (name: string, address: string, prefix: number): number =>
  change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, name, address, prefix)

export const takeAddress6 = (name: string, address: string, prefix: number): number =>
  change(RTM_DELADDR, 0, name, address, prefix)
